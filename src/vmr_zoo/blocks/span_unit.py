"""The unit of a set predictor's spans: fractions of the duration, or of the clips read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from vmr_zoo.types import Batch
from vmr_zoo.utils.switches import check_switches


@check_switches
@dataclass(frozen=True)
class SpanUnit:
    """Converts spans between fractions of the duration, as in a batch, and the unit of a set predictor.

    Attributes:
        unit: "duration" leaves them as they are. "clips" follows the released code of the Moment-DETR family:
            targets are divided by (clips read) * (seconds per clip), but predictions are multiplied by the
            duration.
        max_clips: under "clips", predictions are multiplied by the length of so many clips where that is
            shorter than the duration, as in the released BM-DETR; None: by the duration.
    """

    unit: Literal["duration", "clips"]
    max_clips: int | None = None

    def targets(self, spans: Tensor, batch: Batch) -> Tensor:
        """Converts (B, N, 2) fractions of the duration to the predictor's unit."""
        if self.unit == "duration":
            return spans
        read = batch["video_mask"].sum(1) * batch["clip_seconds"]
        return spans * (batch["duration"] / read)[:, None, None]

    def scale(self, batch: Batch) -> Tensor | None:
        """Returns the factor (B,) from predictions to fractions of the duration; None is 1."""
        if self.unit == "duration" or self.max_clips is None:
            return None
        return (self.max_clips * batch["clip_seconds"] / batch["duration"]).clamp(max=1)
