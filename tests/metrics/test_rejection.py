from __future__ import annotations

import itertools

import numpy as np
import pytest

from vmr_zoo.metrics.rejection import auroc, choose_rejection_threshold, rejection_metrics


@pytest.fixture(params=range(20))
def scores(request):
    """Few distinct values: many ties within and between the two kinds."""
    rng = np.random.default_rng(request.param)
    levels = int(rng.integers(1, 9))
    return (
        rng.integers(0, levels, int(rng.integers(1, 30))) / 8 + 0.1,
        rng.integers(0, levels, int(rng.integers(1, 30))) / 8,
    )


def test_auroc_is_the_share_of_ordered_pairs(scores):
    answerable, unanswerable = scores
    pairs = [(a > b) + 0.5 * (a == b) for a in answerable for b in unanswerable]
    assert auroc(answerable, unanswerable) == pytest.approx(np.mean(pairs), abs=1e-12)
    assert auroc(unanswerable, answerable) == pytest.approx(1 - np.mean(pairs), abs=1e-12)


def test_no_threshold_decides_better_and_of_equals_the_lowest_counts(scores):
    answerable, unanswerable = scores

    def balanced(threshold):
        kept = sum(a >= threshold for a in answerable) / len(answerable)
        return kept + sum(b < threshold for b in unanswerable) / len(unanswerable)

    chosen = choose_rejection_threshold(answerable, unanswerable)
    values = sorted({*answerable, *unanswerable})
    between = [-np.inf, *((a + b) / 2 for a, b in itertools.pairwise(values)), np.inf]
    best = max(map(balanced, between))
    assert balanced(chosen) == pytest.approx(best, abs=1e-9)
    assert chosen == next(one for one in between if balanced(one) > best - 1e-9)


def test_constant_scores_reject_nothing():
    constant = np.full(3, 0.7)
    assert auroc(constant, constant) == 0.5
    assert choose_rejection_threshold(constant, constant) == -np.inf
    found = rejection_metrics(constant, constant, {"R1@0.5": np.array([True, True, False])}, -np.inf)
    assert found["Rejection-Acc"] == 0
    assert found["No-Answer-Acc"] == 50
    assert found["R1@0.5/kept"] == pytest.approx(200 / 3)
    assert found["R1@0.5/rejection"] == pytest.approx(100 / 3)


def test_both_kinds_of_wrong_decisions_are_misses(scores):
    answerable, unanswerable = scores
    hits = np.random.default_rng(1).integers(0, 2, len(answerable)).astype(float)
    found = rejection_metrics(answerable, unanswerable, {"R1@0.7": hits}, 0.4)
    right = [hit and score >= 0.4 for hit, score in zip(hits, answerable, strict=True)]
    refused = [score < 0.4 for score in unanswerable]
    decided = [score >= 0.4 for score in answerable] + refused
    assert found["R1@0.7/kept"] == pytest.approx(100 * np.mean(right))
    assert found["R1@0.7/rejection"] == pytest.approx(100 * np.mean(right + refused))
    assert found["Rejection-Acc"] == pytest.approx(100 * np.mean(refused))
    assert found["No-Answer-Acc"] == pytest.approx(100 * np.mean(decided))
