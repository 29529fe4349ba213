"""Writing files so that an interrupted run never leaves half a file behind."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`, and renames it to `path` if the body succeeds.

    The parent folder is made. Two processes may write the same path at once: the later rename wins, and a
    reader sees one complete file or the other.

    Args:
        path: where the finished file shall lie.

    Yields:
        A path with the same suffix in the same folder, to be written by the body.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.{secrets.token_hex(4)}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def alone_in(folder: str | Path) -> Iterator[None]:
    """Holds a folder, which is made: others that ask for it meanwhile wait, in this process or another.

    For work that several jobs of a sweep would otherwise do at once; the one that waited looks again at what
    there is to do. A process that dies lets go.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        yield


def atomic_write(path: str | Path, content: str | bytes) -> None:
    """Writes text (UTF-8) or bytes under a temporary name and renames it to `path`."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
