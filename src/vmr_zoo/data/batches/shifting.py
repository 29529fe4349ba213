"""Temporal shifting: moves the clips of the moment to another place in the video.

Paper: BM-DETR (Jung et al. 2023), section 3.4: "randomly moves the ground-truth moment to a new temporal
location", for videos shorter than 60 s. The rest of the video keeps its order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vmr_zoo.utils.switches import check_switches


@check_switches
@dataclass(frozen=True)
class TemporalShift:
    """How moments are moved.

    A row stays unchanged (identity permutation) if its video is too long, if it has several moments (moving
    one would change the meaning of the others), if its moment covers every clip, or, with exact spans, if its
    moment starts after the last clip.

    Attributes:
        max_duration: only videos shorter than this many seconds are shifted (paper: 60); None shifts all
            (released code, which has no such check).
        spans: "exact" moves every clip that overlaps the moment to a new place among the background, and the
            ends of the moment by the same whole number of clips. "released" follows BM-DETR's released code:
            it moves clips floor(start) to floor(end) - 1 to any slot but the last (possibly the old one), and
            uses the indices of the first and the last moved clip as the new start and end in seconds, which
            shortens the moment by one clip. A moment inside one clip moves the clip before, and one that
            starts after the last clip moves the last clip.
    """

    max_duration: float | None = 60.0
    spans: Literal["exact", "released"] = "exact"

    def draw(
        self,
        moments: Tensor,
        moment_mask: Tensor,
        clips: Tensor,
        clip_seconds: Tensor,
        duration: Tensor,
        draws: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Moves each row's moment to a random place.

        Args:
            moments: (B, N, 2) float64 seconds.
            moment_mask: (B, N).
            clips: (B,) int64, number of valid clips.
            clip_seconds: (B,) float64.
            duration: (B,) float64 seconds.
            draws: (B,) float64 in [0, 1), choose the new places.

        Returns:
            Permutation (B, max(clips)) int64, identity beyond the valid clips, and moments (B, N, 2) in
            seconds.
        """
        first, last = self.window(moments[:, 0], clips, clip_seconds)
        background = clips - (last - first + 1)
        movable = (moment_mask.sum(1) == 1) & (background > 0)
        if self.spans == "exact":
            movable &= moments[:, 0, 0] < clips * clip_seconds
        if self.max_duration is not None:
            movable &= duration < self.max_duration
        # One of `background` slots: "exact" skips the old one, "released" leaves out the last.
        slot = (draws * background).long()
        if self.spans == "exact":
            slot = slot + (slot >= first)
        order, moved = self.move(moments[:, 0], first, last, slot, clips, clip_seconds, duration)
        order = torch.where(movable[:, None], order, torch.arange(order.shape[1]))
        spans = moments.clone()
        spans[:, 0] = torch.where(movable[:, None], moved, moments[:, 0])
        return order, spans

    def window(self, moment: Tensor, clips: Tensor, clip_seconds: Tensor) -> tuple[Tensor, Tensor]:
        """Finds the first and last clip of a moment.

        Args:
            moment: (B, 2) seconds.
            clips: (B,) number of valid clips.
            clip_seconds: (B,).

        Returns:
            Inclusive indices (B,) and (B,) of at least one clip within the video.
        """
        start, end = (moment / clip_seconds[:, None]).unbind(1)
        first = torch.floor(start).long()
        if self.spans == "released":
            last = (torch.minimum(torch.floor(end).long(), clips) - 1).clamp(min=0)
            return torch.minimum(first, last), last
        first = torch.minimum(first, clips - 1)
        return first, torch.minimum(torch.maximum(torch.ceil(end).long() - 1, first), clips - 1)

    def move(
        self,
        moment: Tensor,
        first: Tensor,
        last: Tensor,
        slot: Tensor,
        clips: Tensor,
        clip_seconds: Tensor,
        duration: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Moves clips `first` to `last` to start at clip `slot`.

        Args:
            moment: (B, 2) seconds.
            first: (B,) first clip of the moment.
            last: (B,) last clip of the moment.
            slot: (B,) its new first clip.
            clips: (B,) number of valid clips.
            clip_seconds: (B,).
            duration: (B,) seconds; an exact moment that ends after it, because the last clip is partial, is
                clipped.

        Returns:
            Permutation (B, max(clips)): clip i of the shifted video is clip order[i] of the original; and the
            new moment (B, 2) in seconds.
        """
        first, last, slot, count = (x[:, None] for x in (first, last, slot, clips))
        width = last - first + 1
        place = torch.arange(int(clips.max()))[None, :]
        in_moment = (place >= slot) & (place < slot + width)
        rank = torch.where(place < slot, place, place - width)
        background = torch.where(rank < first, rank, rank + width)
        order = torch.where(in_moment, first + place - slot, background)
        order = torch.where(place < count, order, place)
        if self.spans == "released":
            return order, torch.cat((slot, slot + width - 1), 1).to(moment.dtype)
        moved = moment + (slot - first) * clip_seconds[:, None]
        return order, torch.minimum(moved.clamp(min=0), duration[:, None])
