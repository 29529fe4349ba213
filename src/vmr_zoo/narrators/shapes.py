"""The simulated narrator of the rendered world, behind the interface of the others."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from vmr_zoo.data.narrations import Narration
from vmr_zoo.data.worlds.shapes import Narrator as SceneNarrator
from vmr_zoo.data.worlds.shapes import WorldSettings
from vmr_zoo.data.worlds.shapes.generate import scenes
from vmr_zoo.data.worlds.shapes.world import Scene
from vmr_zoo.errors import VmrError
from vmr_zoo.narrators.base import Narrated, Narrator


class ShapesNarrator(Narrator):
    """Looks up a video's scene by its id and tells it with declared errors; it never opens the file."""

    def __init__(self, world: WorldSettings, narrator: SceneNarrator) -> None:
        """Stores the settings.

        Args:
            world: the data set's, `${data.protocol.world}`.
            narrator: how often it errs, `${features.narration.narrator}`.
        """
        self.world = world
        self.narrator = narrator

    @cached_property
    def _scenes(self) -> dict[str, Scene]:
        return {scene.video_id: scene for _, scene in scenes(self.world)}

    def stream(self, videos: Iterable[tuple[str, Path]]) -> Iterator[Narrated]:
        """Narrates rendered videos.

        Raises:
            VmrError: if the world has no such video.
        """
        for video_id, path in videos:
            if video_id not in self._scenes:
                raise VmrError(
                    f"narrator=shapes knows the videos of data=shapes only, by their ids; found '{video_id}' "
                    f"({path}). Choose a narrator that looks at pixels: narrator=llava."
                )
            rows = self.narrator.narrate(self._scenes[video_id])
            yield Narrated(video_id, tuple(Narration(video_id, *row) for row in rows))

    def manifest(self) -> dict[str, Any]:
        """Returns the rates, the window and the seed."""
        return self.narrator.manifest()
