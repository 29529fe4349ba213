"""Metrics for sentences whose moment a video does not hold, which a method should reject.

A method gives every query a score; it rejects the queries below a threshold ("no such moment") and answers
the others. With N+ queries that have an answer and N- that have none:

- `AUROC`: how often a query with an answer has a higher score than one without, a tie counting half. It needs
  no threshold. 50 is chance.
- `Rejection-Acc`: rejected queries among the N- (Moment of Untruth, WACV 2025: rejection accuracy).
- `No-Answer-Acc`: right decisions among all N+ + N- queries (CausalVTG, NeurIPS 2025).
- `R1@m/kept`: among the N+, queries that are answered with an IoU of at least m; a rejected one is a miss
  (Moment of Untruth).
- `R1@m/rejection`: the same hits and the rejected queries among the N-, together, among all N+ + N- queries:
  a rejected query that has an answer is a miss, and so is an answered one that has none (CausalVTG).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from vmr_zoo.metrics.per_query import Bools, Floats

AUROC, REJECTION, DECISION = "AUROC", "Rejection-Acc", "No-Answer-Acc"

KEPT, WITH_REJECTION = "/kept", "/rejection"
"""Follow the name of a recall metric."""


def auroc(answerable: Floats, unanswerable: Floats) -> float:
    """Returns the share of pairs in which the query with an answer has the higher score; ties count half.

    Args:
        answerable: (P,) scores of the queries with an answer.
        unanswerable: (N,) scores of those without.

    >>> auroc(np.array([0.9, 0.5]), np.array([0.1, 0.5]))
    0.875
    """
    others = np.sort(unanswerable)
    below = np.searchsorted(others, answerable, "left")
    upto = np.searchsorted(others, answerable, "right")
    return float((below + upto).sum() / (2 * len(answerable) * len(others)))


def choose_rejection_threshold(answerable: Floats, unanswerable: Floats) -> float:
    """Returns the threshold with the most right decisions, each of the two kinds weighing the same.

    Thresholds are halfway between neighbouring scores. Of equally good ones the lowest is taken; -inf rejects
    nothing.

    Args:
        answerable: (P,) scores of the queries with an answer.
        unanswerable: (N,) scores of those without.

    >>> choose_rejection_threshold(np.array([0.9, 0.5]), np.array([0.1, 0.4]))
    0.45
    """
    distinct = np.unique(np.concatenate((answerable, unanswerable)))
    thresholds = np.concatenate(([-np.inf], (distinct[:-1] + distinct[1:]) / 2))
    kept = 1 - np.searchsorted(np.sort(answerable), thresholds) / len(answerable)
    rejected = np.searchsorted(np.sort(unanswerable), thresholds) / len(unanswerable)
    # Rounded: sums of fractions that are equal on paper must not differ by their last bit.
    return float(thresholds[np.argmax(np.round(kept + rejected, 9))])


def rejection_metrics(
    answerable: Floats, unanswerable: Floats, recalls: Mapping[str, Floats | Bools], threshold: float
) -> dict[str, float]:
    """Scores decisions and answers.

    Args:
        answerable: (P,) scores of the queries with an answer.
        unanswerable: (N,) scores of those without.
        recalls: (P,) 1 or 0 by the name of a recall metric, such as "R1@0.5": whether the answer is a hit,
            were it given.
        threshold: queries with a lower score are rejected.

    Returns:
        Percentages by metric name.

    >>> scores = rejection_metrics(
    ...     np.array([0.9, 0.2, 0.8]), np.array([0.1, 0.7]), {"R1@0.5": np.array([1.0, 1.0, 0.0])}, 0.5
    ... )
    >>> [round(scores[name], 1) for name in (AUROC, REJECTION, DECISION, "R1@0.5/kept", "R1@0.5/rejection")]
    [83.3, 50.0, 60.0, 33.3, 40.0]
    """
    kept, rejected = answerable >= threshold, unanswerable < threshold
    total = len(answerable) + len(unanswerable)
    named = {
        AUROC: auroc(answerable, unanswerable),
        REJECTION: rejected.mean(),
        DECISION: (kept.sum() + rejected.sum()) / total,
    }
    for name, hits in recalls.items():
        found = (hits * kept).sum()
        named[f"{name}{KEPT}"] = found / len(answerable)
        named[f"{name}{WITH_REJECTION}"] = (found + rejected.sum()) / total
    return {name: 100.0 * float(value) for name, value in named.items()}
