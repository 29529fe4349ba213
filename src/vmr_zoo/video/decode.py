"""Decodes videos by time: the frame shown at a given time, at any frame rate.

Times are relative to the first frame, whatever the file's clock starts at. Rotation flags (a phone's display
matrix) are ignored: frames have their stored orientation.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av

from vmr_zoo.errors import VmrError

_CLOCK_RESET = 1.0
"""Seconds: a clock that falls back by more has been reset; by less, frames are out of order."""

_TRUNCATED = 0.1
"""Share of the declared length, at least 1 s, that a file must lack to count as truncated."""


class VideoError(VmrError):
    """A file without usable video.

    Attributes:
        kind: "missing", "corrupt", "empty" (no frame) or "no video stream" (audio only).
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def sample(path: str | Path, seconds: float) -> Iterator[av.VideoFrame]:
    """Decodes a file and yields frames evenly spaced in time.

    The k-th frame is the one shown at (k + 0.5) * seconds: the latest one that does not start after that
    time. A frame without a time stamp follows its predecessor.

    Args:
        path: any video that PyAV decodes.
        seconds: sampling interval.

    Yields:
        Decoded frames; the same object several times if the video has fewer frames than samples.

    Raises:
        VideoError: if the file is missing, cannot be decoded to its end, or yields no frame.
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
            raise VideoError("empty", f"{path} holds no frame. Copy or download it again.")
        declared = _declared(stream)
        if declared is not None and declared - until > max(1.0, _TRUNCATED * declared):
            raise VideoError(
                "corrupt",
                f"{path} declares a length of {declared:.1f} s, but its frames end after {until:.1f} s: it "
                "is truncated or damaged. Copy or download it again.",
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
        VideoError: if the file is missing, is no video, or holds no frame.
    """
    with _open(path) as (container, stream):
        declared = _declared(stream)
        if declared:
            return declared
        # WebM declares only the length of the container, which may be that of its audio: read the packets.
        times = [
            (float(stamp * packet.time_base), float((packet.duration or 0) * packet.time_base))
            for packet in container.demux(stream)
            if (stamp := packet.dts if packet.pts is None else packet.pts) is not None and packet.time_base
        ]
        if not times:
            raise VideoError("empty", f"{path} holds no frame. Copy or download it again.")
        return max(start + length for start, length in times) - min(start for start, _ in times)


@contextlib.contextmanager
def _open(path: str | Path) -> Iterator[tuple[Any, Any]]:
    """Opens a file and its first video stream; turns decoding errors into a `VideoError`."""
    path = Path(path)
    try:
        if not path.is_file():
            raise VideoError("missing", f"Expected a video file at {path}; there is none.")
        if not path.stat().st_size:
            raise VideoError("empty", f"{path} is an empty file. Copy or download it again.")
        with av.open(str(path)) as container:
            cover = av.stream.Disposition.attached_pic
            streams = [stream for stream in container.streams.video if not stream.disposition & cover]
            if not streams:
                held = ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"
                raise VideoError("no video stream", f"{path} has no video stream; it holds {held}.")
            # Decoder threads cost more than they gain on cores that are busy with other work.
            streams[0].thread_type = "NONE"
            yield container, streams[0]
    except (av.FFmpegError, OSError) as error:
        raise VideoError(
            "corrupt",
            f"{path} cannot be decoded as a video ({error.strerror}). Copy, download or create it again.",
        ) from error


def _timed(container: Any, stream: Any) -> Iterator[tuple[float, float, av.VideoFrame]]:
    """Yields (start, end, frame) in seconds after the first frame, in increasing order of starts."""
    zero: Fraction | None = None
    start = end = 0.0
    usual = float(1 / stream.average_rate) if stream.average_rate else 0.0
    for frame in container.decode(stream):
        base = frame.time_base or Fraction(0)
        # AVI has decoding times only. Decoders output frames in presentation order.
        stamp = frame.dts if frame.pts is None else frame.pts
        begins = end
        if stamp is not None and base:
            time = stamp * base
            zero = time if zero is None else zero
            begins = float(time - zero)
            if begins < start - _CLOCK_RESET:
                zero, begins = time - Fraction(end), end
            elif begins <= start < end:
                continue
        start = begins
        end = start + (float((frame.duration or 0) * base) or usual)
        yield start, end, frame


def _declared(stream: Any) -> float | None:
    """Returns the length of the video stream in seconds as declared by the file; None: not declared."""
    if stream.duration is None or not stream.time_base:
        return None
    return float(stream.duration * stream.time_base)
