"""Highlight margin loss on sampled pairs of clips (Moment-DETR's saliency loss, BM-DETR Eq. 15)."""

from __future__ import annotations

import torch
from torch import Tensor


def _draw(allowed: Tensor) -> Tensor:
    """Draws a True position of each row of (B, Lv) uniformly; arbitrary where a row has none.

    It draws one random number per row, which makes the result independent of padding.
    """
    count = allowed.sum(1, keepdim=True)
    nth = (torch.rand(len(allowed), 1, device=allowed.device) * count).long().clamp(max=count - 1)
    return (allowed & (allowed.cumsum(1) == nth + 1)).int().argmax(1)


def sample_pairs(
    inside: Tensor, video_mask: Tensor, saliency: Tensor, saliency_mask: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Draws two pairs of clips per row, each of a more and a less relevant clip.

    If the ratings of a row differ, its first pair is the highest and the lowest rated clip. Other pairs are a
    random clip inside the moments and a random clip outside.

    Args:
        inside: (B, Lv) bool, the clips inside a moment.
        video_mask: (B, Lv), True = valid.
        saliency: (B, Lv) ratings.
        saliency_mask: (B, Lv), True = rated.

    Returns:
        positive (B, 2) and negative (B, 2) clip indices, and usable (B, 2) bool, False where there is no such
        pair (all clips are inside, or none is).
    """
    outside = ~inside & video_mask
    positive = torch.stack((_draw(inside), _draw(inside)), 1)
    negative = torch.stack((_draw(outside), _draw(outside)), 1)
    usable = (inside.any(1) & outside.any(1))[:, None].expand(-1, 2)

    best, highest = saliency.masked_fill(~saliency_mask, -torch.inf).max(1)
    worst, lowest = saliency.masked_fill(~saliency_mask, torch.inf).min(1)
    rated = (best > worst)[:, None]
    hard = (torch.arange(2, device=inside.device) == 0) & rated
    positive = torch.where(hard, highest[:, None], positive)
    negative = torch.where(hard, lowest[:, None], negative)
    return positive, negative, usable | hard


def margin_loss(
    scores: Tensor, positive: Tensor, negative: Tensor, usable: Tensor, margin: float = 0.2
) -> Tensor:
    """Hinge loss that encourages each positive clip to outscore its negative by a margin (BM-DETR Eq. 15).

    Args:
        scores: (B, Lv).
        positive: (B, P) clip indices.
        negative: (B, P) clip indices.
        usable: (B, P) bool; other pairs contribute 0.
        margin: minimum difference of the scores.

    Returns:
        Twice the mean over B * P (the factor is Moment-DETR's).
    """
    gap = scores.gather(1, negative) - scores.gather(1, positive)
    return 2 * ((margin + gap).clamp(min=0) * usable).mean()
