import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from naive import naive_ap, naive_iou
from vmr_zoo.errors import VmrError
from vmr_zoo.metrics import per_query
from vmr_zoo.metrics.moment import MomentMetrics
from vmr_zoo.metrics.per_query import mean, query_scores
from vmr_zoo.metrics.settings import AP_THRESHOLDS, MetricSettings, Rounding

# Even seconds, so that ties and IoUs exactly at a threshold are common, and every length bucket occurs.
second = st.integers(0, 40).map(lambda n: 2.0 * n)
window = st.tuples(second, second).map(sorted)
moment = window.filter(lambda w: w[0] < w[1])
queries = st.lists(
    st.tuples(st.lists(window, min_size=7, max_size=7), st.lists(moment, max_size=4)), min_size=1, max_size=4
)


def stack(rows):
    """Lists of queries to the padded arrays that `query_scores` takes."""
    windows = np.array([w for w, _ in rows], dtype=float)
    most = max(1, *(len(m) for _, m in rows))
    targets, mask = np.zeros((len(rows), most, 2)), np.zeros((len(rows), most), dtype=bool)
    for i, (_, moments) in enumerate(rows):
        for j, m in enumerate(moments):
            targets[i, j], mask[i, j] = m, True
    return windows, targets, mask


def naive_scores(windows, moments):
    best = [max((naive_iou(w, m) for m in moments), default=math.nan) for w in windows]
    named = {f"R1@{t}": float(best[0] >= t) for t in (0.1, 0.3, 0.5, 0.7)}
    named |= {f"R5@{t}": float(max(best[:5]) >= t) for t in (0.5, 0.7)}
    named |= {"mIoU": best[0]}
    if not moments:
        named = dict.fromkeys(named, math.nan)

    def ap(kept, thresholds=AP_THRESHOLDS):
        return np.mean([naive_ap(windows, kept, t) for t in thresholds]) if kept else math.nan

    named |= {
        "mAP@0.5": ap(moments, [0.5]),
        "mAP@0.7": ap(moments, [0.7]),
        "mAP@0.75": ap(moments, [0.75]),
        "mAP": ap(moments),
    }
    for bucket, (above, upto) in {"short": (0, 10), "middle": (10, 30), "long": (30, 1e9)}.items():
        named[f"mAP/{bucket}"] = ap([m for m in moments if above < m[1] - m[0] <= upto])
    return named


@settings(deadline=None)
@given(queries)
def test_scores_equal_the_loops(rows):
    got = query_scores(*stack(rows), MetricSettings())
    for i, row in enumerate(rows):
        expected = naive_scores(*row)
        assert list(got) == list(expected)
        assert {k: float(v[i]) for k, v in got.items()} == pytest.approx(expected, nan_ok=True)


@settings(deadline=None)
@given(queries)
def test_padding_and_company_change_nothing(rows):
    windows, targets, mask = stack(rows)
    together = query_scores(
        np.pad(windows, ((0, 0), (0, 3), (0, 0))),
        np.pad(targets, ((0, 0), (0, 2), (0, 0)), constant_values=7.0),
        np.pad(mask, ((0, 0), (0, 2))),
        MetricSettings(),
    )
    for i, row in enumerate(rows):
        for name, value in query_scores(*stack([row]), MetricSettings()).items():
            np.testing.assert_allclose(together[name][i], value[0], rtol=1e-12)


def test_queries_compared_in_parts_score_the_same(monkeypatch):
    draw = np.random.default_rng(0)
    windows, targets = (np.sort(60 * draw.random((7, n, 2))) for n in (10, 3))
    args = windows, targets, draw.random((7, 3)) < 0.7, MetricSettings(), draw.random((7, 10))
    whole = query_scores(*args)
    monkeypatch.setattr(per_query, "QUERIES_PER_CHUNK", 3)
    parts = query_scores(*args)
    assert whole.keys() == parts.keys()
    for name, values in whole.items():
        np.testing.assert_array_equal(parts[name], values)


def test_average_precision_ranks_by_score_and_reads_only_the_first_windows():
    windows = np.array([[[0.0, 2.0], [10.0, 20.0], [30.0, 40.0]]])
    targets = np.array([[[10.0, 20.0], [30.0, 40.0]]])
    mask = np.ones((1, 2), dtype=bool)
    scores = np.array([[0.1, 0.9, 0.8]])

    def ap(count):
        return query_scores(windows, targets, mask, MetricSettings(windows=count), scores)["mAP"][0]

    assert (ap(3), ap(2), ap(1)) == (1.0, 0.5, 0.0)


def test_a_hit_is_an_iou_at_the_threshold():
    got = query_scores(
        np.array([[[0.0, 7.0]]]), np.array([[[0.0, 10.0]]]), np.array([[True]]), MetricSettings()
    )
    assert got["R1@0.7"][0] == 1
    assert got["mAP"][0] == 0.5  # 0.5, 0.55, 0.6, 0.65 and 0.7


@settings(deadline=None)
@given(queries)
def test_the_torchmetrics_class_adds_up_to_the_mean(rows):
    windows, targets, mask = stack(rows)
    duration = 81.5
    metric = MomentMetrics()
    for i in range(len(rows)):
        metric.update(
            {"spans": torch.tensor(windows[i : i + 1] / duration).float()},
            {
                "spans": torch.tensor(targets[i : i + 1] / duration).float(),
                "span_mask": torch.tensor(mask[i : i + 1]),
                "duration": torch.tensor([duration]),
            },
        )
    got = {name: value.item() for name, value in metric.compute().items()}
    expected = mean(query_scores(windows, targets, mask, MetricSettings()))
    assert {k: v for k, v in got.items() if not math.isnan(v)} == pytest.approx(expected)


def test_predictions_are_rounded_as_the_data_set_asks():
    metric = MomentMetrics(rounding=Rounding(4, (0, 150), 2))
    spans, duration = torch.tensor([[[0.0, 0.35], [0.29, 1.0]]]), torch.tensor([150.0])
    assert metric.windows({"spans": spans}, {"duration": duration}).tolist() == [[[0, 52], [44, 150]]]


@settings(deadline=None)
@given(
    st.lists(st.floats(-200, 400), min_size=1), st.sampled_from([None, 1.0, 2.0]), st.sampled_from([None, 4])
)
def test_rounding_twice_changes_nothing(values, multiple, decimals):
    rounding = Rounding(decimals, (0, 150), multiple)
    once = rounding.apply(np.array(values))
    np.testing.assert_array_equal(rounding.apply(once), once)
    assert ((once >= 0) & (once <= 150)).all()


@pytest.mark.parametrize("wrong", [{"r1_thresholds": (0.0,)}, {"r5_thresholds": (70,)}, {"windows": 0}])
def test_settings_that_mean_nothing_are_refused(wrong):
    with pytest.raises(VmrError, match="Expected"):
        MetricSettings(**wrong)
