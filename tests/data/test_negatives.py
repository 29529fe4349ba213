from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vmr_zoo.data.annotations.records import Query
from vmr_zoo.data.batches.negatives import NegativeSampling, same_video_pairs
from vmr_zoo.errors import VmrError

CHARADES = Path(__file__).parents[3] / "shared/data/charades/charades_sta_train.txt"


def query(number: int, video: str, text: str, *moments: tuple[float, float]) -> Query:
    return Query(f"q{number}", video, text, moments, 30.0)


QUERIES = [
    query(0, "a", "opens a door", (0, 10)),
    query(1, "a", "opens the door", (20, 30)),  # other time, same meaning
    query(2, "a", "sits down", (1, 9)),  # same time, other meaning
    query(3, "a", "eats", (9, 18)),  # a good negative for all but itself
    query(4, "b", "sneezes", (0, 5)),  # alone on its video
    query(5, "c", "runs", (0, 4), (10, 14)),
    query(6, "c", "jumps", (10, 14)),  # overlaps one of two moments
]


class Meaning:
    """One axis per meaning; counts its calls."""

    calls = 0

    def sentences(self, texts):
        self.calls += 1
        axes = {text.split()[0]: i for i, text in enumerate(sorted(texts))}
        return np.eye(len(texts), dtype=np.float32)[[axes[text.split()[0]] for text in texts]] * 3


def candidates(pool) -> list[list[int]]:
    return [pool.candidates[a:b].tolist() for a, b in zip(pool.offsets[:-1], pool.offsets[1:], strict=True)]


def test_candidates_meet_both_principles():
    encoder = Meaning()
    pool = NegativeSampling(iou_below=0.5, similarity_below=0.7, encoder=encoder).pool(QUERIES)
    assert candidates(pool) == [[3], [2, 3], [1, 3], [0, 1, 2], [], [], []]
    assert pool.counts == {
        "queries": 7,
        "with_same_video": 6,
        "and_iou_below": 4,
        "and_similarity_below": 4,
        "candidates": 8,
    }
    assert encoder.calls == 1


def test_the_released_draw_takes_listed_negatives_before_queries_of_other_videos():
    queries = [replace(QUERIES[0], negatives=("q6", "q1")), *QUERIES[1:]]
    pool = NegativeSampling(source="other_video", similarity_below=None).pool(queries)
    assert pool.choices(0).tolist() == [6, 1]
    assert pool.choices(5).tolist() == [0, 1, 2, 3, 4]
    for row in range(7):
        choices = pool.choices(row)
        draws = (np.arange(len(choices)) + 0.5) / len(choices)
        rows = np.full(len(choices), row)
        assert pool.draw(rows, draws, draws).tolist() == choices.tolist()
    with pytest.raises(VmrError, match="'neg_query_ids' of query q0 names q9"):
        NegativeSampling(source="other_video").pool([replace(QUERIES[0], negatives=("q9",)), *QUERIES[1:]])


def test_without_thresholds_every_other_query_of_the_video_is_a_candidate():
    pool = NegativeSampling(iou_below=None, similarity_below=None).pool(QUERIES)
    assert candidates(pool) == [[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2], [], [6], [5]]


def test_each_candidate_is_drawn_equally_often_and_none_is_minus_one():
    pool = NegativeSampling(iou_below=None, similarity_below=None, when_none="skip").pool(QUERIES)
    grid = (np.arange(999) + 0.5) / 999
    drawn = pool.draw(np.full(999, 3), grid, grid)
    assert np.unique(drawn, return_counts=True)[1].tolist() == [333, 333, 333]
    assert pool.draw(np.array([4]), np.zeros(1), np.zeros(1)).tolist() == [-1]


@pytest.mark.parametrize("row", range(7))
def test_other_videos_queries_are_drawn_equally_often(row):
    pool = NegativeSampling(source="other_video").pool(QUERIES)
    others = [i for i, q in enumerate(QUERIES) if q.video_id != QUERIES[row].video_id]
    grid = (np.arange(len(others) * 10) + 0.5) / (len(others) * 10)
    drawn, counts = np.unique(pool.draw(np.full(len(grid), row), grid, grid), return_counts=True)
    assert drawn.tolist() == others
    assert set(counts) == {10}


def test_fall_back_draws_another_video_only_where_there_is_no_candidate():
    pool = NegativeSampling(similarity_below=None).pool(QUERIES)
    drawn = pool.draw(np.array([0, 4]), np.array([0.9, 0.9]), np.array([0.0, 0.99]))
    assert drawn.tolist() == [3, 6]


def test_pairs_are_all_ordered_pairs_of_one_video():
    video = np.array([1, 0, 1, 2, 0, 1])
    left, right = same_video_pairs(video)
    expected = [(i, j) for i in range(6) for j in range(6) if i != j and video[i] == video[j]]
    assert list(zip(left.tolist(), right.tolist(), strict=True)) == expected


def test_bad_options_are_refused_by_name():
    with pytest.raises(VmrError, match="same_video"):
        NegativeSampling(source="same_vide")
    with pytest.raises(VmrError, match=r"negatives\.encoder"):
        NegativeSampling().pool(QUERIES)
    with pytest.raises(VmrError, match="one video"):
        NegativeSampling(source="other_video").pool(QUERIES[:4])


@pytest.mark.skipif(not CHARADES.exists(), reason="needs ../shared/data/charades")
def test_charades_queries_with_a_same_video_query_of_low_iou():
    """7,852 of 12,408, as in the notes on BM-DETR's released code."""
    queries = []
    for i, line in enumerate(CHARADES.read_text().splitlines()):
        head, text = line.split("##")
        video, start, end = head.split()
        queries.append(query(i, video, text, (float(start), float(end))))
    counts = NegativeSampling(iou_below=0.5, similarity_below=None).pool(queries).counts
    assert (counts["queries"], counts["and_iou_below"]) == (12408, 7852)
