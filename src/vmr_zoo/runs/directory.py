"""The run directory: everything that a run leaves, and everything that evaluation and reports read.

Every file is written under a temporary name and renamed, so an interrupted run leaves complete files only.
Nothing here removes an earlier result.

    config.yaml         the composed configuration, resolved except for `${paths.…}`, and its layout version
    status.json         running, interrupted, failed, pruned or finished; the seconds trained so far
    metrics.json        "header" (identity and cost of the run) and the metrics of each split
    predictions.jsonl   the predictions behind the metrics, in seconds
    model.safetensors   the weights that predicted
    manifest.json       the description of the features
    annotations.json    for each split, the number of sentences and a digest of them with their moments
    environment.json    packages, git revision, hardware, seed, threads
    checkpoints/        best.ckpt and last.ckpt, with the optimizer's state
    metrics.csv         the training curves
    eval/SPLIT-001/     added by `vmr eval`: metrics.json, predictions.jsonl, environment.json, and
                        details.safetensors with details=true
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from omegaconf import DictConfig, OmegaConf

from vmr_zoo.errors import VmrError
from vmr_zoo.utils.files import atomic_write
from vmr_zoo.utils.trees import map_leaves

CONFIG = "config.yaml"
STATUS = "status.json"
METRICS = "metrics.json"
PREDICTIONS = "predictions.jsonl"
DETAILS_FILE = "details.safetensors"
WEIGHTS = "model.safetensors"
MANIFEST = "manifest.json"
ANNOTATIONS = "annotations.json"
ENVIRONMENT = "environment.json"
LAST = Path("checkpoints") / "last.ckpt"
HEADER = "header"
LOCK = ".lock"

LAYOUT = 2
"""Version of config.yaml. Version 1, of vmr_zoo 0.1, names classes and keys that no longer exist."""

_LAYOUT_KEY = "layout"


def read_json(path: Path) -> Any:
    """Reads a JSON file of a run directory.

    Raises:
        VmrError: if it is missing or broken.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise VmrError(
            f"{path.parent} has no {path.name}: it is not a run directory, or its run did not finish."
        ) from None
    except ValueError as error:
        raise VmrError(f"{path} is not valid JSON: {error}.") from error


@contextlib.contextmanager
def create_and_lock(path: Path) -> Iterator[None]:
    """Creates and exclusively locks a run directory; the system releases the lock when the process dies.

    Removes the lock file at the end, and the directory if nothing was written into it.

    Raises:
        VmrError: if another process holds the lock, or the directory cannot be written.
    """
    created = [folder for folder in (path, *path.parents) if not folder.exists()]
    lock = FileLock(path / LOCK)
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise VmrError(
            f"Another process is using the run directory {path}. Wait until it ends, or choose another "
            "directory with run=DIR or seed=N."
        ) from None
    except OSError as error:
        raise unwritable(path, error) from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            (path / LOCK).unlink()  # a waiting FileLock notices that the file is gone
        lock.release()
        with contextlib.suppress(OSError):
            for folder in created:
                folder.rmdir()


def unwritable(path: Path, error: OSError) -> VmrError:
    """Builds the error for a run directory that cannot be written."""
    return VmrError(
        f"Cannot write into the run directory {path}: {error.strerror or error}. The files in it are "
        "complete. Free some space or fix the permissions and continue with resume=true, or choose another "
        "directory with run=DIR."
    )


def next_free(parent: Path, stem: str, suffix: str = "") -> Path:
    """Returns the first of `stem-001`, `stem-002`, … below `parent` that does not exist."""
    number = 1
    while (parent / f"{stem}-{number:03d}{suffix}").exists():
        number += 1
    return parent / f"{stem}-{number:03d}{suffix}"


def relocatable(cfg: DictConfig) -> dict[str, Any]:
    """Resolves a configuration except for paths, which become `${paths.…}` again.

    A run directory that moves to another machine then needs new values in one place.

    Args:
        cfg: a composed configuration with a `paths` node.

    Returns:
        A plain tree.
    """
    resolved: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    paths: dict[str, str] = {k: str(v) for k, v in resolved.get("paths", {}).items() if v}
    longest_first = sorted(paths.items(), key=lambda item: -len(item[1]))

    def relative(value: Any) -> Any:
        if isinstance(value, str):
            for name, path in longest_first:
                if value == path or value.startswith(path.rstrip("/") + "/"):
                    return f"${{paths.{name}}}{value[len(path.rstrip('/')) :]}"
        return value

    return {
        key: value if key in ("paths", "run") else map_leaves(relative, value)
        for key, value in resolved.items()
    }


def write_config(path: Path, config: Mapping[str, Any]) -> None:
    """Writes config.yaml.

    Args:
        path: the run directory; created if missing.
        config: from `relocatable`.
    """
    atomic_write(path / CONFIG, OmegaConf.to_yaml(OmegaConf.create({_LAYOUT_KEY: LAYOUT, **config})))


def read_table(path: Path, schema: int, refusal: str) -> list[dict[str, Any]]:
    """Returns the rows of a JSON file of measurements; none if there is no file.

    Args:
        path: the file, an object with "schema" and "rows".
        schema: the version that the caller reads.
        refusal: what the error says about another file, after its path.

    Raises:
        VmrError: if it is another file.
    """
    if not path.is_file():
        return []
    found = read_json(path)
    if not isinstance(found, dict) or found.get("schema") != schema:
        raise VmrError(f"{path} {refusal}")
    return list(found["rows"])


def load_config(
    path: Path, resolve: bool = True, paths: Mapping[str, str | Path | None] | None = None
) -> DictConfig:
    """Reads the configuration of a run.

    Args:
        path: the run directory.
        resolve: whether to resolve `${paths.…}`.
        paths: locations that differ from those of the run, by their name in `paths`; None: the run's own.

    Raises:
        VmrError: if there is none, or it has another layout version.
    """
    if not (path / CONFIG).is_file():
        raise VmrError(f"{path} has no {CONFIG}: expected run=DIR, a directory that `vmr train` created.")
    try:
        cfg = OmegaConf.load(path / CONFIG)
    except Exception as error:  # yaml's and OmegaConf's own
        raise VmrError(f"{path / CONFIG} is not a configuration ({error}). Copy the run again.") from error
    if not isinstance(cfg, DictConfig):
        raise VmrError(f"{path / CONFIG} holds a list; expected a configuration. Copy the run again.")
    _check_layout(path, cfg.pop(_LAYOUT_KEY, 1))
    for name, place in (paths or {}).items():
        if place is not None:
            cfg.paths[name] = str(place)
    if resolve:
        OmegaConf.resolve(cfg)
    return cfg


def _check_layout(path: Path, layout: Any) -> None:
    """Refuses a run whose configuration has another layout version."""
    if layout == LAYOUT:
        return
    version = "0.1" if layout == 1 else "another version"
    if (path / ENVIRONMENT).is_file():
        version = read_json(path / ENVIRONMENT).get("packages", {}).get("vmr_zoo", version)
    raise VmrError(
        f"{path} is a run of vmr_zoo {version} (run layout {layout}); vmr_zoo {metadata.version('vmr_zoo')} "
        f"expects layout {LAYOUT}. Train it again with the same command and another run=DIR, or use it with "
        f"vmr_zoo {version}. `vmr report` still shows its results."
    )
