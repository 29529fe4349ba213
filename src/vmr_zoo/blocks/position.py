"""Position encodings: temporal endpoint features (TEF), sine positions, sine embeddings of coordinates."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_TEMPERATURE = 10000.0
"""Base of the frequencies of sine encodings (Vaswani et al. 2017)."""


def append_tef(video: Tensor, mask: Tensor) -> Tensor:
    """Appends the temporal endpoint feature: clip i of T gets (i / T, (i + 1) / T).

    Args:
        video: (B, Lv, Dv).
        mask: (B, Lv), True = valid; the valid clips come first.

    Returns:
        (B, Lv, Dv + 2); the two new channels are zero on padding.
    """
    index = torch.arange(video.shape[1], device=video.device, dtype=video.dtype)
    ends = torch.stack((index, index + 1), -1) / mask.sum(1).clamp(min=1).to(video.dtype)[:, None, None]
    return torch.cat((video, ends * mask.unsqueeze(-1)), -1)


def _sine(values: Tensor, dim: int) -> Tensor:
    """Embeds values (...) as interleaved sin (even channels) and cos (odd channels), (..., dim)."""
    channel = torch.arange(dim, device=values.device, dtype=values.dtype)
    angle = values.unsqueeze(-1) / _TEMPERATURE ** (2 * (channel // 2) / dim)
    return torch.where(channel.long() % 2 == 0, angle.sin(), angle.cos())


def sine_position(mask: Tensor, dim: int) -> Tensor:
    """Sine positions of a padded sequence, normalised to one period per sequence (DETR).

    Args:
        mask: (B, L), True = valid.
        dim: number of channels.

    Returns:
        (B, L, dim) float32, or float64 where that is torch's default; meaningless on padding.
    """
    # Not a narrower default: bfloat16 cannot count beyond 256.
    precision = torch.promote_types(torch.get_default_dtype(), torch.float32)
    count = mask.to(precision).cumsum(1)
    return _sine(count / (count[:, -1:] + 1e-6) * 2 * math.pi, dim)


def sine_coordinates(coordinates: Tensor, dim: int) -> Tensor:
    """Sine embedding of coordinates in [0, 1], each in its share of the channels (DAB-DETR, sec. 4.2).

    Args:
        coordinates: (..., C).
        dim: total number of channels, divisible by C.

    Returns:
        (..., dim), the channels of the first coordinate first.
    """
    share = dim // coordinates.shape[-1]
    return _sine(coordinates * 2 * math.pi, share).flatten(-2)
