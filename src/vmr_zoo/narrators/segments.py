"""What narrators share that show a model one segment of a video after the other.

A video is cut into segments of equal length. A model sees one or several frames of each and answers. The
answer is one narration with the times of the segment or, with `timed`, a list of moments with their own
times.
"""

from __future__ import annotations

import hashlib
import json
import math
from abc import abstractmethod
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import numpy as np

from vmr_zoo.data.narrations import Narration
from vmr_zoo.errors import VmrError
from vmr_zoo.narrators.base import Narrated, Narrator
from vmr_zoo.narrators.moments import read_moments
from vmr_zoo.utils.answers import without_thoughts
from vmr_zoo.utils.arrays import Array
from vmr_zoo.utils.text import one_line
from vmr_zoo.video.ahead import ahead
from vmr_zoo.video.decode import Timeline, VideoError, remembered, sample

_EXCERPT = 200
"""Characters of an answer that could not be read; they are kept and shown."""
_FAILURES = 5
"""Videos in a row that the model fails on before the work stops."""


@dataclass(frozen=True, slots=True)
class Segment:
    """One segment of a video, as shown to the model.

    Attributes:
        video_id: the video.
        number: index of the segment in the video, from 0.
        start: start of the narration in seconds.
        end: end of the narration in seconds.
        frames: (H, W, 3) uint8 each, RGB.
    """

    video_id: str
    number: int
    start: float
    end: float
    frames: list[Array]


@dataclass(frozen=True, slots=True)
class _Decoded:
    """Follows the last segment of a video, with what decoding found."""

    video_id: str
    error: VmrError | None
    timeline: Timeline | None


@dataclass(slots=True)
class _PendingVideo:
    """A video in progress: its segments so far, and the answers to them."""

    video_id: str
    segments: int = 0
    answers: int = 0
    narrations: list[Narration] = field(default_factory=list)
    empty: int = 0
    unread: list[str] = field(default_factory=list)
    left_out: int = 0
    error: VmrError | None = None
    decoded: bool = False
    timeline: Timeline | None = None

    @property
    def finished(self) -> bool:
        return self.decoded and (self.error is not None or self.answers == self.segments)

    def result(self) -> Narrated:
        if self.error is not None:
            return Narrated(self.video_id, error=self.error)
        return Narrated(
            self.video_id,
            tuple(self.narrations),
            self.answers,
            self.empty,
            tuple(self.unread),
            self.left_out,
            timeline=self.timeline,
        )


