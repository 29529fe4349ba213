"""`train.log` of a run directory: everything that is logged while the run is trained, and every warning."""

from __future__ import annotations

import contextlib
import logging
import time
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from vmr_zoo.errors import VmrError
from vmr_zoo.utils.secrets import redacted

LOG = "train.log"


class RunLog(logging.Handler):
    """Keeps what is logged until the run directory holds a run, then appends it to `train.log`.

    A command that fails before leaves no file, as it leaves no run. Keys and tokens are replaced.
    """

    def __init__(self) -> None:
        """Starts without a file."""
        super().__init__(logging.INFO)
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        self._waiting: list[str] = []
        self._file: TextIO | None = None

    def open(self, run: Path, title: str) -> None:
        """Appends to the file from now on.

        Args:
            run: the run directory.
            title: begins what this session logs, after its date.
        """
        self._file = (run / LOG).open("a", encoding="utf-8")
        waiting, self._waiting = self._waiting, []
        for line in (f"=== {time.strftime('%Y-%m-%d %H:%M:%S %z')} {title}", *waiting):
            self.write(line)

    def write(self, text: str) -> None:
        """Writes lines. A full disk is reported where results are written."""
        if self._file is None:
            self._waiting.append(text)
            return
        with contextlib.suppress(OSError):
            self._file.write(f"{redacted(text)}\n")
            self._file.flush()

    def emit(self, record: logging.LogRecord) -> None:
        """Is called by `logging`."""
        self.write(self.format(record))

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
        self._file = None
        super().close()


@contextlib.contextmanager
def collected_log() -> Iterator[RunLog]:
    """Collects what the body logs, its warnings, and the error that ends it."""
    handler, shown = RunLog(), warnings.showwarning

    def keep(message: Any, category: type[Warning], filename: str, line: int, *more: Any) -> None:
        text = f"{category.__name__}: {message}"
        handler.handle(logging.LogRecord("warnings", logging.WARNING, filename, line, text, (), None))
        shown(message, category, filename, line, *more)

    # Loggers of some libraries do not hand on what they log.
    named = [one for one in logging.root.manager.loggerDict.values() if isinstance(one, logging.Logger)]
    loggers = [logging.root, *(one for one in named if not one.propagate)]
    for logger in loggers:
        logger.addHandler(handler)
    warnings.showwarning = keep  # type: ignore[assignment]  # the rest is handed on
    try:
        yield handler
    except Exception as error:
        handler.write(f"VmrError: {error}" if isinstance(error, VmrError) else traceback.format_exc())
        raise
    finally:
        warnings.showwarning = shown
        for logger in loggers:
            logger.removeHandler(handler)
        handler.close()
