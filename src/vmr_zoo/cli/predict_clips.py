"""`vmr predict cut=DIR`: writes the moments that were found as clips."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vmr_zoo.errors import printable
from vmr_zoo.utils.console import progress
from vmr_zoo.video.container import VideoError
from vmr_zoo.video.cut import cut

if TYPE_CHECKING:
    from vmr_zoo.engine.video_search import FoundMoment

_LONGEST = 60
"""Bytes of a sentence or of a video's name in the name of a clip; a file name has at most 255."""


def clip_paths(
    folder: Path, queries: Sequence[str], found: Sequence[Sequence[FoundMoment]]
) -> list[list[Path]]:
    """Returns a path in a folder for each sentence and rank."""
    return [
        [folder / clip_name(number, query, rank, one) for rank, one in enumerate(moments, 1)]
        for number, (query, moments) in enumerate(zip(queries, found, strict=True), 1)
    ]


def write_clips(
    paths: Sequence[Sequence[Path]], found: Sequence[Sequence[FoundMoment]]
) -> tuple[list[list[Path | None]], list[str]]:
    """Writes a clip per sentence and rank.

    A moment without a picture has no clip: a method may answer with no length, or with the end of the video.

    Args:
        paths: where to, from `clip_paths`.
        found: the moments of each sentence, best first.

    Returns:
        The paths, None for a moment without a clip; and a line per moment without a clip and per clip without
        the sound of its video.

    Raises:
        VideoError: if a file has disappeared.
        WriteError: if a clip cannot be written.
    """
    jobs = [
        (number, path, one)
        for number, (one_query, moments) in enumerate(zip(paths, found, strict=True))
        for path, one in zip(one_query, moments, strict=True)
    ]
    written: list[list[Path | None]] = [[] for _ in paths]
    notes = []
    for number, path, one in progress(jobs, "Writing clips"):
        has_sound = _cut(one, path)
        written[number].append(None if has_sound is None else path)
        if has_sound is None:
            notes.append(f"{path.name} was not written: the video has no picture at that time.")
        elif not has_sound:
            notes.append(f"{path.name} has no sound: the clock of {printable(one.video)} is not continuous.")
    return written, notes


def _cut(found: FoundMoment, path: Path) -> bool | None:
    """Writes one clip; returns whether it has the sound of its video, None if there is nothing to write."""
    start, end = max(0.0, found.moment.start), found.moment.end
    try:
        return cut(found.video, start, end, path) if start < end else None
    except VideoError as error:
        if error.kind == "empty":
            return None
        raise


def clip_name(number: int, query: str, rank: int, found: FoundMoment) -> str:
    """Returns the name of a clip: sentence, rank, video and seconds, of letters, digits and hyphens only.

    The numbers tell apart sentences and videos whose names are alike.
    """
    start, end = (f"{seconds:.2f}" for seconds in (found.moment.start, found.moment.end))
    return f"{number:02d}-{_plain(query)}-{rank:02d}-{_plain(found.video.stem)}-{start}-{end}s.mp4"


def _plain(text: str) -> str:
    """Keeps letters and digits of any script, cut to `_LONGEST` bytes; hyphens stand for the rest."""
    words = re.sub(r"[\W_]+", "-", text).strip("-")
    return words.encode()[:_LONGEST].decode(errors="ignore").strip("-")
