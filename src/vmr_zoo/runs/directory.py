"""The run directory: the only thing that a run leaves, and all that evaluation and reports read.

Every file is written under a temporary name and renamed, so that an interrupted run leaves whole files or
none. Nothing here removes an earlier result.

    config.yaml         the composed configuration, resolved save for `${paths.…}`
    status.json         running, interrupted, failed, pruned or finished; the seconds trained so far
    metrics.json        "header" (what was run) and the metrics of each split
    predictions.jsonl   what the metrics were computed from, in seconds
    model.safetensors   the weights that predicted
    manifest.json       what the features were
    annotations.json    how many sentences each split had, and a digest of them with their moments
    environment.json    packages, git revision, hardware, seed, threads
    checkpoints/        best.ckpt and last.ckpt, with the optimizer's state
    metrics.csv         the training curves
    eval/SPLIT-001/     what `vmr eval` added later: metrics.json, predictions.jsonl, environment.json, and
                        details.safetensors if it was asked for details
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout
from omegaconf import DictConfig, OmegaConf

from vmr_zoo.errors import VmrError, some
from vmr_zoo.utils.files import atomic_write

if TYPE_CHECKING:
    from vmr_zoo.data.annotations.records import Split

CONFIG = "config.yaml"
STATUS = "status.json"
_LONGEST_MESSAGE = 4000
METRICS = "metrics.json"
PREDICTIONS = "predictions.jsonl"
WEIGHTS = "model.safetensors"
MANIFEST = "manifest.json"
ANNOTATIONS = "annotations.json"
ENVIRONMENT = "environment.json"
LAST = Path("checkpoints") / "last.ckpt"
HEADER = "header"
_LOCK = ".lock"

_MAY_DIFFER_ON_RESUME = (
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


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file under a temporary name and renames it; NaN becomes null, as JSON knows no NaN."""
    atomic_write(path, json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes a JSON Lines file under a temporary name and renames it."""
    atomic_write(path, "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows))


def read_json(path: Path) -> Any:
    """Reads a JSON file of a run directory.

    Raises:
        VmrError: if it is missing or broken.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise VmrError(
            f"{path.parent} has no {path.name}: it is no run directory, or its run did not finish."
        ) from None
    except ValueError as error:
        raise VmrError(f"{path} is not valid JSON: {error}.") from error


def _finite(value: Any) -> Any:
    """Replaces NaN and infinity by None, at any depth."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value


@contextlib.contextmanager
def hold(path: Path) -> Iterator[None]:
    """Keeps a run directory, which is made, to this process; the system lets go when the process dies.

    Leaves no trace of its own, and no directory if nothing was written into it.

    Raises:
        VmrError: if another process holds it, or it cannot be written.
    """
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    lock = FileLock(path / _LOCK)
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise VmrError(
            f"Another process is at work in the run directory {path}. Wait until it ends, or choose another "
            "directory with run=DIR or seed=N."
        ) from None
    except OSError as error:
        raise unwritable(path, error) from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            (path / _LOCK).unlink()  # FileLock sees that a file it waited for is gone
        lock.release()
        with contextlib.suppress(OSError):
            for folder in made:
                folder.rmdir()


def unwritable(path: Path, error: OSError) -> VmrError:
    """Builds the error for a run directory that does not take a file."""
    return VmrError(
        f"Cannot write into the run directory {path}: {error.strerror or error}. What lies there is whole. "
        "Make room or allow writing, then continue with resume=true, or choose another with run=DIR."
    )


def check_free(path: Path, resume: bool) -> None:
    """Refuses a run directory that holds a run, unless that is to be continued.

    A job of a sweep that failed before it began leaves a status alone, which is no run.

    Raises:
        VmrError: if the directory holds something and `resume` is off.
    """
    there = sorted(item.name for item in path.iterdir()) if path.is_dir() else []
    if set(there) - {STATUS, _LOCK} and not resume:
        raise VmrError(
            f"The run directory {path} is not empty (it holds {some(there, 5)}), and no result is ever "
            "overwritten. Continue it with resume=true, or choose another with run=DIR, paths.runs=DIR or "
            "seed=N."
        )


def is_done(path: Path, config: Mapping[str, Any], resume: bool) -> bool:
    """Says whether a run that is to be continued has nothing left to do.

    Args:
        path: the run directory.
        config: what `relocatable` returned.
        resume: whether an earlier run is to be continued at all.

    Raises:
        VmrError: if the earlier run had other settings.
    """
    if not resume or status(path)["state"] not in ("finished", "pruned"):
        return False
    _check_same(path, config)
    return True


def open_new(path: Path, config: Mapping[str, Any], resume: bool) -> bool:
    """Prepares a directory for a run; `check_free` has been asked before.

    Args:
        path: where the run goes.
        config: what `relocatable` returned, stored as config.yaml.
        resume: whether a run that is there already may be continued.

    Returns:
        True if an earlier run is to be continued, False if this is a new one.

    Raises:
        VmrError: if the earlier run had other settings.
    """
    if resume and (path / CONFIG).is_file():
        _check_same(path, config)
        return True
    path.mkdir(parents=True, exist_ok=True)
    atomic_write(path / CONFIG, OmegaConf.to_yaml(OmegaConf.create(dict(config))))
    return False


def _check_same(path: Path, config: Mapping[str, Any]) -> None:
    """Refuses to continue a run under other settings."""
    changed = _differences(OmegaConf.to_container(load_config(path, resolve=False)), config)
    if changed:
        raise VmrError(
            f"Cannot resume {path}: the run was started with other settings: {'; '.join(changed[:5])}. "
            "Give the same settings, or choose another directory with run=DIR."
        )


def check_same_data(path: Path, manifest: Mapping[str, Any], annotations: Mapping[str, Any]) -> None:
    """Refuses to continue a run on other features or other annotations than it was started with.

    Args:
        path: the run directory; what it does not say is not compared.
        manifest: of the features that are there now.
        annotations: what `digests` says of those that are there now.

    Raises:
        VmrError: listing what differs.
    """
    from vmr_zoo.data.features.store import compare_manifests

    again = f"Put back what the run was started with, or start another with run=DIR. Cannot resume {path}."
    if (path / MANIFEST).is_file():
        try:
            compare_manifests(read_json(path / MANIFEST), manifest)
        except VmrError as error:
            raise VmrError(f"{error} {again}") from None
    if (path / ANNOTATIONS).is_file():
        earlier = read_json(path / ANNOTATIONS)
        changed = [
            f"{name} (then {_sentences(earlier.get(name))}, now {_sentences(annotations.get(name))})"
            for name in dict.fromkeys((*earlier, *annotations))
            if earlier.get(name) != annotations.get(name)
        ]
        if changed:
            raise VmrError(
                f"The annotations are not those that the run was started with: {'; '.join(changed)}. {again}"
            )


def _sentences(split: Mapping[str, Any] | None) -> str:
    return "no such split" if split is None else f"{split['sentences']} sentences, {split['sha256'][:8]}"


def digests(splits: Mapping[str, Split]) -> dict[str, dict[str, Any]]:
    """Returns for each split how many sentences it has, and a SHA-256 of them with their ground truth."""
    found = {}
    for name, split in splits.items():
        content = hashlib.sha256()
        for query in split.queries:
            content.update(f"{query!r}\n".encode())
        found[name] = {"sentences": len(split.queries), "sha256": content.hexdigest()}
    return found


def keep_earlier(path: Path) -> None:
    """Renames a file that a logger would start anew: metrics.csv becomes metrics-001.csv."""
    if path.is_file():
        path.rename(next_free(path.parent, path.stem, path.suffix))


def _differences(earlier: Any, now: Any, prefix: str = "") -> list[str]:
    if isinstance(earlier, Mapping) and isinstance(now, Mapping):
        found = []
        for key in [*earlier, *(key for key in now if key not in earlier)]:
            name = f"{prefix}{key}"
            if name not in _MAY_DIFFER_ON_RESUME:
                found += _differences(earlier.get(key), now.get(key), f"{name}.")
        return found
    return [] if earlier == now else [f"{prefix[:-1]} was {earlier}, now {now}"]


def relocatable(cfg: DictConfig) -> dict[str, Any]:
    """Resolves a configuration, save for paths: they are written as `${paths.…}` again.

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
        if isinstance(value, dict):
            return {key: relative(item) for key, item in value.items()}
        if isinstance(value, list):
            return [relative(item) for item in value]
        if isinstance(value, str):
            for name, path in longest_first:
                if value == path or value.startswith(path.rstrip("/") + "/"):
                    return f"${{paths.{name}}}{value[len(path.rstrip('/')) :]}"
        return value

    return {key: value if key in ("paths", "run") else relative(value) for key, value in resolved.items()}


def load_config(
    path: Path, resolve: bool = True, paths: Mapping[str, str | Path | None] | None = None
) -> DictConfig:
    """Reads the configuration of a run.

    Args:
        path: the run directory.
        resolve: whether `${paths.…}` are filled in.
        paths: places that differ from those of the run, by their name in `paths`; None: as the run had it.

    Raises:
        VmrError: if there is none.
    """
    if not (path / CONFIG).is_file():
        raise VmrError(f"{path} has no {CONFIG}: give run=DIR, a directory that `vmr train` made.")
    try:
        cfg = OmegaConf.load(path / CONFIG)
    except Exception as error:  # yaml's and OmegaConf's own
        raise VmrError(f"{path / CONFIG} is no configuration ({error}). Copy the run again.") from error
    if not isinstance(cfg, DictConfig):
        raise VmrError(f"{path / CONFIG} holds a list; expected a configuration. Copy the run again.")
    for name, place in (paths or {}).items():
        if place is not None:
            cfg.paths[name] = str(place)
    if resolve:
        OmegaConf.resolve(cfg)
    return cfg


def set_status(path: Path, state: str, seconds: float, message: str = "") -> None:
    """Records how far a run came.

    Args:
        path: the run directory.
        state: "running", "interrupted", "failed", "pruned" or "finished".
        seconds: trained so far, earlier sessions included.
        message: why it stopped.
    """
    short = message[:_LONGEST_MESSAGE]  # a compiler's can be of megabytes
    write_json(path / STATUS, {"state": state, "train_seconds": round(seconds, 3), "message": short})


def status(path: Path) -> dict[str, Any]:
    """Reads how far a run came; a directory without a record has not begun."""
    if not (path / STATUS).is_file():
        return {"state": "new", "train_seconds": 0.0, "message": ""}
    return dict(read_json(path / STATUS))


def record_failure(path: Path, message: str) -> None:
    """Marks a run as failed, unless it is finished, in another process's hands, or cannot be written."""
    with contextlib.suppress(VmrError, OSError), hold(path):
        earlier = status(path)
        if earlier["state"] not in ("finished", "pruned"):
            set_status(path, "failed", earlier["train_seconds"], message)


def curve(path: Path, metric: str) -> dict[int, float]:
    """Reads a metric of the selection split by epoch (from 0), of all sessions of a run."""
    found: dict[int, float] = {}
    for file in [*sorted(path.glob("metrics-*.csv")), path / "metrics.csv"]:
        if file.is_file():
            with file.open(newline="", encoding="utf-8") as lines:
                for row in csv.DictReader(lines):
                    # Other lines have none, nor has a session that ended before its first epoch did.
                    with contextlib.suppress(KeyError, TypeError, ValueError):
                        found[int(row["epoch"])] = float(row[f"selection/{metric}"])
    return found


def objective(path: Path) -> float | None:
    """Returns what a search maximises: the selection metric on the selection split, of a finished run.

    For a pruned run, the best that it had reached; None for any other.
    """
    state = status(path)["state"]
    if state == "finished":
        metrics = read_json(path / METRICS)
        value = metrics["selection"][metrics[HEADER]["selection_metric"]]
        return None if value is None else float(value)
    if state == "pruned":
        return max(curve(path, load_config(path).data.selection_metric).values(), default=None)
    return None


def next_free(parent: Path, stem: str, suffix: str = "") -> Path:
    """Returns the first of `stem-001`, `stem-002`, … below `parent` that does not exist."""
    number = 1
    while (parent / f"{stem}-{number:03d}{suffix}").exists():
        number += 1
    return parent / f"{stem}-{number:03d}{suffix}"


def environment(seed: int) -> dict[str, Any]:
    """Describes what a run ran on.

    Args:
        seed: the run's seed.

    Returns:
        Package versions, git revision and whether the checkout had changes, hardware, seed, torch threads.
    """
    import torch

    packages = {dist.metadata["Name"]: dist.version for dist in metadata.distributions()}
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "seed": seed,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": processor(),
        "cpus": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpus": gpus,
        "cuda": torch.version.cuda if gpus else None,
        "torch_threads": torch.get_num_threads(),
        "git": _git(),
        "packages": dict(sorted(packages.items(), key=lambda item: item[0].lower())),
    }


def processor() -> str:
    """Returns the name of the CPU."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def _git() -> dict[str, Any] | None:
    """Returns the revision of the checkout that the package runs from, None for an installed wheel."""
    checkout = Path(__file__).resolve().parents[3]
    if not (checkout / ".git").exists():
        return None
    try:
        revision = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=checkout, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()
        changes = subprocess.run(
            ["git", "status", "--porcelain"],
            cwd=checkout,
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        return {"revision": None, "error": str(error)}
    return {"revision": revision, "dirty": bool(changes.strip())}
