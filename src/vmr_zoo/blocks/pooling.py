"""Pooling of a padded sequence to one vector by learned attention."""

from __future__ import annotations

from torch import Tensor, nn


class AttentivePooling(nn.Module):
    """Weighted mean of a sequence, the weights a softmax over one learned score per element.

    `hidden=False`: the score is linear (BM-DETR Eq. 9-10). `hidden=True`: it is Linear, tanh, Linear, and the
    mean passes one more Linear (BM-DETR's released code).
    """

    def __init__(self, dim: int, *, hidden: bool) -> None:
        """Builds the scorer for vectors of width `dim`."""
        super().__init__()
        last = nn.Linear(dim, 1, bias=False)
        self.score = nn.Sequential(nn.Linear(dim, dim, bias=False), nn.Tanh(), last) if hidden else last
        self.out = nn.Linear(dim, dim) if hidden else nn.Identity()

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Pools (B, L, D) with mask (B, L), True = valid, at least one per row, to (B, D)."""
        score = self.score(x).squeeze(-1).masked_fill(~mask, float("-inf"))
        return self.out((score.softmax(1).unsqueeze(1) @ x).squeeze(1))
