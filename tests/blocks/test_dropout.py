"""Cheap dropout against what dropout is."""

from __future__ import annotations

import pytest
import torch

from vmr_zoo.blocks.attention import attend
from vmr_zoo.blocks.dropout import Dropout, dropout


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_drops_with_the_probability_and_keeps_the_mean(p: float) -> None:
    torch.manual_seed(0)
    out = dropout(torch.ones(1001, 999), p)
    assert float((out == 0).float().mean()) == pytest.approx(p, abs=0.002)  # 4 standard deviations
    kept = out[out != 0]
    torch.testing.assert_close(kept, torch.full_like(kept, 1 / (1 - p)))


def test_the_gradient_passes_where_the_value_did() -> None:
    x = torch.randn(3, 5, 7, requires_grad=True)
    torch.manual_seed(1)
    out = dropout(x.transpose(1, 2), 0.3)
    out.sum().backward()
    torch.testing.assert_close(x.grad, torch.where(out.transpose(1, 2) == 0, 0.0, 1 / 0.7))


def test_the_global_seed_decides_and_evaluation_draws_nothing() -> None:
    module, x = Dropout(0.5), torch.ones(100)
    torch.manual_seed(2)
    first, second = module(x), module(x)
    assert not torch.equal(first, second)
    torch.manual_seed(2)
    assert torch.equal(module(x), first)
    state = torch.get_rng_state()
    assert module.eval()(x) is x
    assert torch.equal(torch.get_rng_state(), state)


def test_attention_with_dropout_is_attention_in_the_mean() -> None:
    torch.manual_seed(3)
    q, k, v = torch.randn(1, 4, 8), torch.randn(1, 6, 8), torch.randn(1, 6, 8)
    mask = torch.tensor([[True, True, True, False, True, False]])
    many = [x.expand(4000, -1, -1) for x in (q, k, v)]
    dropped = attend(*many, heads=2, key_mask=mask.expand(4000, -1), dropout=0.2)
    torch.testing.assert_close(dropped.mean(0), attend(q, k, v, heads=2, key_mask=mask)[0], atol=0.05, rtol=0)
