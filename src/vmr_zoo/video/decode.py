"""Decoding by time: which picture a video shows at a moment, whatever its frame rate.

Times count from the first frame's, so that a file whose clock starts at 10 h is a video like any other.
Rotation (a phone's display matrix) is ignored: pictures come as they are stored.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av

from vmr_zoo.errors import VmrError

_JUMP = 1.0
"""A clock that falls back by more seconds than this was started anew; by less, frames are out of order."""

_SHORT = 0.1
"""Share of its declared length, and at least 1 s, that a file must lack to count as cut off."""


class VideoError(VmrError):
    """A file that holds no usable video.

    Attributes:
        kind: "missing", "corrupt", "empty" (no picture) or "no video stream" (audio only).
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def sample(path: str | Path, seconds: float) -> Iterator[av.VideoFrame]:
    """Decodes a file and yields one frame for each stretch of time.

    The k-th frame is the one shown at (k + 0.5) * seconds, that is the latest that is not later; there are as
    many as fit. A frame without a time stamp follows the one before it.

    Args:
        path: any video that PyAV decodes.
        seconds: from one sample to the next.

    Yields:
        Frames as decoded; the same object several times where the video has fewer frames than samples.

    Raises:
        VideoError: if the file is not there, cannot be decoded to its end, or yields no frame.
    """
    count = 0
    with _open(path) as (container, stream):
        shown: av.VideoFrame | None = None
        for start, end, frame in _timed(container, stream):
            while shown is not None and (count + 0.5) * seconds < start:
                yield shown
                count += 1
            shown, until = frame, end
        while shown is not None and (count + 0.5) * seconds < until:
            yield shown
            count += 1
        if shown is None:
            raise VideoError("empty", f"{path} holds no picture. Copy or download it anew.")
        declared = _declared(stream)
        if declared is not None and declared - until > max(1.0, _SHORT * declared):
            raise VideoError(
                "corrupt",
                f"{path} says that it is {declared:.1f} s long, but its pictures end after {until:.1f} s: it "
                "is cut off or damaged. Copy or download it anew.",
            )
    if not count:
        raise VideoError(
            "empty", f"{path} lasts {until:.2f} s; expected at least {seconds / 2:g} s. Leave it out."
        )


def duration(path: str | Path) -> float:
    """Returns the length of the video stream in seconds.

    Args:
        path: any video that PyAV decodes.

    Raises:
        VideoError: if the file is not there, is no video, or holds no picture.
    """
    with _open(path) as (container, stream):
        declared = _declared(stream)
        if declared:
            return declared
        # WebM, for one, declares only the container's length, which may be its sound's: read the packets.
        times = [
            (float(stamp * packet.time_base), float((packet.duration or 0) * packet.time_base))
            for packet in container.demux(stream)
            if (stamp := packet.dts if packet.pts is None else packet.pts) is not None and packet.time_base
        ]
        if not times:
            raise VideoError("empty", f"{path} holds no picture. Copy or download it anew.")
        return max(start + length for start, length in times) - min(start for start, _ in times)


@contextlib.contextmanager
def _open(path: str | Path) -> Iterator[tuple[Any, Any]]:
    """Opens a file and its first stream of moving pictures; errors of decoding become a `VideoError`."""
    path = Path(path)
    try:
        if not path.is_file():
            raise VideoError("missing", f"Expected a video file at {path}; there is none.")
        if not path.stat().st_size:
            raise VideoError("empty", f"{path} is an empty file. Copy or download it anew.")
        with av.open(str(path)) as container:
            cover = av.stream.Disposition.attached_pic
            streams = [stream for stream in container.streams.video if not stream.disposition & cover]
            if not streams:
                held = ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"
                raise VideoError("no video stream", f"{path} has no video stream; it holds {held}.")
            # Threads inside the decoder cost more than they bring on cores that have other work.
            streams[0].thread_type = "NONE"
            yield container, streams[0]
    except (av.FFmpegError, OSError) as error:
        raise VideoError(
            "corrupt",
            f"{path} cannot be decoded as a video ({error.strerror}). Copy, download or make it anew.",
        ) from error


def _timed(container: Any, stream: Any) -> Iterator[tuple[float, float, av.VideoFrame]]:
    """Yields (start, end, frame) in seconds from the first frame, starts rising."""
    zero: Fraction | None = None
    start = end = 0.0
    usual = float(1 / stream.average_rate) if stream.average_rate else 0.0
    for frame in container.decode(stream):
        base = frame.time_base or Fraction(0)
        # AVI has decoding times only. A decoder gives its frames out in the order of presentation.
        stamp = frame.dts if frame.pts is None else frame.pts
        begins = end
        if stamp is not None and base:
            time = stamp * base
            zero = time if zero is None else zero
            begins = float(time - zero)
            if begins < start - _JUMP:
                zero, begins = time - Fraction(end), end
            elif begins <= start < end:
                continue
        start = begins
        end = start + (float((frame.duration or 0) * base) or usual)
        yield start, end, frame


def _declared(stream: Any) -> float | None:
    """Returns the length that the file itself gives its video stream, in seconds; None: it gives none."""
    if stream.duration is None or not stream.time_base:
        return None
    return float(stream.duration * stream.time_base)
