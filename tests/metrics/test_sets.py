"""Sets of moments against naive implementations, and the choice of the score from which windows count."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmr_zoo.engine.moment_sets import query_sets, rule_from_header, set_metrics, set_rule
from vmr_zoo.errors import VmrError
from vmr_zoo.metrics.sets import ONLY_BEST, SET_METRICS, choose_set_threshold, predicted_set, set_scores
from vmr_zoo.metrics.settings import MetricSettings

second = st.integers(0, 12)
span = st.tuples(second, second).map(sorted).filter(lambda s: s[0] < s[1])
spans = st.lists(span, min_size=1, max_size=4)
scored = st.lists(st.tuples(span, st.integers(1, 5)), min_size=1, max_size=4)


def array(rows):
    return np.array(rows, dtype=float)


def iou(a, b):
    overlap = max(0, min(a[1], b[1]) - max(a[0], b[0]))
    return overlap / (a[1] - a[0] + b[1] - b[0] - overlap)


def naive(windows, moments):
    """By the definition: every one-to-one matching is tried, and whole seconds are counted."""
    short, long = sorted((windows, moments), key=len)
    matchings = [
        [iou(a, b) for a, b in zip(short, chosen, strict=True)]
        for chosen in itertools.permutations(long, len(short))
    ]
    most = max(map(sum, matchings))
    f1s = set()
    for best in (one for one in matchings if math.isclose(sum(one), most)):
        hits = [sum(value >= m for value in best) for m in (0.3, 0.5, 0.7)]
        precision, recall = np.array(hits) / len(windows), np.array(hits) / len(moments)
        with np.errstate(invalid="ignore"):
            f1s.add(tuple(np.nan_to_num(2 * precision * recall / (precision + recall))))
    covered = [{s for start, end in own for s in range(start, end)} for own in (windows, moments)]
    same = float(len(windows) == len(moments))
    return f1s, same, len(covered[0] & covered[1]) / len(covered[0] | covered[1])


@settings(max_examples=40, deadline=None)
@given(spans, spans)
def test_scores_are_those_of_the_definition(windows, moments):
    found = set_scores(array(windows), array(moments))
    assert tuple(found) == SET_METRICS
    f1s, same, covered = naive(windows, moments)
    f1 = [found[f"tF1@{m}"] for m in (0.3, 0.5, 0.7)]
    assert any(np.allclose(f1, one) for one in f1s)  # several matchings may have the largest IoU
    assert found["C-Acc"] == same
    assert found["EtF1"] == pytest.approx(same * np.mean(f1))
    assert found["tIoU"] == pytest.approx(covered)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(scored, spans), min_size=1, max_size=4))
def test_no_other_score_has_a_higher_mean_and_ties_go_to_fewer_windows(queries):
    rows = [(array([[*s, score] for s, score in windows]), array(moments)) for windows, moments in queries]

    def mean(threshold):
        return np.mean([set_scores(predicted_set(w, threshold), m)["EtF1"] for w, m in rows])

    chosen = choose_set_threshold(rows)
    scores = {c: mean(c) for c in (*range(1, 6), ONLY_BEST)}
    best = max(scores.values())
    assert mean(chosen) == pytest.approx(best)
    assert chosen == max(c for c, value in scores.items() if value == pytest.approx(best)) or all(
        value < best - 1e-9 for c, value in scores.items() if c > chosen
    )


def test_an_answer_that_could_not_be_read_is_an_empty_set():
    unread = predicted_set(array([[0, 0, 0]]), -math.inf)
    assert unread.shape == (0, 2)
    assert set(set_scores(unread, array([[2, 5]])).values()) == {0.0}
    padded = array([[0, 4, 0.2], [5, 9, 0.8], [0, 0, 0.0]])
    assert predicted_set(padded, -math.inf).tolist() == [[5, 9], [0, 4]]
    assert predicted_set(padded, ONLY_BEST).tolist() == [[5, 9]]


def row(split, windows, moments):
    return {"split": split, "query_id": "q", "pred_relevant_windows": windows, "moments": moments}


def test_the_score_is_chosen_on_the_selection_split_alone():
    two = [[0, 4, 0.9], [6, 9, 0.4], [1, 9, 0.1]]
    chosen_on = [
        row("selection", two, [[0, 4], [6, 9]]),
        row("selection", [[0, 4, 0.8], [7, 9, 0.3]], [[0, 4]]),
    ]
    rule = set_rule(MetricSettings(sets="selection"), chosen_on)
    assert rule.header == {"from": "selection", "score": 0.4}
    assert rule_from_header({"moment_sets": rule.header}) == rule
    tests = [row("iid", [[0, 4, 0.9], [6, 9, 0.35]], [[0, 4], [6, 9]])]  # 0.35 would be better here
    assert set_metrics(tests, rule)["iid"]["C-Acc"] == 0
    assert set_metrics(chosen_on, rule)["selection"]["EtF1"] == 100
    assert set_rule(MetricSettings(sets="selection"), []) is None
    assert set_rule(MetricSettings(), chosen_on) is None
    listed = set_rule(MetricSettings(sets="listed"), [])
    assert query_sets(tests, listed)["C-Acc"].tolist() == [1.0]
    assert rule_from_header({"moment_sets": listed.header}) == listed
    given_score = set_rule(MetricSettings(sets=0.35), [])
    assert query_sets([*tests, row("iid", two, [])], given_score)["EtF1"].tolist() == pytest.approx(
        [1.0, np.nan], nan_ok=True
    )
    with pytest.raises(VmrError, match=r"metrics\.sets 'all'"):
        MetricSettings(sets="all")
