"""From clips and narration sentences to snippets: downsampling, alignment (TEA Eq. 3), merging (Eq. 4)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from vmr_zoo.blocks.attention_unit import UnitName, attention_unit
from vmr_zoo.errors import unknown

Downsample = Literal["max", "mean"]


def snippet_of_clip(mask: Tensor, limit: int, drop_last: bool) -> Tensor:
    """Tells which snippet each clip falls into when a row has more clips than snippets.

    Snippet k of n clips begins at round(k n / limit), half to even.

    Args:
        mask: (B, Lv) bool, True = valid; valid clips come first.
        limit: snippets of a row that has more clips than that; others keep one clip each.
        drop_last: whether the last edge is n - 1 instead of n, so that the last clip belongs to no snippet
            unless it has one to itself (a slip of EMB's code).

    Returns:
        (B, Lv) int64; `limit` for a clip that belongs to none.
    """
    count = mask.sum(1, keepdim=True)
    step = torch.arange(limit + 1, device=mask.device)
    edges = torch.where(count > limit, (step * count.double() / limit).round().long(), step)
    clip = torch.arange(mask.shape[1], device=mask.device).expand_as(mask).contiguous()
    snippet = torch.searchsorted(edges[:, 1:].contiguous(), clip, right=True)
    if drop_last:
        dropped = (clip == count - 1) & (count > limit) & (edges[:, -2:-1] < count - 1)
        snippet = snippet.masked_fill(dropped, limit)
    return snippet.masked_fill(~mask, limit)


def pool_clips(
    video: Tensor, mask: Tensor, limit: int, how: Downsample, drop_last: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Pools the clips of long videos so that no row has more than `limit` snippets.

    Args:
        video: (B, Lv, D).
        mask: (B, Lv) bool, True = valid; valid clips come first.
        limit: largest number of snippets.
        how: "max" (TEA Sec. 4) or "mean" (EMB's code).
        drop_last: see `snippet_of_clip`.

    Returns:
        Snippets (B, min(Lv, limit), D), their mask, and (B, Lv) the snippet of each clip.
    """
    if how not in ("max", "mean"):
        raise unknown("downsample", how, ["max", "mean"])
    if video.shape[1] <= limit:
        return video, mask, torch.arange(video.shape[1], device=video.device).expand_as(mask)
    snippet = snippet_of_clip(mask, limit, drop_last)
    # One extra snippet collects what belongs to none.
    pooled = video.new_zeros(len(video), limit + 1, video.shape[2]).scatter_reduce(
        1,
        snippet.unsqueeze(-1).expand_as(video),
        video,
        "amax" if how == "max" else "mean",
        include_self=False,
    )[:, :limit]
    valid = torch.arange(limit, device=video.device) < mask.sum(1, keepdim=True)
    return pooled * valid.unsqueeze(-1), valid, snippet.clamp(max=limit - 1)


def align_narration(narration: Tensor, narration_mask: Tensor, spans: Tensor, mask: Tensor) -> Tensor:
    """Averages the narration sentences of each snippet: C^a of TEA Eq. 3.

    Snippet k of L covers [k / L, (k + 1) / L). A sentence about one frame belongs to the snippet that holds
    its time; one about an interval to every snippet that it overlaps. A snippet without any sentence takes
    the nearest in time (the paper is silent; with one caption a second and finer features most have none).

    Args:
        narration: (B, Ln, D) one vector for each sentence.
        narration_mask: (B, Ln) bool, at least one True in each row.
        spans: (B, Ln, 2) start and end as fractions of the duration.
        mask: (B, L) bool of the snippets; valid ones come first.

    Returns:
        (B, L, D), zero on padding.
    """
    count = mask.sum(1)[:, None]
    first = torch.minimum((spans[..., 0] * count).floor(), count - 1)
    last = torch.maximum((spans[..., 1] * count).ceil() - 1, first)
    snippet = torch.arange(mask.shape[1], device=mask.device)[:, None]
    inside = (snippet >= first.unsqueeze(1)) & (snippet <= last.unsqueeze(1)) & narration_mask.unsqueeze(1)
    centre = (snippet + 0.5) / count.unsqueeze(1)
    start, end = spans.unsqueeze(1).unbind(-1)
    distance = (torch.maximum(start - centre, centre - end)).clamp(min=0.0)
    nearest = distance.masked_fill(~narration_mask.unsqueeze(1), torch.inf).argmin(2)
    fallback = functional.one_hot(nearest, narration.shape[1]).bool()
    weights = torch.where(inside.any(2, keepdim=True), inside, fallback).to(narration.dtype)
    pooled = (weights / weights.sum(2, keepdim=True)) @ narration
    return pooled * mask.unsqueeze(-1)


class ConcatMerge(nn.Module):
    """s^m = MLP(s || c), TEA Eq. 4: the narration is concatenated to the snippet (Table 4, "Concat+MLP")."""

    def __init__(self, dim: int) -> None:
        """Builds the MLP, 2 d to d to d."""
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(2 * dim, dim), nn.ReLU(), nn.Linear(dim, dim))

    def forward(self, video: Tensor, narration: Tensor, mask: Tensor) -> Tensor:
        """Merges (B, L, d) video and narration under a (B, L) mask to (B, L, d)."""
        return self.mlp(torch.cat((video, narration), -1))


class AddMerge(nn.Module):
    """s^m = s + c, (a) of TEA's alternatives (Table 4, "Add")."""

    def forward(self, video: Tensor, narration: Tensor, mask: Tensor) -> Tensor:
        """Merges (B, L, d) video and narration under a (B, L) mask to (B, L, d)."""
        return video + narration


class AttentionMerge(nn.Module):
    """V^m = A(V, C), (b) of TEA's alternatives (Table 4, "Attention"): the attention unit of Eq. 6."""

    def __init__(self, dim: int, heads: int, dropout: float, unit: UnitName) -> None:
        """Builds the unit; see `vmr_zoo.blocks.attention_unit.attention_unit`."""
        super().__init__()
        self.unit = attention_unit(unit, dim, heads, dropout)

    def forward(self, video: Tensor, narration: Tensor, mask: Tensor) -> Tensor:
        """Merges (B, L, d) video and narration under a (B, L) mask to (B, L, d)."""
        return self.unit(video, narration, mask)
