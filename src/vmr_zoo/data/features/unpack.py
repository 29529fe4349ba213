"""Puts the content of a downloaded file where `features=` reads it.

Only the catalogue decides where a file goes; names in an archive are compared with its patterns, and lend at
most their last part. Each file gets its name when it is complete. Existing files are compared, never changed.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

from vmr_zoo.data.features.published import PublishedFeatures
from vmr_zoo.errors import VmrError, printable
from vmr_zoo.utils.archives import JoinedFiles, is_archive, members
from vmr_zoo.utils.files import atomic_path, writing

_MOST_UNPACKED, _SLACK = 20, 10**9
"""An archive that declares more than so many times its own size, and so many bytes, is refused."""

_CHUNK = 1 << 20


def place_content(
    name: str,
    parts: Sequence[Path],
    source: PublishedFeatures,
    folder: Path,
    left_out: list[str],
    advance: Callable[[int], object],
    may_move: bool,
) -> dict[str, int]:
    """Unpacks an archive, or moves or copies another file.

    Args:
        name: path of the file where it was published, without the suffix of its parts.
        parts: its parts in order, or the file alone.
        source: says what goes where.
        folder: of the features.
        left_out: gets the names of files that have no place.
        advance: called with the bytes of each file.
        may_move: whether a file that needs no unpacking may be renamed instead of copied.

    Returns:
        Size by path below the folder.

    Raises:
        VmrError: for an archive that is broken, climbs out of its folder or is unreasonably large, or if
            another file is in a place.
    """
    if is_archive(name):
        return _unpack(name, parts, source, folder, left_out, advance)
    target = source.target(name)
    if target is None:
        left_out.append(name)
        return {}
    place, size = folder / target, sum(part.stat().st_size for part in parts)
    if may_move and len(parts) == 1 and not place.exists():
        with writing(place):
            place.parent.mkdir(parents=True, exist_ok=True)
            parts[0].rename(place)
    else:
        with JoinedFiles(parts) as joined, io.BufferedReader(joined, _CHUNK) as content:
            _write(content, place)
    advance(size)
    return {target: size}


def _unpack(
    name: str,
    parts: Sequence[Path],
    source: PublishedFeatures,
    folder: Path,
    left_out: list[str],
    advance: Callable[[int], object],
) -> dict[str, int]:
    placed: dict[str, int] = {}
    left = _MOST_UNPACKED * sum(part.stat().st_size for part in parts) + _SLACK
    with members(name, parts) as found:
        for member in found:
            target = source.target(member.name)
            if target is None:
                left_out.append(member.name)
                continue
            inside = f"{name} holds {printable(member.name)}"
            left -= member.size
            if not member.regular:
                raise VmrError(f"{inside}, a link, a device or a sparse file; expected plain files only.")
            if left < 0:
                raise VmrError(
                    f"{inside}: up to there it declares more than {_MOST_UNPACKED} times its own size. "
                    "Arrays of numbers are never compressed so much; nothing more of it was unpacked."
                )
            if target in placed:
                raise VmrError(
                    f"{inside}, and another file that also goes to {target}. The entry's `place` must "
                    "keep them apart (conf/published)."
                )
            with member.open() as content:
                _write(content, folder / target)
            placed[target] = member.size
            advance(member.size)
    return placed


def _write(content: IO[bytes], place: Path) -> None:
    """Writes a file under its name when it is complete, or compares it with the one that is there.

    Raises:
        VmrError: if another file is there.
    """
    if not place.exists():
        with atomic_path(place) as temporary, temporary.open("wb") as file:
            while chunk := content.read(_CHUNK):
                file.write(chunk)
        return
    with place.open("rb") as file:
        while chunk := content.read(_CHUNK):
            if file.read(len(chunk)) != chunk:
                break
        else:
            if not file.read(1):
                return
    raise VmrError(
        f"{place} differs from the published file and was not changed. Delete or move it, or choose another "
        "folder: out=DIR."
    )
