"""Calibration: how well the score of the best window works as the probability that its IoU reaches 0.5.

Expected calibration error (Naeini et al. 2015; Guo et al. 2017): the scores are divided into `BINS` bins of
equal width, and the distances between the mean score and the share of right windows of each bin are averaged,
weighted by the number of queries.

No method here is trained to predict that probability, and scores of some are no probabilities at all. So
there are two numbers: `ECE` takes the score as it is, if all scores are in [0, 1]; `ECE-iso` first maps the
scores by an isotonic regression that is fitted on the selection split, which any score allows.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from vmr_zoo.metrics.per_query import Bools, Floats

BINS = 15
RIGHT_FROM = 0.5
"""IoU from which a window is right."""

ECE, ECE_ISOTONIC = "ECE", "ECE-iso"
CALIBRATION_METRICS = (ECE, ECE_ISOTONIC)
"""The names of the metrics of calibration; the lowest value is the best."""


class Bin(NamedTuple):
    """The queries whose scores are in one bin.

    Attributes:
        low: lower end, excluded except for 0.
        high: upper end.
        queries: number of queries, at least 1.
        score: mean score.
        right: share of queries whose best window is right.
    """

    low: float
    high: float
    queries: int
    score: float
    right: float


def reliability(scores: Floats, right: Bools) -> list[Bin]:
    """Divides queries into bins of equal width by the score of their best window; empty bins are left out.

    Args:
        scores: (B,) in [0, 1].
        right: (B,) whether the window is right.

    >>> found = reliability(np.array([0.1, 0.95, 1.0]), np.array([False, True, False]))
    >>> [(one.queries, one.score, one.right) for one in found]
    [(1, 0.1, 0.0), (2, 0.975, 0.5)]
    """
    edges = np.linspace(0.0, 1.0, BINS + 1)
    place = np.clip(np.searchsorted(edges, scores, side="left") - 1, 0, BINS - 1)
    found = []
    for number in range(BINS):
        inside = place == number
        if inside.any():
            low, high = float(edges[number]), float(edges[number + 1])
            means = float(scores[inside].mean()), float(right[inside].mean())
            found.append(Bin(low, high, int(inside.sum()), *means))
    return found


def calibration_error(scores: Floats, right: Bools) -> float:
    """Returns the expected calibration error in [0, 1].

    Args:
        scores: (B,) in [0, 1], B at least 1.
        right: (B,) whether the window is right.

    >>> round(calibration_error(np.array([0.1, 0.95, 1.0]), np.array([False, True, False])), 4)
    0.35
    """
    gaps = [one.queries * abs(one.score - one.right) for one in reliability(scores, right)]
    return sum(gaps) / len(scores)


class IsotonicMap:
    """A non-decreasing map of scores to probabilities, fitted by isotonic regression (least squares)."""

    def __init__(self, scores: Floats, right: Bools) -> None:
        """Fits the map; queries with equal scores count as one point with their weight.

        Args:
            scores: (B,) finite, in any range, B at least 1.
            right: (B,) whether the window is right.
        """
        from scipy.optimize import isotonic_regression

        self._scores, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
        shares = np.bincount(place.ravel(), weights=right) / counts
        self._shares = np.asarray(isotonic_regression(shares, weights=counts).x)

    def __call__(self, scores: Floats) -> Floats:
        """Returns probabilities: linear between the fitted scores, constant beyond them.

        >>> IsotonicMap(np.array([1.0, 2.0, 3.0]), np.array([False, True, True]))(np.array([1.5, 9.0]))
        array([0.5, 1. ])
        """
        return np.clip(np.interp(scores, self._scores, self._shares), 0.0, 1.0)
