"""Finds run directories and reads what tables need: the header and the metrics of each run."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import ListConfig

from vmr_zoo.errors import VmrError, unknown
from vmr_zoo.runs.directory import HEADER, METRICS, PREDICTIONS, STATUS, read_json

REQUIRED_KEYS = (
    *("protocol", "features", "origin", "selection", "rounding"),
    *("name", "method", "variant", "seed", "parameters"),
)
"""Keys that a header must have to be reported."""

UNREADABLE = "unreadable"

_SKIPPED_FOLDERS = ("wandb", "checkpoints")


@dataclass(frozen=True)
class Run:
    """One finished run, or its evaluation under changed conditions by `vmr eval`.

    Attributes:
        path: its directory; None for a run read from Weights & Biases.
        header: the header of metrics.json: method, data, features, seed and so on.
        metrics: percentages by split and metric.
        evals: the folders below `path` that hold the predictions; empty if `path` itself does.
    """

    path: Path | None
    header: dict[str, Any]
    metrics: dict[str, dict[str, float]]
    evals: tuple[Path, ...] = ()

    @property
    def directory(self) -> Path:
        """Its directory.

        Raises:
            VmrError: if the run was read from Weights & Biases.
        """
        if self.path is None:
            raise VmrError(
                f"The run {self.header['name']} was read from Weights & Biases, which stores no predictions: "
                "significance=true and html=true need run directories (source=runs)."
            )
        return self.path

    @property
    def predictions(self) -> list[Path]:
        """The files with its predictions."""
        return [folder / PREDICTIONS for folder in self.evals or (self.directory,)]


@dataclass(frozen=True)
class UnfinishedRun:
    """A run directory without results.

    Attributes:
        path: the directory.
        state: "running", "interrupted", "failed" or "pruned"; "unreadable" if one of its files is broken.
        message: the reason, if known.
    """

    path: Path
    state: str
    message: str


def scan_runs(root: Path, evals: bool = False) -> tuple[list[Run], list[UnfinishedRun]]:
    """Reads every run directory below a directory.

    Args:
        root: a directory with run directories at any depth.
        evals: whether evaluations that `vmr eval` added under changed conditions become runs of their own.

    Returns:
        The finished and the unfinished runs, sorted by path. A directory without scores, such as an imported
        checkpoint, is in neither list.
    """
    runs: list[Run] = []
    unfinished: list[UnfinishedRun] = []
    for folder, names in _run_directories(root):
        try:
            status = read_json(folder / STATUS) if STATUS in names else {"state": "finished"}
            if status["state"] != "finished":
                unfinished.append(UnfinishedRun(folder, status["state"], status.get("message") or ""))
                continue
            run = _read_run(folder) if METRICS in names else None
            added = _read_evals(folder) if evals and "eval" in names else []
        except (VmrError, KeyError, TypeError) as error:
            unfinished.append(UnfinishedRun(folder, UNREADABLE, str(error)))
            continue
        if run is not None and run.metrics:
            runs.append(run)
        # A plain evaluation only repeats the run's own metrics, if the run has any.
        runs += [
            one for one in added if run is None or not run.metrics or one.header["name"] != run.header["name"]
        ]
    return runs, unfinished


def finished_runs(root: Path) -> list[Run]:
    """Returns the finished runs below a directory.

    Raises:
        VmrError: if there are none.
    """
    runs, unfinished = scan_runs(root)
    if not runs:
        raise no_finished_run(root, unfinished)
    return runs


def no_finished_run(root: Path, unfinished: Sequence[UnfinishedRun]) -> VmrError:
    """Returns the error for a directory without a finished run."""
    return VmrError(
        f"No finished run below '{root}'. Expected {METRICS} files written by `vmr train`; set runs=DIR."
        + (f" {summarize_unfinished(unfinished)}" if unfinished else "")
    )


def _run_directories(folder: Path) -> Iterator[tuple[Path, set[str]]]:
    """Yields each run directory and the names of its entries; does not descend into run directories."""
    try:
        with os.scandir(folder) as listing:
            entries = {entry.name: entry.is_dir(follow_symlinks=False) for entry in listing}
    except OSError:
        return
    if METRICS in entries or STATUS in entries:
        yield folder, set(entries)
        return
    for name in sorted(name for name, is_folder in entries.items() if is_folder):
        if name not in _SKIPPED_FOLDERS and not name.startswith("."):
            yield from _run_directories(folder / name)


def _read_run(folder: Path) -> Run:
    content = read_json(folder / METRICS)
    header = content[HEADER]
    missing = [key for key in REQUIRED_KEYS if key not in header]
    if missing:
        raise VmrError(f"{folder / METRICS} has no {', '.join(missing)} in its header.")
    return Run(folder, header, {split: values for split, values in content.items() if split != HEADER})


def _read_evals(folder: Path) -> list[Run]:
    """Merges the evaluations of single splits into one run per name; the latest of each split counts."""
    found: dict[str, dict[str, Run]] = defaultdict(dict)
    for path in sorted((folder / "eval").iterdir(), key=lambda path: path.name):
        if (path / METRICS).is_file():
            one = _read_run(path)
            for split in one.metrics:
                found[str(one.header["name"])][split] = one
    return [
        Run(
            folder,
            next(iter(parts.values())).header,
            {split: one.metrics[split] for split, one in parts.items()},
            tuple(dict.fromkeys(one.directory for one in parts.values())),
        )
        for parts in found.values()
    ]


def filter_runs(runs: Sequence[Run], where: Mapping[str, Any]) -> list[Run]:
    """Keeps the runs whose headers match.

    Args:
        runs: the runs.
        where: allowed value or values by header key, such as {"method": ["tea", "mesm"]}.

    Raises:
        VmrError: if no header has one of the keys, or no run matches.
    """
    known = {key for run in runs for key in run.header}
    for key in where:
        if key not in known:
            raise unknown("key of where", str(key), known)
    allowed = {
        key: {str(one) for one in (value if isinstance(value, list | ListConfig) else [value])}
        for key, value in where.items()
    }
    kept = [run for run in runs if all(str(run.header.get(key)) in values for key, values in allowed.items())]
    if not kept:
        available = "; ".join(
            f"{key}: {', '.join(sorted({str(run.header.get(key)) for run in runs}))}" for key in where
        )
        raise VmrError(f"No run matches where={dict(where)}. Available: {available}.")
    return kept


def summarize_unfinished(unfinished: Sequence[UnfinishedRun], shown: int = 3) -> str:
    """Counts the unfinished runs by state in one line, and names the first few with their messages."""
    counts = ", ".join(f"{n} {state}" for state, n in Counter(one.state for one in unfinished).items())
    # Runs with a message first.
    first = sorted(unfinished, key=lambda one: not one.message)[:shown]
    named = "; ".join(f"{one.path}{f' ({_shorten(one.message)})' if one.message else ''}" for one in first)
    more = ", …" if len(unfinished) > shown else ""
    return f"Excluded, no results ({counts}): {named}{more}"


def _shorten(message: str) -> str:
    line = " ".join(message.split())
    return line if len(line) <= 200 else f"{line[:199]}…"
