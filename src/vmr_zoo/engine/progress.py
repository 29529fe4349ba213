"""Progress of training and prediction: one line per epoch, and on a terminal a bar below them."""

from __future__ import annotations

import logging
import multiprocessing
import sys
import time
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback, ModelSummary
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from vmr_zoo.runs.sweep import position

log = logging.getLogger(__name__)


class EpochLines(Callback):
    """Prints a line per epoch: its losses, the selection metric, its duration and the time left."""

    def __init__(self, title: str = "") -> None:
        """Stores the prefix of the lines."""
        self.title = title
        self._started = self._first = 0.0
        self._done = 0

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Starts the clock."""
        self._started = time.monotonic()
        self._first = self._first or self._started

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Prints the line."""
        if not self._started:
            return  # a resumed run: Lightning repeats the end of the last epoch
        self._done += 1
        metrics = trainer.callback_metrics
        parts = [f"{self.title} epoch {trainer.current_epoch + 1}/{trainer.max_epochs}".strip()]
        if "train/loss" in metrics:
            parts.append(f"loss {float(metrics['train/loss']):.4f}")
        monitor = getattr(trainer.checkpoint_callback, "monitor", None)
        if monitor and monitor in metrics:
            parts.append(f"{monitor.removeprefix('selection/')} {float(metrics[monitor]):.2f}")
        parts.append(f"{time.monotonic() - self._started:.1f} s")
        left = (trainer.max_epochs or 0) - trainer.current_epoch - 1
        if left > 0:
            seconds = left * (time.monotonic() - self._first) / self._done
            parts.append(f"{describe_seconds(seconds)} left")
        log.info("  ".join(parts))


class EpochBar(EpochLines):
    """Adds a bar for the batches of the present epoch; it disappears when the epoch's line is printed."""

    def __init__(self, title: str = "") -> None:
        """Stores the prefix of the lines."""
        super().__init__(title)
        self._bar: _Bar | None = None

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Shows the bar."""
        super().on_train_epoch_start(trainer, pl_module)
        text = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
        self._bar = _Bar(text, trainer.num_training_batches)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Advances the bar."""
        if self._bar is not None:
            self._bar.advance_to(batch_idx + 1)

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Replaces the bar by the line."""
        self._close()
        super().on_train_epoch_end(trainer, pl_module)

    def on_exception(self, trainer: lightning.Trainer, pl_module: Any, exception: BaseException) -> None:
        """Removes the bar."""
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
        self._bar = None


class PredictionBar(Callback):
    """Shows which split is predicted, while it is."""

    def __init__(self) -> None:
        """Starts without a split."""
        self.split = ""
        self._bar: _Bar | None = None

    def on_predict_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Shows the bar."""
        self._bar = _Bar(f"predicting {self.split}", sum(trainer.num_predict_batches))

    def on_predict_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, *_: Any, **__: Any
    ) -> None:
        """Advances the bar."""
        if self._bar is not None:
            self._bar.advance_to(batch_idx + 1)

    def on_predict_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Removes the bar."""
        if self._bar is not None:
            self._bar.close()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Removes the bar."""
        if self._bar is not None:
            self._bar.close()


class _Bar:
    """A bar of batches with the time left, in one line of standard error, that leaves nothing behind."""

    def __init__(self, text: str, total: float) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(20),
            TaskProgressColumn(),
            TextColumn("{task.fields[left]}"),
        )
        self._progress = Progress(
            *columns, console=Console(stderr=True), transient=True, redirect_stdout=False
        )
        self._started = time.monotonic()
        self._total = total if 0 < total < float("inf") else None
        self._task = self._progress.add_task(text, total=self._total, left="")
        self._progress.start()

    def advance_to(self, count: int) -> None:
        """Shows that so many batches are done."""
        left = ""
        if self._total is not None:
            seconds = (time.monotonic() - self._started) * (self._total - count) / count
            left = f"{describe_seconds(seconds)} left"
        self._progress.update(self._task, completed=count, left=left)

    def close(self) -> None:
        """Removes the bar."""
        self._progress.stop()


def describe_seconds(seconds: float) -> str:
    """Returns a duration for people.

    >>> describe_seconds(8.4), describe_seconds(100), describe_seconds(9000)
    ('8 s', '2 min', '2.5 h')
    """
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"


def progress(title: str = "") -> Callback:
    """Returns the progress of training: with a bar if this process has a terminal for itself.

    Args:
        title: the run's name; prefix of the lines in a sweep, whose jobs may print at the same time.
    """
    title = f"{position()}{title}" if position() else ""
    return EpochBar(title) if has_terminal() else EpochLines(title)


def model_summary(max_depth: int = 1, show: bool | None = None) -> Callback:
    """Returns Lightning's summary of the network: a line per module with its type and number of parameters.

    Args:
        max_depth: how deep modules are nested in it; -1: all.
        show: whether it is logged; None: if this process has a terminal for itself.
    """
    shown = has_terminal() if show is None else show
    return ModelSummary(max_depth=max_depth if shown else 0)


def has_terminal() -> bool:
    """Returns whether this process has a terminal for itself: parallel jobs share theirs."""
    return multiprocessing.parent_process() is None and sys.stderr.isatty()
