"""Finds video files, and divides them among processes."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from vmr_zoo.errors import VmrError, printable

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
            these. A name with brackets that exists is meant as it is typed.

    Returns:
        Path by video id (the file name without suffix), sorted by id. A file listed in a text file may be
        missing; decoding it raises an error.

    Raises:
        VmrError: if nothing is found, two files have the same id, or a folder or text file cannot be read.
    """
    found: dict[str, Path] = {}
    for path in list_videos(videos):
        other = found.setdefault(path.stem, path)
        if other != path and other.resolve() != path.resolve():
            raise VmrError(
                f"Two files have the video id '{printable(path.stem)}': {printable(other)} and "
                f"{printable(path)}. The id of a video is its file name without suffix: rename one, or "
                "select fewer files."
            )
    return dict(sorted(found.items()))


def list_videos(videos: str | Path | Sequence[str | Path], key: str = "videos") -> list[Path]:
    """Finds video files, which may have equal names in several folders.

    Args:
        videos: as for `find_videos`.
        key: of the configuration, for messages.

    Returns:
        Paths, each once, in the order of `videos` and sorted within each.

    Raises:
        VmrError: if nothing is found, or a folder or text file cannot be read.
    """
    several = [videos] if isinstance(videos, str | Path) else list(videos)
    found: list[Path] = []
    for one in several:
        paths = sorted(expand(one))
        found += paths
        if not paths:
            other_kind = (
                ", which is a pipe or device" if os.path.lexists(one) and not Path(one).is_dir() else ""
            )
            raise VmrError(
                f"Found no video for {key}={printable(one)}{other_kind}. Expected a folder with video files "
                f"({' '.join(SUFFIXES)}), a glob, a video file, or a .txt with one path per line."
            )
    if not found:
        raise VmrError(f"No video was requested: set {key}=FOLDER, a glob, a file, or a list of these.")
    return list(dict.fromkeys(found))


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


def expand(place: str | Path) -> Iterator[Path]:
    """Yields the files of one entry of `find_videos`."""
    path = _path(str(place))
    if path.is_dir():
        yield from _walk(path)
    elif path.is_file() and path.suffix.lower() in LISTS:
        yield from _listed(path)
    elif path.is_file():
        yield path
    else:
        # Brackets of a name that matches nothing are part of it.
        pattern = _escape_folders(path)
        for attempt in (pattern, pattern.replace("[[]", "[").replace("[", "[[]")):
            found = [Path(name) for name in glob.glob(attempt, recursive=True) if os.path.isfile(name)]
            if found:
                yield from found
                return


def _path(name: str) -> Path:
    """Returns a path, with ~ for the home folder unless there is a file of this name."""
    path = Path(name)
    if name.startswith("~") and not path.exists():
        with suppress(RuntimeError):  # no such user
            return path.expanduser()
    return path


def _walk(folder: Path) -> Iterator[Path]:
    """Yields the videos in a folder and its subfolders, of links to folders too, each folder once."""

    def refuse(error: OSError) -> None:
        raise VmrError(f"Cannot read the folder {printable(error.filename)}: {error.strerror}.") from error

    seen = set()
    for place, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        if (real := os.path.realpath(place)) in seen:
            folders.clear()
            continue
        seen.add(real)
        for name in names:
            if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES:
                yield Path(place) / name


def _listed(path: Path) -> Iterator[Path]:
    """Yields the paths of a text file, relative to its folder."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise VmrError(f"Expected a text file in UTF-8 with one path per line at {path}; {error}.") from error
    for line in lines:
        if line.strip():
            yield path.parent / _path(line.strip())


def _escape_folders(path: Path) -> str:
    """Returns a glob in which the leading folders that exist are meant as they are typed."""
    known = Path(path.anchor)
    rest = list(path.parts[1:] if path.anchor else path.parts)
    while rest and os.path.isdir(known / rest[0]):
        known /= rest.pop(0)
    return os.path.join(glob.escape(str(known)), *rest)
