"""Moment retrieval metrics, one score per query: pure numpy functions, vectorised over queries.

The metric of a data set is the mean score over the queries to which it applies (`mean`). A score that does
not apply, such as mAP/short for a query without a short moment, is NaN. Scores per query allow paired
comparisons of methods.

Sizes: B queries, K predicted windows, N moments (padded), T IoU thresholds. Everything is in seconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vmr_zoo.metrics.settings import AP_THRESHOLDS, MetricSettings

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

FULL = "full"
LENGTHS = {FULL: (-np.inf, np.inf), "short": (0.0, 10.0), "middle": (10.0, 30.0), "long": (30.0, np.inf)}
"""Range of moment lengths in seconds by bucket, lower bound excluded (QVHighlights, Lei et al. 2021)."""


QUERIES_PER_CHUNK = 4096
"""Queries compared at a time; the comparison takes tens of times the memory of its result."""


@dataclass(frozen=True, slots=True)
class MomentScores:
    """The values from which all moment metrics of one length bucket are computed.

    Attributes:
        iou: (B, K) largest IoU of each window with any moment; NaN for queries without a moment.
        ap: (B, T) average precision at `AP_THRESHOLDS`; NaN for queries without a moment.
    """

    iou: Floats
    ap: Floats


def pad_lists(lists: Sequence[Sequence[Any]], width: int) -> tuple[Floats, Bools]:
    """Zero-pads lists of n_i rows to (B, max n, width); returns also the mask (B, max n), True = valid."""
    counts = np.array([len(one) for one in lists])
    mask = np.arange(counts.max()) < counts[:, None]
    padded = np.zeros((*mask.shape, width))
    padded[mask] = np.array([item for one in lists for item in one], dtype=np.float64).reshape(-1, width)
    return padded, mask


def is_window(start: Any, end: Any, score: Any) -> Any:
    """Returns whether a window, or each of many, is a prediction: empty ones of score 0 pad short lists."""
    return (score != 0) | (end > start)


def pairwise_iou(windows: Floats, targets: Floats) -> Floats:
    """Returns the IoU (..., K, N) of all windows (..., K, 2) and targets (..., N, 2); 0 if both are empty."""
    overlap, union, _ = _overlap(windows, targets)
    return _ratio(overlap, union)


def _overlap(windows: Floats, targets: Floats) -> tuple[Floats, Floats, Floats]:
    """Returns overlap, union and hull, each (..., K, N), of windows (..., K, 2) and targets (..., N, 2)."""
    start, end = windows[..., :, None, 0], windows[..., :, None, 1]
    target_start, target_end = targets[..., None, :, 0], targets[..., None, :, 1]
    overlap = np.maximum(np.minimum(end, target_end) - np.maximum(start, target_start), 0.0)
    union = (end - start) + (target_end - target_start) - overlap
    hull = np.maximum(end, target_end) - np.minimum(start, target_start)
    return overlap, union, hull


def _ratio(part: Floats, whole: Floats) -> Floats:
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)


def window_average_precision(iou: Floats, target_mask: Bools, thresholds: Floats) -> Floats:
    """Interpolated average precision of ranked windows, per query and IoU threshold.

    In rank order, each window is matched to the free moment with the largest IoU, and is a true positive if
    that IoU reaches the threshold. Precision is made non-increasing before it is averaged over recall (the
    evaluation of ActivityNet detection, which QVHighlights uses).

    Args:
        iou: (B, K, N) of every window, best score first, with every moment; a padded window has IoU 0.
        target_mask: (B, N), True = valid.
        thresholds: (T,) above 0.

    Returns:
        (B, T) in [0, 1]; NaN for queries without a moment.
    """
    rows, ranks, _ = iou.shape
    taken = np.repeat(~target_mask[:, None, :], len(thresholds), axis=1)
    right = np.zeros((rows, len(thresholds), ranks))
    for rank in range(ranks):
        free = np.where(taken, -1.0, iou[:, None, rank, :])
        # Ties go to the last moment, as in the reversed ascending sort of the official evaluator.
        choice = free.shape[2] - 1 - free[:, :, ::-1].argmax(2)
        hit = np.take_along_axis(free, choice[..., None], 2)[..., 0] >= thresholds
        row, level = hit.nonzero()
        taken[row, level, choice[row, level]] = True
        right[:, :, rank] = hit
    found = right.cumsum(2)
    precision = np.maximum.accumulate((found / np.arange(1, ranks + 1))[:, :, ::-1], axis=2)[:, :, ::-1]
    moments = target_mask.sum(1)
    recall = found / np.maximum(moments, 1)[:, None, None]
    ap = (np.diff(recall, axis=2, prepend=0.0) * precision).sum(2)
    ap[moments == 0] = np.nan
    return ap


def moment_scores(
    windows: Floats, targets: Floats, target_mask: Bools, scores: Floats | None = None, ap_windows: int = 10
) -> dict[str, MomentScores]:
    """Compares ranked windows with the moments, for each length bucket.

    Args:
        windows: (B, K, 2) seconds, in the order of the predictions; padding is an empty window.
        targets: (B, N, 2) seconds.
        target_mask: (B, N), True = valid.
        scores: (B, K), by which average precision ranks the first `ap_windows` windows; -inf on padding. None
            if the windows are already in that order.
        ap_windows: windows that average precision uses.

    Returns:
        Scores by bucket name, "full" first.
    """
    shape = windows.shape[:2]
    result = {
        bucket: MomentScores(np.empty(shape), np.empty((len(windows), len(AP_THRESHOLDS))))
        for bucket in LENGTHS
    }
    for at in range(0, len(windows), QUERIES_PER_CHUNK):
        part = slice(at, at + QUERIES_PER_CHUNK)
        ranking = None if scores is None else scores[part]
        found = _moment_scores(windows[part], targets[part], target_mask[part], ranking, ap_windows)
        for bucket, one in found.items():
            result[bucket].iou[part] = one.iou
            result[bucket].ap[part] = one.ap
    return result


def _moment_scores(
    windows: Floats, targets: Floats, target_mask: Bools, scores: Floats | None, ap_windows: int
) -> dict[str, MomentScores]:
    """Computes `moment_scores` of one chunk of queries."""
    overlap, union, hull = _overlap(windows, targets)
    # Union and hull are equal for overlapping spans, except for rounding. The official evaluator divides by
    # the hull for recall and by the union for average precision. With other divisors, hits exactly at a
    # threshold may differ.
    recall_iou = _ratio(overlap, hull)
    ap_iou = _ratio(overlap, union)[:, :ap_windows]
    if scores is not None:
        order = np.argsort(-scores[:, :ap_windows], axis=1, kind="stable")
        ap_iou = np.take_along_axis(ap_iou, order[:, :, None], 1)
    length = targets[..., 1] - targets[..., 0]
    thresholds = np.array(AP_THRESHOLDS)
    result = {}
    for bucket, (above, upto) in LENGTHS.items():
        mask = target_mask & (length > above) & (length <= upto)
        some = mask.any(1)
        iou = np.full(windows.shape[:2], np.nan)
        ap = np.full((len(windows), len(thresholds)), np.nan)
        if some.any():
            iou[some] = np.where(mask[some, None, :], recall_iou[some], 0.0).max(2)
            ap[some] = window_average_precision(ap_iou[some], mask[some], thresholds)
        result[bucket] = MomentScores(iou, ap)
    return result


def name_scores(scores: Mapping[str, MomentScores], settings: MetricSettings) -> dict[str, Floats]:
    """Computes the metrics from the result of `moment_scores`.

    Returns:
        (B,) scores in [0, 1] by metric name, as in `metric_names`; NaN where a metric does not apply.
    """
    full = scores[FULL]
    none = np.isnan(full.iou[:, 0])
    named = {}
    for top, thresholds in ((1, settings.r1_thresholds), (5, settings.r5_thresholds)):
        best = full.iou[:, :top].max(1)
        for threshold in thresholds:
            named[f"R{top}@{threshold:g}"] = np.where(none, np.nan, best >= threshold)
    named["mIoU"] = full.iou[:, 0]
    for threshold in settings.map_thresholds:
        named[f"mAP@{threshold:g}"] = full.ap[:, AP_THRESHOLDS.index(threshold)]
    named["mAP"] = full.ap.mean(1)
    for bucket in LENGTHS:
        if bucket != FULL:
            named[f"mAP/{bucket}"] = scores[bucket].ap.mean(1)
    return named


def query_scores(
    windows: Floats,
    targets: Floats,
    target_mask: Bools,
    settings: MetricSettings,
    scores: Floats | None = None,
) -> dict[str, Floats]:
    """Scores every query on every moment metric.

    Args:
        windows: (B, K, 2) seconds, best first; padding is an empty window.
        targets: (B, N, 2) seconds.
        target_mask: (B, N), True = valid.
        settings: which metrics are computed.
        scores: (B, K), by which average precision ranks the windows; None if they are already ranked.

    Returns:
        (B,) scores in [0, 1] by metric name; NaN where a metric does not apply.

    >>> windows = np.array([[[0.0, 4.0], [0.0, 10.0]]])
    >>> moments = np.array([[[0.0, 10.0]]])
    >>> scores = query_scores(windows, moments, np.array([[True]]), MetricSettings())
    >>> [float(scores[name][0]) for name in ("R1@0.3", "R1@0.5", "R5@0.7", "mIoU", "mAP", "mAP/long")]
    [1.0, 0.0, 1.0, 0.4, 0.5, nan]
    """
    return name_scores(moment_scores(windows, targets, target_mask, scores, settings.windows), settings)


def metric_names(settings: MetricSettings) -> tuple[str, ...]:
    """Returns the names of the scores of `query_scores`, in order."""
    empty = np.zeros((1, 1, 2))
    return tuple(query_scores(empty, empty, np.ones((1, 1), dtype=bool), settings))


def mean(scores: Mapping[str, Floats]) -> dict[str, float]:
    """Averages scores per query to percentages; metrics that apply to no query are omitted.

    >>> none = np.full(2, np.nan)
    >>> mean({"R1@0.5": np.array([1, 0.0]), "mAP/short": np.array([0.5, np.nan]), "mAP/long": none})
    {'R1@0.5': 50.0, 'mAP/short': 50.0}
    """
    applicable = {name: score[~np.isnan(score)] for name, score in scores.items()}
    return {name: 100.0 * float(score.mean()) for name, score in applicable.items() if len(score)}
