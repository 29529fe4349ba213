from __future__ import annotations

import itertools

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vmr_zoo.blocks.matcher import hungarian_match


@given(st.integers(0, 10_000), st.lists(st.integers(0, 4), min_size=1, max_size=5))
@settings(max_examples=60, deadline=None)
def test_finds_the_cheapest_assignment(seed: int, counts: list[int]) -> None:
    generator = torch.Generator().manual_seed(seed)
    targets = max(1, max(counts))
    cost = torch.randn(len(counts), 3, targets, generator=generator)
    # Valid targets lie anywhere, not only first.
    ranks = torch.rand(len(counts), targets, generator=generator).argsort(1)
    mask = ranks < torch.tensor(counts)[:, None]
    slots, matched = hungarian_match(cost, mask)
    for row, count in enumerate(counts):
        chosen = [(int(slots[row, n]), n) for n in matched[row].nonzero().flatten().tolist()]
        assert len(chosen) == min(count, 3)
        assert all(mask[row, n] for _, n in chosen)
        assert len({slot for slot, _ in chosen}) == len(chosen)
        found = sum(float(cost[row, m, n]) for m, n in chosen)
        valid = mask[row].nonzero().flatten().tolist()
        if count <= 3:
            options = (list(zip(p, valid, strict=True)) for p in itertools.permutations(range(3), count))
        else:
            options = (list(zip(range(3), p, strict=True)) for p in itertools.permutations(valid, 3))
        best = min(sum(float(cost[row, m, n]) for m, n in option) for option in options)
        assert found <= best + 1e-5


def test_batched_equals_alone() -> None:
    cost = torch.randn(6, 5, 3, generator=torch.Generator().manual_seed(0))
    mask = torch.arange(3)[None] < torch.tensor([1, 3, 2, 1, 3, 2])[:, None]
    slots, matched = hungarian_match(cost, mask)
    for row in range(6):
        alone, _ = hungarian_match(cost[row : row + 1], mask[row : row + 1])
        assert torch.equal(alone[0], slots[row])
    assert torch.equal(matched, mask)


def test_one_target_needs_no_solver_and_nan_does_not_stop_it() -> None:
    cost = torch.tensor([[[2.0], [1.0]], [[float("nan")], [1.0]]])
    slots, matched = hungarian_match(cost, torch.ones(2, 1, dtype=torch.bool))
    assert slots.tolist() == [[1], [0]]
    assert matched.all()
    several = torch.cat((cost, cost), 2)
    hungarian_match(several, torch.ones(2, 2, dtype=torch.bool))
