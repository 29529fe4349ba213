from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vmr_zoo.losses.margin import PairRule, margin_loss, pair_choices
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
        positive, negative, usable = pair_choices("usable", inside, mask, ratings, ratings > 0).draw()
        # Rows 0 and 2: equal ratings, two random pairs. Row 1: nothing outside, only the rated pair.
        assert usable.tolist() == [[True, True], [True, False], [True, True]]
        assert (positive[1, 0], negative[1, 0]) == (1, 2)
        assert inside[0][positive[0]].all()
        assert (mask & ~inside)[0][negative[0]].all()
        seen |= {(int(p), int(n)) for p, n in zip(positive[2], negative[2], strict=True)}
    assert seen == {(p, n) for p in (1, 4) for n in (0, 2, 3)}


def drawn(rule: PairRule, inside: Tensor, mask: Tensor, ratings: Tensor) -> set[tuple[int, ...]]:
    """The pairs that occur: positive 1 and 2, negative 1 and 2."""
    choices = pair_choices(rule, inside, mask, ratings, ratings > 0)
    found = set()
    for _ in range(200):
        positive, negative, usable = choices.draw()
        assert usable.all()
        assert all(side.all() for side in choices.admit(positive, negative))
        found.add((*positive[0].tolist(), *negative[0].tolist()))
    return found


def test_released_pairs_of_rated_clips() -> None:
    torch.manual_seed(0)
    inside, mask = torch.zeros(1, 4).bool(), torch.tensor([[True, True, True, False]])
    assert drawn("rated", inside, mask, torch.tensor([[0.0, 5, 0, 0]])) == {(1, 1, 1, 0), (1, 1, 1, 2)}
    # Nothing is unrated: the hard pair again. Equal ratings: any of them.
    assert drawn("rated", inside, mask, torch.tensor([[1.0, 2, 3, 0]])) == {(2, 2, 0, 0)}
    assert {pair[0] for pair in drawn("rated", inside, mask, torch.tensor([[4.0, 0, 4, 0]]))} == {0, 2}
    # Clip 3 does not exist: as the best it counts as clip 2, in the random pair it is on the padding.
    assert drawn("rated", inside, mask, torch.tensor([[2.0, 0, 0, 6]])) == {
        (2, easy, 0, other) for easy in (0, 3) for other in (1, 2)
    }
    ratings = torch.tensor([[2.0, 0, 0, 6]])
    beyond = pair_choices("rated", inside[:, :3], mask[:, :3], ratings, ratings > 0)
    assert {int(beyond.draw()[0][0, 1]) for _ in range(50)} == {0, 2}  # without padding it counts as clip 2


def test_released_pairs_of_a_moment() -> None:
    torch.manual_seed(0)
    mask = torch.tensor([[True, True, True, True, False]])
    none = torch.zeros(1, 5)
    two = drawn("moment", torch.tensor([[False, True, True, False, False]]), mask, none)
    assert two == {(1, 2, 0, 3), (2, 1, 0, 3), (1, 2, 3, 0), (2, 1, 3, 0)}
    assert drawn("moment", torch.tensor([[True, False, True, True, False]]), mask, none) == {
        (a, b, 1, 1) for a in (0, 2, 3) for b in (0, 2, 3) if a != b
    }
    assert {pair[2:] for pair in drawn("moment", mask, mask, none)} == {(0, 0)}


def test_an_impossible_pair_is_not_admitted() -> None:
    inside, mask = torch.tensor([[False, True, True, False]]), torch.tensor([[True, True, True, False]])
    choices = pair_choices("moment", inside, mask, torch.zeros(1, 4), torch.zeros(1, 4).bool())
    for positive, negative, expected in [
        ([1, 2], [0, 0], [True, True, True, True]),
        ([1, 1], [0, 0], [True, False, True, True]),
        ([0, 2], [0, 0], [False, True, True, True]),
        ([1, 2], [3, 0], [True, True, False, True]),
        ([1, 9], [-1, 0], [True, False, False, True]),
    ]:
        admitted = choices.admit(torch.tensor([positive]), torch.tensor([negative]))
        assert torch.cat(admitted, 1)[0].tolist() == expected


def test_margin_loss_counts_usable_pairs_only() -> None:
    scores = torch.tensor([[1.0, 0.9, 0.0]])
    positive, negative = torch.tensor([[0, 0]]), torch.tensor([[1, 1]])
    torch.testing.assert_close(
        margin_loss(scores, positive, negative, torch.tensor([[True, True]])), torch.tensor(0.2)
    )
    torch.testing.assert_close(
        margin_loss(scores, positive, negative, torch.tensor([[True, False]])), torch.tensor(0.1)
    )
