"""Files: atomic writes, bounded reads, rows of JSON, checks of what a path names, and folder locks."""

from __future__ import annotations

import errno
import functools
import hashlib
import json
import math
import os
import platform
import re
import secrets
import stat
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from vmr_zoo.errors import VmrError, causes
from vmr_zoo.utils.trees import map_leaves


def _processes() -> str:
    """Names the set of processes that this one sees: those of its machine, or of its container."""
    name = platform.node()
    with suppress(OSError):  # Linux alone has it
        name += os.readlink("/proc/self/ns/pid")
    return hashlib.sha256(name.encode()).hexdigest()[:8]


_HOST = _processes()
_TEMPORARY = re.compile(r"\.tmp-([0-9a-f]{8})-(\d+)-")
_ABANDONED = 86400.0
"""Seconds after which a temporary file of a process that cannot be seen from here is removed."""

_SOON = 1.0
"""Seconds to wait for a lock in silence."""

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_UNWRITABLE = (*_FULL, errno.EROFS)
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS)
_IMPOSSIBLE = (errno.ENAMETOOLONG, errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ELOOP, errno.EIO)


class WriteError(VmrError, OSError):
    """A file that cannot be written: full disk, read-only folder, name too long."""

    exit_code = 3

    def __init__(self, path: str, cause: OSError) -> None:
        if cause.errno in _FULL:
            advice = "Free some space or choose another place, then run the same command again."
        elif cause.errno in _REFUSED:
            advice = "Choose a place that you may write to."
        elif cause.errno == errno.EIO:
            advice = "Check its disk, and those of the files that it is made from: one may be failing."
        elif cause.errno in (errno.ENOTEMPTY, errno.EEXIST):
            advice = "Move what is there, or choose another place."
        else:
            advice = "Choose another place."
        super().__init__()
        self.args = path, cause  # what unpickling, in another process, passes to the constructor
        self.message = f"Cannot write {path}: {cause.strerror}. {advice}"
        self.errno, self.strerror = cause.errno, cause.strerror

    def __str__(self) -> str:
        return self.message


def unwritable_cause(error: BaseException) -> OSError | None:
    """Finds the full disk or read-only folder behind an error, however wrapped; None: another error."""
    for cause in causes(error):
        if isinstance(cause, WriteError):
            return OSError(cause.errno, cause.strerror, cause.args[0])
        if isinstance(cause, OSError) and (cause.errno in _UNWRITABLE or _refused_to_write(cause)):
            return cause
    for number in _UNWRITABLE:  # writers in C++ and Rust give the text only
        if os.strerror(number) in str(error):
            return OSError(number, os.strerror(number))
    return None


def _refused_to_write(error: OSError) -> bool:
    """Returns whether an error is about writing, as far as its number, its file and the folder show."""
    if error.errno == errno.EEXIST:
        return True
    if error.errno not in (errno.EACCES, errno.EPERM) or not isinstance(error.filename, str):
        return False
    folder = os.path.dirname(error.filename) or "."
    absent = os.access(folder, os.X_OK) and not os.path.lexists(error.filename)
    return absent or os.access(error.filename, os.R_OK)


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Turns the system's refusal to write a file, raised by the body, into a `WriteError`.

    An error about a file elsewhere stays as it is: the body may read from there.
    """
    try:
        yield
    except OSError as error:  # of a download too, whose errors have other numbers
        known = error.errno in (*_FULL, *_REFUSED, *_IMPOSSIBLE) and not isinstance(error, VmrError)
        if not known or not _lies_with(error, path):
            raise
        raise WriteError(str(path), error) from error


def _lies_with(error: OSError, path: str | Path) -> bool:
    """Returns whether an error names no file, one below the folder of `path`, or a folder above it."""
    names = [name for name in (error.filename, error.filename2) if isinstance(name, str | bytes | Path)]
    folder = Path(os.path.abspath(path)).parent
    found = [Path(os.path.abspath(os.fsdecode(name))) for name in names]
    return not found or any(one.is_relative_to(folder) or folder.is_relative_to(one) for one in found)


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`, and renames it to `path` if the body succeeds.

    Creates the parent folder. Two processes may write the same path at once: the later rename wins, and a
    reader sees one complete file or the other. Temporary files of killed processes are removed.

    Args:
        path: the finished file.

    Yields:
        A path with the same suffix in the same folder, for the body to write.

    Raises:
        WriteError: if the file or its folder cannot be written.
    """
    path = Path(path)
    with writing(path):
        _create_folder(path.parent)
        _remove_leftovers(path.parent)
        # Short, whatever the name: a file name of the greatest length has a temporary name too.
        name = f".tmp-{_HOST}-{os.getpid()}-{secrets.token_hex(4)}{path.suffix}"
        temporary = path.with_name(name)
        try:
            yield temporary
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def _create_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WriteError(str(folder), error) from error


