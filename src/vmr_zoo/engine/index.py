"""Features of video files, kept by the content of the files: each content is encoded once, wherever it is.

    CACHE/index/files.jsonl            hash of each file that was read, with its size and time
    CACHE/index/ENCODER/HASH.npz       clip features and timeline of one content

ENCODER is a hash of the encoder's settings. A file that was moved or renamed is found again by its own hash;
a file whose size or time changed is hashed again. An entry is written when its video is complete, so an
interrupted command goes on with the next video.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
from joblib import cpu_count
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from vmr_zoo.data.features.source import VideoSource
from vmr_zoo.errors import printable
from vmr_zoo.utils.arrays import Array
from vmr_zoo.utils.files import append_row, atomic_path, file_state, read_appended
from vmr_zoo.utils.hashing import content_hash, sha256_of
from vmr_zoo.video.ahead import MOST_AT_ONCE
from vmr_zoo.video.container import check_file
from vmr_zoo.video.decode import Note, Timeline, VideoError, remember, timeline
from vmr_zoo.video.encoder import reporting


class IndexedVideo(NamedTuple):
    """What the index keeps of a video.

    Attributes:
        clips: (T, dim) float32.
        timeline: its length, and what is odd about it.
    """

    clips: Array
    timeline: Timeline


def encode_now(source: VideoSource, path: Path) -> IndexedVideo:
    """Decodes and encodes a file.

    Raises:
        VideoError: if it cannot be decoded.
    """
    try:
        clips = source.encode(path)
    except av.FFmpegError as error:  # a frame that decodes but cannot be converted
        raise VideoError("corrupt", f"{printable(path)} cannot be converted ({error}).") from error
    return IndexedVideo(clips, timeline(path))  # decoded just now


class VideoIndex:
    """The features of one source for any video files, on disk."""

    def __init__(self, cache: str | Path, source: VideoSource) -> None:
        """Reads nothing yet.

        Args:
            cache: the cache folder (`paths.cache`).
            source: encodes videos.
        """
        settings = json.dumps(source.encoding(), sort_keys=True)
        self.root = Path(cache).expanduser() / "index"
        self.folder = self.root / content_hash(settings).hex()[:16]
        self.source = source

    def encode(self, path: Path) -> IndexedVideo:
        """Returns the features of a file; computes them if no file of this content was encoded before.

        Raises:
            VideoError: if it cannot be decoded.
        """
        entry = self._entry(path)
        found = _read(entry)
        if found is None:
            found = encode_now(self.source, path)
            _write(entry, found)
        else:
            remember(path, found.timeline)
        return found

    def missing(self, paths: Sequence[Path]) -> list[Path]:
        """Returns the files that are new, have changed, or were never encoded; opens none of them."""
        return [
            path
            for path in paths
            if (digest := self._known(path)[1]) is None or not (self.folder / f"{digest}.npz").is_file()
        ]

    def add(self, paths: Sequence[Path]) -> dict[Path, str]:
        """Encodes files, several at the same time, and shows progress with the time left.

        Args:
            paths: files that `missing` returns; one whose content is known is only hashed.

        Returns:
            For each file that cannot be decoded, the reason.
        """
        failed: dict[Path, str] = {}
        sizes = {path: sum(file_state(path)[:1]) for path in paths}  # 0 of a file that is gone
        stopped = threading.Event()

        def work(path: Path) -> None:
            with reporting(lambda _: _stop_if(stopped)):
                _stop_if(stopped)
                self.encode(path)

        with (
            _bar(len(paths), sum(sizes.values())) as (progress, task),
            ThreadPoolExecutor(max(1, min(cpu_count(), MOST_AT_ONCE, len(paths)))) as pool,
        ):
            jobs = {pool.submit(work, path): path for path in paths}
            try:
                for job in as_completed(jobs):
                    path = jobs[job]
                    try:
                        job.result()
                    except VideoError as error:
                        failed[path] = str(error)
                    progress.update(task, advance=sizes[path], done=progress.tasks[task].fields["done"] + 1)
            finally:
                stopped.set()  # after an interruption or a full disk: the videos in progress end at once
                pool.shutdown(cancel_futures=True)
        return failed

    def _entry(self, path: Path) -> Path:
        """Returns the place of a file's features.

        Raises:
            VideoError: if it is no file that can be read.
        """
        check_file(path)
        state, digest = self._known(path)
        if digest is None:
            try:
                digest = sha256_of(path)
            except OSError as error:
                raise VideoError(
                    "missing", f"{printable(path)} cannot be read ({error.strerror})."
                ) from error
            name = os.path.abspath(path)
            self._hashes[name] = (state, digest)
            append_row(self.root / "files.jsonl", [name, state, digest])
        return self.folder / f"{digest}.npz"

    def _known(self, path: Path) -> tuple[list[int], str | None]:
        """Returns size and time of a file, and its hash; None if they are not those that were hashed."""
        now = file_state(path)
        state, digest = self._hashes.get(os.path.abspath(path), ([], ""))
        return now, digest if now and state == now else None

    @cached_property
    def _hashes(self) -> dict[str, tuple[list[int], str]]:
        """Size and time, and the hash, by path; a later line replaces an earlier one."""
        hashes: dict[str, tuple[list[int], str]] = {}
        for row in read_appended(self.root / "files.jsonl"):
            with suppress(ValueError, TypeError):  # another program's line
                name, state, digest = row
                hashes[name] = (state, digest)
        return hashes


class _Stopped(Exception):
    """Ends the encoding of a video."""


def _stop_if(stopped: threading.Event) -> None:
    if stopped.is_set():
        raise _Stopped


@contextmanager
def _bar(count: int, total: int) -> Iterator[tuple[Progress, Any]]:
    """Shows a bar over bytes: videos differ in length."""
    columns = (
        TextColumn("Indexing video {task.fields[done]} of {task.fields[count]}"),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, transient=True, console=Console(stderr=True)) as progress:
        yield progress, progress.add_task("", total=max(1, total), done=0, count=count)


def _read(entry: Path) -> IndexedVideo | None:
    """Reads an entry; None if there is none, or a broken one, which is written again."""
    try:
        with np.load(entry, allow_pickle=False) as stored:
            line = json.loads(stored["timeline"].tobytes())
            line["notes"] = tuple(Note(*note) for note in line["notes"])
            return IndexedVideo(stored["clips"], Timeline(**line))
    except Exception:  # there is none, or a damaged one, which raises nearly anything
        return None


def _write(entry: Path, video: IndexedVideo) -> None:
    line = json.dumps(asdict(video.timeline)).encode()
    with atomic_path(entry) as path:
        np.savez(path, clips=video.clips, timeline=np.frombuffer(line, np.uint8))
