"""Runs measurements on a GPU one by one into a file, resumably.

OUT/gpu.json has one row per item, size and hardware. It is written before and after each item. Finished
items are kept. An item whose row still says "running" was interrupted, perhaps because it hung: it runs
again, after all others.
"""

from __future__ import annotations

import fnmatch
import gc
import hashlib
import os
import subprocess
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from vmr_zoo.config.compose import config_dir
from vmr_zoo.engine.bench import read_table
from vmr_zoo.errors import VmrError, unknown
from vmr_zoo.runs.environment import describe_environment
from vmr_zoo.utils.files import lock_folder, write_json

FILE = "gpu.json"
SCHEMA = 1
STAGES = ("tests", "sync", "bench", "profile", "residency", "extract", "narrate", "train")
DONE, FAILED, SKIPPED, RUNNING = "done", "failed", "skipped", "running"
_LIBRARIES = ("torch", "lightning", "transformers", "sentence-transformers", "open_clip_torch", "torchvision")


class Skipped(Exception):
    """The machine lacks what an item needs; the message says what."""


@dataclass(frozen=True)
class Item:
    """One measurement.

    Attributes:
        name: "stage/…", unique.
        run: measures; returns JSON-able numbers, or raises `Skipped`.
        settings: what is measured, JSON-able.
        packages: modules that it needs and a bare machine may lack.
    """

    name: str
    run: Callable[[], Mapping[str, Any]]
    settings: Mapping[str, Any] = field(default_factory=dict)
    packages: tuple[str, ...] = ()

    @property
    def stage(self) -> str:
        """The stage that the item belongs to."""
        return self.name.partition("/")[0]


def sized(cfg: DictConfig) -> DictConfig:
    """Returns the settings of the requested size: under size=tiny those of `tiny` replace the others."""
    if cfg.device == "cpu" and cfg.size != "tiny":
        raise VmrError("device=cpu is for a dry run: add size=tiny. `vmr bench` measures on a CPU.")
    if cfg.size == "full":
        return cfg
    merged = cfg.copy()
    OmegaConf.set_struct(merged, False)
    for key, value in cfg.tiny.items():
        merged[key] = value
    return merged


def run_items(
    cfg: DictConfig, items: Sequence[Item], console: Console
) -> tuple[Path, list[dict[str, Any]], list[str]]:
    """Runs the chosen items that are not finished.

    Args:
        cfg: composed from `conf/gpu.yaml`.
        items: all of them; `cfg.stages` and `cfg.only` choose.
        console: prints the progress.

    Returns:
        The file, the rows of the chosen items on this hardware, and the names of the items that were not run.

    Raises:
        VmrError: without a GPU, for an unknown stage, or if the GPU stopped working.
    """
    started = time.monotonic()
    chosen = _chosen(cfg, items)
    machine = describe_machine(cfg)
    out = Path(cfg.out).expanduser()
    left: list[str] = []
    with nullcontext() if cfg.list else lock_folder(out):
        book = _Book(out / FILE, cfg.size, machine)
        for item in _in_order(chosen, book, cfg.retry):
            ends = time.monotonic() - started + expected_seconds(cfg, item.name)
            if cfg.list or (cfg.minutes and ends > 60 * cfg.minutes):
                left.append(item.name)
                continue
            console.print(f"{item.name} …")
            ran = _run(item, book)
            reason = ran["reason"].partition("\n")[0]
            console.print(f"{item.name}: {ran['status']} ({ran['seconds']:.0f} s) {reason}", markup=False)
        rows = [row for item in chosen if (row := book.row(item.name))]
    if cfg.list:
        states = {row["item"]: row["status"] for row in rows}
        for item in chosen:
            console.print(f"{states.get(item.name, 'to do'):<8} {item.name}", markup=False)
    return out / FILE, rows, left


def _chosen(cfg: DictConfig, items: Sequence[Item]) -> list[Item]:
    """Returns the items of the requested stages and names, in the order of the stages."""
    for stage in cfg.stages:
        if stage not in STAGES:
            raise unknown("stage", str(stage), STAGES)
    chosen = [
        item
        for stage in cfg.stages
        for item in items
        if item.stage == stage and fnmatch.fnmatchcase(item.name, cfg.only)
    ]
    if not chosen:
        raise VmrError(f"only={cfg.only} names no item of stages={list(cfg.stages)}. list=true lists them.")
    return chosen


def expected_seconds(cfg: DictConfig, name: str) -> float:
    """Returns how long an item may take: the value of the first pattern of `cfg.expected` that fits."""
    return float(next(value for key, value in cfg.expected.items() if fnmatch.fnmatchcase(name, key)))


def _in_order(items: Sequence[Item], book: _Book, retry: bool) -> list[Item]:
    """Returns the items to run: those never started first, interrupted ones last."""
    states = {item.name: (book.row(item.name) or {}).get("status") for item in items}
    again = {None, SKIPPED, RUNNING} | ({FAILED} if retry else set())
    todo = [item for item in items if states[item.name] in again]
    return sorted(todo, key=lambda item: states[item.name] == RUNNING)


