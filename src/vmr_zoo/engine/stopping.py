"""Ends a run at SIGTERM and Ctrl-C: between two steps while it trains, at once before and after."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from collections.abc import Iterator
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback

log = logging.getLogger(__name__)


class Stop(Callback):
    """Handles the signals; a callback, so it knows when steps are taken.

    Only then is there something to save, and a step must end first. Lightning looks for SIGTERM after each
    step and after each batch of validation, but nowhere else: a signal while data are loaded, before the
    first step or during prediction would be lost.

    Attributes:
        received: the signals received so far, in order.
    """

    def __init__(self) -> None:
        """Starts without a signal."""
        self.received: list[int] = []
        self._stepping = False
        self._process = os.getpid()

    def on_train_batch_start(self, *args: Any, **kwargs: Any) -> None:
        """From now on, a signal waits for the end of the step."""
        self._stepping = True

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """From now on, a signal ends the run at once."""
        self._stepping = False

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        """The same, after an error."""
        self._stepping = False

    @contextlib.contextmanager
    def handled(self) -> Iterator[None]:
        """Handles SIGTERM and Ctrl-C while the body runs, if this is the main thread."""
        # Lightning's own SIGTERM handler, in fit and predict, also calls this one.
        try:
            before = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        except ValueError:  # only the main thread may handle signals
            before = {}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _handle(self, number: int, frame: Any) -> None:
        if os.getpid() != self._process:  # a worker that loads data
            os._exit(128 + number)
        if self.received:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            return  # sent by the handler of Ctrl-C below, or once more by a launcher
        self.received.append(number)
        if not self._stepping:
            raise SystemExit(128 + number)
        if number == signal.SIGINT:
            log.info("Stopping after this step; press Ctrl-C again to stop at once.")
            os.kill(os.getpid(), signal.SIGTERM)


_SIGNALS = (signal.SIGTERM, signal.SIGINT)
