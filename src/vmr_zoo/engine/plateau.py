"""Whether a training reached its plateau: on the selection metric, no gain within a number of validations."""

from __future__ import annotations

import time
from typing import Any

import lightning
from lightning.pytorch.callbacks import EarlyStopping

from vmr_zoo.engine.trainers import find_callback


class Plateau(EarlyStopping):
    """Records whether the selection metric stopped improving, and ends training there on request.

    A run that its budget of epochs or steps ended earlier was still rising: its score is a lower bound, and
    its header says so (`plateau_header`).
    """

    def __init__(self, monitor: str, patience: int = 8, stops: bool = False) -> None:
        """Stores the rule.

        Args:
            monitor: the selection metric as logged; higher is better.
            patience: validations without an improvement that make a plateau.
            stops: whether training ends at the plateau; otherwise it is only recorded.
        """
        super().__init__(monitor, mode="max", patience=patience, strict=False, check_on_train_epoch_end=False)
        self.stops = stops
        self._cpu_before, self._cpu_start = 0.0, time.process_time()

    @property
    def reached(self) -> bool:
        """Whether at least `patience` validations passed since the last improvement."""
        return bool(self.wait_count >= self.patience)

    @property
    def cpu_seconds(self) -> float:
        """CPU seconds of this process since training started, with those of the sessions that it resumed."""
        return self._cpu_before + time.process_time() - self._cpu_start

    def state_dict(self) -> dict[str, Any]:
        """Is stored in the checkpoint."""
        return {**super().state_dict(), "cpu_seconds": self.cpu_seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Is restored from the checkpoint; the patience stays the configured one."""
        patience = self.patience
        super().load_state_dict(state_dict)
        self.patience = patience
        self._cpu_before = state_dict["cpu_seconds"]

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Starts the clock."""
        self._cpu_start = time.process_time()

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Stops also where a resumed session repeats the end of the last epoch, with more epochs allowed."""
        if self.stops and self.reached:
            trainer.should_stop = True

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Counts a validation; without `stops`, training goes on."""
        stopping = trainer.should_stop
        super().on_validation_end(trainer, pl_module)
        if not self.stops:
            trainer.should_stop = stopping


def plateau_header(trainer: lightning.Trainer) -> dict[str, Any]:
    """Returns how long a run was trained and whether that was long enough, for its header.

    Returns:
        "steps" of the optimizer; with a `Plateau` callback also "train_cpu_seconds", "patience" in
        validations and "plateau", whether the selection metric stopped improving. A method without
        parameters takes no step, although Lightning counts some, and has nothing to improve: its "plateau" is
        true.
    """
    steps = trainer.global_step if any(True for _ in trainer.lightning_module.parameters()) else 0
    header: dict[str, Any] = {"steps": steps}
    hook = find_callback(trainer, Plateau)
    if hook is not None:
        header["train_cpu_seconds"] = round(hook.cpu_seconds, 3)
        header["patience"] = hook.patience
        header["plateau"] = hook.reached or steps == 0
    return header
