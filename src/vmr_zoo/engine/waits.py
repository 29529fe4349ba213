"""Finds the operators of a training step that make the host wait for a GPU, with torch's own detector.

Under `torch.cuda.set_sync_debug_mode("error")` such an operator raises an error before it waits. The mode
below catches it, records operator and place, and repeats the operator with torch's detector off.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch.utils._python_dispatch import TorchDispatchMode

_MESSAGE = "synchronizing CUDA operation"
_PACKAGE = Path(__file__).resolve().parents[1]


class WaitDetector(TorchDispatchMode):
    """Records the operators that wait. It sees the backward pass too.

    Attributes:
        found: "operator, in file:line" of each wait.
        operators: number of operators.
    """

    def __init__(self) -> None:
        """Starts empty."""
        super().__init__()
        self.found: list[str] = []
        self.operators = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Runs an operator; once more, with the detector off, if it would wait."""
        self.operators += 1
        try:
            return func(*args, **(kwargs or {}))
        except RuntimeError as error:
            if _MESSAGE not in str(error):
                raise
        self.found.append(f"{func.overloadpacket.__name__}, {_place()}")
        with _sync_debug_mode("default"):
            return func(*args, **(kwargs or {}))


class FindWaits(Callback):
    """Runs the detector in each step after the first ones, from the loaded batch to the updated weights.

    Attributes:
        steps: the waits of each examined step.
        operators: number of operators of each examined step.
    """

    def __init__(self, warmup: int) -> None:
        """Stores the number of steps that may still set up libraries."""
        self.warmup = warmup
        self.steps: list[list[str]] = []
        self.operators: list[int] = []
        self._detector: WaitDetector | None = None

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Starts the detector."""
        if trainer.global_step >= self.warmup:
            self._detector = WaitDetector()
            self._detector.__enter__()
            if pl_module.device.type == "cuda":
                torch.cuda.set_sync_debug_mode("error")

    def on_train_batch_end(self, *_: Any, **__: Any) -> None:
        """Stops the detector."""
        if self._detector is not None:
            self._stop()

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        """Stops the detector: it would refuse what follows."""
        if self._detector is not None:
            self._stop()

    def _stop(self) -> None:
        assert self._detector is not None
        if torch.cuda.is_available():
            torch.cuda.set_sync_debug_mode("default")
        self._detector.__exit__(None, None, None)
        self.steps.append(self._detector.found)
        self.operators.append(self._detector.operators)
        self._detector = None


@contextmanager
def _sync_debug_mode(mode: str) -> Iterator[None]:
    """Sets the mode of torch's detector; does nothing without a GPU."""
    if not torch.cuda.is_available():
        yield
        return
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode(mode)
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def _place() -> str:
    """Returns the innermost line of this package that is being executed."""
    for frame in reversed(traceback.extract_stack()):
        path = Path(frame.filename)
        if path.is_relative_to(_PACKAGE) and path != Path(__file__).resolve():
            return f"{path.relative_to(_PACKAGE).as_posix()}:{frame.lineno}"
    return "outside of the package"
