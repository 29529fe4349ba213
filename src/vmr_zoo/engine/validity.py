"""Whether a training is a result: steps were taken, a validation selected, nothing was cut short."""

from __future__ import annotations

import lightning
from lightning.pytorch.callbacks import ModelCheckpoint

from vmr_zoo.data.annotations.records import NOT_SELECTED, SELECTION
from vmr_zoo.errors import VmrError


def refuse_untrainable(trainer: lightning.Trainer, metric: str) -> None:
    """Refuses arguments under which no step is taken or no validation can select a checkpoint.

    Args:
        trainer: with its callbacks.
        metric: the metric that the header names as the one that selects.

    Raises:
        VmrError: names the argument.
    """
    for name in ("max_epochs", "max_steps", "limit_train_batches"):
        if getattr(trainer, name) == 0:
            raise _no_step(f"trainer.{name}=0")
    if not _selects(trainer):
        return
    callback = trainer.checkpoint_callback
    assert isinstance(callback, ModelCheckpoint)
    if (callback.monitor, callback.mode) != (f"{SELECTION}/{metric}", "max"):
        raise VmrError(
            f"Expected callbacks.checkpoint to select by the highest {SELECTION}/{metric}, found monitor="
            f"{callback.monitor}, mode={callback.mode}. Choose the metric with data.selection_metric=NAME."
        )
    if trainer.limit_val_batches == 0:
        raise _no_validation("trainer.limit_val_batches=0")
    every, epochs = trainer.check_val_every_n_epoch, trainer.max_epochs
    if every and epochs and 0 < epochs < every:
        raise _no_validation(f"trainer.check_val_every_n_epoch={every}, trainer.max_epochs={epochs}")


def refuse_unselected(trainer: lightning.Trainer) -> None:
    """Refuses the result of a training that took no step, or whose checkpoint no validation selected.

    Raises:
        VmrError: says which.
    """
    if trainer.global_step == 0:
        raise _no_step("see trainer.max_time, trainer.max_steps and trainer.limit_train_batches")
    if _selects(trainer) and not trainer.checkpoint_callback.best_model_path:  # type: ignore[union-attr]
        raise _no_validation("see trainer.check_val_every_n_epoch, trainer.max_steps and trainer.max_time")


def selection_origin(trainer: lightning.Trainer, origin: str) -> str:
    """Returns where the selection split comes from, or `NOT_SELECTED` if no callback selects checkpoints."""
    return origin if _selects(trainer) else NOT_SELECTED


def _selects(trainer: lightning.Trainer) -> bool:
    callback = trainer.checkpoint_callback
    return isinstance(callback, ModelCheckpoint) and callback.monitor is not None


def _no_step(why: str) -> VmrError:
    return VmrError(
        f"Training took no step ({why}): the weights are random. Allow at least one, or choose a method "
        "without parameters, such as method=predict_all."
    )


def _no_validation(why: str) -> VmrError:
    return VmrError(
        f"No validation ran ({why}), so no checkpoint can be selected. Validate at least once, or take the "
        "weights of the last epoch with callbacks.checkpoint=null; such runs have tables of their own."
    )
