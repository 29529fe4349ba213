"""Writes a moment of a video as a clip: H.264 and AAC in MP4, encoded again to start at the exact time.

Times are those of `video.decode`. Pictures keep their intervals, at any frame rate, and are stored upright.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np

from vmr_zoo.errors import VmrError, printable
from vmr_zoo.utils.files import atomic_path
from vmr_zoo.video.container import VideoError, open_video
from vmr_zoo.video.decode import decoded, timeline, upright

_BASE = Fraction(1, 90000)
"""Unit of the pictures' times, exact for the usual frame rates."""

_H264 = {"crf": "20", "preset": "veryfast", "bf": "0"}  # without B-frames the first picture is at 0

_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)
"""Sample rates that AAC and every player know; others become the last."""

_OTHER_CLOCK = {"clock reset", "no time stamps"}
"""Notes of videos whose time stamps are not the seconds of `video.decode`."""


class Shown(NamedTuple):
    """A picture and when it is shown, in seconds of the video."""

    start: float
    end: float
    frame: Any


def cut(path: str | Path, start: float, end: float, out: str | Path) -> bool:
    """Writes the part of a video between two times.

    Args:
        path: any video that PyAV decodes.
        start: seconds, on the clock of `video.decode`.
        end: seconds; the clip ends earlier if the video does.
        out: the clip, an .mp4 file; written whole or not at all.

    Returns:
        False if sound was left out: the clock of the video is reset, or it has no time stamps, and nothing
        says which sound belongs to the pictures.

    Raises:
        VideoError: if the file has no video stream, cannot be decoded, or ends before `start`.
        VmrError: if `end` is not after `start`.
        WriteError: if `out` cannot be written.
    """
    if not 0 <= start < end:
        raise VmrError(f"Expected a moment with 0 <= start < end to cut, found {start:g} to {end:g} s.")
    first = first_stamp(path)
    with atomic_path(out) as temporary, av.open(str(temporary), "w", format="mp4") as target:
        # Both streams are added before the first packet is written.
        packets = _video_packets(path, start, end, first, target)
        sound = _sound_packets(path, start, end, first, target)
        for packet in sorted([*packets, *(sound or [])], key=lambda one: float(one.dts * one.time_base)):
            target.mux(packet)
    return sound is not None


def first_stamp(path: str | Path) -> Fraction | None:
    """Returns the time stamp of the first picture in seconds; None if time stamps have another clock."""
    if any(note.kind in _OTHER_CLOCK for note in timeline(path).notes):
        return None
    with open_video(path) as opened:
        frame = next(opened.container.decode(opened.stream), None)
        return None if frame is None or frame.pts is None else frame.pts * frame.time_base


def _video_packets(
    path: str | Path, start: float, end: float, first: Fraction | None, target: Any
) -> list[Any]:
    """Encodes the pictures of a moment."""
    packets: list[Any] = []
    stream: Any = None
    begins = until = 0.0
    with contextlib.closing(pictures(path, start, end, first)) as found:
        for shown in found:
            picture = upright(shown.frame)
            if stream is None:
                stream = _add_video(target, picture)
            picture = picture.reformat(width=stream.width, height=stream.height, format="yuv420p")
            begins, until = max(shown.start, start) - start, min(shown.end, end) - start
            picture.pts, picture.time_base = round(begins / _BASE), _BASE
            picture.pict_type = av.video.frame.PictureType.NONE  # the encoder chooses its own key frames
            packets += stream.encode(picture)
    if stream is None:
        raise VideoError("empty", f"{printable(path)} ends before {start:.2f} s: there is nothing to cut.")
    packets += stream.encode()
    # The others last until the next one.
    packets[-1].duration = max(1, round((until - begins) / packets[-1].time_base))
    return packets


