"""Builds Lightning trainers for training, prediction and benchmarks."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import lightning
from hydra.utils import instantiate
from lightning.pytorch.callbacks import Callback, ProgressBar
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig

from vmr_zoo.errors import VmrError, causes, first_line

Hook = TypeVar("Hook", bound=Callback)

_EXPECTED_WARNINGS = (
    ".*does not have many workers.*",  # features are in memory
    ".*Experiment logs directory .* exists and is not empty.*",  # it is the run directory
    ".*Checkpoint directory .* exists and is not empty.*",
    ".*configure_optimizers. returned .None.*",  # a baseline without parameters
    ".*number of training batches .* is smaller than the logging interval.*",
    ".*GPU available but not used.*",
    ".*`training_step` returned `None`.*",
    ".*`parameters` is an empty generator.*",
    ".*isinstance.treespec, LeafSpec.. is deprecated.*",
)


def build_trainer(
    node: DictConfig, callbacks: Sequence[Callback], loggers: Sequence[Logger] = (), **arguments: Any
) -> lightning.Trainer:
    """Builds a trainer that logs to these loggers only, with a progress bar only if it is a callback.

    Args:
        node: the `trainer` node of a configuration.
        callbacks: its callbacks.
        loggers: its loggers.
        **arguments: replace those of the node.

    Raises:
        VmrError: if this machine has no such device, or Lightning refuses the arguments.
    """
    with quiet_lightning():
        try:
            trainer: lightning.Trainer = instantiate(
                node,
                callbacks=list(callbacks),
                logger=list(loggers) or False,
                enable_progress_bar=any(isinstance(callback, ProgressBar) for callback in callbacks),
                **arguments,
            )
        except Exception as error:
            refused = next((one for one in causes(error) if isinstance(one, MisconfigurationException)), None)
            if refused is None:
                raise
            wanted: dict[Any, Any] = {**node, **arguments}
            where = ", ".join(
                f"trainer.{key}={wanted[key]}"
                for key in ("accelerator", "devices", "strategy")
                if key in wanted
            )
            raise VmrError(
                f"Lightning cannot start with {where} here: {first_line(refused)} trainer=cpu runs on every "
                "machine."
            ) from error
    return trainer


def find_callback(trainer: lightning.Trainer, kind: type[Hook]) -> Hook | None:
    """Returns the first callback of a class; None: the trainer has none."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    return next((hook for hook in callbacks if isinstance(hook, kind)), None)


@contextlib.contextmanager
def quiet_lightning() -> Iterator[None]:
    """Silences Lightning's messages about intended behaviour."""
    chatter = [
        logging.getLogger(name) for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric")
    ]
    levels = [logger.level for logger in chatter]
    with warnings.catch_warnings():
        for message in _EXPECTED_WARNINGS:
            warnings.filterwarnings("ignore", message=message)
        for logger in chatter:
            logger.setLevel(logging.WARNING)
        try:
            yield
        finally:
            for logger, level in zip(chatter, levels, strict=True):
                logger.setLevel(level)
