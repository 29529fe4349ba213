"""Which videos are meant, and which share of them is one process's."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from vmr_zoo.errors import VmrError, some

if TYPE_CHECKING:
    from vmr_zoo.data.annotations.records import Protocol

SUFFIXES = (
    *(".3gp", ".asf", ".avi", ".flv", ".gif", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg"),
    *(".mts", ".ogv", ".rm", ".rmvb", ".ts", ".vob", ".webm", ".wmv"),
)
"""What counts as a video in a folder; a file that is named itself may be called anything else."""

LISTS = (".txt", ".lst", ".list")
"""What counts as a text file of paths."""

NAMES = ("{id}", "{id}.avi", "{id}-cam-002")
"""What a video's file or array may be called, tried in order; the last two occur in TACoS."""

T = TypeVar("T")


def find_videos(videos: str | Path | Sequence[str | Path]) -> dict[str, Path]:
    """Finds video files.

    Args:
        videos: a folder (searched with all its folders, hidden files left out), a glob such as
            "videos/**/*.mp4", a video file, a text file (.txt) with one path a line, relative to its folder,
            or several of these.

    Returns:
        Path by video id, the file's name without its suffix, sorted by id. A file that a text file names may
        be missing: decoding it says so.

    Raises:
        VmrError: if nothing is found, or two files have one id.
    """
    several = [videos] if isinstance(videos, str | Path) else list(videos)
    found: dict[str, Path] = {}
    for one in several:
        paths = list(_expand(one))
        for path in paths:
            other = found.setdefault(path.stem, path)
            if other != path and other.resolve() != path.resolve():
                raise VmrError(
                    f"Two files have the video id '{path.stem}': {other} and {path}. A video's id is its "
                    "file's name without suffix; rename one or name fewer files."
                )
        if not paths:
            raise VmrError(
                f"Found no video for videos={one}. Expected a folder with video files "
                f"({' '.join(SUFFIXES)}), a glob, a video file, or a .txt with one path a line."
            )
    if not found:
        raise VmrError("No video was asked for: set videos=FOLDER, a glob, a file, or a list of these.")
    return dict(sorted(found.items()))


def videos_of(protocol: Protocol, found: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """Finds the videos of a protocol, whose files may be called as its features may (`NAMES`).

    Args:
        protocol: whose splits name the videos.
        found: the ids of the files at hand, from `find_videos`.

    Returns:
        The file's id by the protocol's id, sorted, and the protocol's ids that have no file.

    Raises:
        VmrError: if not one is found.
    """
    files = set(found)
    ids = protocol.video_ids
    names = {video_id: [pattern.replace("{id}", video_id) for pattern in NAMES] for video_id in ids}
    chosen = {
        video_id: next(name for name in tried if name in files)
        for video_id, tried in names.items()
        if not files.isdisjoint(tried)
    }
    if not chosen:
        raise VmrError(
            f"None of the {len(files)} videos found is one of {protocol.name}. Expected files called "
            f"{some(ids, 3)}, found {some(sorted(files), 3)}."
        )
    return chosen, [video_id for video_id in ids if video_id not in chosen]


def shard(items: Sequence[T], text: str) -> list[T]:
    """Takes every n-th item.

    Args:
        items: in an order that every process finds alike.
        text: "i/n", 1 <= i <= n; the n shards together are all items, each once.

    Raises:
        VmrError: for any other text.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", str(text).strip())
    part, parts = map(int, match.groups()) if match else (0, 0)
    if not 1 <= part <= parts:
        raise VmrError(f"Expected shard=i/n with 1 <= i <= n, such as shard=1/4; found shard={text}.")
    return list(items[part - 1 :: parts])


def _expand(place: str | Path) -> Iterator[Path]:
    """Yields the files that one entry of `find_videos` means."""
    path = Path(place).expanduser()
    if path.is_dir():
        for folder, _, names in os.walk(path):
            for name in names:
                if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES:
                    yield Path(folder) / name
    elif path.is_file() and path.suffix.lower() in LISTS:
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.strip():
                yield path.parent / Path(line.strip()).expanduser()
    elif path.is_file():
        yield path
    else:
        for name in glob.glob(str(path), recursive=True):
            if os.path.isfile(name):
                yield Path(name)
