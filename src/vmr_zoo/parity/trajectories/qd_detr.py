"""Trajectories of QD-DETR's released code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vmr_zoo.methods.base import Method
from vmr_zoo.methods.qd_detr.method import QDDETR
from vmr_zoo.parity.case import Case, Number
from vmr_zoo.parity.released.qd_detr import SALIENCY_LOSSES
from vmr_zoo.parity.trajectories import detr
from vmr_zoo.parity.trajectories.base import Losses, StepInputs
from vmr_zoo.parity.trajectories.detr import DETRTrajectory, DrawnPairs
from vmr_zoo.types import Batch

WEIGHTED = {
    "loss_span": ("span_l1",),
    "loss_giou": ("span_giou",),
    "loss_label": ("label",),
    "loss_saliency": SALIENCY_LOSSES,
}


class QDDETRTrajectory(DETRTrajectory):
    """QD-DETR."""

    sizes = detr.SIZES | {"aligner.layers"}
    counts = frozenset({"class_error"})
    approximate = frozenset({"loss_saliency"})
    float64_tolerance = 2e-6

    def loss_weights(self, options: Mapping[str, Any]) -> dict[str, float]:
        """Translates `weight_dict`."""
        return detr.weights(options, WEIGHTED)

    def step(self, method: Method, case: Case) -> StepInputs[DrawnPairs]:
        """Builds the batch; the negative queries follow from the order of the rows."""
        inputs = detr.step(case)
        mask, ratings = inputs.batch["video_mask"], case["target/saliency_all_labels"]
        inputs.batch["saliency"], inputs.batch["saliency_mask"] = ratings, ratings > 0
        inputs.numbers["target/saliency_all_labels"] = Number(ratings * mask, 0)
        pairs = detr.with_pairs(inputs, case, detr.inside(inputs.batch), rated=True)
        return replace(inputs, draws=DrawnPairs(*pairs))

    def losses(self, method: Method, batch: Batch, draws: DrawnPairs) -> Losses:
        """Computes the losses."""
        assert isinstance(method, QDDETR)
        output, exists = method.run_with_negatives(batch)
        losses = method.losses_of(output, batch, exists, draws.all_usable)
        return Losses(losses, detr.set_losses(losses) | {"loss/loss_saliency": saliency(losses)})


def saliency(losses: Mapping[str, Tensor]) -> Tensor:
    """Sums the saliency losses that are on, as the authors do."""
    return torch.stack([losses[name] for name in SALIENCY_LOSSES if name in losses]).sum()
