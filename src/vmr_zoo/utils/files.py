"""Atomic writes and folder locks."""

from __future__ import annotations

import json
import math
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from vmr_zoo.utils.trees import map_leaves


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`, and renames it to `path` if the body succeeds.

    Creates the parent folder. Two processes may write the same path at once: the later rename wins, and a
    reader sees one complete file or the other.

    Args:
        path: the finished file.

    Yields:
        A path with the same suffix in the same folder, for the body to write.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.{secrets.token_hex(4)}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def atomic_write(path: str | Path, content: str | bytes) -> None:
    """Writes text (UTF-8) or bytes under a temporary name and renames it to `path`."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file atomically. NaN and infinity become null: JSON has neither."""
    finite = map_leaves(lambda x: None if isinstance(x, float) and not math.isfinite(x) else x, value)
    atomic_write(path, json.dumps(finite, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes a JSON Lines file atomically."""
    atomic_write(path, "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows))


@contextmanager
def lock_folder(folder: str | Path) -> Iterator[None]:
    """Creates and locks a folder. Others that lock it wait, in this process or another.

    For work that several jobs of a sweep would otherwise do at once; a job that waited checks again what is
    left to do. The system releases the lock when the process dies.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        yield
