"""Marks the clips of a feature sequence that are inside a moment."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

_EDGE = 4e-7  # of a boundary in clips: what is lost where it is stored as a fraction of the duration

WithinOne = Literal["own", "before"]
"""The clip of a moment that is inside one clip, for `clips_inside`."""


def whole_clips(times: Tensor) -> Tensor:
    """Rounds times in clips down, (...), but not those that float32 put just below a whole clip."""
    return (times + times * _EDGE).floor()


def clips_inside(
    spans: Tensor,
    span_mask: Tensor,
    duration: Tensor,
    clip_seconds: Tensor,
    video_mask: Tensor,
    within_one: WithinOne = "own",
) -> Tensor:
    """Marks the clips inside any of a row's moments.

    A moment from s to e seconds covers clips floor(s / c) to floor(e / c) - 1, and at least one.

    Args:
        spans: (B, N, 2) fractions of the duration.
        span_mask: (B, N), True = valid.
        duration: (B,) seconds.
        clip_seconds: (B,) seconds per clip, c.
        video_mask: (B, Lv), True = valid.
        within_one: a moment inside one clip covers that clip ("own"), or the clip before it ("before",
            BM-DETR's released code; the first clip where there is none).

    Returns:
        (B, Lv) bool, False on padding.
    """
    ends = whole_clips(spans * (duration / clip_seconds)[:, None, None])
    count = video_mask.sum(1)[:, None]
    first, last = ends[..., 0], ends[..., 1] - 1
    if within_one == "own":
        first = torch.minimum(first, count - 1).clamp(min=0)
        last = torch.maximum(last, first)
    else:
        last = torch.minimum(last, count - 1).clamp(min=0)
        first = torch.minimum(first, last)
    index = torch.arange(video_mask.shape[1], device=spans.device)
    inside = (index >= first.unsqueeze(-1)) & (index <= last.unsqueeze(-1)) & span_mask.unsqueeze(-1)
    return inside.any(1) & video_mask
