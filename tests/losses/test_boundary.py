from __future__ import annotations

import torch

from vmr_zoo.losses.boundary import choose_proposal, endpoint_sets, highlight_labels, set_log_probability

MOMENT = torch.tensor([[3, 6]])
MASK = torch.arange(12) < torch.tensor([[10]])


def members(mask: torch.Tensor) -> list[int]:
    return mask[0].nonzero().flatten().tolist()


def test_the_best_proposal_that_overlaps_enough_is_chosen_else_the_annotation():
    bounds = torch.tensor([[[0, 1], [2, 5], [3, 7], [3, 6]]])
    scores = torch.tensor([[9.0, 3.0, 2.0, 8.0]])
    there = torch.tensor([[True, True, True, False]])
    assert choose_proposal(scores, bounds, there, MOMENT, 0.5).tolist() == [[2, 5]]  # IoU 3/5
    assert choose_proposal(scores, bounds, there, MOMENT, 0.7).tolist() == [[3, 7]]  # IoU 4/5
    assert choose_proposal(scores, bounds, there, MOMENT, 0.9).tolist() == [[3, 6]]


def test_candidate_sets_lie_between_annotation_and_proposal():
    starts, ends = endpoint_sets(MOMENT, torch.tensor([[1, 8]]), 12, "inclusive")
    assert members(starts) == [1, 2, 3]
    assert members(ends) == [6, 7, 8]
    assert members(endpoint_sets(MOMENT, torch.tensor([[1, 8]]), 12, "one_more")[1]) == [6, 7, 8, 9]
    assert members(endpoint_sets(MOMENT, MOMENT, 12, "inclusive")[1]) == [6]
    assert members(endpoint_sets(MOMENT, torch.tensor([[4, 4]]), 12, "inclusive")[1]) == [4, 5, 6]


def test_the_foreground_spans_both_sets_as_equation_16_says():
    shorter = torch.tensor([[4, 5]])
    assert members(highlight_labels(MOMENT, shorter, MASK, "max", "inclusive", 0.0)) == [3, 4, 5, 6]
    assert members(highlight_labels(MOMENT, shorter, MASK, "min", "inclusive", 0.0)) == [3, 4, 5]
    longer = torch.tensor([[0, 11]])
    assert members(highlight_labels(MOMENT, longer, MASK, "max", "inclusive", 0.1)) == list(range(10))


def test_the_probability_of_a_set_is_exact_where_floats_underflow():
    logits = torch.tensor([[0.0, 200.0, -1e30]])
    inside = torch.tensor([[True, False, False]])
    assert set_log_probability(logits, inside).item() == -200.0
    assert set_log_probability(logits, ~inside).item() == 0.0
