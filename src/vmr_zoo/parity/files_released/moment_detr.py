"""From data files to batches in Moment-DETR's released code (jayleicn/moment_detr, commit b7e553a)."""

from __future__ import annotations

from vmr_zoo.parity.files_released.detr import DETRFiles


class MomentDETRFiles(DETRFiles):
    """Moment-DETR."""

    method = "moment_detr"
