"""Finds run directories and reads what tables need: the header and the metrics of each run."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from vmr_zoo.errors import VmrError
from vmr_zoo.runs.directory import (
    DIGEST,
    ELSEWHERE,
    EVALUATIONS,
    EXTERNAL,
    HEADER,
    METRICS,
    NO_ANSWER,
    PREDICTIONS,
    STATUS,
    TRANSFER,
    read_json,
)
from vmr_zoo.utils.text import cut

REQUIRED_KEYS = (
    *("protocol", "features", "origin", "selection", "rounding"),
    *("name", "method", "variant", "seed", "parameters"),
)
"""Keys that a header must have to be reported."""

_COUNTED = ("queries", "unparsed", "missing")

UNREADABLE = "unreadable"
OUTDATED = "of other weights"
"""State of an evaluation whose run was trained again since."""
_BROKEN = (VmrError, OSError, AttributeError, KeyError, TypeError)
"""What reading a damaged file raises."""

REFERENCE_SPLITS = ("iid", "trivial")
"""The in-distribution test split, if a protocol has one; the other test splits are out of distribution."""

PROBE = "other_query"
"""The probe that shows whether a row reads its sentences. A number after it is a seed of its own."""

_SKIPPED_FOLDERS = ("wandb", "checkpoints")


@dataclass(frozen=True)
class Run:
    """One finished run, or its evaluation under changed conditions by `vmr eval`.

    Attributes:
        path: its directory; None for a run read from Weights & Biases without its files.
        header: the header of metrics.json: method, data, features, seed and so on.
        metrics: percentages by split and metric.
        evals: the folders below `path` that hold the predictions; empty if `path` itself does.
        transfers: its evaluations on other data, by `vmr eval data=OTHER`.
        rejections: its evaluations with sentences without an answer, by `vmr eval no_answer=…`.
        probes: its evaluations with sentences about other videos and no other change, by `vmr eval
            probe=other_query`, oldest first.
    """

    path: Path | None
    header: dict[str, Any]
    metrics: dict[str, dict[str, float]]
    evals: tuple[Path, ...] = ()
    transfers: tuple[Run, ...] = ()
    rejections: tuple[Run, ...] = ()
    probes: tuple[Run, ...] = ()

    @property
    def directory(self) -> Path:
        """Its directory.

        Raises:
            VmrError: if the run was read from Weights & Biases.
        """
        if self.path is None:
            raise VmrError(
                f"The run {self.header['name']} was read from Weights & Biases without its files. Use "
                "source=runs."
            )
        return self.path

    @property
    def folders(self) -> tuple[Path, ...]:
        """The folders with its predictions."""
        return self.evals or (self.directory,)

    @property
    def predictions(self) -> list[Path]:
        """The files with its predictions."""
        return [folder / PREDICTIONS for folder in self.folders]


@dataclass(frozen=True)
class UnfinishedRun:
    """A run directory without results, or an evaluation or a folder that cannot be read.

    Attributes:
        path: the directory.
        state: "running", "interrupted", "failed" or "pruned"; "unreadable" if it or one of its files is.
        message: the reason, if known.
    """

    path: Path
    state: str
    message: str


def scan_runs(*roots: Path, evals: bool = False) -> tuple[list[Run], list[UnfinishedRun]]:
    """Reads every run directory below some directories.

    Args:
        roots: directories with run directories at any depth.
        evals: whether evaluations that `vmr eval` added under changed conditions become runs of their own.

    Returns:
        The finished and the unfinished runs, by directory and path. Imported weights without scores are in
        neither list.
    """
    runs: list[Run] = []
    unfinished: list[UnfinishedRun] = []
    seen: set[tuple[int, int]] = set()
    for place in chain.from_iterable(_run_directories(root, seen) for root in roots):
        if isinstance(place, UnfinishedRun):
            unfinished.append(place)
            continue
        folder, names = place
        try:
            status = read_json(folder / STATUS) if STATUS in names else {"state": "finished"}
            if status["state"] != "finished":
                message = str(status.get("message") or "")
                unfinished.append(UnfinishedRun(folder, str(status["state"]), message))
                continue
            # A finished run has metrics; only one that was imported has evaluations alone, and no status.
            run = _read_run(folder) if METRICS in names or STATUS in names else None
        except _BROKEN as error:
            unfinished.append(UnfinishedRun(folder, UNREADABLE, str(error)))
            continue
        found, broken = _read_evaluations(folder, evals) if EVALUATIONS in names else ([], [])
        outdated = [one for one in found if not _same_weights(run, one)]
        found = [one for one in found if _same_weights(run, one)]
        unfinished += [*broken, *(UnfinishedRun(one.directory, OUTDATED, "") for one in outdated)]
        added = _evals(folder, found) if evals else []
        transfers = tuple(one for one in found if TRANSFER in one.header)
        rejections = _rejections(folder, found, [] if run is None else list(run.metrics))
        probes = tuple(one for one in found if _is_probe(one.header))
        if run is not None and run.metrics:
            runs.append(replace(run, transfers=transfers, rejections=rejections, probes=probes))
        elif added:
            added[0] = replace(added[0], transfers=transfers, rejections=rejections)
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


def no_finished_run(root: Path | str, unfinished: Sequence[UnfinishedRun]) -> VmrError:
    """Returns the error for a directory, or several, without a finished run."""
    return VmrError(
        f"No finished run below '{root}'. Expected {METRICS} files written by `vmr train`; set runs=DIR."
        + (f" {summarize_unfinished(unfinished)}" if unfinished else "")
    )


def _run_directories(
    folder: Path, seen: set[tuple[int, int]]
) -> Iterator[tuple[Path, set[str]] | UnfinishedRun]:
    """Yields each run directory and the names of its entries; does not descend into run directories.

    A folder that cannot be read is yielded as an unfinished run: there may be runs in it.

    Args:
        folder: where to look.
        seen: device and number of the folders that were entered: links may lead in a circle, or to one run
            twice.
    """
    try:
        found = folder.stat()
        with os.scandir(folder) as listing:
            entries = {entry.name: entry.is_dir() for entry in listing}
    except FileNotFoundError:
        return
    except OSError as error:
        yield UnfinishedRun(folder, UNREADABLE, str(error))
        return
    if (found.st_dev, found.st_ino) in seen:
        return
    seen.add((found.st_dev, found.st_ino))
    if METRICS in entries or STATUS in entries:
        yield folder, set(entries)
        return
    for name in sorted(name for name, is_folder in entries.items() if is_folder):
        if name not in _SKIPPED_FOLDERS and not name.startswith("."):
            yield from _run_directories(folder / name, seen)


def _read_run(folder: Path) -> Run:
    content = read_json(folder / METRICS)
    header = content[HEADER] if isinstance(content, dict) else {}
    missing = [key for key in REQUIRED_KEYS if key not in header]
    if missing:
        raise VmrError(f"{folder / METRICS} has no {', '.join(missing)} in its header.")
    metrics = {split: values for split, values in content.items() if split != HEADER}
    if wrong := [
        *wrong_types(header),
        *(split for split, values in metrics.items() if not _numbers(values)),
    ]:
        raise VmrError(f"{folder / METRICS} has values of another type than expected: {', '.join(wrong)}.")
    return Run(folder, header, metrics)


def wrong_types(header: Mapping[str, Any]) -> list[str]:
    """Returns the keys of a header whose values reports cannot use."""
    wrong = [
        key
        for key in REQUIRED_KEYS
        if not isinstance(header[key], int if key in ("seed", "parameters") else str)
        and not (key == "parameters" and header[key] is None and header["method"] == EXTERNAL)
    ]
    if header["method"] == EXTERNAL and not _describes_model(header.get(EXTERNAL)):
        wrong.append(EXTERNAL)
    costs = {key: header.get(key) for key in ("train_seconds", "step_ms", "inference_ms", "peak_memory_mb")}
    wrong += [key for key, value in costs.items() if not (value is None or isinstance(value, int | float))]
    overrides = header.get("overrides") or {}
    if not isinstance(overrides, dict) or not all(isinstance(text, str) for text in overrides.values()):
        wrong.append("overrides")
    return wrong


def _describes_model(external: Any) -> bool:
    """Whether a row from elsewhere says who answered, and how many answers of each split could be scored."""
    counts = external.get("splits") if isinstance(external, dict) else None
    return (
        isinstance(counts, dict)
        and isinstance(external.get("scores"), str)
        and all(
            isinstance(one, dict) and all(isinstance(one.get(key), int) for key in _COUNTED)
            for one in counts.values()
        )
    )


def _numbers(values: Any) -> bool:
    return isinstance(values, dict) and all(x is None or isinstance(x, int | float) for x in values.values())


def _read_evaluations(folder: Path, plain: bool) -> tuple[list[Run], list[UnfinishedRun]]:
    """Reads what `vmr eval` added to a run, by name of its folders.

    Args:
        folder: of the run.
        plain: whether evaluations are read too that are neither on other data nor with other sentences.

    Returns:
        The evaluations, and those that cannot be read.
    """
    found, broken = [], []
    special = (f"-{ELSEWHERE}", f"-{PROBE}", f"-{NO_ANSWER}_")
    for path in sorted(file.parent for file in (folder / EVALUATIONS).glob(f"*/{METRICS}")):
        if plain or any(part in path.name for part in special):
            try:
                found.append(_read_run(path))
            except _BROKEN as error:
                broken.append(UnfinishedRun(path, UNREADABLE, str(error)))
    return found, broken


def _evals(folder: Path, evaluations: Sequence[Run]) -> list[Run]:
    """Merges the evaluations of single splits into one run per name; the latest of each split counts."""
    found: dict[str, dict[str, Run]] = defaultdict(dict)
    for one in evaluations:
        if TRANSFER not in one.header and NO_ANSWER not in one.header:
            for split in one.metrics:
                found[str(one.header["name"])][split] = one
    return merge_evaluations(folder, found)


def merge_evaluations(folder: Path | None, found: Mapping[Any, Mapping[str, Run]]) -> list[Run]:
    """Merges evaluations of single splits, given by key and split, into a run for each key."""
    return [
        Run(
            folder,
            next(iter(parts.values())).header,
            {split: one.metrics[split] for split, one in parts.items()},
            tuple(dict.fromkeys(one.directory for one in parts.values())),
        )
        for parts in found.values()
    ]


def _is_probe(header: Mapping[str, Any]) -> bool:
    """Returns whether an evaluation changed the sentences and nothing else."""
    probe = str(header.get("probe"))
    other_sentences = probe == PROBE or probe.startswith(f"{PROBE}_")
    return other_sentences and not header.get("change") and TRANSFER not in header


def _same_weights(run: Run | None, evaluation: Run) -> bool:
    """Returns whether the evaluation is of the weights that the run has now, as far as both say."""
    digests = {str(one.header[DIGEST]) for one in (run, evaluation) if one and one.header.get(DIGEST)}
    return len(digests) < 2


def _rejections(folder: Path, evaluations: Sequence[Run], order: Sequence[str]) -> tuple[Run, ...]:
    """Merges the results with sentences without an answer by name and kind; the latest of a split counts.

    Args:
        folder: of the run.
        evaluations: of the run.
        order: its splits, which order those of the results.
    """
    found: dict[tuple[str, str], dict[str, Run]] = defaultdict(dict)
    for one in evaluations:
        if NO_ANSWER in one.header:
            for split in one.metrics:
                found[str(one.header["name"]), str(one.header["protocol"])][split] = one
    place = {split: number for number, split in enumerate(order)}
    ordered = {
        key: dict(sorted(parts.items(), key=lambda part: place.get(part[0], len(place))))
        for key, parts in found.items()
    }
    return tuple(merge_evaluations(folder, ordered))


def metric_names(runs: Sequence[Run]) -> set[str]:
    """Returns the names of all metrics that one of the runs has."""
    return {name for run in runs for values in run.metrics.values() for name in values}


def undamaged(runs: Sequence[Run], damaged: Collection[Path]) -> list[Run]:
    """Leaves out runs and evaluations with a damaged folder of predictions."""

    def whole(found: Sequence[Run]) -> tuple[Run, ...]:
        return tuple(one for one in found if not set(one.folders) & set(damaged))

    return [
        replace(
            run,
            transfers=whole(run.transfers),
            rejections=whole(run.rejections),
            probes=whole(run.probes),
        )
        for run in whole(runs)
    ]


def summarize_unfinished(unfinished: Sequence[UnfinishedRun], shown: int = 3) -> str:
    """Counts the unfinished runs by state in one line, and names the first few with their messages."""
    counts = ", ".join(f"{n} {state}" for state, n in Counter(one.state for one in unfinished).items())
    # Runs with a message first.
    first = sorted(unfinished, key=lambda one: not one.message)[:shown]
    named = "; ".join(f"{one.path}{f' ({_shorten(one.message)})' if one.message else ''}" for one in first)
    more = ", …" if len(unfinished) > shown else ""
    return f"Excluded, no results ({counts}): {named}{more}"


def _shorten(message: str) -> str:
    return cut(" ".join(message.split()), 200)
