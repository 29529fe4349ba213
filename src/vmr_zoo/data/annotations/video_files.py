"""Matches the videos of a protocol with video files."""

from __future__ import annotations

from collections.abc import Iterable

from vmr_zoo.data.annotations.records import Protocol
from vmr_zoo.errors import VmrError, abbreviate
from vmr_zoo.video.files import FILE_NAMES


def match_videos(protocol: Protocol, found: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """Finds the file of each video of a protocol, named by one of `FILE_NAMES`.

    Args:
        protocol: the protocol.
        found: ids of the existing files, from `find_videos`.

    Returns:
        The id of the file by the protocol's id, sorted, and the protocol's ids without a file.

    Raises:
        VmrError: if no video has a file.
    """
    files = set(found)
    ids = protocol.video_ids
    names = {video_id: [pattern.replace("{id}", video_id) for pattern in FILE_NAMES] for video_id in ids}
    matched = {
        video_id: next(name for name in candidates if name in files)
        for video_id, candidates in names.items()
        if not files.isdisjoint(candidates)
    }
    if not matched:
        raise VmrError(
            f"None of the {len(files)} videos found belongs to {protocol.name}. Expected files named "
            f"{abbreviate(ids, 3)}, found {abbreviate(sorted(files), 3)}."
        )
    return matched, [video_id for video_id in ids if video_id not in matched]
