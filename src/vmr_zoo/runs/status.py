"""The progress of a run: its status, its selection curve, and the objective of a search."""

from __future__ import annotations

import contextlib
import csv
from pathlib import Path
from typing import Any

from vmr_zoo.errors import VmrError
from vmr_zoo.runs.directory import HEADER, METRICS, STATUS, create_and_lock, read_json
from vmr_zoo.utils.files import write_json

ENDED = ("finished", "pruned", "debug")
"""The states of a run that needs no further work; the result of a debugging run is never reported."""

_LONGEST_MESSAGE = 4000


def write_status(path: Path, state: str, seconds: float, message: str = "") -> None:
    """Records the progress of a run.

    Args:
        path: the run directory.
        state: "running", "interrupted", "failed", or one of `ENDED`.
        seconds: trained so far, earlier sessions included.
        message: why it stopped.
    """
    short = message[:_LONGEST_MESSAGE]  # a compiler's message can take megabytes
    write_json(path / STATUS, {"state": state, "train_seconds": round(seconds, 3), "message": short})


def read_status(path: Path) -> dict[str, Any]:
    """Reads the progress of a run; the state is "new" if none is recorded."""
    if not (path / STATUS).is_file():
        return {"state": "new", "train_seconds": 0.0, "message": ""}
    return dict(read_json(path / STATUS))


def record_failure(path: Path, message: str) -> None:
    """Marks a run as failed, unless it is finished, locked by another process, or cannot be written."""
    with contextlib.suppress(VmrError, OSError), create_and_lock(path):
        earlier = read_status(path)
        if earlier["state"] not in ENDED:
            write_status(path, "failed", earlier["train_seconds"], message)


def selection_curve(path: Path, metric: str) -> dict[int, float]:
    """Reads a metric of the selection split by epoch (from 0), over all sessions of a run."""
    found: dict[int, float] = {}
    for file in [*sorted(path.glob("metrics-*.csv")), path / "metrics.csv"]:
        if file.is_file():
            # A damaged byte spoils its line alone.
            with file.open(newline="", encoding="utf-8", errors="replace") as lines:
                for row in csv.DictReader(lines):
                    # Lines of training steps have no such value, nor has a session without a whole epoch.
                    with contextlib.suppress(KeyError, TypeError, ValueError):
                        found[int(row["epoch"])] = float(row[f"selection/{metric}"])
    return found


def objective(path: Path) -> float | None:
    """Returns the objective that a search maximises: the selection metric on the selection split.

    None for a run that is not finished, or has no such value.
    """
    if read_status(path)["state"] != "finished":
        return None
    metrics = read_json(path / METRICS)
    value = metrics["selection"][metrics[HEADER]["selection_metric"]]
    return None if value is None else float(value)
