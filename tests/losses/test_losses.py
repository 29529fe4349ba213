from __future__ import annotations

import torch
import torch.nn.functional as F

from vmr_zoo.losses.margin import margin_loss, sample_pairs
from vmr_zoo.losses.set_criterion import SetCriterion


def test_set_criterion_by_hand() -> None:
    criterion = SetCriterion(cost_l1=1, cost_giou=1, cost_class=1, background_weight=0.1)
    logits = torch.tensor([[[2.0, 0.0], [0.0, 1.0]], [[0.0, 3.0], [1.0, 1.0]]])
    spans = torch.tensor([[[0.5, 0.2], [0.9, 0.1]], [[0.2, 0.2], [0.6, 0.4]]])
    targets = torch.tensor([[[0.5, 0.4], [0.0, 0.0]], [[0.6, 0.4], [0.2, 0.1]]])
    mask = torch.tensor([[True, False], [True, True]])
    losses = criterion(logits, spans, targets, mask)
    torch.testing.assert_close(losses["span_l1"], torch.tensor((0.2 + 0 + 0.1) / 6))
    torch.testing.assert_close(losses["span_giou"], torch.tensor((0.5 + 0 + 0.5) / 3))
    log = F.log_softmax(logits, -1)
    expected = -(log[0, 0, 0] + 0.1 * log[0, 1, 1] + log[1, 0, 0] + log[1, 1, 0]) / 4
    torch.testing.assert_close(losses["label"], expected)
    torch.testing.assert_close(losses["class_error"], torch.tensor(100 / 3))


def test_padded_targets_do_not_unmark_slot_zero() -> None:
    criterion = SetCriterion(cost_l1=1, cost_giou=1, cost_class=0)
    logits, spans = torch.zeros(1, 3, 2), torch.tensor([[[0.5, 0.2], [0.9, 0.1], [0.1, 0.1]]])
    one = criterion(logits, spans, torch.tensor([[[0.5, 0.2]]]), torch.tensor([[True]]))
    padding = torch.tensor([[[0.5, 0.2], [0.3, 0.3], [0.9, 0.9]]])
    padded = criterion(logits, spans, padding, torch.tensor([[True, False, False]]))
    for name, value in one.items():
        torch.testing.assert_close(padded[name], value)


def test_margin_pairs_are_a_relevant_and_an_irrelevant_clip() -> None:
    torch.manual_seed(0)
    inside = torch.tensor([[0, 1, 1, 0, 0], [1, 1, 1, 0, 0], [0, 1, 0, 0, 1]]).bool()
    mask = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]).bool()
    ratings = torch.tensor([[0, 1, 1, 0, 0], [0, 9, 2, 0, 0], [0, 3, 0, 0, 3]]).float()
    seen = set()
    for _ in range(60):
        positive, negative, usable = sample_pairs(inside, mask, ratings, ratings > 0)
        # Rows 0 and 2: equal ratings, two random pairs. Row 1: nothing outside, only the rated pair.
        assert usable.tolist() == [[True, True], [True, False], [True, True]]
        assert (positive[1, 0], negative[1, 0]) == (1, 2)
        assert inside[0][positive[0]].all()
        assert (mask & ~inside)[0][negative[0]].all()
        seen |= {(int(p), int(n)) for p, n in zip(positive[2], negative[2], strict=True)}
    assert seen == {(p, n) for p in (1, 4) for n in (0, 2, 3)}


def test_margin_loss_counts_usable_pairs_only() -> None:
    scores = torch.tensor([[1.0, 0.9, 0.0]])
    positive, negative = torch.tensor([[0, 0]]), torch.tensor([[1, 1]])
    torch.testing.assert_close(
        margin_loss(scores, positive, negative, torch.tensor([[True, True]])), torch.tensor(0.2)
    )
    torch.testing.assert_close(
        margin_loss(scores, positive, negative, torch.tensor([[True, False]])), torch.tensor(0.1)
    )
