"""Small odd videos, made with PyAV or by changing bytes of such."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

BASE = Fraction(1, 1000)
DAY = 86400.0


def picture(number: int, width: int = 64, height: int = 48) -> Any:
    """Grey that counts up to 24, with a white left edge and a black upper edge."""
    pixels = np.full((height, width, 3), 20 + 8 * (number % 24), np.uint8)
    pixels[:, :8], pixels[:8] = 255, 0
    return av.VideoFrame.from_ndarray(pixels, format="rgb24")


def seconds(length: float, rate: int = 8) -> list[float]:
    """Returns the times of the frames of a steady video."""
    return [number / rate for number in range(round(length * rate))]


def film(
    path: Path,
    times: Iterable[float] = tuple(seconds(4)),
    *,
    codec: str = "libx264",
    size: tuple[int, int] = (64, 48),
    sound: tuple[float, float] | None = None,
    last: float | None = None,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    tag: str = "",
) -> Path:
    """Writes pictures at the given times, and sound between two times.

    Args:
        path: the file; its suffix selects the format.
        times: in seconds, of the pictures.
        codec: PyAV's name of an encoder.
        size: width and height.
        sound: start and end.
        last: how long the last picture is shown.
        options: of the encoder; x264 makes a key frame per second and no B-frames.
        container_options: of the container.
        tag: title of the file.
    """
    with av.open(str(path), "w", options=container_options or {}) as out:
        if tag:
            out.metadata["title"] = tag
        stream = out.add_stream(codec, rate=8)
        stream.width, stream.height = size
        stream.pix_fmt = {"gif": "rgb8", "mjpeg": "yuvj420p"}.get(codec, "yuv420p")
        if codec == "libx264":
            stream.options = {"bf": "0", "g": "8", "preset": "ultrafast", **(options or {})}
        if codec not in ("mpeg2video", "gif"):
            stream.codec_context.time_base = BASE
        tone = out.add_stream("aac", rate=8000) if sound else None
        packets = []
        for number, time in enumerate(times):
            frame = picture(number, *size)
            frame.pts, frame.time_base = round(time / BASE), BASE
            packets += stream.encode(frame)
        packets += stream.encode()
        if last is not None:
            packets[-1].duration = round(last / packets[-1].time_base)
        if tone is not None and sound is not None:
            for number in range(round(sound[0] * 8), round(sound[1] * 8)):
                silence = av.AudioFrame.from_ndarray(
                    np.zeros((1, 1000), np.float32), format="fltp", layout="mono"
                )
                silence.rate, silence.pts = 8000, 1000 * number
                packets += tone.encode(silence)
            packets += tone.encode()
        for packet in sorted(packets, key=lambda packet: float((packet.dts or 0) * packet.time_base)):
            out.mux(packet)
    return path


def several(path: Path, streams: Sequence[tuple[str, tuple[int, int], Iterable[float], int]]) -> Path:
    """Writes several video streams: codec, size, times of the pictures, disposition."""
    with av.open(str(path), "w") as out:
        made = []
        for codec, (width, height), _, disposition in streams:
            stream = out.add_stream(codec, rate=8)
            stream.width, stream.height = width, height
            stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            stream.codec_context.time_base = BASE
            if disposition:
                stream.disposition = disposition
            made.append(stream)
        for stream, (_, size, times, _) in zip(made, streams, strict=True):
            for number, time in enumerate(times):
                frame = picture(number, *size)
                frame.pts, frame.time_base = round(time / BASE), BASE
                out.mux(stream.encode(frame))
            out.mux(stream.encode())
    return path


def changed(path: Path, change: Callable[[bytearray], Any]) -> Path:
    """Changes the bytes of a file; a result that is bytes replaces them."""
    data = bytearray(path.read_bytes())
    result = change(data)
    path.write_bytes(result if isinstance(result, bytes | bytearray) else data)
    return path


def declare(share: float) -> Callable[[bytearray], None]:
    """Returns a change that multiplies the length that an MP4 file declares for its track."""

    def change(data: bytearray) -> None:
        at = data.index(b"mdhd") + 16  # after version, flags, two dates
        scale, length = struct.unpack_from(">II", data, at)
        struct.pack_into(">II", data, at, scale, int(length * share))

    return change


def matrix(a: int, b: int, c: int, d: int) -> Callable[[bytearray], None]:
    """Returns a change that sets the display matrix of an MP4 file, in units of 1 / 65536."""

    def change(data: bytearray) -> None:
        struct.pack_into(">9i", data, data.index(b"tkhd") + 44, a, b, 0, c, d, 0, 0, 0, 1 << 30)

    return change


def part(first: float, last: float) -> Callable[[bytearray], bytearray]:
    """Returns a change that keeps a part of a file, as shares of its length."""
    return lambda data: data[round(first * len(data)) : round(last * len(data))]


def packets_from(path: Path, out: Path, first: int) -> Path:
    """Copies the video packets of a file from the given one on, without decoding them."""
    with av.open(str(path)) as source, av.open(str(out), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(source.demux(source.streams.video[0])):
            if packet.dts is not None and number >= first:
                packet.stream = stream
                target.mux(packet)
    return out
