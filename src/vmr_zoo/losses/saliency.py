"""Losses on the relevance of clips (QD-DETR, section 3.4; LMR Eq. 8; MESM Eq. 6)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def negative_pair_loss(scores: Tensor, mask: Tensor, exists: Tensor) -> Tensor:
    """Asks for low scores of clips under a sentence about another video (LMR Eq. 8): -log(1 - sigmoid(S)).

    Args:
        scores: (B, Lv) of each video with its negative sentence.
        mask: (B, Lv), True = valid.
        exists: (B,), False for a row without a negative, which adds nothing.

    Returns:
        Summed over the clips of a row, mean over all rows.
    """
    # softplus(S) = -log(1 - sigmoid(S)), but finite for every S.
    return (F.softplus(scores) * (mask & exists.unsqueeze(1))).sum(1).mean()


def rank_contrast(
    scores: Tensor,
    negative: Tensor,
    mask: Tensor,
    exists: Tensor,
    labels: Tensor,
    *,
    levels: int,
    divisor: float,
    temperature: float,
) -> Tensor:
    """Contrasts, for every level r, the clips rated at least r with all others and with the negative pair.

    Args:
        scores: (B, Lv).
        negative: (B, Lv) scores of the same clips under the negative sentence; they are never positives.
        mask: (B, Lv), True = valid.
        exists: (B,), False for a row without a negative.
        labels: (B, Lv) ratings, 0 where unrated or padded.
        levels: r runs from 1 to this.
        divisor: what the sum over the levels is divided by.
        temperature: of the softmax.

    Returns:
        Mean over all rows; a row without a clip of level r adds nothing at that level.
    """
    both = torch.cat((scores, negative), 1) / temperature
    valid = torch.cat((mask, mask & exists.unsqueeze(1)), 1)
    log_probability = both.masked_fill(~valid, -torch.inf).log_softmax(1)[:, : scores.shape[1]]
    level = torch.arange(1, levels + 1, device=labels.device)
    positive = (labels.unsqueeze(-1) >= level) & mask.unsqueeze(-1)
    # Each level takes the mean over its positives; a clip's weight is the sum of its shares.
    share = (positive / positive.sum(1, keepdim=True).clamp(min=1)).sum(-1)
    return -(log_probability.masked_fill(~mask, 0) * share).sum(1).mean() / divisor


def clip_entropy(scores: Tensor, inside: Tensor, mask: Tensor) -> Tensor:
    """Binary cross-entropy of every clip against whether it lies inside a moment (MESM Eq. 6).

    Args:
        scores: (B, Lv), s before its sigmoid.
        inside: (B, Lv), the label y.
        mask: (B, Lv), True = valid.

    Returns:
        Mean over the clips of a row, then over the rows.
    """
    entropy = F.binary_cross_entropy_with_logits(scores, inside.to(scores.dtype), reduction="none")
    return ((entropy * mask).sum(1) / mask.sum(1).clamp(min=1)).mean()
