"""Multi-head attention on torch's `scaled_dot_product_attention`, for padded batches."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vmr_zoo.blocks.dropout import dropout as dropped
from vmr_zoo.errors import VmrError


def check_heads(dim: int, heads: int) -> None:
    """Refuses a width that the heads cannot share equally.

    Raises:
        VmrError: names both numbers.
    """
    if heads < 1 or dim < 1 or dim % heads:
        raise VmrError(f"Expected dim to be a multiple of heads; found dim={dim} and heads={heads}.")


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    heads: int,
    key_mask: Tensor | None,
    dropout: float = 0.0,
    record: list[Tensor] | None = None,
) -> Tensor:
    """Scaled dot-product attention over already projected inputs.

    Query and key may be wider than the value (conditional cross-attention concatenates content and position);
    the scale is one over the square root of the query's own width per head.

    Args:
        query: (B, Lq, H * E).
        key: (B, Lk, H * E).
        value: (B, Lk, H * Ev).
        heads: H.
        key_mask: (B, Lk), or (B, H, Lq, Lk) if it depends on head and query; True = valid; None if every key
            is valid.
        dropout: probability with which an attention weight is dropped; pass 0 outside training.
        record: list to which the attention weights (B, Lq, Lk) are appended, averaged over the heads, before
            dropout. None skips their computation, which the fused kernel does not need.

    Returns:
        (B, Lq, H * Ev). A row without any valid key gives zeros, never NaN.
    """
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key, value))
    if record is not None:
        record.append(_mean_weights(q, k, key_mask))
    if key_mask is None:
        return _attended(q, k, v, None, dropout).transpose(1, 2).flatten(2)
    mask = _by_head(key_mask)
    any_valid = mask.any(-1, keepdim=True)
    # A row without valid keys attends to all keys and is zeroed afterwards: a softmax over no keys would put
    # NaN into the gradients of the whole batch.
    out = _attended(q, k, v, mask | ~any_valid, dropout) * any_valid
    return out.transpose(1, 2).flatten(2)


def _attended(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """Attends from (B, H, Lq, E). On the CPU torch has no fused kernel with dropout, and a slow dropout."""
    if dropout == 0 or query.device.type != "cpu":
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(2, 3)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return dropped(scores.softmax(-1), dropout) @ value


def _by_head(key_mask: Tensor) -> Tensor:
    """Adds the axes of heads and queries to a mask (B, Lk)."""
    return key_mask if key_mask.dim() == 4 else key_mask[:, None, None, :]


def _mean_weights(query: Tensor, key: Tensor, key_mask: Tensor | None) -> Tensor:
    """Computes the head mean (B, Lq, Lk) of softmax(q k / sqrt(E)), from q (B, H, Lq, E), k (B, H, Lk, E)."""
    scores = query @ key.transpose(2, 3) / query.shape[-1] ** 0.5
    if key_mask is None:
        return scores.softmax(-1).mean(1)
    mask = _by_head(key_mask)
    scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return (scores.softmax(-1) * mask).mean(1)


class MultiHeadAttention(nn.Module):
    """Multi-head attention with one packed input projection (Vaswani et al. 2017, section 3.2.2).

    The packed (3 D, D) weight is initialised as one tensor, as in torch's own class: Xavier-uniform then
    draws from a narrower range than for three separate (D, D) weights.
    """

    def __init__(self, dim: int, heads: int, dropout: float = 0.0) -> None:
        """Builds the projections.

        Args:
            dim: D, divisible by `heads`.
            heads: number of heads.
            dropout: on the attention weights, in training.

        Raises:
            VmrError: if the heads do not divide the width.
        """
        super().__init__()
        check_heads(dim, heads)
        self.dim, self.heads, self.dropout = dim, heads, dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = nn.Linear(dim, dim)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_mask: Tensor | None = None,
        record: list[Tensor] | None = None,
        rows: Tensor | None = None,
    ) -> Tensor:
        """Attends from `query` to `key`.

        Args:
            query: (B, Lq, D).
            key: (B, Lk, D).
            value: (B, Lk, D).
            key_mask: (B, Lk) or (B, H, Lq, Lk), True = valid.
            record: list to which the attention weights (B, Lq, Lk) are appended.
            rows: (B,) the row of `key` and `value` that each query attends to, projected once for all of
                them; None is its own row.

        Returns:
            (B, Lq, D).
        """
        weights, biases = self.in_proj_weight, self.in_proj_bias
        d = self.dim
        if query is key:
            q, k = F.linear(query, weights[: 2 * d], biases[: 2 * d]).chunk(2, -1)
        else:
            q = F.linear(query, weights[:d], biases[:d])
            k = F.linear(key, weights[d : 2 * d], biases[d : 2 * d])
        v = F.linear(value, weights[2 * d :], biases[2 * d :])
        if rows is not None:
            k, v = k[rows], v[rows]
        dropout = self.dropout if self.training else 0.0
        out = attend(q, k, v, heads=self.heads, key_mask=key_mask, dropout=dropout, record=record)
        return self.out_proj(out)
