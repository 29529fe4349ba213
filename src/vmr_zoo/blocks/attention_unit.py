"""The attention unit of span predictors: a target sequence attends a reference sequence (TEA Eq. 6).

Two forms share the multi-head weights: `EquationUnit` is the equation, `PostNormUnit` the layer that EMB's
code runs in its place.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from vmr_zoo.blocks.attention import attend
from vmr_zoo.blocks.dropout import Dropout
from vmr_zoo.blocks.dropout import dropout as dropped
from vmr_zoo.errors import unknown

UnitName = Literal["equation_6", "post_norm"]


class _Attention(nn.Module):
    """Multi-head dot-product attention without an output projection: R(X^t, X^r) FC(X^r) of TEA Eq. 6."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)

    def forward(
        self, target: Tensor, reference: Tensor, reference_mask: Tensor, target_mask: Tensor | None
    ) -> Tensor:
        query, key, value = self.query(target), self.key(reference), self.value(reference)
        dropout = self.dropout if self.training else 0.0
        if target_mask is None:
            return attend(query, key, value, heads=self.heads, key_mask=reference_mask, dropout=dropout)
        # A finite bias, swallowing the scores of a padded row, leaves it uniform; gradients pass all the
        # same. Written out because torch's fused backward recomputes the weights of such a row wrongly.
        allowed = (target_mask.unsqueeze(2) & reference_mask.unsqueeze(1)).unsqueeze(1)
        bias = torch.zeros(allowed.shape, dtype=query.dtype, device=query.device).masked_fill(~allowed, -1e30)
        q, k, v = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (query, key, value))
        weights = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5 + bias).softmax(-1)
        return (dropped(weights, dropout) @ v).transpose(1, 2).flatten(2)


class AttentionUnit(nn.Module):
    """Base of the two forms; see `forward` for what they share."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        """Builds the query, key and value projections.

        Args:
            dim: width d of both sequences.
            heads: attention heads; each attends d / heads features, scaled by the root of that size.
            dropout: on the attention weights and on what the unit adds.
        """
        super().__init__()
        self.attention = _Attention(dim, heads, dropout)
        self.dropout = Dropout(dropout)

    def forward(
        self,
        target: Tensor,
        reference: Tensor,
        reference_mask: Tensor,
        *,
        target_mask: Tensor | None = None,
        query: Tensor | None = None,
    ) -> Tensor:
        """Attends `target` with `reference`.

        Args:
            target: (B, Lt, d), what the residual connection keeps.
            reference: (B, Lr, d), read as keys and values.
            reference_mask: (B, Lr) bool, True = may be attended.
            target_mask: (B, Lt) bool; where it is False, the row becomes the plain mean over all of
                `reference`, padding included (EMB's code masks both sides of cross attention); None: every
                row attends.
            query: (B, Lt, d), read in place of `target` as the attention query (a guided target); None:
                `target`.

        Returns:
            (B, Lt, d).
        """
        read = target if query is None else query
        return self.combine(target, self.attention(read, reference, reference_mask, target_mask))

    def combine(self, target: Tensor, context: Tensor) -> Tensor:
        """Merges the target with what it attended, both (B, Lt, d)."""
        raise NotImplementedError


class EquationUnit(AttentionUnit):
    """TEA Eq. 6: FC(X^t + R(X^t, X^r) FC(X^r)), then layer normalisation and dropout (Sec. 4)."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        """Adds the outer FC layer; see `AttentionUnit` for the arguments."""
        super().__init__(dim, heads, dropout)
        self.output = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    def combine(self, target: Tensor, context: Tensor) -> Tensor:
        """Returns LN(FC(target + context)), dropped out."""
        return self.dropout(self.norm(self.output(target + context)))


class PostNormUnit(AttentionUnit):
    """EMB's layer: x = LN(X^t + context), then LN(x + FFN(x)) with a two-layer ReLU network of width d."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        """Adds the feed-forward network and both norms; see `AttentionUnit` for the arguments."""
        super().__init__(dim, heads, dropout)
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.feed_forward = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim))
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)

    def combine(self, target: Tensor, context: Tensor) -> Tensor:
        """Returns both residual steps."""
        hidden = self.norm1(target + self.dropout(context))
        return self.norm2(hidden + self.dropout(self.feed_forward(hidden)))


def attention_unit(name: UnitName, dim: int, heads: int, dropout: float) -> AttentionUnit:
    """Builds a unit by name.

    Args:
        name: "equation_6" (TEA) or "post_norm" (EMB's code).
        dim: width d.
        heads: attention heads.
        dropout: dropout rate.

    Returns:
        The unit.

    Raises:
        VmrError: if the name is neither.
    """
    units = {"equation_6": EquationUnit, "post_norm": PostNormUnit}
    if name not in units:
        raise unknown("attention unit", name, units)
    return units[name](dim, heads, dropout)
