"""Temporal shifting (TS, section 3.4): a second copy of each training video with its moment moved.

The data module draws the new place (`data.shift`); here the copy is put behind the batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from vmr_zoo.blocks.clips import WithinOne, clips_inside
from vmr_zoo.blocks.position import append_tef
from vmr_zoo.types import Batch
from vmr_zoo.utils.switches import check_switches


class TrainingRows(NamedTuple):
    """The rows of one training step: the batch, followed by its shifted copy if there is one.

    Attributes:
        batch: the batch fields of all R rows; `video` includes TEF.
        inside: (R, Lv), the clips inside the moments.
        margin_inside: (R, Lv), the clips from which the margin loss draws its positives.
        copies: 1, or 2 with a shifted copy.
    """

    batch: Batch
    inside: Tensor
    margin_inside: Tensor
    copies: int


@check_switches
@dataclass(frozen=True)
class ShiftedCopy:
    """How the shifted copy of a video is read.

    Attributes:
        tef: the clips of the copy get the endpoint features of their new places ("renumbered"), or keep those
            of their old places ("travels", released), which shows the model what was moved.
    """

    tef: Literal["renumbered", "travels"]

    def video(self, batch: Batch, video: Tensor) -> Tensor:
        """Permutes the clips; `video` (B, Lv, Dv + 2) is the batch's with TEF, as is the result."""
        index = batch["shift_order"].unsqueeze(-1)
        if self.tef == "travels":
            return video.gather(1, index.expand_as(video))
        moved = batch["video"].gather(1, index.expand_as(batch["video"]))
        return append_tef(moved, batch["video_mask"])


def training_rows(batch: Batch, shifting: ShiftedCopy | None, within_one: WithinOne) -> TrainingRows:
    """Lays out the rows of a training step.

    The copy keeps query, negative query and ratings. Its clips are permuted, and their ratings with them.

    Args:
        batch: the batch with `all_spans`; with `shifting` it has `shift_order` and `shifted_spans`.
        shifting: None leaves out the copy.
        within_one: the clip of a moment inside one clip, as in `clips_inside`.
    """
    mask = batch["video_mask"]
    seconds = batch["duration"], batch["clip_seconds"]
    inside = clips_inside(batch["all_spans"], batch["all_span_mask"], *seconds, mask, within_one)
    video = append_tef(batch["video"], mask)
    rows: Batch = {**batch, "video": video}
    if shifting is None:
        return TrainingRows(rows, inside, inside, copies=1)
    order = batch["shift_order"]
    shifted: Batch = {
        **batch,
        "video": shifting.video(batch, video),
        "spans": batch["shifted_spans"],
        "saliency": _moved(batch["saliency"], order),
        "saliency_mask": _moved(batch["saliency_mask"], order),
    }
    for key, value in shifted.items():
        if isinstance(value, Tensor):
            rows[key] = torch.cat((rows[key], value))  # type: ignore[literal-required]
    # The released code moves the right clips but reports a moment that is one clip too short, and its margin
    # loss draws from the reported moment. With exact moments the two agree, but for the last clip of a video
    # whose duration is no multiple of a clip.
    moved_inside = clips_inside(batch["shifted_spans"], batch["span_mask"], *seconds, mask, within_one)
    return TrainingRows(
        rows, torch.cat((inside, inside.gather(1, order))), torch.cat((inside, moved_inside)), copies=2
    )


def _moved(ratings: Tensor, order: Tensor) -> Tensor:
    """Permutes ratings (B, >= Lv) with their clips; those of clips that the video lacks stay."""
    return torch.cat((ratings.gather(1, order), ratings[:, order.shape[1] :]), 1)
