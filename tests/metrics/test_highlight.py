import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmr_zoo.metrics.highlight import highlight_scores

# Few distinct scores, so that ties are common.
clip = st.tuples(st.integers(-2, 2), st.lists(st.integers(0, 4), min_size=3, max_size=3))
videos = st.lists(st.lists(clip, min_size=1, max_size=8), min_size=1, max_size=4)


def naive_ap(scores, positive):
    """Mean, over the distinct recalls that a threshold reaches, of the best precision there or beyond."""
    points = []
    for threshold in sorted(set(scores), reverse=True):
        chosen = [p for s, p in zip(scores, positive, strict=True) if s >= threshold]
        points.append((sum(chosen), sum(chosen) / len(chosen)))
    recalls = sorted({found for found, _ in points if found})
    return np.mean([max(p for f, p in points if f >= r) for r in recalls]) if recalls else 0.0


@settings(deadline=None)
@given(videos)
def test_scores_equal_the_loops(rows):
    clips = np.array([len(row) for row in rows])
    scores = np.full((len(rows), clips.max()), 9.0)  # padding that would win if it counted
    ratings = np.zeros((len(rows), clips.max(), 3), dtype=int)
    for i, row in enumerate(rows):
        scores[i, : len(row)] = [s for s, _ in row]
        ratings[i, : len(row)] = [r for _, r in row]
    top = np.array([np.argmax([s for s, _ in row]) for row in rows])
    got = highlight_scores(scores, top, ratings, clips)
    for suffix, level in {"": 4, "/Good": 3, "/Fair": 2}.items():
        for i, row in enumerate(rows):
            aps = [naive_ap([s for s, _ in row], [r[a] >= level for _, r in row]) for a in range(3)]
            assert got[f"highlight_mAP{suffix}"][i] == pytest.approx(np.mean(aps))
            assert got[f"HIT@1{suffix}"][i] == (max(row[top[i]][1]) >= level)


def test_a_top_clip_past_the_end_misses():
    ratings = np.full((1, 2, 3), 4)
    got = highlight_scores(np.zeros((1, 2)), np.array([2]), ratings, np.array([2]))
    assert (got["HIT@1"][0], got["highlight_mAP"][0]) == (0, 1)
