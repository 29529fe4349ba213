"""The interface of narrators."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vmr_zoo.data.narrations import Narration
from vmr_zoo.errors import VmrError
from vmr_zoo.video.decode import Timeline


@dataclass(frozen=True, slots=True)
class Narrated:
    """The narrations of one video.

    Attributes:
        video_id: the video.
        narrations: in order of time.
        answers: number of answers of the model.
        empty: number of empty answers, which leave no narration.
        unread: beginnings of the answers in which no times were found; they leave no narration.
        left_out: number of moments, of the other answers, without a text or with times outside of the video.
        error: why the video could not be decoded or narrated; there are no narrations then.
        timeline: what decoding found; None: the file was not opened.
    """

    video_id: str
    narrations: tuple[Narration, ...] = ()
    answers: int = 0
    empty: int = 0
    unread: tuple[str, ...] = ()
    left_out: int = 0
    error: VmrError | None = None
    timeline: Timeline | None = None


class Narrator(ABC):
    """Describes what happens in videos, with times.

    The narrations of a video depend on that video, its id and the narrator's settings, never on other videos:
    work can be divided into shards, stopped and resumed.
    """

    @abstractmethod
    def stream(self, videos: Iterable[tuple[str, Path]]) -> Iterator[Narrated]:
        """Narrates videos in order; one batch may hold segments of several.

        Args:
            videos: video id and file of each.

        Yields:
            One result per video, in the same order; with an error if it cannot be decoded or narrated.
        """

    @abstractmethod
    def manifest(self) -> dict[str, Any]:
        """Returns everything that determines the narrations, JSON-able: `MANIFEST_KEYS` except the date."""

    def narrate(self, video_id: str, path: Path) -> list[Narration]:
        """Narrates one video.

        Args:
            video_id: the video; random choices depend on it.
            path: its file.

        Returns:
            Narrations in order of time, possibly none.

        Raises:
            VmrError: if the file cannot be decoded or narrated.
        """
        (narrated,) = self.stream([(video_id, path)])
        if narrated.error is not None:
            raise narrated.error
        return list(narrated.narrations)
