"""Sets of moments: temporal F1, effective temporal F1 (EtF1), count accuracy (C-Acc) and temporal IoU.

For queries with several moments. The definitions are those of OMTG Bench (Xu et al., "Towards One-to-Many
Temporal Grounding", arXiv 2606.06294) as VLMEvalKit implements them (`vlmeval/dataset/omtgbench.py`):
predicted windows and moments are matched one to one with the largest total IoU; a pair is right from an IoU
threshold on, which gives precision, recall and F1 of a query; EtF1 is their mean over the thresholds 0.3, 0.5
and 0.7 if the number of windows is right, else 0.

OMTG Bench scores answers of language models, which are sets. Ours are ranked lists: the predicted set holds
the windows whose score reaches a threshold, and always the best one (`predicted_set`).

Sizes: K windows, N moments. Everything is in seconds. Pure numpy and scipy, one query at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import pairwise

import numpy as np

from vmr_zoo.metrics.per_query import Floats, is_window, pairwise_iou

SET_THRESHOLDS = (0.3, 0.5, 0.7)

EFFECTIVE_F1 = "EtF1"

SET_METRICS = (*(f"tF1@{threshold:g}" for threshold in SET_THRESHOLDS), EFFECTIVE_F1, "C-Acc", "tIoU")
"""The names of the metrics of sets, in order."""

ONLY_BEST = math.inf
"""The threshold at which a set holds the best window alone."""


def predicted_set(windows: Floats, threshold: float) -> Floats:
    """Returns the windows whose score reaches a threshold, best first, and the best one in any case.

    Args:
        windows: (K, 3) start, end and score in any order; empty ones of score 0 are padding.
        threshold: the lowest score; -inf for all windows, `ONLY_BEST` for the best.

    Returns:
        (k, 2) start and end; k is 0 only if all is padding, as for an answer that could not be read.

    >>> predicted_set(np.array([[0, 4, 0.2], [5, 9, 0.8], [1, 2, 0.5]]), 0.5)
    array([[5., 9.],
           [1., 2.]])
    """
    ranked = _ranked(windows)
    return ranked[: max(1, int((ranked[:, 2] >= threshold).sum())), :2]


def _ranked(windows: Floats) -> Floats:
    real = windows[is_window(*windows.T)]
    return real[np.argsort(-real[:, 2], kind="stable")]


def set_scores(windows: Floats, moments: Floats) -> dict[str, float]:
    """Compares the predicted set of one query with its moments.

    Args:
        windows: (K, 2) the predicted set.
        moments: (N, 2), N at least 1.

    Returns:
        Values in [0, 1] by name, in the order of `SET_METRICS`.

    >>> set_scores(np.array([[0.0, 10.0], [30.0, 36.0]]), np.array([[0.0, 10.0], [30.0, 40.0]]))
    {'tF1@0.3': 1.0, 'tF1@0.5': 1.0, 'tF1@0.7': 0.5, 'EtF1': 0.8333333333333334, 'C-Acc': 1.0, 'tIoU': 0.8}
    """
    f1 = _f1(windows, moments)
    same_count = float(len(windows) == len(moments))
    named = dict(zip(SET_METRICS, f1, strict=False))
    return named | {
        EFFECTIVE_F1: same_count * sum(f1) / len(f1),
        "C-Acc": same_count,
        "tIoU": _covered_iou(windows, moments),
    }


def choose_set_threshold(queries: Iterable[tuple[Floats, Floats]]) -> float:
    """Returns the score threshold with the highest mean EtF1, the highest of several.

    Use it on the selection split; a threshold that was chosen on a test split measures nothing.

    Args:
        queries: (K, 3) windows and (N, 2) moments of each query.

    Returns:
        A score of one of the windows, or `ONLY_BEST`.
    """
    # EtF1 of a query is above 0 only if its set has as many windows as there are moments: from the score of
    # the last of those on, down to the score of the next window, which must stay out.
    low, high, value = [], [], []
    for windows, moments in queries:
        ranked = _ranked(windows)
        count = len(moments)
        if not 0 < count <= len(ranked):
            continue
        effective = set_scores(ranked[:count, :2], moments)[EFFECTIVE_F1]
        low.append(ranked[count, 2] if count < len(ranked) else -math.inf)
        high.append(ranked[count - 1, 2] if count > 1 else ONLY_BEST)
        value.append(effective)
    candidates = np.unique([*high, ONLY_BEST])
    above, upto, gain = np.array(low), np.array(high), np.array(value)
    # In a set at c: low < c <= high.
    total = [float(gain[(above < c) & (c <= upto)].sum()) for c in candidates]
    best = max(total)
    return float(max(c for c, found in zip(candidates, total, strict=True) if found >= best - 1e-9))


def _f1(windows: Floats, moments: Floats) -> list[float]:
    """Returns F1 at each of `SET_THRESHOLDS`."""
    matched = _matched_iou(windows, moments)
    # 2 P R / (P + R) with P = hits / K and R = hits / N.
    return [
        2 * int((matched >= threshold).sum()) / (len(windows) + len(moments)) for threshold in SET_THRESHOLDS
    ]


def _matched_iou(windows: Floats, moments: Floats) -> Floats:
    """Returns the IoU of the pairs that match windows and moments with the largest total IoU."""
    from scipy.optimize import linear_sum_assignment

    iou = pairwise_iou(windows, moments)
    return np.asarray(iou[linear_sum_assignment(iou, maximize=True)])


def _covered_iou(windows: Floats, moments: Floats) -> float:
    """Returns the IoU of the seconds that the windows cover together with those that the moments cover."""
    points = np.unique(np.concatenate((windows, moments)))
    overlap = union = 0.0
    for start, end in pairwise(points.tolist()):
        inside = [bool(((x[:, 0] <= start) & (x[:, 1] >= end)).any()) for x in (windows, moments)]
        overlap += (end - start) * all(inside)
        union += (end - start) * any(inside)
    return overlap / union if union > 0 else 0.0
