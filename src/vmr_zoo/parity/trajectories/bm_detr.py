"""Trajectories of BM-DETR's released code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vmr_zoo.methods.base import Method
from vmr_zoo.methods.bm_detr.method import BMDETR
from vmr_zoo.parity.case import Case, Number
from vmr_zoo.parity.released.bm_detr import LOSSES, BMDETRReleased, part_of
from vmr_zoo.parity.trajectories import detr
from vmr_zoo.parity.trajectories.base import Losses, StepInputs
from vmr_zoo.parity.trajectories.detr import DETRTrajectory, DrawnPairs
from vmr_zoo.types import Batch

_RATED = ("hl", "qvhighlights")
"""Data sets whose first clip pair is of rated clips."""


class BMDETRTrajectory(DETRTrajectory):
    """BM-DETR."""

    sizes = detr.SIZES | {"alignment.pooling_dim"}
    counts = frozenset({"loss_class"})
    released: BMDETRReleased

    def loss_weights(self, options: Mapping[str, Any]) -> dict[str, float]:
        """Translates `weight_dict`."""
        return detr.weights(options, {theirs: (ours,) for theirs, ours in LOSSES.items()})

    def step(self, method: Method, case: Case) -> StepInputs[DrawnPairs]:
        """Builds the batch; negative query, shift and clip pairs were drawn."""
        assert isinstance(method, BMDETR)
        inputs = detr.step(case)
        batch, mask = inputs.batch, inputs.batch["video_mask"]
        negative, negative_mask = case["input/neg_src_txt"], case["input/neg_src_txt_mask"] > 0
        batch["negative_query"], batch["negative_query_mask"] = negative, negative_mask
        batch["saliency"] = torch.zeros_like(mask, dtype=torch.float32)  # the case gives the pairs
        batch["saliency_mask"] = torch.zeros_like(mask)
        shifted = self.released.shift_rows(case, batch, case["input/windows_sec"][:, 0])
        rows = method.training_rows(batch)
        inputs.numbers.update(shifted)
        inputs.numbers["input/neg_src_txt"] = Number(negative * negative_mask.unsqueeze(-1), 0)
        inputs.numbers["input/neg_src_txt_mask"] = Number(detr.leading(negative_mask), 0)
        pairs = []
        for i, copy in enumerate(("", "shift.")[: rows.copies]):
            cut = slice(i * len(mask), (i + 1) * len(mask))
            inputs.numbers[f"target/{copy}match_labels"] = Number(rows.inside[cut].long(), 0)
            rated = not copy and case.options["dset_name"] in _RATED
            within = _reported(case["input/shift_start"], rows.inside[cut]) if copy else rows.inside[cut]
            pairs.append(detr.with_pairs(inputs, case, within, copy, rated=rated))
        positive, negative = (torch.cat(sides) for sides in zip(*pairs, strict=True))
        return replace(inputs, draws=DrawnPairs(positive, negative))

    def losses(self, method: Method, batch: Batch, draws: DrawnPairs) -> Losses:
        """Computes the losses of the step, and those of each copy for the curves."""
        assert isinstance(method, BMDETR)
        rows = method.training_rows(batch)
        output = method.run_rows(rows.batch)
        curves: dict[str, Tensor] = {}
        count = len(batch["duration"])
        with torch.no_grad():
            for i, copy in enumerate(("", "shift.")[: rows.copies]):
                cut = slice(i * count, (i + 1) * count)
                own = method.losses_of(*part_of(output, rows, i), *(x[cut] for x in draws.all_usable))
                curves |= {f"loss/{copy}{theirs}": own[ours] for theirs, ours in LOSSES.items()}
        return Losses(method.losses_of(output, rows, *draws.all_usable), curves)


def _reported(start: Tensor, inside: Tensor) -> Tensor:
    """Marks the clips that the authors draw from as those of a moved moment: all but its last.

    Of a moment of one clip that is the clip before it, if there is one.

    Args:
        start: (B,) first clip of the moved moment.
        inside: (B, Lv), its clips.
    """
    last = (start + inside.sum(1) - 2).clamp(min=0)
    index = torch.arange(inside.shape[1])
    return (index >= torch.minimum(start, last)[:, None]) & (index <= last[:, None])
