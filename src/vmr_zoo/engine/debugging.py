"""Debugging runs (`debug=NAME`): what marks them as no result, and the check that one batch can be fitted."""

from __future__ import annotations

import logging
import math
import statistics
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from omegaconf import DictConfig

from vmr_zoo.errors import VmrError

log = logging.getLogger(__name__)

_STANDARD_ERRORS = 4
_LIMITS = ("limit_train_batches", "limit_val_batches", "limit_test_batches")


def debugging(cfg: DictConfig, trainer: lightning.Trainer) -> str:
    """Returns what makes a training a debugging run, "" for nothing.

    Such a run is no result: its status is "debug", and no report lists it.

    Args:
        cfg: its configuration.
        trainer: its trainer.
    """
    preset = cfg.choices.get("debug")
    marks = [] if preset is None else [f"debug={preset}"]
    limits = {name: getattr(trainer, name) for name in _LIMITS}
    short = {k: x for k, x in limits.items() if not (isinstance(x, float) and x == 1)}  # 1 is one batch
    marks += [f"trainer.{name}={value:g}" for name, value in short.items()]
    if repeated := cfg.data.get("repeat_batch"):
        marks.append(f"data.repeat_batch={repeated}")
    return ", ".join(marks)


class LossFalls(Callback):
    """Checks that the loss falls while one batch is trained on again and again (`debug=overfit`)."""

    def __init__(self) -> None:
        """Starts without losses."""
        self._losses: list[torch.Tensor] = []

    def state_dict(self) -> dict[str, Any]:
        """Is stored in the checkpoint."""
        return {"losses": [float(loss) for loss in self._losses]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Is restored from the checkpoint."""
        self._losses = [torch.tensor(loss) for loss in state_dict["losses"]]

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *_: Any, **__: Any) -> None:
        """Keeps the loss, on its device."""
        if outputs is not None:
            self._losses.append(outputs["loss"].detach())

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Compares the first quarter of the steps with the last.

        Raises:
            VmrError: if the mean loss did not fall by more than four standard errors: dropout makes steps
                differ.
        """
        if not any(p.requires_grad for p in pl_module.parameters()) or trainer.interrupted:
            return
        losses = [float(loss) for loss in self._losses]
        count = max(1, len(losses) // 4)
        first, last = losses[:count], losses[-count:]
        before, after = statistics.fmean(first), statistics.fmean(last)
        error = math.sqrt((statistics.pvariance(first) + statistics.pvariance(last)) / count)
        fall = f"from {losses[0]:.4g} to {losses[-1]:.4g} in {len(losses)} steps"
        if not before - after > _STANDARD_ERRORS * error:
            raise VmrError(
                f"The loss on one batch did not fall: {fall}, on average from {before:.4g} in the first "
                f"quarter to {after:.4g} in the last, with a standard error of {error:.2g}. A method that "
                "cannot fit one batch will not learn from all. Try another method.training.optimizer.lr or "
                "more steps (trainer.max_epochs=50), or look for a loss without a gradient."
            )
        log.info(f"The loss on one batch fell {fall}.")
