"""Span arithmetic: pure functions on tensors of (start, end) or (centre, width).

A span is any pair on the last axis; units do not matter as long as both sides share them.
"""

from __future__ import annotations

import torch
from torch import Tensor


def to_centre_width(spans: Tensor) -> Tensor:
    """Converts (..., 2) start and end to centre and width."""
    start, end = spans.unbind(-1)
    return torch.stack(((start + end) / 2, end - start), -1)


def to_start_end(spans: Tensor) -> Tensor:
    """Converts (..., 2) centre and width to start and end."""
    centre, width = spans.unbind(-1)
    return torch.stack((centre - width / 2, centre + width / 2), -1)


def _intersection_union(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    inter = (torch.minimum(a[..., 1], b[..., 1]) - torch.maximum(a[..., 0], b[..., 0])).clamp(min=0)
    union = (a[..., 1] - a[..., 0]) + (b[..., 1] - b[..., 0]) - inter
    return inter, union


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of spans that broadcast against each other.

    Args:
        a: (..., 2) start and end.
        b: (..., 2) start and end, broadcastable with `a`.

    Returns:
        (...) in [0, 1]. Two empty spans have no union; their IoU is 0.
    """
    inter, union = _intersection_union(a, b)
    return torch.where(union > 0, inter / union.where(union > 0, torch.ones_like(union)), torch.zeros_like(union))


def giou(a: Tensor, b: Tensor) -> Tensor:
    """Generalised IoU (Rezatofighi et al. 2019) on a line, of spans that broadcast against each other.

    Args:
        a: (..., 2) start and end.
        b: (..., 2) start and end, broadcastable with `a`.

    Returns:
        (...) in [-1, 1]: the IoU less the share of the enclosing span that neither covers.
    """
    inter, union = _intersection_union(a, b)
    hull = (torch.maximum(a[..., 1], b[..., 1]) - torch.minimum(a[..., 0], b[..., 0])).clamp(min=0)
    one = torch.ones_like(union)
    ratio = torch.where(union > 0, inter / union.where(union > 0, one), torch.zeros_like(union))
    gap = torch.where(hull > 0, (hull - union) / hull.where(hull > 0, one), torch.zeros_like(union))
    return ratio - gap


def pairwise(a: Tensor) -> Tensor:
    """Adds the axes so that `iou(pairwise(a), b)` compares every a with every b: (..., A, 2) to (..., A, 1, 2)."""
    return a.unsqueeze(-2)
