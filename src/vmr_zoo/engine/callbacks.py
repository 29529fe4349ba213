"""Callbacks of training: seeding, checkpoints, non-finite losses, pruning, the clock."""

from __future__ import annotations

import logging
import math
import os
import random
import time
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, Checkpoint, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor

from vmr_zoo.errors import VmrError
from vmr_zoo.runs.search import trial_of_job

log = logging.getLogger(__name__)


class SeedSteps(Callback):
    """Seeds every generator before each training step from the run's seed, the epoch and the step.

    Dropout then depends on nothing that ran before: resuming at any step is bit-identical to an uninterrupted
    run on the CPU, without storing generator states.
    """

    def __init__(self, seed: int) -> None:
        """Stores the run's seed."""
        self.seed = seed

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Seeds Python, NumPy and torch."""
        entropy = (self.seed, trainer.current_epoch, batch_idx, trainer.global_rank)
        state = np.random.SeedSequence(entropy).generate_state(1)
        seed = int(state[0])
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002  # the legacy generator is the one that libraries share
        if pl_module.device.type == "cpu":
            # torch.manual_seed would also record a stack trace for each kind of device that is not in use.
            torch.default_generator.manual_seed(seed)
        else:
            torch.manual_seed(seed)


class BestCheckpoint(ModelCheckpoint):
    """Keeps the best epoch, also of a run whose directory was renamed or moved before it was resumed.

    ModelCheckpoint stores absolute paths, and forgets the best score if its folder has another path: the
    next epoch, however bad, would then replace the best one.
    """

    @property
    def state_key(self) -> str:
        """Is that of ModelCheckpoint, which earlier versions used."""
        return super().state_key.replace(type(self).__name__, "ModelCheckpoint", 1)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Replaces the stored folder by the present one."""
        folder = str(self.dirpath)

        def moved(path: str) -> str:
            return str(Path(folder) / Path(path).name) if path else path

        paths = ("best_model_path", "kth_best_model_path", "last_model_path")
        best = {moved(path): score for path, score in state_dict["best_k_models"].items()}
        here = {"dirpath": folder, "best_k_models": best, **{key: moved(state_dict[key]) for key in paths}}
        super().load_state_dict({**state_dict, **here})


class Resumable(Checkpoint):
    """Saves the checkpoint that `resume=true` continues from, after each epoch and on a stop signal.

    ModelCheckpoint's `save_last` saves only if the epoch was the best so far. As a `Checkpoint` listed after
    ModelCheckpoint, this one runs after it and stores the best epoch.
    """

    def __init__(self, path: str) -> None:
        """Stores the path of the checkpoint."""
        self.path = path

    def _save(self, trainer: lightning.Trainer) -> None:
        """Saves under a temporary name first: a kill or a full disk leaves the earlier checkpoint intact."""
        temporary = f"{self.path}.part"
        trainer.save_checkpoint(temporary, weights_only=False)
        if trainer.is_global_zero:
            os.replace(temporary, self.path)

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Saves at the end of an epoch."""
        self._save(trainer)

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        """Saves between two steps (SIGTERM, Ctrl-C); another exception may have interrupted a step."""
        if isinstance(exception, SIGTERMException):
            self._save(trainer)


class NonFiniteLoss(Callback):
    """Stops training at a NaN or infinite loss and names its terms.

    On the CPU, every step is checked before its backward pass. On a GPU, a check would make every step wait
    for the device; the values stay there and are checked every `every` steps and before validation.
    """

    def __init__(self, every: int = 50) -> None:
        """Stores the number of steps between two checks on a GPU."""
        self.every = every
        self._kept: list[tuple[int, dict[str, Tensor]]] = []

    def on_before_backward(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, loss: Tensor
    ) -> None:
        """Stores the loss and its terms, and checks them when due."""
        self._kept.append(
            (trainer.global_step, {"loss": loss.detach(), **getattr(pl_module, "last_losses", {})})
        )
        if loss.device.type == "cpu" or len(self._kept) >= self.every:
            self._check()

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Checks the remaining steps."""
        self._check()

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Checks the remaining steps, before broken weights predict."""
        self._check()

    def _check(self) -> None:
        kept, self._kept = self._kept, []
        if not kept:
            return
        totals = torch.stack([parts["loss"].float() for _, parts in kept]).tolist()
        for (step, parts), total in zip(kept, totals, strict=True):
            if not math.isfinite(total):
                values = {name: float(value) for name, value in parts.items() if name != "loss"}
                bad = [name for name, value in values.items() if not math.isfinite(value)]
                listed = ", ".join(f"{name}={value:g}" for name, value in values.items())
                raise VmrError(
                    f"The loss became {total} at step {step}, from {' and '.join(bad) or 'the weighted sum'} "
                    f"({listed}). Expected finite numbers. Look for NaN in the features with `vmr doctor`, "
                    "or lower method.training.optimizer.lr."
                )


class Prune(Callback):
    """Reports each epoch of a trial to its study, and stops the trial when the study's pruner says so.

    The pruner (`hydra.sweeper.pruner`) sees the selection split only. Outside of a search nothing happens.

    Attributes:
        verdict: why the trial was stopped, "" if it was not.
    """

    def __init__(self, metric: str) -> None:
        """Stores the selection metric; higher is better."""
        self.name = f"selection/{metric}"
        self.verdict = ""

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Finds the trial, in the main process."""
        self._trial = trial_of_job() if trainer.is_global_zero else None

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Reports and decides at the end of an epoch, in the main process for all."""
        if trainer.sanity_checking or self.name not in trainer.callback_metrics:
            return
        value, stops = float(trainer.callback_metrics[self.name]), False
        if self._trial is not None:
            self._trial.report(value, trainer.current_epoch)
            stops = self._trial.should_prune()
        if trainer.strategy.broadcast(stops):
            trainer.should_stop = True
            epoch = trainer.current_epoch + 1
            self.verdict = f"{self.name} was {value:.2f} in epoch {epoch}, too low for the pruner"


class StepTime(Callback):
    """Sums the time of training steps, including the loader and excluding validation.

    A GPU works asynchronously: the sum is meaningful, single steps are not.
    """

    def __init__(self) -> None:
        """Starts at zero steps."""
        self.steps, self.seconds, self._since = 0, 0.0, 0.0

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Starts the clock."""
        self._since = time.monotonic()

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Restarts the clock after validation within an epoch."""
        self._since = time.monotonic()

    def on_train_batch_end(self, *_: Any, **__: Any) -> None:
        """Counts the step."""
        now = time.monotonic()
        self.seconds += now - self._since
        self.steps += 1
        self._since = now


class LearningRate(LearningRateMonitor):
    """Logs the learning rate of each epoch, if there is an optimizer and a logger."""

    def __init__(self) -> None:
        """Logs once per epoch."""
        super().__init__(logging_interval="epoch")

    def on_train_start(self, trainer: lightning.Trainer, *args: Any, **kwargs: Any) -> None:
        """Starts if there is an optimizer and a logger."""
        if trainer.loggers and trainer.optimizers:
            super().on_train_start(trainer, *args, **kwargs)

    def on_train_epoch_start(self, trainer: lightning.Trainer, *args: Any, **kwargs: Any) -> None:
        """Logs if there is an optimizer and a logger."""
        if trainer.loggers and trainer.optimizers:
            super().on_train_epoch_start(trainer, *args, **kwargs)