def _run(item: Item, book: _Book) -> dict[str, Any]:
    """Runs one item and stores its row, before and after."""
    row = {
        "item": item.name,
        "status": RUNNING,
        "reason": "",
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": 0.0,
        "settings": dict(item.settings),
        "numbers": {},
    }
    book.write(row)
    started = time.perf_counter()
    try:
        missing = [name for name in item.packages if not _installed(name)]
        if missing:
            raise Skipped(f"needs the packages {', '.join(missing)}")
        row["numbers"] = dict(item.run())
        row["status"] = DONE
    except Skipped as reason:
        row |= {"status": SKIPPED, "reason": str(reason)}
    except Exception as error:
        row |= {
            "status": FAILED,
            "reason": f"{type(error).__name__}: {error}",
            "traceback": traceback.format_exc()[-4000:],
        }
    row["seconds"] = time.perf_counter() - started
    book.write(row)
    gc.collect()
    if book.machine["device"] == "cuda":
        _check_device(item.name)
    return row


def _check_device(name: str) -> None:
    """Frees memory for the next item. An error in a kernel breaks the GPU for the rest of a process."""
    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    except RuntimeError as error:
        raise VmrError(f"{name} broke the GPU for this process ({error}). Run the command again.") from error


def _installed(name: str) -> bool:
    """Returns whether a module can be found, without importing it."""
    from importlib.util import find_spec

    return find_spec(name) is not None


class _Book:
    """The rows of a gpu.json.

    Attributes:
        path: the file.
        size: "full" or "tiny".
        machine: of this process; part of each row that it writes.
    """

    def __init__(self, path: Path, size: str, machine: Mapping[str, Any]) -> None:
        """Reads the file if it exists."""
        self.path, self.size, self.machine = path, size, machine
        self._rows = stored_rows(path)

    def row(self, name: str) -> dict[str, Any] | None:
        """Returns the row of an item of this size on this hardware."""
        return next((row for row in self._rows if self._key(row) == self._own_key(name)), None)

    def write(self, row: Mapping[str, Any]) -> None:
        """Replaces the row of an item, and writes the file."""
        full = {**row, "size": self.size, "dry_run": self.size == "tiny", "machine": dict(self.machine)}
        own = self._own_key(row["item"])
        self._rows = [*(other for other in self._rows if self._key(other) != own), full]
        write_json(self.path, {"schema": SCHEMA, "rows": self._rows})

    def _own_key(self, name: str) -> tuple[str, ...]:
        return name, self.size, self.machine["hardware"]

    @staticmethod
    def _key(row: Mapping[str, Any]) -> tuple[str, ...]:
        return row["item"], row["size"], row["machine"]["hardware"]


def stored_rows(path: Path) -> list[dict[str, Any]]:
    """Returns the rows of a gpu.json; none if there is no file.

    Raises:
        VmrError: if it is another file.
    """
    return read_table(path, SCHEMA, "was not written by this vmr gpu. Choose another folder with out=DIR.")


def describe_machine(cfg: DictConfig) -> dict[str, Any]:
    """Describes device, software and code.

    Raises:
        VmrError: if the requested device is not there.
    """
    if cfg.device == "cuda" and not torch.cuda.is_available():
        raise VmrError("torch finds no GPU. To try the command without one: size=tiny device=cpu.")
    environment = describe_environment(0)
    packages = environment["packages"]
    gpu = {}
    if cfg.device == "cuda":
        found = torch.cuda.get_device_properties(0)
        gpu = {
            "memory_gb": found.total_memory / 1e9,
            "capability": f"{found.major}.{found.minor}",
            "driver": nvidia_smi("driver_version"),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    cpu = f"{environment['processor']}, {os.cpu_count()} cores"
    return {
        "device": cfg.device,
        "hardware": torch.cuda.get_device_name(0) if gpu else cpu,
        **gpu,
        "cpu": cpu,
        "python": environment["python"],
        "packages": {name: packages[name] for name in _LIBRARIES if name in packages},
        "git": environment["git"],
        "revision": cfg.revision,
        "code": code_digest(),
    }


def nvidia_smi(query: str) -> str | None:
    """Returns a field that the driver reports about the first GPU; None if its tool is not installed."""
    command = ["nvidia-smi", "--id=0", f"--query-gpu={query}", "--format=csv,noheader,nounits"]
    with suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    return None


def code_digest() -> str:
    """Returns 12 hex digits of a SHA-256 over the package and `conf/`: the code, where there is no git."""
    package = Path(__file__).resolve().parents[1]
    digest = hashlib.sha256()
    for root, pattern in ((package, "*.py"), (config_dir(), "*.yaml")):
        for path in sorted(root.rglob(pattern)):
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            digest.update(f"{path.relative_to(root).as_posix()} {content}\n".encode())
    return digest.hexdigest()[:12]
