"""Opens a video file and chooses its video stream, without trust in what the file declares."""

from __future__ import annotations

import contextlib
import functools
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
from av.stream import Disposition

from vmr_zoo.errors import VmrError, printable

MOST_PIXELS = 2**26
"""Largest picture that is decoded, 8192 x 8192: a file of 1 kB may declare more than the memory holds."""

_STILLS = (
    Disposition.attached_pic | Disposition.still_image | Disposition.timed_thumbnails | Disposition.dependent
)
_OTHER_FILES = {"concat", "dash", "hls", "imf", "lavfi", "rtp", "rtsp", "sdp"}
"""Formats that are lists of other files or addresses: a video is one file."""

_NO_VIDEO = {"image2", "image2pipe", "tty"}
"""Formats that make a video of anything: of pictures with numbered names, of text."""


class VideoError(VmrError):
    """A file without usable video.

    Attributes:
        kind: "missing", "no file" (a folder, a pipe), "corrupt", "empty" (no frame), "no video stream" (audio
            only, a picture), "no frame rate", "too large" (of picture), or "leaping clock".
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class Opened:
    """An open file and the stream to decode.

    Attributes:
        container: PyAV's container.
        stream: the chosen video stream.
        others: what the streams that were not chosen are; "" if there is no other.
    """

    container: Any
    stream: Any
    others: str = ""


@contextlib.contextmanager
def open_video(path: str | Path) -> Iterator[Opened]:
    """Opens a file and its video stream; turns decoding errors into a `VideoError`."""
    path = Path(path)
    try:
        check_file(path)
        with _open(path) as container:
            streams = [stream for stream in container.streams.video if not stream.disposition & _STILLS]
            if not streams:
                held = ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"
                still = " that moves" if container.streams.video else ""
                raise VideoError(
                    "no video stream", f"{printable(path)} has no video stream{still}; it holds {held}."
                )
            stream, others = _choose(path, streams)
            if stream.codec_context is None:
                raise VideoError(
                    "corrupt",
                    f"No decoder for the video stream of {printable(path)}: convert the file to H.264.",
                )
            width, height = stream.codec_context.width, stream.codec_context.height
            if width * height > MOST_PIXELS:
                raise _too_large(path, width, height)
            stream.codec_context.options = {"max_pixels": str(MOST_PIXELS)}  # a picture may declare more
            # Decoder threads cost more than they gain on cores that are busy with other work.
            stream.thread_type = "NONE"
            yield Opened(container, stream, others)
    except av.error.ArgumentError as error:
        raise VideoError(
            "corrupt",
            f"Expected a video at {printable(path)}; it is a picture, a list of other files, or declares "
            f"pictures of more than {MOST_PIXELS:,} pixels ({error.strerror}).",
        ) from error
    except (av.FFmpegError, OSError) as error:
        raise VideoError(
            "corrupt",
            f"{printable(path)} cannot be decoded as a video ({error.strerror}). Copy, download or create it "
            "again.",
        ) from error


def describe(stream: Any) -> str:
    """Returns what a stream is, such as "stream 1 (h264, 1280x720)"."""
    context = stream.codec_context
    kind = "unknown codec" if context is None else f"{context.name}, {context.width}x{context.height}"
    return f"stream {stream.index} ({kind})"


def check_file(path: Path) -> None:
    """Refuses everything that is not a regular file with content, before it is opened: a pipe would wait.

    Raises:
        VideoError: if there is no such file.
    """
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise VideoError("missing", f"Expected a video file at {printable(path)}; there is none.") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise VideoError(
            "missing", f"Expected a video file at {printable(path)}; it cannot be opened ({reason})."
        ) from None
    if not stat.S_ISREG(found.st_mode):
        kind = "a folder" if stat.S_ISDIR(found.st_mode) else "a pipe, socket or device"
        raise VideoError("no file", f"Expected a video file at {printable(path)}, found {kind}.")
    if not found.st_size:
        raise VideoError("empty", f"{printable(path)} is an empty file. Copy or download it again.")


def _open(path: Path) -> Any:
    """Opens a file with libavformat: this file only, whatever its name and content ask for."""
    options = {
        "max_pixels": str(MOST_PIXELS),
        "protocol_whitelist": "file",
        "format_whitelist": _formats(),
    }
    # "file:": a name may contain a colon or a percent sign. A tag that is not UTF-8 is of no interest.
    return av.open(f"file:{path}", options=options, metadata_errors="replace")


@functools.cache
def _formats() -> str:
    """Returns the formats to open."""
    refused = _OTHER_FILES | _NO_VIDEO
    names = [name for name in av.formats_available if name not in refused and not name.endswith("_pipe")]
    return ",".join(sorted(names))


def _choose(path: Path, streams: list[Any]) -> tuple[Any, str]:
    """Chooses the video stream as ffmpeg does, and describes the others.

    A stream with a single picture, a poster or preview, comes last; then the size of the picture decides, the
    number of pictures, the default flag and the order in the file.
    """
    if len(streams) == 1:
        return streams[0], ""
    with _open(path) as container:
        indices = [stream.index for stream in streams]
        counts = Counter(packet.stream_index for packet in container.demux(indices) if packet.size)

    def rank(stream: Any) -> tuple[bool, int, int, bool, int]:
        context, count = stream.codec_context, counts[stream.index]
        area = 0 if context is None else context.width * context.height
        return count > 1, area, count, bool(stream.disposition & Disposition.default), -stream.index

    first, *rest = sorted(streams, key=rank, reverse=True)
    return first, ", ".join(f"{describe(stream)}, {counts[stream.index]} packets" for stream in rest)


def _too_large(path: Path, width: int, height: int) -> VideoError:
    return VideoError(
        "too large",
        f"{printable(path)} declares pictures of {width} x {height} pixels; at most {MOST_PIXELS:,} pixels "
        "are decoded. Scale the video down.",
    )
