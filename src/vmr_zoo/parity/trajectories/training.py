"""Trains a method on the recorded steps with the project's trainer, and records what the case records."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from omegaconf import DictConfig
from torch import Tensor

from vmr_zoo.engine.trainers import build_trainer, quiet_lightning
from vmr_zoo.methods.base import Method
from vmr_zoo.parity.case import Case
from vmr_zoo.parity.trajectories.base import ReleasedTrajectory, StepInputs
from vmr_zoo.types import Batch


class Run(NamedTuple):
    """A repeated training.

    Attributes:
        method: with its final weights.
        optimizer: the one that trained it.
        schedule: Lightning's description of the learning rate schedule; None: there is none.
        curves: (steps,) float64 by the authors' names, without "curve/".
        decay: (groups,) the product of all steps' 1 - lr * weight decay.
        parts: the arrays of each step.
        inputs: what each step started from.
    """

    method: Method
    optimizer: torch.optim.Optimizer
    schedule: Any
    curves: dict[str, Tensor]
    decay: list[float]
    parts: list[Case]
    inputs: list[StepInputs[Any]]


class _Recorder(Callback):
    """Records norm of the gradient and learning rates before clipping, and the total loss."""

    def __init__(self, rates: Sequence[str]) -> None:
        self.rates = rates
        self.curves: dict[str, list[float]] = {}
        self.decay: list[float] = []

    def add(self, name: str, value: float) -> None:
        self.curves.setdefault(name, []).append(value)

    def on_before_optimizer_step(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, optimizer: Any
    ) -> None:
        gradients = [p.grad.double().norm() for p in pl_module.parameters() if p.grad is not None]
        self.add("grad_norm", float(torch.stack(gradients).norm()))
        groups = optimizer.param_groups
        for name, group in zip(self.rates, groups, strict=False):
            self.add(name, float(group["lr"]))
        self.decay = self.decay or [1.0] * len(groups)
        for index, group in enumerate(groups):
            self.decay[index] *= 1.0 - group["lr"] * group["weight_decay"]

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, *args: Any
    ) -> None:
        self.add("total", float(outputs["loss"]))


class _Epochs:
    """The recorded batches, a slice of them for each epoch."""

    def __init__(self, batches: Sequence[Batch], per_epoch: int, method: Method) -> None:
        self.batches, self.per_epoch, self.method = batches, per_epoch, method

    def __len__(self) -> int:
        return self.per_epoch

    def __iter__(self) -> Iterator[Batch]:
        first = self.method.current_epoch * self.per_epoch
        return iter(self.batches[first : first + self.per_epoch])


def train(
    cfg: DictConfig,
    adapter: ReleasedTrajectory[Any],
    case: Case,
    method: Method,
    dtype: torch.dtype,
    folder: Path,
) -> Run:
    """Trains on the recorded batches and draws.

    Args:
        cfg: the experiment with the case's sizes.
        adapter: of the method.
        case: the case.
        method: with the initial weights.
        dtype: float32, or float64, in which stored float32 numbers are exact.
        folder: the trainer's folder; it writes nothing there.
    """
    double = dtype == torch.float64
    epochs, per_epoch = case.options["epochs"], case.options["steps_per_epoch"]
    parts = [case.part(f"step{number:02d}", widen=double) for number in range(epochs * per_epoch)]
    inputs = [adapter.step(method, part) for part in parts]
    recorder = _Recorder(adapter.rates)

    def losses(batch: Batch) -> dict[str, Tensor]:
        found = adapter.losses(method, batch, inputs[method.global_step].draws)
        for name, value in found.curves.items():
            recorder.add(name, float(value.detach()))
        return found.ours

    method.losses = losses  # type: ignore[method-assign]
    trainer = build_trainer(
        cfg.trainer,
        [recorder],
        default_root_dir=str(folder),
        accelerator="cpu",
        max_epochs=epochs,
        accumulate_grad_batches=1,  # a case has the batches of one process
        precision="64-true" if double else "32-true",
        enable_checkpointing=False,
        limit_val_batches=0,
        deterministic=False,
    )
    batches = [_complete(step.batch, dtype) for step in inputs]
    with quiet_lightning():
        warnings.filterwarnings("ignore", message=".*have no `val_dataloader`.*")  # restored by the context
        trainer.fit(method.to(dtype), cast(Any, _Epochs(batches, per_epoch, method)))
    schedules = trainer.lr_scheduler_configs
    curves = {name: torch.tensor(values, dtype=torch.float64) for name, values in recorder.curves.items()}
    return Run(
        method,
        trainer.optimizers[0],
        schedules[0] if schedules else None,
        curves,
        recorder.decay,
        parts,
        inputs,
    )


def _complete(batch: Batch, dtype: torch.dtype) -> Batch:
    """Converts a batch to the precision of the run, and adds the ids that every batch has."""
    found: dict[str, Any] = {
        key: value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
        for key, value in batch.items()
    }
    found["query_id"] = [str(row) for row in range(len(found["duration"]))]
    return cast(Batch, found)
