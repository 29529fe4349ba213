"""The clock of a decoded video, and what is odd about it."""

from __future__ import annotations

from fractions import Fraction
from typing import Any, NamedTuple

from vmr_zoo.video.container import VideoError

LONGEST_STILL = 600.0
"""Seconds for which one picture may be shown; a clock that goes on by more leaps."""

_CLOCK_RESET = 1.0
"""Seconds: a clock that falls back by more has been reset; by less, frames are out of order."""

_NOTABLE_STILL = 10.0
"""Seconds for which one picture is shown, from which on it is noted."""

_NOTABLE = 0.5
"""Seconds between the start of a file and its first picture, or between its declared and its decoded length,
from which on they are noted."""

_VARYING = 3.0
"""A frame rate varies if a picture lasts this many times as long as the mean, or as short."""

_TRUNCATED = 0.1
"""Share of the declared length, at least 1 s, that a file must lack to count as truncated."""

_DECLARING = ("mp4", "matroska", "avi", "flv", "asf")
"""Containers that declare their length; of others libavformat estimates it."""


class Note(NamedTuple):
    """Something odd about a file that was read nevertheless.

    Attributes:
        kind: such as "clock reset"; files are counted by it.
        text: what was found, and how it was understood.
    """

    kind: str
    text: str


class PacketLog:
    """What the packets of all streams of a file say, as decoding goes along."""

    def __init__(self, container: Any, stream: Any) -> None:
        self.container = container
        self.stream = stream
        self.count = self.discarded = 0
        self.starts_with_key = True
        self.first: float | None = None
        self.last = 0.0

    def add(self, packet: Any) -> None:
        """Takes notice of the next packet; the last one of a stream is empty."""
        stamp = packet.dts if packet.pts is None else packet.pts
        if stamp is not None and packet.stream.type in ("video", "audio"):
            time = float(stamp * packet.time_base)
            self.first = time if self.first is None else min(self.first, time)
            self.last = max(self.last, time + float((packet.duration or 0) * packet.time_base))
        if packet.stream.index == self.stream.index and packet.size:
            if not self.count:
                self.starts_with_key = packet.is_keyframe
            self.count += 1
            self.discarded += packet.is_discard

    @property
    def hidden(self) -> int:
        """Number of pictures that an MP4 file holds but does not show."""
        unread = self.stream.frames - self.count if "mp4" in self.container.format.name else 0
        return self.discarded + max(0, unread)

    def lacking(self, end: float) -> tuple[float | None, float]:
        """Compares the length that the file declares with what was decoded.

        Args:
            end: seconds of video that were decoded.

        Returns:
            The length that the file declares, in seconds, None if it declares none; and how much of it is
            lacking. The length of a container is that of its longest stream, perhaps of its sound.
        """
        if not any(name in self.container.format.name for name in _DECLARING):
            return None, 0.0
        if self.stream.duration is not None and self.stream.time_base:
            declared = float(self.stream.duration * self.stream.time_base)
            return declared, declared - end
        if self.container.duration is None:
            return None, 0.0
        declared = self.container.duration / 1e6
        # Declared from 0 or from the first packet on: containers differ.
        return declared, declared - max(self.last, self.last - (self.first or 0.0))


