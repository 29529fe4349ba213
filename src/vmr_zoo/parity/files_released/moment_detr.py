"""From data files to batches in Moment-DETR's released code (jayleicn/moment_detr, commit b7e553a)."""

from __future__ import annotations

from vmr_zoo.losses.margin import PairChoices
from vmr_zoo.methods.moment_detr import MomentDETR
from vmr_zoo.parity.files_released.detr import DETRFiles, Part


class MomentDETRFiles(DETRFiles):
    """Moment-DETR."""

    method = "moment_detr"

    def choices(self, part: Part) -> PairChoices:
        """Lists the clips that our code may draw for the margin loss."""
        assert isinstance(part.method, MomentDETR)
        return part.method.pair_choices(part.batch)
