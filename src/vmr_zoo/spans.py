"""Span arithmetic: pure functions on tensors of (start, end) or (centre, width).

A span is a pair on the last axis; all spans of a call have the same unit.
"""

from __future__ import annotations

from collections.abc import Callable

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
        (...) in [0, 1]; 0 if both spans are empty.
    """
    inter, union = _intersection_union(a, b)
    return torch.where(
        union > 0, inter / union.where(union > 0, torch.ones_like(union)), torch.zeros_like(union)
    )


def giou(a: Tensor, b: Tensor) -> Tensor:
    """Generalised IoU (Rezatofighi et al. 2019) of one-dimensional spans that broadcast against each other.

    Args:
        a: (..., 2) start and end.
        b: (..., 2) start and end, broadcastable with `a`.

    Returns:
        (...) in [-1, 1]: the IoU minus the fraction of the enclosing span that neither span covers.
    """
    inter, union = _intersection_union(a, b)
    hull = (torch.maximum(a[..., 1], b[..., 1]) - torch.minimum(a[..., 0], b[..., 0])).clamp(min=0)
    one = torch.ones_like(union)
    ratio = torch.where(union > 0, inter / union.where(union > 0, one), torch.zeros_like(union))
    gap = torch.where(hull > 0, (hull - union) / hull.where(hull > 0, one), torch.zeros_like(union))
    return ratio - gap


def pairwise(a: Tensor) -> Tensor:
    """Adds an axis, (..., A, 2) to (..., A, 1, 2), to compare every a with every b of (..., 1, B, 2)."""
    return a.unsqueeze(-2)


def nms(
    spans: Tensor,
    scores: Tensor,
    threshold: float,
    keep: int | None = None,
    overlap: Callable[[Tensor, Tensor], Tensor] = iou,
) -> tuple[Tensor, Tensor]:
    """Greedy temporal non-maximum suppression per row.

    In order of score, each remaining span removes all later spans whose IoU with it exceeds the threshold. It
    stops after `keep` spans, so a few out of thousands are cheap.

    Args:
        spans: (B, K, 2) start and end.
        scores: (B, K) in any order, not negative; padding is an empty span of score 0.
        threshold: IoU above which the span with the lower score is removed.
        keep: spans to return per row, at most K; None for K.
        overlap: computes the IoU; replaces `iou` where other rounding is needed.

    Returns:
        spans (B, keep, 2) and scores (B, keep), best first, padded with empty spans of score 0. Equal scores
        keep their order.

    >>> spans = torch.tensor([[[0.0, 4.0], [0.0, 5.0], [6.0, 9.0]]])
    >>> nms(spans, torch.tensor([[0.5, 0.9, 0.3]]), threshold=0.7)
    (tensor([[[0., 5.],
             [6., 9.],
             [0., 0.]]]), tensor([[0.9000, 0.3000, 0.0000]]))
    """
    count = spans.shape[1]
    keep = count if keep is None else keep
    scores, order = scores.sort(dim=1, descending=True, stable=True)
    spans = spans.gather(1, order[..., None].expand_as(spans))
    place = torch.arange(count, device=spans.device)
    left = torch.ones_like(scores, dtype=torch.bool)
    kept_spans, kept_scores = [], []
    for _ in range(keep):
        # The first remaining span, or the last one if none remains.
        best = torch.where(left, place, count - 1).amin(1, keepdim=True)
        found = left.gather(1, best)
        span = spans.gather(1, best[..., None].expand(-1, -1, 2))
        kept_spans.append(span * found[..., None])
        kept_scores.append(scores.gather(1, best) * found)
        left = left & (place != best) & ~((overlap(span, spans) > threshold) & found)
    return torch.cat(kept_spans, 1), torch.cat(kept_scores, 1)
