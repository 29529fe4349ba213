"""How well each candidate matches: binary cross-entropy against its rescaled IoU (2D-TAN Eq. 6-7)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def scaled_iou(overlap: Tensor, low: float, high: float) -> Tensor:
    """Stretches IoU from [low, high] to [0, 1], clamped; low 0 and high 1 leave it as it is."""
    return ((overlap - low) / (high - low)).clamp(0, 1)


def scaled_iou_loss(logits: Tensor, overlap: Tensor, low: float, high: float) -> Tensor:
    """Asks each candidate's score for its rescaled IoU.

    Args:
        logits: (S, K), scores before the sigmoid.
        overlap: (S, K), IoU with the ground truth.
        low: IoU that counts as 0.
        high: IoU that counts as 1.

    Returns:
        Mean over rows and candidates, a scalar.
    """
    return F.binary_cross_entropy_with_logits(logits, scaled_iou(overlap, low, high))
