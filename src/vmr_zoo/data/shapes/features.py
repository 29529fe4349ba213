"""Serves what was computed from the rendered videos, computing it first if the cache lacks it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vmr_zoo.data.annotations import Protocol
from vmr_zoo.data.cache import Array
from vmr_zoo.data.features import FeatureError, Problem, VideoSource
from vmr_zoo.data.narrations import Narration, NarrationFile, manifest_path, read_narrations, write_narrations
from vmr_zoo.data.shapes.encoder import GridEncoder
from vmr_zoo.data.shapes.generate import digest, extract, generate_world, scenes, world_folder
from vmr_zoo.data.shapes.narrator import Narrator
from vmr_zoo.data.shapes.world import WorldSettings
from vmr_zoo.data.text import SentenceEncoder
from vmr_zoo.errors import unknown


class RenderedVideos(VideoSource):
    """Grid features of the rendered videos, read from one memory-mapped array."""

    def __init__(
        self,
        world: WorldSettings,
        cache: str | Path,
        encoder: GridEncoder,
        part: Literal["video", "patches"] = "video",
        processes: int | None = None,
    ) -> None:
        """Stores the settings; videos are rendered and encoded on first use.

        Args:
            world: the data set's settings, `${data.protocol.world}`.
            cache: `paths.cache`.
            encoder: what turns pixels into features.
            part: "video" for clip features, "patches" for those of the grid's cells.
            processes: how many encode at a time; None: one per available core.
        """
        if part not in ("video", "patches"):
            raise unknown("part of the grid features", part, ("video", "patches"))
        self.world = world
        self.cache = cache
        self.encoder = encoder
        self.part = part
        self.processes = processes
        self.dim = encoder.dim if part == "video" else encoder.patch_dim

    @cached_property
    def _packed(self) -> tuple[Array, dict[str, tuple[int, int]]]:
        folder = generate_world(self.world, self.cache, self.processes)
        folder = extract(self.world, folder, self.encoder, self.processes)
        rows = np.load(folder / f"{self.part}.npy", mmap_mode="r", allow_pickle=False)
        return rows, json.loads((folder / "index.json").read_text())

    def prepare(self, protocol: Protocol) -> None:
        """Renders and encodes what is not in the cache."""
        _ = self._packed

    def load(self, video_id: str) -> Array:
        """Returns (T, dim) float32, or (T, P, dim) for patches.

        Raises:
            FeatureError: if the world has no such video.
        """
        rows, index = self._packed
        if video_id not in index:
            raise FeatureError(
                "missing",
                f"The world of shapes has no video '{video_id}'. features=shapes serves data=shapes only, "
                "with the same settings (data.protocol.world).",
            )
        first, last = index[video_id]
        return np.array(rows[first:last], dtype=np.float32)

    def missing(self, video_ids: Sequence[str]) -> list[Problem]:
        """Finds videos that the world does not have."""
        lacking = tuple(video_id for video_id in video_ids if video_id not in self._packed[1])
        detail = "features=shapes serves data=shapes only, with the same settings (data.protocol.world)."
        return [Problem("video shapes", "missing", lacking, detail)] if lacking else []

    def manifest(self) -> dict[str, Any]:
        """Returns the encoder's settings."""
        return self.encoder.manifest()


class RenderedNarrations(NarrationFile):
    """What the noisy narrator says about the rendered videos."""

    def __init__(
        self, world: WorldSettings, cache: str | Path, narrator: Narrator, encoder: SentenceEncoder
    ) -> None:
        """Stores the settings; the narrations are written on first use.

        Args:
            world: the data set's settings, `${data.protocol.world}`.
            cache: `paths.cache`.
            narrator: who narrates, and how often it errs.
            encoder: what embeds the sentences.
        """
        name = digest(narrator.manifest())
        super().__init__(world_folder(world, cache) / "narrations" / f"{name}.jsonl", encoder)
        self.world = world
        self.narrator = narrator

    @cached_property
    def _narrations(self) -> tuple[dict[str, list[Narration]], dict[str, Any]]:
        # The manifest is written last: narrations without one are unfinished.
        if not manifest_path(self.file).exists():
            said = [
                Narration(scene.video_id, *sentence)
                for _, scene in scenes(self.world)
                for sentence in self.narrator.narrate(scene)
            ]
            write_narrations(self.file, said, self.narrator.manifest())
        return read_narrations(self.file)