@dataclass(eq=False, kw_only=True)
class SegmentNarrator(Narrator):
    """Shows a model every segment of a video.

    Attributes:
        seconds: length of a segment.
        frames: number of frames per segment that a video model sees, evenly spaced; None: an image model sees
            the middle frame, and the narration starts and ends at its time.
        prompt: the prompt; of several, one per segment is drawn by seed, video id and index of the segment;
            None for a captioner, which takes no prompt.
        timed: whether an answer is a list of moments with times, counted in seconds from the start of the
            segment. What cannot be read is counted and leaves no narration.
        max_new_tokens: maximum length of an answer.
        max_pixels: larger frames are scaled down to this number of pixels; None: the model gets them whole.
        temperature: None: no sampling. Otherwise words are sampled with a seed per segment.
        seed: seed of the choice of prompts and, with a temperature, of words.

    Raises:
        VmrError: for settings that contradict each other.
    """

    seconds: float
    frames: int | None
    prompt: str | Sequence[str] | None
    timed: bool = False
    max_new_tokens: int
    max_pixels: int | None = None
    temperature: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        self.seconds = float(self.seconds)
        self.prompts = [self.prompt] if isinstance(self.prompt, str) else list(self.prompt or ())
        smallest = min(self.max_new_tokens, *(1 if n is None else n for n in (self.frames, self.max_pixels)))
        if self.seconds <= 0 or smallest < 1:
            raise VmrError(
                "Expected narrator.seconds above 0 and narrator.frames, max_new_tokens and max_pixels of at "
                f"least 1; found {self.seconds}, {self.frames}, {self.max_new_tokens}, {self.max_pixels}."
            )
        if self.timed and (self.frames is None or not self.prompts):
            raise VmrError(
                "narrator.timed=true expects several moments per answer: set narrator.frames and "
                "narrator.prompt, or narrator/prompt=timed. Found narrator.frames="
                f"{self.frames}, narrator.prompt={self.prompt!r}."
            )
        if self.temperature is not None and self.temperature <= 0:
            raise VmrError(
                f"Expected narrator.temperature above 0, found {self.temperature}. Null: greedy decoding."
            )

    @abstractmethod
    def answers(self, segments: Iterator[Segment]) -> Generator[tuple[Segment, str | VmrError]]:
        """Has the model answer.

        Args:
            segments: of one or several videos; decoded while the model answers.

        Yields:
            Every segment, in order, with the answer as the model printed it, or with the error why it failed.
        """

    @property
    @abstractmethod
    def at_once(self) -> int:
        """Number of segments that the model works on at once; twice as many are decoded ahead of it."""

    def stream(self, videos: Iterable[tuple[str, Path]]) -> Iterator[Narrated]:
        """Narrates videos in order; the next segments are decoded while the model answers.

        Raises:
            VmrError: if the model fails on several videos in a row.
        """
        pending: dict[str, _PendingVideo] = {}
        failures = 0
        decoded = ahead(self._decode(videos), 2 * self.at_once)
        with closing(decoded), closing(self.answers(_segments(decoded, pending))) as answers:
            for segment, answer in answers:
                if (video := pending.get(segment.video_id)) is not None:
                    self._add(video, segment, answer)
                for video in _finished(pending):
                    failed = video.error is not None and not isinstance(video.error, VideoError)
                    failures = failures + 1 if failed else 0 if video.answers else failures
                    yield video.result()
                    if failures == _FAILURES:
                        raise VmrError(
                            f"The model failed on {failures} videos in a row. The last error: {video.error} "
                            "Finished videos are kept: correct the cause and run the same command again."
                        )
        for video in pending.values():
            yield video.result()

    def segments(self, video_id: str, path: Path) -> Iterator[Segment]:
        """Decodes a video segment by segment.

        Frames are evenly spaced in presentation time. A partial last segment repeats its last frame, unless
        the answer is timed; its narration ends where its frames end.

        Args:
            video_id: the video.
            path: its file.

        Yields:
            Segments in order of time.

        Raises:
            VideoError: if the file holds no usable video, at the start or later.
        """
        count = self.frames or 1
        step = self.seconds / count
        number, frames = 0, list[Array]()
        for frame in sample(path, step):
            frames.append(self._pixels(frame))
            if len(frames) == count:
                yield self._segment(video_id, number, frames, count)
                number, frames = number + 1, []
        if frames:
            yield self._segment(video_id, number, frames, count)

    def prompt_for(self, video_id: str, number: int) -> str | None:
        """Returns the prompt of a segment, drawn by seed, video id and index; None for a captioner."""
        if not self.prompts:
            return None
        return self.prompts[draw("prompt", self.seed, video_id, number) % len(self.prompts)]

    def frame_times(self, segment: Segment) -> list[float]:
        """Returns when the frames of a segment are shown, in seconds after its start."""
        step = self.seconds / (self.frames or 1)
        return [(number + 0.5) * step for number in range(len(segment.frames))]

    def manifest(self) -> dict[str, Any]:
        """Returns prompts, sampling and decoding; subclasses add the model."""
        return {
            "prompt": self.prompts[0] if len(self.prompts) == 1 else self.prompts or None,
            "timed": self.timed or None,  # as in manifests of versions without it
            "sampling_rate": 1 / self.seconds,
            "frames": self.frames,
            "max_pixels": self.max_pixels,
            "seed": self.seed,
            "max_new_tokens": self.max_new_tokens,
            "temperature": self.temperature,
        }

    def _decode(self, videos: Iterable[tuple[str, Path]]) -> Iterator[Segment | _Decoded]:
        for video_id, path in videos:
            error = None
            try:
                yield from self.segments(video_id, path)
            except VideoError as caught:
                error = caught
            yield _Decoded(video_id, error, remembered(path))

    def _pixels(self, frame: av.VideoFrame) -> Array:
        """Returns (H, W, 3) uint8 RGB, scaled down to `max_pixels`."""
        pixels: Array = frame.to_ndarray(format="rgb24")
        height, width = pixels.shape[:2]
        if self.max_pixels is None or height * width <= self.max_pixels:
            return pixels
        from PIL import Image

        scale = math.sqrt(self.max_pixels / (height * width))
        size = max(1, math.floor(width * scale)), max(1, math.floor(height * scale))
        return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))

    def _segment(self, video_id: str, number: int, frames: list[Array], count: int) -> Segment:
        if self.frames is None:
            time = (number + 0.5) * self.seconds
            return Segment(video_id, number, time, time, frames)
        start = number * self.seconds
        end = start + len(frames) / count * self.seconds
        repeated = [] if self.timed else frames[-1:] * (count - len(frames))
        return Segment(video_id, number, start, end, frames + repeated)

    def _add(self, video: _PendingVideo, segment: Segment, answer: str | VmrError) -> None:
        """Adds the narrations of an answer to its video."""
        video.answers += 1
        if isinstance(answer, VmrError):
            video.error = answer
            return
        answer = without_thoughts(answer)
        text = " ".join(one_line(answer).split())
        if not text:
            video.empty += 1
        elif not self.timed:
            video.narrations.append(Narration(video.video_id, segment.start, segment.end, text))
        else:
            slack = max(1.0, self.seconds / (self.frames or 1))
            moments, left_out = read_moments(answer, segment.end - segment.start, slack)
            if not moments:
                video.unread.append(f"{segment.start:g}-{segment.end:g} s: {text[:_EXCERPT]}")
                return
            video.left_out += left_out
            video.narrations += [
                Narration(video.video_id, segment.start + one.start, segment.start + one.end, one.text)
                for one in moments
            ]


def _segments(decoded: Iterable[Segment | _Decoded], pending: dict[str, _PendingVideo]) -> Iterator[Segment]:
    """Yields the segments, and notes in `pending` what was decoded; skips the rest of a failed video."""
    for item in decoded:
        video = pending.setdefault(item.video_id, _PendingVideo(item.video_id))
        if isinstance(item, _Decoded):
            video.decoded, video.timeline = True, item.timeline
            video.error = video.error or item.error
        elif video.error is None:
            video.segments += 1
            yield item


def _finished(pending: dict[str, _PendingVideo]) -> Iterator[_PendingVideo]:
    """Removes and yields the finished videos up to the first that is not."""
    while pending and (video := next(iter(pending.values()))).finished:
        yield pending.pop(video.video_id)


def draw(purpose: str, seed: int, video_id: str, number: int) -> int:
    """Returns 63 bits determined by the arguments alone, independent of order and shards."""
    hashed = hashlib.sha256(json.dumps([purpose, seed, video_id, number]).encode())
    return int.from_bytes(hashed.digest()[:8], "big") >> 1
