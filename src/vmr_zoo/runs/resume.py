"""Starting and resuming runs: a run continues with equal settings and data only, and is never overwritten."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from vmr_zoo.errors import VmrError, abbreviate
from vmr_zoo.runs.directory import (
    ANNOTATIONS,
    CONFIG,
    LOCK,
    MANIFEST,
    STATUS,
    load_config,
    next_free,
    read_json,
    write_config,
)
from vmr_zoo.runs.status import read_status
from vmr_zoo.utils.trees import leaves

if TYPE_CHECKING:
    from vmr_zoo.data.annotations.records import Split

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
)
"""Keys that a resumed run may change, with all keys below."""


def check_free(path: Path, resume: bool) -> None:
    """Refuses a run directory that holds a run, unless the run is to be resumed.

    A job of a sweep that failed before it began leaves nothing but a status; that is not a run.

    Raises:
        VmrError: if the directory holds something and `resume` is off.
    """
    found = sorted(item.name for item in path.iterdir()) if path.is_dir() else []
    if set(found) - {STATUS, LOCK} and not resume:
        raise VmrError(
            f"The run directory {path} is not empty (it holds {abbreviate(found, 5)}), and no result is ever "
            "overwritten. Continue it with resume=true, or choose another with run=DIR, paths.runs=DIR or "
            "seed=N."
        )


def is_done(path: Path, config: Mapping[str, Any], resume: bool) -> bool:
    """Returns whether a run to be resumed has nothing left to do.

    Args:
        path: the run directory.
        config: from `directory.relocatable`.
        resume: whether to resume at all.

    Raises:
        VmrError: if the earlier run had other settings.
    """
    if not resume or read_status(path)["state"] not in ("finished", "pruned"):
        return False
    _check_same_settings(path, config)
    return True


def start_or_resume(path: Path, config: Mapping[str, Any], resume: bool) -> bool:
    """Writes the configuration of a new run, or compares it with that of the run to be resumed.

    Args:
        path: the run directory, after `check_free`.
        config: from `directory.relocatable`.
        resume: whether an earlier run may be resumed.

    Returns:
        True if an earlier run is resumed, False if this is a new one.

    Raises:
        VmrError: if the earlier run had other settings.
    """
    if resume and (path / CONFIG).is_file():
        _check_same_settings(path, config)
        return True
    write_config(path, config)
    return False


def _check_same_settings(path: Path, config: Mapping[str, Any]) -> None:
    earlier = leaves(OmegaConf.to_container(load_config(path, resolve=False)))  # type: ignore[arg-type]
    now = leaves(config)
    changed = [
        f"{key} was {earlier.get(key)}, now {now.get(key)}"
        for key in dict.fromkeys((*earlier, *now))
        if earlier.get(key) != now.get(key)
        and not any(key == free or key.startswith(f"{free}.") for free in _MAY_DIFFER)
    ]
    if changed:
        raise VmrError(
            f"Cannot resume {path}: the run was started with other settings: {'; '.join(changed[:5])}. "
            "Use the same settings, or choose another directory with run=DIR."
        )


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
    if (path / ANNOTATIONS).is_file():
        earlier = read_json(path / ANNOTATIONS)
        changed = [
            f"{name} (then {_summary(earlier.get(name))}, now {_summary(annotations.get(name))})"
            for name in dict.fromkeys((*earlier, *annotations))
            if earlier.get(name) != annotations.get(name)
        ]
        if changed:
            raise VmrError(
                f"The annotations differ from those at the start of the run: {'; '.join(changed)}. {remedy}"
            )


def _summary(split: Mapping[str, Any] | None) -> str:
    return "no such split" if split is None else f"{split['sentences']} sentences, {split['sha256'][:8]}"


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
