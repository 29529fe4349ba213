"""Weights & Biases: a run is mirrored there, a leaderboard is read from there or logged there.

The run directory is what counts; nothing here is needed for it, and without the logger wandb is not imported.
Each run carries the header of its metrics.json in its configuration and each number in its summary, as
`final/SPLIT/METRIC`, from which the same `Run` is built as from the directory.
"""

from __future__ import annotations

import logging
import os
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmr_zoo.config.compose import wandb_offline
from vmr_zoo.errors import VmrError
from vmr_zoo.report.leaderboard import NEEDED, SAME_TABLE, Run
from vmr_zoo.runs.directory import HEADER, METRICS, read_json

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger, WandbLogger

    from vmr_zoo.report.leaderboard import Leaderboard

log = logging.getLogger(__name__)

_FINAL = "final"
"""What the names of a run's numbers start with in its summary, apart from those of its curves."""

_SPLITS = "splits"
"""The names of the splits in a run's configuration, in order."""

_SAME_RUN = (*SAME_TABLE, "name", "seed")
"""What two runs must differ in to be two."""

_NEEDED = (*NEEDED, "train_seconds")
"""What the header of a run of ours holds."""

_PAGE = 200
"""Runs that one request asks for."""

_PATIENCE = 60
"""Seconds that a request may take."""

_LONGEST_NAME, _LONGEST_TAG = 128, 64
"""Characters that wandb takes; it refuses to start with a longer tag."""


def logger(
    project: str,
    entity: str | None,
    save_dir: str,
    offline: bool,
    name: str,
    group: str,
    tags: Sequence[str],
) -> WandbLogger:
    """Builds Lightning's logger, its texts cut to what wandb takes.

    Args:
        project: the project.
        entity: whose; None: the default one of the key.
        save_dir: the run directory.
        offline: whether to write to disk only, for `wandb sync`.
        name: the run's.
        group: what it is shown together with.
        tags: what it can be found by.
    """
    from lightning.pytorch.loggers import WandbLogger

    return WandbLogger(
        name=name[-_LONGEST_NAME:],  # its end says the seed
        save_dir=save_dir,
        offline=offline,
        project=project,
        entity=entity,
        group=group[:_LONGEST_NAME],
        tags=list(dict.fromkeys(tag[:_LONGEST_TAG] for tag in tags)),
        job_type="train",
    )


def describe(loggers: Iterable[Logger], config: Mapping[str, Any]) -> None:
    """Logs what was asked for, before training.

    Args:
        loggers: the trainer's; those of others than wandb are left alone.
        config: what `run_dir.relocatable` returned.
    """
    for run in _open_runs(loggers):
        run.config.update(dict(config), allow_val_change=True)


def record(loggers: Iterable[Logger], run: Path) -> None:
    """Logs what came out: the header and the numbers of metrics.json.

    Args:
        loggers: the trainer's; those of others than wandb are left alone.
        run: the run directory.
    """
    for open_run in _open_runs(loggers):
        content = read_json(run / METRICS)
        header = content.pop(HEADER)
        # A server may sort the summary by name, the splits of a table have an order.
        open_run.config.update({HEADER: header, _SPLITS: list(content)}, allow_val_change=True)
        open_run.summary.update(
            {
                f"{_FINAL}/{split}/{metric}": value
                for split, values in content.items()
                for metric, value in values.items()
                if value is not None
            }
        )


def _open_runs(loggers: Iterable[Logger]) -> list[Any]:
    from lightning.pytorch.loggers import WandbLogger

    return [one.experiment for one in loggers if isinstance(one, WandbLogger)]


def collect(entity: str | None, project: str) -> list[Run]:
    """Reads the finished runs of an online project, page by page.

    Of several runs that are one in name, data and seed, such as one that was synced twice or made again, the
    newest counts.

    Args:
        entity: a user or a team; None: the default one of the key.
        project: its project.

    Returns:
        What `report.collect` returns for the run directories, without the directories, oldest first.

    Raises:
        VmrError: if wandb is missing, has no key, cannot be reached or knows no such project, or if no
            finished run of it carries a header.
    """
    from rich.console import Console
    from rich.progress import track

    wandb = _wandb()
    path = project if entity is None else f"{entity}/{project}"
    try:
        # Not lazy: else each run's configuration and summary would be one more request.
        pages = wandb.Api(timeout=_PATIENCE).runs(
            path, filters={"state": "finished"}, order="+created_at", per_page=_PAGE, lazy=False
        )
        console = Console(stderr=True)
        listed = list(track(pages, f"Reading {path}", total=len(pages), transient=True, console=console))
    except Exception as error:  # wandb's own, its service's (a private class) and the network's
        raise _unreachable(path, error) from error
    runs = [run for run in map(_rebuilt, listed) if run is not None]
    if not runs:
        raise VmrError(
            f"No run to report in '{path}' on Weights & Biases: it has {len(listed)} finished run(s), none "
            "with the header that `vmr train` logs. Send offline runs there with `wandb sync`, or name "
            "another project=… or entity=…"
        )
    newest = {tuple(str(run.header[key]) for key in _SAME_RUN): run for run in runs}
    if len(newest) < len(runs):
        log.warning(f"{len(runs) - len(newest)} run(s) left out: there is a newer one with the same seed.")
    return list(newest.values())


