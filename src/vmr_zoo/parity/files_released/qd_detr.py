"""From data files to batches in QD-DETR's released code (wjun0830/QD-DETR, commit 56c63b2)."""

from __future__ import annotations

from vmr_zoo.data.batches.datamodule import VMRDataModule
from vmr_zoo.parity.case import Number
from vmr_zoo.parity.files_released.detr import DETRFiles, Part


class QDDETRFiles(DETRFiles):
    """QD-DETR."""

    method = "qd_detr"

    def numbers(self, part: Part, data: VMRDataModule) -> dict[str, Number]:
        """Adds the ratings of every clip."""
        ratings = Number(part.batch["saliency"], 0)
        return super().numbers(part, data) | {"saliency_all_labels": ratings}
