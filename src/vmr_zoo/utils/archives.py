"""Reading archives that somebody else made: tar (also compressed) and zip, whole or in parts.

Members are handed out one after the other; nothing is extracted here, and no name of a member becomes a path.
"""

from __future__ import annotations

import io
import lzma
import re
import stat
import tarfile
import zipfile
import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path, PurePosixPath
from typing import IO

from vmr_zoo.errors import VmrError, printable

_TAR = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_WHOLE = (*_TAR, ".zip", ".hdf5", ".h5")
_PART = re.compile(r"(?P<whole>.+)[._](?P<part>[ab][a-z]|(part[-_]?)?\d{1,4})")
_BROKEN = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    UnicodeError,
    EOFError,
    OSError,
    RuntimeError,
)
"""What the standard library raises for archives that are cut off, damaged, encrypted or of another kind."""


@dataclass(frozen=True, slots=True)
class Member:
    """An entry of an archive.

    Attributes:
        name: path inside of the archive; relative, without "..".
        size: bytes, as the archive declares.
        regular: whether it is a plain file, not a link, a device or a sparse file.
        open: opens its content. Only until the next member is taken.
    """

    name: str
    size: int
    regular: bool
    open: Callable[[], IO[bytes]]


def whole_name(name: str) -> str:
    """Returns the name of the file that a part belongs to (x.tar.gz for x.tar.gz.ab), or the name itself."""
    match = _PART.fullmatch(name)
    return match["whole"] if match and match["whole"].lower().endswith(_WHOLE) else name


def is_archive(name: str) -> bool:
    """Returns whether `members` reads a file of that name."""
    return name.lower().endswith((*_TAR, ".zip"))


def check_name(name: str, source: str) -> None:
    """Refuses a path that could leave its folder.

    Args:
        name: a path with "/", from an archive or a server.
        source: where it comes from, for the error.

    Raises:
        VmrError: if it is absolute, contains "..", a backslash or a character that no path may have.
    """
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or re.search(r"[\\\x00-\x1f]|^[A-Za-z]:", name):
        raise VmrError(
            f"{source} holds a file named {printable(repr(name)):.200}: no path below its own folder. "
            "Published features have no such names, so nothing more of it was unpacked. Do not use it."
        )


@contextmanager
def members(name: str, parts: Sequence[Path]) -> Iterator[Iterator[Member]]:
    """Opens an archive.

    Args:
        name: the archive's name, which says its kind, and names it in errors.
        parts: its parts in order, or the archive alone.

    Yields:
        Its files in their order, without folders.

    Raises:
        VmrError: if it is broken, or holds a path that leaves its folder; from the body too, which reads it.
    """
    read = _zip_members if name.lower().endswith(".zip") else _tar_members
    try:
        with JoinedFiles(parts) as joined, io.BufferedReader(joined, 1 << 20) as file:
            yield read(file, name)
    except VmrError:
        raise
    except _BROKEN as error:
        if isinstance(error, OSError) and error.errno is not None:  # of the disk, not of the archive
            raise
        raise VmrError(
            f"{name} cannot be unpacked ({error}): it is cut off, damaged or no archive. To fetch it again, "
            f"delete {' '.join(map(str, parts))}."
        ) from error


def _tar_members(file: IO[bytes], name: str) -> Iterator[Member]:
    with tarfile.open(fileobj=file, mode="r|*") as archive:
        for entry in archive:
            if entry.isdir():
                continue
            check_name(entry.name, name)

            def opened(entry: tarfile.TarInfo = entry) -> IO[bytes]:
                content = archive.extractfile(entry)
                assert content is not None  # a regular file
                return content

            yield Member(entry.name, entry.size, entry.isreg() and not entry.issparse(), opened)
            archive.members = []  # type: ignore[attr-defined]  # else it keeps all of them in memory


def _zip_members(file: IO[bytes], name: str) -> Iterator[Member]:
    with zipfile.ZipFile(file) as archive:
        for entry in archive.infolist():
            if entry.is_dir():
                continue
            check_name(entry.filename, name)
            mode = entry.external_attr >> 16
            regular = not stat.S_IFMT(mode) or stat.S_ISREG(mode)
            yield Member(entry.filename, entry.file_size, regular, partial(archive.open, entry))


class JoinedFiles(io.RawIOBase):
    """Several files read as one, without a copy."""

    def __init__(self, paths: Sequence[Path]) -> None:
        """Opens the files.

        Args:
            paths: in order.
        """
        super().__init__()
        self._stack = ExitStack()
        self._files = [self._stack.enter_context(path.open("rb")) for path in paths]
        self._ends = list(accumulate(path.stat().st_size for path in paths))
        self._at = 0

    def readable(self) -> bool:
        """Returns True."""
        return True

    def seekable(self) -> bool:
        """Returns True."""
        return True

    def tell(self) -> int:
        """Returns the position in the joined file."""
        return self._at

    def seek(self, offset: int, origin: int = io.SEEK_SET) -> int:
        """Moves to a position, as `io.RawIOBase.seek`."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._ends[-1]}[origin]
        if start + offset < 0:
            raise OSError("a position before the start of the file")  # which zipfile expects
        self._at = start + offset
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Reads into a buffer, as `io.RawIOBase.readinto`; at most to the end of the current file."""
        number = bisect_right(self._ends, self._at)
        if number == len(self._files):
            return 0
        file = self._files[number]
        file.seek(self._at - (self._ends[number - 1] if number else 0))
        count = file.readinto(buffer)
        self._at += count
        return count

    def close(self) -> None:
        """Closes the files."""
        self._stack.close()
        super().close()
