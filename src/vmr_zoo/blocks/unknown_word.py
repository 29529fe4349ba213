"""The vector of words that a table of word vectors lacks."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class UnknownWord(nn.Module):
    """One trained vector for all words without a vector: those whose features are zeros (EMB's code)."""

    def __init__(self, dim: int) -> None:
        """Draws the vector; `dim` is the width of the word features."""
        super().__init__()
        self.vector = nn.Parameter(torch.empty(1, dim))
        nn.init.xavier_uniform_(self.vector)

    def forward(self, words: Tensor, mask: Tensor) -> Tensor:
        """Puts the vector in the place of every valid word of (B, L, D) that is zero; mask (B, L)."""
        unknown = mask & (words == 0).all(-1)
        return torch.where(unknown.unsqueeze(-1), self.vector, words)
