"""Saliency of clips: the encoder that scores them, negative pairs, and QD-DETR's two losses on them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vmr_zoo.blocks.encoder import Encoder
from vmr_zoo.blocks.projection import MLP
from vmr_zoo.losses.margin import PairRule
from vmr_zoo.utils.switches import check_switches


@check_switches
@dataclass(frozen=True)
class Saliency:
    """How clips are scored, and the constants of the saliency losses.

    Attributes:
        score: "token": S_i = (w_s x_s)(w_v x_i) / sqrt(D), where x_s is the encoded saliency token (QD-DETR,
            section 3.3; LMR Eq. 5). "mlp": a two-layer MLP of x_i, without a token (MESM Eq. 6). "none": no
            scores.
        token_is_key: whether the sequence, and the token itself, may attend to the token.
        negative_pair: the negative query of a row. "other_video": that of the next row, cyclically, that is
            about another video. "rolled": that of the next row (QD-DETR's released code), which may be about
            the same video and is the row itself in a batch of one.
        rank_levels: rating levels that `rank_contrast` compares.
        rank_divisor: divisor of the sum over the levels.
        rank_temperature: temperature of the softmax in `rank_contrast`.
        margin: by which the saliency of a relevant clip should exceed that of an irrelevant one.
        margin_pairs: which clips are compared (`vmr_zoo.losses.margin.pair_choices`).
    """

    score: Literal["token", "mlp", "none"]
    token_is_key: bool
    negative_pair: Literal["other_video", "rolled"]
    rank_levels: int
    rank_divisor: float
    rank_temperature: float
    margin: float
    margin_pairs: PairRule

    def negative_rows(self, video_index: Tensor) -> tuple[Tensor, Tensor]:
        """Pairs each row with the row whose query is its negative.

        Args:
            video_index: (B,), equal numbers are the same video.

        Returns:
            rows: (B,) int64, the row itself where there is no negative.
            exists: (B,) bool, whether there is one.
        """
        count = len(video_index)
        here = torch.arange(count, device=video_index.device)
        if self.negative_pair == "rolled":
            return (here + 1) % count, torch.ones_like(here, dtype=torch.bool)
        differs = video_index[:, None] != video_index[None]
        distance = ((here[None] - here[:, None]) % count).masked_fill(~differs, count)
        nearest, rows = distance.min(1)
        exists = nearest < count
        return torch.where(exists, rows, here), exists


class ScoredSequence(NamedTuple):
    """An encoded sequence.

    Attributes:
        memory: (B, K, D) the first K elements; meaningless on padding.
        token: (B, D) the encoded saliency token; None without one.
        saliency: (B, K) one score per element; None without scores. Meaningless on padding.
    """

    memory: Tensor
    token: Tensor | None
    saliency: Tensor | None


class SaliencyEncoder(nn.Module):
    """Self-attention over [saliency token; sequence], and a score per element."""

    def __init__(self, encoder: Encoder, dim: int, saliency: Saliency) -> None:
        """Adds token and scores to an encoder.

        Args:
            encoder: the self-attention layers.
            dim: D, their width.
            saliency: how elements are scored.
        """
        super().__init__()
        self.encoder = encoder
        self.dim, self.token_is_key = dim, saliency.token_is_key
        self.token: nn.Parameter | None = None
        self.score_mlp = MLP(dim, dim, 1, 2) if saliency.score == "mlp" else None
        if saliency.score == "token":
            self.token = nn.Parameter(torch.randn(dim))
            self.token_position = nn.Parameter(torch.randn(dim))
            self.score_frames, self.score_token = nn.Linear(dim, dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor, mask: Tensor, position: Tensor, keep: int) -> ScoredSequence:
        """Encodes a padded sequence.

        Args:
            x: (B, L, D).
            mask: (B, L), True = valid.
            position: (B, L, D), added to queries and keys.
            keep: K, how many leading elements are returned; the last layer computes only these.
        """
        if self.token is None:
            memory = self.encoder(x, mask, position, keep)
            # s of MESM Eq. 6, before its sigmoid.
            saliency = None if self.score_mlp is None else self.score_mlp(memory).squeeze(-1)
            return ScoredSequence(memory, None, saliency)
        rows = len(x)
        first = mask.new_full((rows, 1), self.token_is_key)
        encoded = self.encoder(
            torch.cat((self.token.expand(rows, 1, -1), x), 1),
            torch.cat((first, mask), 1),
            torch.cat((self.token_position.expand(rows, 1, -1), position), 1),
            1 + keep,
        )
        token, memory = encoded[:, 0], encoded[:, 1:]
        saliency = (self.score_frames(memory) @ self.score_token(token).unsqueeze(-1)).squeeze(-1)
        return ScoredSequence(memory, token, saliency / math.sqrt(self.dim))  # LMR Eq. 5


def negative_pair_loss(scores: Tensor, mask: Tensor, exists: Tensor) -> Tensor:
    """Penalises high scores of clips under a query about another video: -log(1 - sigmoid(S)), LMR Eq. 8.

    Args:
        scores: (B, Lv) of each video with its negative query.
        mask: (B, Lv), True = valid.
        exists: (B,), False for a row without a negative query, which adds nothing.

    Returns:
        Sum over the clips of a row, mean over all rows.
    """
    # softplus(S) = -log(1 - sigmoid(S)), but finite for every S.
    return (F.softplus(scores) * (mask & exists.unsqueeze(1))).sum(1).mean()


def rank_contrast(
    scores: Tensor, negative: Tensor, mask: Tensor, exists: Tensor, labels: Tensor, saliency: Saliency
) -> Tensor:
    """Contrasts, for every level r, the clips rated at least r with all others and with the negative pair.

    Args:
        scores: (B, Lv).
        negative: (B, Lv) scores of the same clips under the negative query; they are never positives.
        mask: (B, Lv), True = valid.
        exists: (B,), False for a row without a negative query.
        labels: (B, Lv) ratings, 0 where unrated. One on padding is that of a clip that the video lacks: it
            counts among the positives of its levels, and adds nothing.
        saliency: the constants; r runs from 1 to `rank_levels`.

    Returns:
        Mean over all rows; a row without a clip of level r adds nothing at that level.
    """
    both = torch.cat((scores, negative), 1) / saliency.rank_temperature
    valid = torch.cat((mask, mask & exists.unsqueeze(1)), 1)
    log_probability = both.masked_fill(~valid, -torch.inf).log_softmax(1)[:, : scores.shape[1]]
    level = torch.arange(1, saliency.rank_levels + 1, device=labels.device)
    positive = labels.unsqueeze(-1) >= level
    # Each level takes the mean over its positives; a clip's weight is the sum of its shares.
    share = (positive / positive.sum(1, keepdim=True).clamp(min=1)).sum(-1)
    return -(log_probability.masked_fill(~mask, 0) * share).sum(1).mean() / saliency.rank_divisor
