"""Finds video files, and divides them among processes."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from vmr_zoo.errors import VmrError

SUFFIXES = (
    *(".3gp", ".asf", ".avi", ".flv", ".gif", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg"),
    *(".mts", ".ogv", ".rm", ".rmvb", ".ts", ".vob", ".webm", ".wmv"),
)
"""Suffixes of videos in a folder; a file that is named explicitly may have any suffix."""

LISTS = (".txt", ".lst", ".list")
"""Suffixes of text files with one path per line."""

FILE_NAMES = ("{id}", "{id}.avi", "{id}-cam-002")
"""Names of the file or array of a video, tried in order; the last two occur in TACoS."""

T = TypeVar("T")


def find_videos(videos: str | Path | Sequence[str | Path]) -> dict[str, Path]:
    """Finds video files.

    Args:
        videos: a folder (searched recursively, without hidden files), a glob such as "videos/**/*.mp4", a
            video file, a text file (.txt) with one path per line, relative to its folder, or several of
            these.

    Returns:
        Path by video id (the file name without suffix), sorted by id. A file listed in a text file may be
        missing; decoding it raises an error.

    Raises:
        VmrError: if nothing is found, or two files have the same id.
    """
    several = [videos] if isinstance(videos, str | Path) else list(videos)
    found: dict[str, Path] = {}
    for one in several:
        paths = list(_expand(one))
        for path in paths:
            other = found.setdefault(path.stem, path)
            if other != path and other.resolve() != path.resolve():
                raise VmrError(
                    f"Two files have the video id '{path.stem}': {other} and {path}. The id of a "
                    "video is its file name without suffix: rename one, or select fewer files."
                )
        if not paths:
            raise VmrError(
                f"Found no video for videos={one}. Expected a folder with video files "
                f"({' '.join(SUFFIXES)}), a glob, a video file, or a .txt with one path per line."
            )
    if not found:
        raise VmrError("No video was requested: set videos=FOLDER, a glob, a file, or a list of these.")
    return dict(sorted(found.items()))


def shard(items: Sequence[T], text: str) -> list[T]:
    """Returns every n-th item.

    Args:
        items: in the same order in every process.
        text: "i/n", 1 <= i <= n; the n shards together contain each item once.

    Raises:
        VmrError: for any other text.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", str(text).strip())
    part, parts = map(int, match.groups()) if match else (0, 0)
    if not 1 <= part <= parts:
        raise VmrError(f"Expected shard=i/n with 1 <= i <= n, such as shard=1/4; found shard={text}.")
    return list(items[part - 1 :: parts])


def _expand(place: str | Path) -> Iterator[Path]:
    """Yields the files of one entry of `find_videos`."""
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