class Clock:
    """Turns the time stamps of decoded frames into seconds after the first one, and notes what is odd.

    Attributes:
        end: where the last frame ends.
        pictures: number of frames.
        notes: by kind, the first of each.
    """

    def __init__(self, name: str, stream: Any) -> None:
        self.name = name
        self.usual = 1 / Fraction(stream.average_rate) if stream.average_rate else Fraction(0)
        self.start = self.end = 0.0
        self.pictures = 0
        self.notes: dict[str, Note] = {}
        # Exact: a sum of floats would not be the annotated length.
        self._zero: Fraction | None = None
        self._until = Fraction(0)
        self._begins = 0.0
        self._longest = self._longest_at = 0.0
        self._shortest = float("inf")
        self._size: tuple[int, int] | None = None

    def note(self, kind: str, text: str) -> None:
        """Adds a note, unless there is one of this kind."""
        self.notes.setdefault(kind, Note(kind, text))

    def times(self, frame: Any) -> tuple[float, float] | None:
        """Returns when a frame starts and ends, in seconds; None for a frame that repeats a time.

        Raises:
            VideoError: if the clock leaps.
        """
        base = frame.time_base or Fraction(0)
        # AVI has decoding times only. Decoders output frames in presentation order.
        stamp = frame.dts if frame.pts is None else frame.pts
        exact = self._until
        if stamp is not None and base:
            time = stamp * base
            if self._zero is None:
                self._zero, self._begins = time, float(time)
            exact = time - self._zero
            begins = float(exact)
            if begins < self.start - _CLOCK_RESET:
                self.note(
                    "clock reset",
                    f"the clock falls back from {self.start:.2f} s to {begins:.2f} s: what follows is joined "
                    "on",
                )
                self._zero, exact = time - self._until, self._until
            elif begins <= self.start < self.end:
                return None
        else:
            self.note(
                "no time stamps",
                f"pictures without a time stamp are shown for {float(self.usual):.3g} s each",
            )
        begins = float(exact)
        if self.pictures:
            self._interval(begins - self.start)
        elif frame.rotation % 90:
            self.note(
                "odd rotation",
                f"the display matrix turns the picture by {-frame.rotation} degrees: only right angles are "
                "honoured",
            )
        size = (frame.width, frame.height)
        if self._size is not None and size != self._size:
            self.note("size changes", f"the size of the picture changes at {begins:.2f} s")
        self._size = size
        if frame.is_corrupt:
            self.note("damaged pictures", f"a picture is damaged at {begins:.2f} s, perhaps more of them")
        self.pictures += 1
        self.start = begins
        self._until = exact + ((frame.duration or 0) * base or self.usual)
        self.end = float(self._until)
        return self.start, self.end

    def close(self, packets: PacketLog) -> None:
        """Compares what was decoded with what the file declares.

        Raises:
            VideoError: if the file has no frame, or is truncated.
        """
        if not self.pictures:
            raise VideoError("empty", f"{self.name} holds no frame. Copy or download it again.")
        self._check_leap(self.end - self.start)
        self._note_start(packets)
        if self.pictures > 2:
            mean = self.start / (self.pictures - 1)
            if self._longest > _VARYING * mean or self._shortest < mean / _VARYING:
                self.note(
                    "variable frame rate",
                    f"pictures are shown for {self._shortest:.3g} s to {self._longest:.3g} s",
                )
        if self._longest > _NOTABLE_STILL:
            self.note(
                "still picture",
                f"one picture is shown for {self._longest:.1f} s, from {self._longest_at:.1f} s on",
            )
        self._compare(packets)

    def _compare(self, packets: PacketLog) -> None:
        """Compares the length that was decoded with the declared one, and with the sound's."""
        declared, lacking = packets.lacking(self.end)
        complete = bool(packets.stream.frames) and packets.count >= packets.stream.frames
        if declared is not None and lacking > max(1.0, _TRUNCATED * declared) and not complete:
            raise VideoError(
                "corrupt",
                f"{self.name} declares a length of {declared:.1f} s, but its frames end after {self.end:.1f} "
                "s: it is truncated or damaged. Copy or download it again.",
            )
        if declared is not None and abs(lacking) > _NOTABLE:
            self.note(
                "declared length",
                f"the file declares {declared:.2f} s, but {self.end:.2f} s of video were decoded, which "
                "count",
            )
        over = packets.last - self._begins - self.end
        if over > 1.0 and "clock reset" not in self.notes:
            self.note(
                "sound goes on",
                f"the last picture ends at {self.end:.2f} s, the sound {over:.2f} s later: times end with "
                "the picture",
            )

    def _interval(self, seconds: float) -> None:
        """Takes notice of the time between two frames."""
        self._check_leap(seconds)
        if seconds > self._longest:
            self._longest, self._longest_at = seconds, self.start
        self._shortest = min(self._shortest, seconds)

    def _check_leap(self, seconds: float) -> None:
        if seconds > LONGEST_STILL:
            raise VideoError(
                "leaping clock",
                f"The clock of {self.name} leaps by {seconds:,.0f} s, at {self.start:.1f} s: a time stamp is "
                "wrong, or one picture is shown all that time. Write the video with times that are meant: "
                "`ffmpeg -i IN -vf setpts=N/25/TB OUT.mp4` for 25 pictures per second without the leap, "
                "`ffmpeg -i IN -vf fps=25 OUT.mp4` with it.",
            )

    def _note_start(self, packets: PacketLog) -> None:
        """Notes a file that starts without a key frame, or before its first picture."""
        late = self._begins - packets.first if packets.first is not None and self._zero is not None else 0.0
        if packets.hidden > 0:
            self.note(
                "edit list",
                f"{packets.hidden} pictures of the file are left out, as its edit list says and players do",
            )
        if not packets.starts_with_key:
            self.note(
                "no key frame at the start",
                f"the file starts amid a scene; what comes before its first whole picture ({late:.2f} s) "
                "cannot be decoded, and times count from that picture",
            )
        elif late > _NOTABLE:
            self.note(
                "late first picture",
                f"the first picture comes {late:.2f} s after the start of the file: times count from that "
                "picture, a player shows them that much later",
            )