@functools.cache  # once per folder and process
def _remove_leftovers(folder: Path) -> None:
    """Removes temporary files whose process was killed before it could remove them."""
    with os.scandir(folder) as entries:
        found = [(entry.path, match) for entry in entries if (match := _TEMPORARY.match(entry.name))]
    for path, match in found:
        with suppress(OSError):  # another process may remove it first
            abandoned = time.time() - os.stat(path).st_mtime > _ABANDONED
            if abandoned or (match[1] == _HOST and not _is_running(int(match[2]))):
                os.unlink(path)


def _is_running(pid: int) -> bool:
    """Returns whether a process of this machine exists."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


def read_text(path: str | Path, most: int) -> str:
    """Reads a small text file that may come from anywhere.

    Args:
        path: the file.
        most: bytes that such a file has at most.

    Raises:
        VmrError: if it is larger, is no regular file, such as a pipe, which nothing may ever fill, or is not
            UTF-8.
        FileNotFoundError: if there is none.
    """
    size = check_regular(path)
    if size > most:
        raise VmrError(f"{path} has {size:,} bytes; such a file has at most {most:,}. It is something else.")
    try:
        return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise VmrError(f"{path} is not UTF-8 text ({error}).") from error


def check_regular(path: str | Path) -> int:
    """Returns the size of a file in bytes.

    Raises:
        VmrError: if it is a pipe, device or socket: reading it might never end.
        OSError: if there is none.
    """
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        raise VmrError(f"{path} is not a regular file. Remove it, or replace it by the file itself.")
    return found.st_size


def check_picture(path: str | Path, key: str) -> None:
    """Refuses a picture that cannot be written, before anything is computed for it.

    Args:
        path: the picture.
        key: the key that named it, for the error.

    Raises:
        VmrError: for an unknown suffix.
    """
    if Path(path).suffix.lower() not in (".png", ".pdf", ".svg"):
        raise VmrError(f"Cannot write {key}={path}. Name a .png, .pdf or .svg file.")


def file_state(path: str | Path) -> list[int]:
    """Returns size and time of a file, by which another file of its name is recognised; empty without one."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return []
    return [found.st_size, found.st_mtime_ns]


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


def json_objects(text: str, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the objects of JSON Lines, each with its location for errors; skips blank lines.

    Args:
        text: the content of the file.
        path: the file, for errors.

    Raises:
        VmrError: if a line is no JSON object, with its number.
    """
    # Not splitlines(): a string may contain U+2028 and similar characters.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise VmrError(f"{where}: not valid JSON ({error}).") from error
        if not isinstance(row, dict):
            raise VmrError(f"{where}: expected an object, found {line:.80}.")
        yield where, row


def append_row(path: Path, row: Any) -> None:
    """Appends a row to a JSON Lines file, in one piece: several processes may append to it.

    First ends a line that a killed process left incomplete.
    """
    line = json.dumps(row, ensure_ascii=False, allow_nan=False).encode("utf-8", "backslashreplace") + b"\n"
    with writing(path):
        _create_folder(path.parent)
        with path.open("ab+") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                line = line if file.read(1) == b"\n" else b"\n" + line
            file.write(line)


def read_appended(path: Path) -> list[Any]:
    """Reads the rows that `append_row` wrote, without incomplete ones; returns none if there is no file."""
    rows = []
    if path.is_file():
        # Bytes: an incomplete line may end within a character, and a text may hold other line ends.
        with path.open("rb") as lines:
            for line in lines:
                with suppress(ValueError, RecursionError):
                    rows.append(json.loads(line))
    return rows


@contextmanager
def lock_folder(folder: str | Path) -> Iterator[None]:
    """Creates and locks a folder. Others that lock it wait, in this process or another.

    For work that several jobs of a sweep would otherwise do at once; a job that waited checks again what is
    left to do. The system releases the lock when the process dies.

    Raises:
        WriteError: if the folder cannot be written.
    """
    folder = Path(folder)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        try:
            lock.acquire(timeout=_SOON)
        except Timeout:
            print(f"Waiting for another process that works in {folder}.", file=sys.stderr)
            lock.acquire()
    try:
        yield
    finally:
        lock.release()