def _add_video(target: Any, picture: Any) -> Any:
    """Adds a stream for pictures of an even size, which H.264 needs."""
    try:
        stream = target.add_stream("libx264", options=_H264)
    except ValueError as error:  # av.codec.codec.UnknownCodecError
        raise VmrError(
            f"PyAV has no encoder for H.264 ({error}): install it from PyPI, `pip install av`."
        ) from error
    stream.width, stream.height = (max(2, side - side % 2) for side in (picture.width, picture.height))
    stream.pix_fmt = "yuv420p"
    stream.codec_context.time_base = _BASE
    return stream


def pictures(
    path: str | Path, start: float, end: float, first: Fraction | None
) -> Generator[Shown, None, None]:
    """Yields the pictures shown between two times, not yet turned, each until the next one starts.

    Args:
        path: the video.
        start: seconds.
        end: seconds.
        first: its `first_stamp`; None: nothing is sought, the video is decoded from its beginning.
    """
    held: Shown | None = None
    with contextlib.closing(_frames(path, start, first)) as frames:
        for one in frames:
            if held is not None and one.start > start:
                yield held._replace(end=one.start)
            held = one
            if one.start >= end:
                return
    if held is not None and held.end > start:
        yield held


def _frames(path: str | Path, start: float, first: Fraction | None) -> Generator[Shown, None, None]:
    """Yields frames from one at or before a time on, which is sought if time stamps allow it."""
    if first is not None:
        with open_video(path) as opened:
            frames = _sought(opened.container, opened.stream, start, first)
            head = next(frames, None)
            if head is not None and head.start <= start:
                yield head
                yield from frames
                return
    with open_video(path) as opened:
        for begins, ends, frame in decoded(path, opened):
            yield Shown(begins, ends, frame)


def _sought(container: Any, stream: Any, start: float, first: Fraction) -> Iterator[Shown]:
    """Yields frames from the key frame before a time on, while they have time stamps."""
    usual = 1 / stream.average_rate if stream.average_rate else Fraction(0)
    try:
        container.seek(int((first + Fraction(start)) / stream.time_base), stream=stream)
    except av.FFmpegError:  # nothing can be sought in this file
        return
    for frame in container.decode(stream):
        if frame.pts is None:
            return
        begins = frame.pts * frame.time_base - first
        yield Shown(float(begins), float(begins + ((frame.duration or 0) * frame.time_base or usual)), frame)


def _sound_packets(
    path: str | Path, start: float, end: float, first: Fraction | None, target: Any
) -> list[Any] | None:
    """Encodes the sound of a moment, none if the video has none; returns None if its times are unknown."""
    with open_video(path) as opened:
        if not opened.container.streams.audio:
            return []
        if first is None:
            return None
        source = opened.container.streams.best("audio") or opened.container.streams.audio[0]
        rate = source.rate if source.rate in _RATES else _RATES[-1]
        layout = "mono" if source.channels == 1 else "stereo"
        stream = target.add_stream("aac", rate=rate, layout=layout)
        resampler: Any = av.AudioResampler(format="fltp", layout=layout, rate=rate)
        from_, to = (round((first + Fraction(time)) * rate) for time in (start, end))
        packets = []
        with contextlib.suppress(av.FFmpegError):  # otherwise from the beginning on
            opened.container.seek(int((first + Fraction(start)) / source.time_base), stream=source)
        for frame in opened.container.decode(source):
            if frame.pts is None or frame.pts * frame.time_base >= first + Fraction(end):
                break
            for part in resampler.resample(frame):
                begins = round(part.pts * part.time_base * rate)
                kept: Any = part.to_ndarray()[:, max(0, from_ - begins) : max(0, to - begins)]
                if kept.shape[1]:
                    piece = av.AudioFrame.from_ndarray(np.ascontiguousarray(kept), "fltp", layout)
                    piece.rate, piece.time_base = rate, Fraction(1, rate)
                    piece.pts = max(begins, from_) - from_
                    packets += stream.encode(piece)
        return [*packets, *stream.encode()]
