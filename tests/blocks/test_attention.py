from __future__ import annotations

import torch
from torch import nn

from vmr_zoo.blocks.attention import MultiHeadAttention, attend


def test_equals_torch_multi_head_attention() -> None:
    torch.manual_seed(0)
    ours, theirs = MultiHeadAttention(12, 3).eval(), nn.MultiheadAttention(12, 3, batch_first=True).eval()
    theirs.load_state_dict(
        {
            "in_proj_weight": ours.in_proj_weight,
            "in_proj_bias": ours.in_proj_bias,
            "out_proj.weight": ours.out_proj.weight,
            "out_proj.bias": ours.out_proj.bias,
        }
    )
    query, key, value = torch.randn(2, 4, 12), torch.randn(2, 7, 12), torch.randn(2, 7, 12)
    mask = torch.arange(7)[None] < torch.tensor([[7], [3]])
    expected, _ = theirs(query, key, value, key_padding_mask=~mask)
    torch.testing.assert_close(ours(query, key, value, mask), expected)
    expected, _ = theirs(query, query, query)
    torch.testing.assert_close(ours(query, query, query), expected)


def test_a_row_without_keys_gives_zeros_and_finite_gradients() -> None:
    query = torch.randn(2, 3, 8, requires_grad=True)
    key = torch.randn(2, 5, 8, requires_grad=True)
    mask = torch.tensor([[True] * 5, [False] * 5])
    out = attend(query, key, key, heads=2, key_mask=mask)
    assert (out[1] == 0).all()
    out.sum().backward()
    assert query.grad is not None
    assert query.grad.isfinite().all()
    assert key.grad is not None
    assert (key.grad[1] == 0).all()
    assert (key.grad[0] != 0).any()
