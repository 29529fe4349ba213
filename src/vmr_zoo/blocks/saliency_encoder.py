"""Encoder of an aligned video that also scores its clips (QD-DETR, section 3.3; LMR Eq. 5; MESM Eq. 6)."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vmr_zoo.blocks.encoder import Encoder
from vmr_zoo.blocks.projection import MLP
from vmr_zoo.errors import unknown

SCORES = ("token", "mlp", "none")


class Scored(NamedTuple):
    """An encoded sequence.

    Attributes:
        memory: (B, L, D); meaningless on padding.
        token: (B, D) the encoded saliency token; None without one.
        saliency: (B, L) one score per element; None without scores. Meaningless on padding.
    """

    memory: Tensor
    token: Tensor | None
    saliency: Tensor | None


class SaliencyEncoder(nn.Module):
    """Self-attention over [saliency token; sequence], and a score per element.

    "token": S_i = (w_s x_s)(w_v x_i) / sqrt(D), where x_s is the encoded token. "mlp": a two-layer MLP of
    x_i, and no token. "none": neither.
    """

    def __init__(
        self, encoder: Encoder, dim: int, *, score: str = "token", token_is_key: bool = True
    ) -> None:
        """Adds token and scores to an encoder.

        Args:
            encoder: the self-attention layers.
            dim: D, their width.
            score: "token", "mlp" or "none".
            token_is_key: whether the sequence, and the token itself, may attend to the token.

        Raises:
            VmrError: for an unknown score.
        """
        super().__init__()
        if score not in SCORES:
            raise unknown("saliency score", score, SCORES)
        self.encoder = encoder
        self.dim, self.token_is_key = dim, token_is_key
        self.token: nn.Parameter | None = None
        self.score_mlp = MLP(dim, dim, 1, 2) if score == "mlp" else None
        if score == "token":
            self.token = nn.Parameter(torch.randn(dim))
            self.token_position = nn.Parameter(torch.randn(dim))
            self.score_frames, self.score_token = nn.Linear(dim, dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor, mask: Tensor, position: Tensor) -> Scored:
        """Encodes a padded sequence.

        Args:
            x: (B, L, D).
            mask: (B, L), True = valid.
            position: (B, L, D), added to queries and keys.

        Returns:
            See `Scored`.
        """
        if self.token is None:
            memory = self.encoder(x, mask, position)
            return Scored(
                memory, None, None if self.score_mlp is None else self.score_mlp(memory).squeeze(-1)
            )
        rows = len(x)
        first = mask.new_full((rows, 1), self.token_is_key)
        encoded = self.encoder(
            torch.cat((self.token.expand(rows, 1, -1), x), 1),
            torch.cat((first, mask), 1),
            torch.cat((self.token_position.expand(rows, 1, -1), position), 1),
        )
        token, memory = encoded[:, 0], encoded[:, 1:]
        saliency = (self.score_frames(memory) @ self.score_token(token).unsqueeze(-1)).squeeze(-1)
        return Scored(memory, token, saliency / math.sqrt(self.dim))
