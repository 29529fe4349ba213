"""Starting and resuming runs: a run continues with equal settings and data only, and is never overwritten."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from vmr_zoo.errors import VmrError, abbreviate
from vmr_zoo.runs.directory import (
    ANNOTATIONS,
    CONFIG,
    EVALUATIONS,
    LOCK,
    MANIFEST,
    METRICS,
    PREDICTIONS,
    STATUS,
    WEIGHTS,
    load_config,
    next_free,
    read_json,
    write_config,
)
from vmr_zoo.runs.record import record_session
from vmr_zoo.runs.status import ENDED, read_status, write_status
from vmr_zoo.utils.trees import differing, leaves

if TYPE_CHECKING:
    from vmr_zoo.data.annotations.records import Split

_EPOCHS = "trainer.max_epochs"
_SCHEDULE = "method.training.scheduler."

_MAY_DIFFER = (
    "resume",
    "logger",
    "callbacks",
    "paths",
    "run",
    "name",
    "trainer.accelerator",
    "trainer.devices",
    "data.residency",
    "data.num_workers",
    "metrics.sets",
)
"""Keys that a resumed run may change, with all keys below."""

_MUST_AGREE = ("callbacks.checkpoint.monitor", "callbacks.checkpoint.mode", "callbacks.seeding")
"""Exceptions: they decide which weights result."""


def check_free(path: Path, resume: bool) -> None:
    """Refuses a run directory that holds a run, unless the run is to be resumed.

    A job of a sweep that failed before it began leaves nothing but a status; that is not a run.

    Raises:
        VmrError: if the directory holds something and `resume` is off.
    """
    if not resume:
        advice = "Continue it with resume=true, or choose another with run=DIR, paths.runs=DIR or seed=N."
        # Earlier debugging runs stay in the directory of the latest.
        refuse_used(path, lambda name: name in (STATUS, LOCK) or name.startswith("earlier-"), advice)


def refuse_used(path: Path, is_free: Callable[[str], bool], advice: str) -> None:
    """Refuses a run directory that holds something.

    Args:
        path: the directory, which need not exist.
        is_free: returns whether a name may be in it all the same.
        advice: what to do instead.

    Raises:
        VmrError: if it holds anything else.
    """
    found = sorted(item.name for item in path.iterdir()) if path.is_dir() else []
    if not all(map(is_free, found)):
        raise VmrError(
            f"The run directory {path} is not empty (it holds {abbreviate(found, 5)}), and no result is ever "
            f"overwritten. {advice}"
        )


def is_done(path: Path, config: Mapping[str, Any], resume: bool) -> bool:
    """Returns whether a run to be resumed has nothing left to do: it ended, and no more epochs are wanted.

    Args:
        path: the run directory.
        config: from `directory.relocatable`.
        resume: whether to resume at all.

    Raises:
        VmrError: if the earlier run had other settings.
    """
    if not resume or read_status(path)["state"] not in ENDED or not (path / CONFIG).is_file():
        return False
    return not check_same_settings(path, config)


def start_or_resume(path: Path, config: Mapping[str, Any], resume: bool) -> bool:
    """Writes the configuration of a new run, or compares it with that of the run to be resumed.

    Either way, what was typed is recorded. A run may be resumed with more epochs. Its earlier results then
    move to the folder `epochs-N`.

    Args:
        path: the run directory, after `check_free`, `check_same_settings` and `check_same_data`.
        config: from `directory.relocatable`.
        resume: whether an earlier run may be resumed.

    Returns:
        True if an earlier run is resumed, False if this is a new one.

    Raises:
        VmrError: if the earlier run had other settings.
    """
    if not (resume and (path / CONFIG).is_file()):
        write_config(path, config)
        record_session(path)
        return False
    epochs = check_same_settings(path, config)
    if epochs:
        _set_results_aside(path, epochs)
        write_config(path, config)
    record_session(path, (epochs, config["trainer"]["max_epochs"]) if epochs else None)
    return True


def set_debugging_run_aside(path: Path) -> None:
    """Moves what an earlier debugging run (`debug=NAME`) left in a run directory into `earlier-001`.

    Args:
        path: a run directory that this process has locked; anything else in it stays.
    """
    if not (path / CONFIG).is_file() or not load_config(path, build=False).get("choices", {}).get("debug"):
        return
    found = [item for item in path.iterdir() if item.name != LOCK and not item.name.startswith("earlier-")]
    folder = next_free(path, "earlier")
    folder.mkdir()
    for item in found:
        item.rename(folder / item.name)


def _set_results_aside(path: Path, epochs: int) -> None:
    """Moves the results of a run that is to be continued into `epochs-N`, with its configuration."""
    status = read_status(path)
    if status["state"] in ENDED:
        write_status(path, "interrupted", status["train_seconds"], f"to be continued after {epochs} epochs")
    folder = path / f"epochs-{epochs}"
    folder.mkdir(exist_ok=True)
    shutil.copy2(path / CONFIG, folder / CONFIG)
    for name in (METRICS, PREDICTIONS, WEIGHTS, EVALUATIONS):
        if (path / name).exists() and not (folder / name).exists():
            (path / name).rename(folder / name)


def _below(key: str, parents: Sequence[str]) -> bool:
    return any(key == parent or key.startswith(f"{parent}.") for parent in parents)


def check_same_settings(path: Path, config: Mapping[str, Any], follows: bool = False) -> int:
    """Refuses other settings than those of an earlier run.

    Args:
        path: the run directory; one without a run has no settings.
        config: from `directory.relocatable`.
        follows: whether the method follows a schedule over all epochs.

    Returns:
        The earlier number of epochs if more are requested now and nothing depends on it, else 0.
    """
    if not (path / CONFIG).is_file():
        return 0
    earlier = leaves(OmegaConf.to_container(load_config(path, build=False)))  # type: ignore[arg-type]
    now = leaves(config)
    changed = [
        f"{key} was {earlier.get(key)}, now {now.get(key)}"
        for key in differing(earlier, now)
        if _below(key, _MUST_AGREE) or not _below(key, _MAY_DIFFER)
    ]
    before, after = earlier.get(_EPOCHS), now.get(_EPOCHS)
    more = isinstance(before, int) and isinstance(after, int) and 0 < before < after
    if isinstance(before, int) and more:
        others = [text for text in changed if not text.startswith((f"{_EPOCHS} ", _SCHEDULE))]
        reason = _schedule_of_all_epochs(now, changed, follows)
        if reason and not others:
            raise VmrError(
                f"Cannot resume {path} with {after} epochs instead of {before}: {reason}, so those until now "
                "would have been other ones. Train another run with run=DIR."
            )
        if len(changed) == 1:
            return before
    if changed:
        hint = "More epochs are possible if nothing else changes. " if more else ""
        raise VmrError(
            f"Cannot resume {path}: the run was started with other settings: {'; '.join(changed[:5])}. "
            f"{hint}Use the same settings, or choose another directory with run=DIR."
        )
    return 0


def _schedule_of_all_epochs(now: Mapping[str, Any], changed: Sequence[str], follows: bool) -> str:
    """Returns why the epochs of a training depend on how many there are; "" if they do not.

    Args:
        now: the settings by key.
        changed: sentences about the settings that differ from the earlier ones.
        follows: whether the method follows a schedule over all epochs.
    """
    if follows:
        return "this method follows a schedule over all epochs"
    schedule = str(now.get(f"{_SCHEDULE}_target_", "")).rpartition(".")[2]
    by_epochs = [text for text in changed if text.startswith(_SCHEDULE)]
    steps = now.get(f"{_SCHEDULE}total_steps")
    if by_epochs:
        return f"its schedule, {schedule}, follows the number of epochs ({'; '.join(by_epochs)})"
    if isinstance(steps, int) and steps < int(now[_EPOCHS]):
        return f"its schedule, {schedule}, ends after {steps} epochs ({_SCHEDULE}total_steps)"
    return ""


def check_same_data(path: Path, manifest: Mapping[str, Any], annotations: Mapping[str, Any]) -> None:
    """Refuses to resume a run on other features or other annotations than it was started with.

    Args:
        path: the run directory; what it does not record is not compared.
        manifest: of the current features.
        annotations: `split_digests` of the current annotations.

    Raises:
        VmrError: lists what differs.
    """
    from vmr_zoo.data.features.manifest import compare_manifests

    remedy = f"Restore the data of the run, or start another with run=DIR. Cannot resume {path}."
    if (path / MANIFEST).is_file():
        try:
            compare_manifests(read_json(path / MANIFEST), manifest)
        except VmrError as error:
            raise VmrError(f"{error} {remedy}") from None
    if changed := changed_annotations(path, annotations):
        raise VmrError(
            f"The annotations differ from those at the start of the run: {'; '.join(changed)}. {remedy}"
        )


def changed_annotations(
    path: Path, annotations: Mapping[str, Any], splits: Collection[str] | None = None
) -> list[str]:
    """Describes the splits whose annotations differ from those that a run recorded.

    Args:
        path: the run directory; nothing differs if it records none.
        annotations: `split_digests` of the current annotations.
        splits: only these; None: all, then and now.
    """
    if not (path / ANNOTATIONS).is_file():
        return []
    earlier = read_json(path / ANNOTATIONS)
    if not isinstance(earlier, dict):
        raise VmrError(f"{path / ANNOTATIONS} holds no splits. Copy the run again.")
    return [
        f"{name} (then {_summary(earlier.get(name))}, now {_summary(annotations.get(name))})"
        for name in dict.fromkeys((*earlier, *annotations) if splits is None else splits)
        if earlier.get(name) != annotations.get(name)
    ]


def _summary(split: Any) -> str:
    if not isinstance(split, Mapping):
        return "no such split"
    return f"{split.get('sentences')} sentences, {split.get('sha256')!s:.8}"


def split_digests(splits: Mapping[str, Split]) -> dict[str, dict[str, Any]]:
    """Returns for each split the number of sentences, and a SHA-256 of them with their ground truth."""
    found = {}
    for name, split in splits.items():
        content = hashlib.sha256()
        for query in split.queries:
            content.update(f"{query!r}\n".encode())
        found[name] = {"sentences": len(split.queries), "sha256": content.hexdigest()}
    return found


def rotate(path: Path) -> None:
    """Renames a file that a logger would overwrite: metrics.csv becomes metrics-001.csv."""
    if path.is_file():
        path.rename(next_free(path.parent, path.stem, path.suffix))
