"""Decodes videos by time: the frame shown at a given time, at any frame rate.

One clock for every use of a video: seconds after its first picture, counted by what is decoded. What the file
declares about its length is compared with that, never used. Pictures are turned as the display matrix says.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np

from vmr_zoo.errors import abbreviate, printable
from vmr_zoo.utils.arrays import Array
from vmr_zoo.utils.files import file_state
from vmr_zoo.video.clock import Clock, Note, PacketLog
from vmr_zoo.video.container import Opened, VideoError, describe, open_video

__all__ = [
    "Note",
    "Timeline",
    "VideoError",
    "decoded",
    "list_notes",
    "remember",
    "remembered",
    "sample",
    "timeline",
    "upright",
]

_REMEMBERED = 256
"""Timelines kept in memory, of the files that were decoded last."""

_Key = tuple[str | int, ...]

_timelines: dict[_Key, Timeline] = {}
_remembering = threading.Lock()  # several threads decode


@dataclass(frozen=True, slots=True)
class Timeline:
    """What decoding a file to its end found.

    Attributes:
        seconds: from the start of the first picture to the end of the last.
        pictures: number of pictures.
        stream: the video stream that was decoded.
        notes: what is odd about the file, and how it was understood.
    """

    seconds: float
    pictures: int
    stream: str
    notes: tuple[Note, ...]

    def as_json(self) -> dict[str, Any]:
        """Returns the timeline as a JSON object, with a note by kind."""
        return {
            "seconds": round(self.seconds, 3),
            "pictures": self.pictures,
            "stream": self.stream,
            "notes": dict(self.notes),
        }


def sample(path: str | Path, seconds: float) -> Iterator[av.VideoFrame]:
    """Decodes a file and yields frames evenly spaced in time.

    The k-th frame is the one shown at (k + 0.5) * seconds: the latest one that does not start after that
    time. A frame without a time stamp follows its predecessor.

    Args:
        path: any video that PyAV decodes.
        seconds: sampling interval.

    Yields:
        Decoded frames, upright; the same object several times if the video has fewer frames than samples.

    Raises:
        VideoError: if the file is missing, cannot be decoded to its end, yields no frame, or if its clock
            leaps.
    """
    count = 0
    with open_video(path) as opened:
        current: av.VideoFrame | None = None
        until = 0.0
        for start, end, frame in decoded(path, opened):
            if current is not None and (count + 0.5) * seconds < start:
                current = upright(current)
                while (count + 0.5) * seconds < start:
                    yield current
                    count += 1
            current, until = frame, end
        if current is not None and (count + 0.5) * seconds < until:
            current = upright(current)
            while (count + 0.5) * seconds < until:
                yield current
                count += 1
    if not count:
        raise VideoError(
            "empty",
            f"{printable(path)} lasts {until:.2f} s; expected at least {seconds / 2:g} s. Leave it out.",
        )


def timeline(path: str | Path) -> Timeline:
    """Returns the timeline of a file; decodes it unless this process did already.

    Raises:
        VideoError: as `sample`.
    """
    if (key := _key(path)) not in _timelines:
        with open_video(path) as opened:
            for _ in decoded(path, opened):
                pass
    return _timelines[key]


def remembered(path: str | Path) -> Timeline | None:
    """Returns the timeline of a file that this process decoded; None: it did not."""
    return _timelines.get(_key(path))


def remember(path: str | Path, found: Timeline) -> None:
    """Keeps the timeline of a file that an earlier process decoded."""
    _remember(_key(path), found)


def _remember(key: _Key, found: Timeline) -> None:
    with _remembering:
        _timelines[key] = found
        while len(_timelines) > _REMEMBERED:
            del _timelines[next(iter(_timelines))]


def list_notes(videos: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Summarises what is odd about videos.

    Args:
        videos: by name, its notes: the text by kind.

    Returns:
        A line per kind of note.
    """
    by_kind: dict[str, list[str]] = defaultdict(list)
    for name, notes in videos.items():
        for kind in notes:
            by_kind[kind].append(name)
    lines = []
    for kind, names in by_kind.items():
        more = f" ({len(names)} videos: {abbreviate(names, 5)})" if len(names) > 1 else ""
        lines.append(printable(f"{names[0]}: {kind}: {videos[names[0]][kind]}.{more}"))
    return lines


def _key(path: str | Path) -> _Key:
    """Identifies a file and its content."""
    return str(Path(path).absolute()), *file_state(path)


def decoded(path: str | Path, opened: Opened) -> Iterator[tuple[float, float, av.VideoFrame]]:
    """Yields (start, end, frame) in seconds after the first frame, in increasing order of starts.

    At the end of the file, compares it with what the file declares and remembers the timeline.
    """
    container, stream, key = opened.container, opened.stream, _key(path)
    clock, packets = Clock(printable(path), stream), PacketLog(container, stream)
    failure: av.FFmpegError | None = None
    for packet in container.demux():
        packets.add(packet)
        if packet.stream.index != stream.index:  # packet.stream_index is wrong in the last packet
            continue
        try:
            frames = packet.decode()
        except av.FFmpegError as error:
            if clock.pictures:
                raise
            failure, frames = error, []  # before the first key frame
        for frame in frames:
            times = clock.times(frame)
            if times is not None:
                yield *times, frame
    if failure is not None and not clock.pictures:
        raise failure
    clock.close(packets)
    if opened.others:
        clock.note("several video streams", f"{describe(stream)} is read, not {opened.others}")
    _remember(key, Timeline(clock.end, clock.pictures, describe(stream), tuple(clock.notes.values())))


def upright(frame: av.VideoFrame) -> av.VideoFrame:
    """Turns and mirrors a frame as its display matrix says; one that is not turned by right angles stays."""
    data: Any = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return frame
    matrix = np.frombuffer(bytes(data), np.int32).astype(float)
    (a, b), (c, d) = np.sign(np.rint(matrix[[[0, 1], [3, 4]]] / 2**16))
    if (a, b, c, d) == (1, 0, 0, 1) or abs(a) + abs(b) != 1 or abs(a * d - b * c) != 1:
        return frame
    pixels: Array = frame.to_ndarray(format="rgb24")
    # A pixel at (x, y) is shown at (a x + c y, b x + d y), up to a shift.
    if b:
        pixels = pixels.swapaxes(0, 1)
    across, down = (c, b) if b else (a, d)
    pixels = pixels[:: int(down), :: int(across)]
    return av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
