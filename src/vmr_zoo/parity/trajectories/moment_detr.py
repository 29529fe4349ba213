"""Trajectories of Moment-DETR's released code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from vmr_zoo.methods.base import Method
from vmr_zoo.methods.moment_detr import MomentDETR
from vmr_zoo.parity.case import Case
from vmr_zoo.parity.trajectories import detr
from vmr_zoo.parity.trajectories.base import Losses, StepInputs
from vmr_zoo.parity.trajectories.detr import DETRTrajectory, DrawnPairs
from vmr_zoo.types import Batch

_WEIGHTED = {
    "loss_span": ("span_l1",),
    "loss_giou": ("span_giou",),
    "loss_label": ("label",),
    "loss_saliency": ("margin",),
}


class MomentDETRTrajectory(DETRTrajectory):
    """Moment-DETR."""

    counts = frozenset({"class_error"})

    def loss_weights(self, options: Mapping[str, Any]) -> dict[str, float]:
        """Translates `weight_dict`."""
        return detr.weights(options, _WEIGHTED)

    def step(self, method: Method, case: Case) -> StepInputs[DrawnPairs]:
        """Builds the batch; the data set drew the clip pairs."""
        inputs = detr.step(case)
        pairs = detr.with_pairs(inputs, case, detr.inside(inputs.batch), rated=True)
        return replace(inputs, draws=DrawnPairs(*pairs))

    def losses(self, method: Method, batch: Batch, draws: DrawnPairs) -> Losses:
        """Computes the losses."""
        assert isinstance(method, MomentDETR)
        losses = method.losses_of(method(batch), batch, *draws.all_usable)
        return Losses(losses, detr.set_losses(losses) | {"loss/loss_saliency": losses["margin"]})
