"""Mean frame probability inside and outside of the moments (BM-DETR, Table 9)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vmr_zoo.errors import VmrError

if TYPE_CHECKING:
    from vmr_zoo.types import Batch

INSIDE, OUTSIDE, DIFFERENCE = "p_inside", "p_outside", "p_difference"
"""Names of the results; probabilities, not percentages."""


def mean_inside_outside(probability: Tensor, inside: Tensor, video_mask: Tensor) -> Tensor:
    """Averages the probabilities of each row inside and outside of its moments, as Eq. 16 does.

    Args:
        probability: (B, Lv) p of Eq. 6.
        inside: (B, Lv) bool, the clips inside a moment.
        video_mask: (B, Lv), True = valid.

    Returns:
        (B, 2); NaN where there is no such clip.
    """
    outside = ~inside & video_mask
    means = [(probability * part).sum(1) / part.sum(1) for part in (inside & video_mask, outside)]
    return torch.stack(means, 1)


class FrameProbability:
    """Collects the means of every row of batches that are predicted with details."""

    def __init__(self) -> None:
        self._rows: list[Tensor] = []

    def add(self, method: Any, outputs: Any, batch: Batch) -> None:
        """Adds the rows of a batch, given the method and its predictions.

        Raises:
            VmrError: if the method has no frame probability.
        """
        if "frame_probability" not in outputs.get("details", {}):
            raise VmrError(
                f"Expected a method with a frame probability for frame_probability=true, found "
                f"{type(method).__name__}, which has none. It needs BM-DETR with method.background."
            )
        mask = batch["video_mask"]
        inside = method.clips_inside(batch)
        probability = outputs["details"]["frame_probability"].detach().float()
        self._rows.append(mean_inside_outside(probability, inside, mask).double().cpu())

    def metrics(self) -> dict[str, float]:
        """Averages over the queries: inside, outside, and the difference of both, each in [0, 1]."""
        inside, outside = torch.cat(self._rows).nanmean(0).tolist()
        return {INSIDE: inside, OUTSIDE: outside, DIFFERENCE: inside - outside}
