"""The unit of a set predictor's spans: fractions of the video's duration, or of the clips read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from vmr_zoo.types import Batch
from vmr_zoo.utils.switches import check_switches


@check_switches
@dataclass(frozen=True)
class SpanUnit:
    """Converts between fractions of the duration (the contract) and the unit of a set predictor.

    Attributes:
        unit: "duration": the two are the same. "clips": the released code of the Moment-DETR family divides
            targets by (clips read) * (seconds per clip), but multiplies predictions by the duration, or by
            the length of `max_clips` clips if that is shorter.
        max_clips: the most clips that are read of a video; only "clips" uses it.
    """

    unit: Literal["duration", "clips"]
    max_clips: int

    def targets(self, spans: Tensor, batch: Batch) -> Tensor:
        """Converts (B, N, 2) fractions of the duration to the predictor's unit."""
        if self.unit == "duration":
            return spans
        read = batch["video_mask"].sum(1) * batch["clip_seconds"]
        return spans * (batch["duration"] / read)[:, None, None]

    def scale(self, batch: Batch) -> Tensor | None:
        """Returns the factor (B,) from a prediction to fractions of the duration; None stands for 1."""
        if self.unit == "duration":
            return None
        return (self.max_clips * batch["clip_seconds"] / batch["duration"]).clamp(max=1)
