"""Weights & Biases in reports: reads runs from an online project, and logs leaderboards to one.

`engine.loggers` logs the header and the results of a run; the same `Run` is rebuilt from them as from a run
directory.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vmr_zoo.engine.loggers import FINAL, SPLITS, wandb_offline
from vmr_zoo.errors import VmrError, first_line
from vmr_zoo.report.data_tables import rows_of_means
from vmr_zoo.report.leaderboard import TABLE_KEYS, Leaderboard
from vmr_zoo.report.runs import REQUIRED_KEYS, Run
from vmr_zoo.runs.directory import HEADER

log = logging.getLogger(__name__)

_IDENTITY = (*TABLE_KEYS, "name", "seed")
"""Header keys in which two different runs differ."""

_REQUIRED = {*REQUIRED_KEYS, "train_seconds"}
"""Header keys that distinguish runs of `vmr train` from other runs of a project."""

_PAGE = 200
"""Runs per request."""

_TIMEOUT = 60
"""Seconds that a request may take."""


def fetch_runs(entity: str | None, project: str) -> list[Run]:
    """Reads the finished runs of an online project, page by page.

    If several runs agree in name, data and seed, such as a run that was synced twice or repeated, only the
    newest is returned.

    Args:
        entity: user or team; None: the default of the API key.
        project: name of the project.

    Returns:
        The runs without their directories, oldest first.

    Raises:
        VmrError: if wandb is not installed, has no API key or cannot be reached, if the project does not
            exist, or if none of its finished runs has a header.
    """
    from rich.console import Console
    from rich.progress import track

    wandb = _wandb()
    path = project if entity is None else f"{entity}/{project}"
    try:
        # lazy=True would send one more request per run for its configuration and summary.
        pages = wandb.Api(timeout=_TIMEOUT).runs(
            path, filters={"state": "finished"}, order="+created_at", per_page=_PAGE, lazy=False
        )
        console = Console(stderr=True)
        listed = list(track(pages, f"Reading {path}", total=len(pages), transient=True, console=console))
    except Exception as error:  # of wandb, of its service (a private class) or of the network
        raise _cannot_read(path, error) from error
    runs = [run for run in map(_rebuild_run, listed) if run is not None]
    if not runs:
        raise VmrError(
            f"No run to report in '{path}' on Weights & Biases: it has {len(listed)} finished run(s), none "
            "with the header that `vmr train` logs. Upload offline runs with `wandb sync`, or choose another "
            "project=… or entity=…"
        )
    newest = {tuple(str(run.header[key]) for key in _IDENTITY): run for run in runs}
    if len(newest) < len(runs):
        log.warning(
            f"{len(runs) - len(newest)} run(s) ignored: a newer run has the same name, data and seed."
        )
    return list(newest.values())


def _rebuild_run(run: Any) -> Run | None:
    """Rebuilds a run from its configuration and summary; None for runs that `vmr train` did not log."""
    header = run.config.get(HEADER)
    if run.state != "finished" or not isinstance(header, dict) or not header.keys() >= _REQUIRED:
        return None
    metrics: dict[str, dict[str, float]] = {split: {} for split in run.config.get(SPLITS) or []}
    for key, value in run.summary.items():
        parts = key.split("/", 2)
        if len(parts) == 3 and parts[0] == FINAL and isinstance(value, int | float):
            metrics.setdefault(parts[1], {})[parts[2]] = value
    return Run(None, header, metrics)


def _wandb() -> Any:
    os.environ.setdefault("WANDB_SILENT", "true")
    try:
        import wandb
    except ImportError as error:
        raise VmrError(
            f"Weights & Biases cannot be imported ({error}). Install it: pip install wandb."
        ) from error
    return wandb


def _cannot_read(path: str, error: Exception) -> VmrError:
    """Explains an error of the API: ValueError for an unknown project, UsageError for a missing key."""
    from wandb.errors import UsageError

    if isinstance(error, UsageError):
        hint = "Run `wandb login`, or set WANDB_API_KEY."
    elif isinstance(error, ValueError):
        hint = "Check entity=… and project=…, and whether the API key may read them."
    else:
        hint = "Check the network, WANDB_API_KEY, entity=… and project=…"
    return VmrError(f"Cannot read '{path}' from Weights & Biases: {first_line(error).rstrip('.')}. {hint}")


def log_leaderboards(boards: Sequence[Leaderboard], entity: str | None, project: str, folder: Path) -> str:
    """Logs each table to one run of the job type "leaderboard", offline without an API key.

    Args:
        boards: the tables.
        entity: user or team; None: the default of the API key.
        project: name of the project.
        folder: an offline run is written to `wandb` below this folder.

    Returns:
        A line that says where the tables were logged.

    Raises:
        VmrError: if wandb is not installed or cannot be reached.
    """
    wandb = _wandb()
    tables = dict(zip(_table_names(boards), boards, strict=True))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        run = wandb.init(
            entity=entity,
            project=project,
            job_type="leaderboard",
            name="leaderboard",
            dir=str(folder),
            mode="offline" if wandb_offline() else None,
            config={"tables": {name: board.title for name, board in tables.items()}},
        )
        run.log({name: wandb.Table(*_columns_and_rows(board)) for name, board in tables.items()})
        run.finish()
    except wandb.errors.Error as error:
        raise VmrError(
            f"Cannot log to '{project}' on Weights & Biases: {first_line(error).rstrip('.')}. Check the "
            "network and the API key, or set WANDB_MODE=offline."
        ) from error
    if run.offline:
        return f"Logged to Weights & Biases, offline; upload with `wandb sync {Path(run.dir).parent}`."
    return f"Logged to Weights & Biases: {run.url}"


def _table_names(boards: Sequence[Leaderboard]) -> list[str]:
    """Names each table after protocol and features, in characters that wandb accepts in keys."""
    names: list[str] = []
    for board in boards:
        header = board.rows[0].runs[0].header
        stem = re.sub(r"[^\w.-]+", "_", f"{header['protocol']}-{header['features']}")
        # Tables of the same protocol and features differ in origin, selection rule or rounding.
        same = sum(name == stem or name.startswith(f"{stem}.") for name in names)
        names.append(f"{stem}.{same + 1}" if same else stem)
    return names


def _columns_and_rows(board: Leaderboard) -> tuple[list[str], list[list[Any]]]:
    """Returns the columns and rows of a table as data; None where there is no number."""
    frame = rows_of_means([board]).drop(columns="table")
    return list(frame.columns), frame.where(frame.notna(), None).to_numpy().tolist()
