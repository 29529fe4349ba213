"""What every narrator offers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vmr_zoo.data.narrations import Narration
from vmr_zoo.video.decode import VideoError


@dataclass(frozen=True, slots=True)
class Narrated:
    """What a narrator said about one video.

    Attributes:
        video_id: the video.
        narrations: in order of time.
        empty: how often it was asked and said nothing; no narration stands for these.
        error: why the video could not be watched; then there are no narrations.
    """

    video_id: str
    narrations: tuple[Narration, ...] = ()
    empty: int = 0
    error: VideoError | None = None


class Narrator(ABC):
    """Watches videos and says what happens in them.

    What it says about a video depends on that video, its id and the narrator's settings, never on the videos
    before or beside it: so work can be cut into shards, stopped and continued.
    """

    @abstractmethod
    def stream(self, videos: Iterable[tuple[str, Path]]) -> Iterator[Narrated]:
        """Narrates videos one after the other; one batch may hold parts of several.

        Args:
            videos: video id and file of each.

        Yields:
            One result per video, in the same order. A file that cannot be watched is a result with an error.
        """

    @abstractmethod
    def manifest(self) -> dict[str, Any]:
        """Returns everything that decides the narrations, JSON-able: `MANIFEST_KEYS` but for the date."""

    def narrate(self, video_id: str, path: Path) -> list[Narration]:
        """Narrates one video.

        Args:
            video_id: the video; random choices depend on it.
            path: its file.

        Returns:
            Narrations in order of time; none if the narrator had nothing to say.

        Raises:
            VideoError: if the file cannot be watched.
        """
        (narrated,) = self.stream([(video_id, path)])
        if narrated.error is not None:
            raise narrated.error
        return list(narrated.narrations)