def _rebuilt(run: Any) -> Run | None:
    """Builds a run from what `record` logged; None for any other run of the project."""
    header = run.config.get(HEADER)
    if run.state != "finished" or not isinstance(header, dict) or not header.keys() >= set(_NEEDED):
        return None
    metrics: dict[str, dict[str, float]] = {split: {} for split in run.config.get(_SPLITS) or []}
    for key, value in run.summary.items():
        parts = key.split("/", 2)
        if len(parts) == 3 and parts[0] == _FINAL and isinstance(value, int | float):
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


def _unreachable(path: str, error: Exception) -> VmrError:
    """Explains what the public API raised: an unknown project is a ValueError, a missing key a UsageError."""
    from wandb.errors import UsageError

    if isinstance(error, UsageError):
        hint = "Say `wandb login`, or set WANDB_API_KEY."
    elif isinstance(error, ValueError):
        hint = "Check entity=… and project=…, and that the key may read them."
    else:
        hint = "Check the network, WANDB_API_KEY, entity=… and project=…"
    return VmrError(f"Cannot read '{path}' from Weights & Biases: {_first_line(error)}. {hint}")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def log_leaderboards(boards: Sequence[Leaderboard], entity: str | None, project: str, folder: Path) -> str:
    """Logs each table to one run of the type "leaderboard", offline where there is no key.

    Args:
        boards: the tables.
        entity: a user or a team; None: the default one of the key.
        project: its project.
        folder: what an offline run is written below, in `wandb`.

    Returns:
        A line that says where it is.

    Raises:
        VmrError: if wandb is missing or cannot be reached.
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
        run.log({name: wandb.Table(*_table(board)) for name, board in tables.items()})
        run.finish()
    except wandb.errors.Error as error:
        raise VmrError(
            f"Cannot log to '{project}' on Weights & Biases: {_first_line(error)}. Check the network and "
            "the key, or set WANDB_MODE=offline."
        ) from error
    if run.offline:
        return f"Logged to Weights & Biases, offline; `wandb sync {Path(run.dir).parent}` sends it."
    return f"Logged to Weights & Biases: {run.url}"


def _table_names(boards: Sequence[Leaderboard]) -> list[str]:
    """Names each table after protocol and features, in letters that wandb's keys may hold."""
    names: list[str] = []
    for board in boards:
        header = board.rows[0].runs[0].header
        stem = re.sub(r"[^\w.-]+", "_", f"{header['protocol']}-{header['features']}")
        # Two tables of one protocol differ in the origin of the features, the selection rule or the rounding.
        same = sum(name == stem or name.startswith(f"{stem}.") for name in names)
        names.append(f"{stem}.{same + 1}" if same else stem)
    return names


def _table(board: Leaderboard) -> tuple[list[str], list[list[str | float | None]]]:
    """Returns columns and rows: those of the leaderboard, and its values as numbers, to sort by."""
    frame = board.frame()
    keys = [(column, metric) for column in board.columns for metric in board.metrics]
    columns = list(frame.columns)
    costs = columns.index(" ".join(keys[-1])) + 1  # from here on counts and seconds
    columns += [f"{column} {metric} ({what})" for column, metric in keys for what in ("mean", "std")]
    rows: list[list[str | float | None]] = []
    for cells, row in zip(frame.values.tolist(), board.rows, strict=True):
        numbers = [float(cell.replace(",", "")) if cell else None for cell in cells[costs:]]
        for values in (row.values.get(key, []) for key in keys):
            numbers.append(statistics.fmean(values) if values else None)
            numbers.append(statistics.stdev(values) if len(values) > 1 else None)
        rows.append([*cells[:costs], *numbers])
    return columns, rows
