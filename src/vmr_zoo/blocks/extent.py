"""What a predicted span of 1 stands for: the video's duration, or the clips that were read."""

from __future__ import annotations

from torch import Tensor

from vmr_zoo.errors import unknown
from vmr_zoo.types import Batch

UNITS = ("duration", "clips")


class Extent:
    """Converts between fractions of the duration (the contract) and a set predictor's own unit.

    `duration`: the two are the same. `clips`: the released code of the Moment-DETR family divides targets by
    (clips read) * (seconds per clip), but multiplies predictions by the duration, or by what `max_clips`
    clips last if that is less.
    """

    def __init__(self, unit: str, max_clips: int) -> None:
        """Stores the unit.

        Args:
            unit: "duration" or "clips".
            max_clips: the most clips that are read of a video; only "clips" uses it.

        Raises:
            VmrError: for another unit.
        """
        if unit not in UNITS:
            raise unknown("span_unit", unit, UNITS)
        self.unit, self.max_clips = unit, max_clips

    def targets(self, spans: Tensor, batch: Batch) -> Tensor:
        """Converts (B, N, 2) fractions of the duration to the predictor's unit."""
        if self.unit == "duration":
            return spans
        read = batch["video_mask"].sum(1) * batch["clip_seconds"]
        return spans * (batch["duration"] / read)[:, None, None]

    def scale(self, batch: Batch) -> Tensor | None:
        """Returns the factor (B,) from a prediction to fractions of the duration, None for 1."""
        if self.unit == "duration":
            return None
        return (self.max_clips * batch["clip_seconds"] / batch["duration"]).clamp(max=1)
