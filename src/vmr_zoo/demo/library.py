"""The videos of the page: those of a folder, and files dropped on the page.

A browser names a video by an id that is looked up here. No text from it ever becomes part of a path.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path

from vmr_zoo.errors import VmrError, printable
from vmr_zoo.utils.text import one_line
from vmr_zoo.video.container import open_video
from vmr_zoo.video.files import find_videos

_CHUNK = 2**20
_LONGEST_NAME = 120


@dataclass(frozen=True, slots=True)
class Video:
    """A video that can be chosen on the page.

    Attributes:
        id: names it in an address.
        path: the file.
        name: shown on the page.
    """

    id: str
    path: Path
    name: str

    def named(self, message: object) -> str:
        """Returns a message with the name that the page shows, not the place of a dropped file."""
        return str(message).replace(printable(self.path), self.name)

    @contextmanager
    def naming(self) -> Iterator[None]:
        """Gives errors about the file the name that the page shows."""
        try:
            yield
        except VmrError as error:
            raise VmrError(self.named(error)) from error


class Library:
    """The videos that the page may show and search; a context manager that deletes dropped files.

    Attributes:
        videos: by id.
        outside: names of links in the folder that lead out of it; they are left out.
        most_bytes: what dropped files may hold together.
    """

    def __init__(self, videos: str | Path | None, most_bytes: int) -> None:
        """Finds the videos.

        Args:
            videos: what `find_videos` takes; None: none but dropped files.
            most_bytes: what dropped files may hold together.

        Raises:
            VmrError: as `find_videos`.
        """
        paths = {} if videos is None else find_videos(videos)
        root = Path(videos).resolve() if videos is not None and Path(videos).is_dir() else None
        self.videos: dict[str, Video] = {}
        self.outside: list[str] = []
        for path in paths.values():
            name = printable(path.name if root is None else path.relative_to(str(videos)))
            if root is not None and not path.resolve().is_relative_to(root):
                self.outside.append(name)
            else:
                number = str(len(self.videos))
                self.videos[number] = Video(number, path, name)
        self.most_bytes = most_bytes
        self._held = 0
        self._count = 0
        self._lock = threading.Lock()
        self._folder = tempfile.TemporaryDirectory(prefix="vmr-demo-")

    def __enter__(self) -> Library:
        return self

    def __exit__(self, *error: object) -> None:
        self._folder.cleanup()

    @property
    def folder(self) -> Path:
        """A folder for files that live as long as the page."""
        return Path(self._folder.name)

    def upload(self, file: BufferedIOBase, size: int, name: str) -> Video:
        """Keeps a file that was dropped on the page, if it holds a video.

        Args:
            file: its bytes.
            size: their number.
            name: of the file; only shown.

        Raises:
            VmrError: if there is no room for it, it arrives incomplete, or it holds no video.
        """
        with self._lock:
            if size > self.most_bytes - self._held:
                raise VmrError(
                    f"The file has {_megabytes(size)}. Dropped files may have {_megabytes(self.most_bytes)} "
                    f"together, {_megabytes(self._held)} are taken: start `vmr demo` with a larger "
                    "upload_mb, or with videos=FOLDER."
                )
            self._held += size
            self._count += 1
            path = self.folder / f"dropped-{self._count}"
        video = Video(path.name, path, one_line(printable(name))[-_LONGEST_NAME:] or path.name)
        try:
            with video.naming():
                _receive(file, size, path)
                with open_video(path):
                    pass
        except BaseException:
            path.unlink(missing_ok=True)
            with self._lock:
                self._held -= size
            raise
        self.videos[video.id] = video
        return video


def _receive(file: BufferedIOBase, size: int, path: Path) -> None:
    """Copies `size` bytes into a new file."""
    left = size
    try:
        with path.open("xb") as out:
            while left and (chunk := file.read(min(_CHUNK, left))):
                out.write(chunk)
                left -= len(chunk)
    except OSError as error:
        raise VmrError(f"The file cannot be kept: {error.strerror or error}.") from error
    if left:
        raise VmrError(f"The file arrived incomplete: {left:,} of {size:,} bytes are missing. Drop it again.")


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
