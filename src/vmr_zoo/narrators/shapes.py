"""The simulated narrator of the rendered world, with the common interface."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from vmr_zoo.data.narrations import Narration
from vmr_zoo.data.worlds.shapes import SceneNarrator, WorldSettings
from vmr_zoo.data.worlds.shapes.generate import scenes
from vmr_zoo.data.worlds.shapes.world import Scene
from vmr_zoo.errors import VmrError
from vmr_zoo.narrators.base import Narrated, Narrator


class ShapesNarrator(Narrator):
    """Looks up the scene of a video by its id and describes it with simulated errors; opens no file."""

    def __init__(self, world: WorldSettings, narrator: SceneNarrator) -> None:
        """Stores the settings.

        Args:
            world: settings of the data set, `${data.protocol.world}`.
            narrator: its error rates, `${features.narration.narrator}`.
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
                    f"narrator=shapes narrates the videos of data=shapes only, by their ids; found "
                    f"'{video_id}' ({path}). Choose a narrator that sees pixels: narrator=llava."
                )
            rows = self.narrator.narrate(self._scenes[video_id])
            yield Narrated(video_id, tuple(Narration(video_id, *row) for row in rows))

    def manifest(self) -> dict[str, Any]:
        """Returns the error rates, the window and the seed."""
        return self.narrator.manifest()
