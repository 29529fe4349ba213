"""Marks the clips of a feature sequence that are inside a moment."""

from __future__ import annotations

import torch
from torch import Tensor

_EDGE = 1e-4  # in clips: a boundary stored as a fraction of the duration may lose a rounding error


def clips_inside(
    spans: Tensor, span_mask: Tensor, duration: Tensor, clip_seconds: Tensor, video_mask: Tensor
) -> Tensor:
    """Marks the clips inside any of a row's moments.

    A moment from s to e seconds covers clips floor(s / c) to floor(e / c) - 1, and at least one.

    Args:
        spans: (B, N, 2) fractions of the duration.
        span_mask: (B, N), True = valid.
        duration: (B,) seconds.
        clip_seconds: (B,) seconds per clip, c.
        video_mask: (B, Lv), True = valid.

    Returns:
        (B, Lv) bool, False on padding.
    """
    ends = (spans * (duration / clip_seconds)[:, None, None] + _EDGE).floor()
    count = video_mask.sum(1)[:, None]
    first = torch.minimum(ends[..., 0], count - 1).clamp(min=0)
    last = torch.maximum(ends[..., 1] - 1, first)
    index = torch.arange(video_mask.shape[1], device=spans.device)
    inside = (index >= first.unsqueeze(-1)) & (index <= last.unsqueeze(-1)) & span_mask.unsqueeze(-1)
    return inside.any(1) & video_mask
