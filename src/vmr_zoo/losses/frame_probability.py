"""Frame probability loss (BM-DETR Eq. 16)."""

from __future__ import annotations

from torch import Tensor


def frame_probability_loss(probability: Tensor, inside: Tensor, video_mask: Tensor) -> Tensor:
    """Asks for a high probability inside the moments and a low one outside.

    Args:
        probability: (B, Lv) in [0, 1].
        inside: (B, Lv) bool, the clips inside a moment.
        video_mask: (B, Lv), True = valid.

    Returns:
        Mean over the rows of 1 - (mean probability inside) + (mean probability outside). A row without any
        clip on one of the sides counts 0 for that side.
    """
    outside = ~inside & video_mask
    high = (probability * inside).sum(1) / inside.sum(1).clamp(min=1)
    low = (probability * outside).sum(1) / outside.sum(1).clamp(min=1)
    return (1 - high + low).mean()
