"""Serves features and narrations of the rendered videos; computes them if the cache lacks them."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vmr_zoo.data.annotations.records import Protocol
from vmr_zoo.data.features.problems import FeatureError, Problem
from vmr_zoo.data.features.source import VideoSource
from vmr_zoo.data.narrations import Narration, NarrationFile, manifest_path, read_narrations, write_narrations
from vmr_zoo.data.text.encoder import TextEncoder
from vmr_zoo.data.worlds.shapes.encoder import GridEncoder
from vmr_zoo.data.worlds.shapes.generate import digest, generate_world, scenes, video_path, world_folder
from vmr_zoo.data.worlds.shapes.narrator import SceneNarrator
from vmr_zoo.data.worlds.shapes.world import WorldSettings
from vmr_zoo.errors import VmrError, unknown
from vmr_zoo.utils.arrays import Array
from vmr_zoo.utils.files import lock_folder
from vmr_zoo.video.encoder import VideoEncoder, encode_video
from vmr_zoo.video.extraction import extract
from vmr_zoo.video.manifest import feature_settings


def features_folder(
    world: WorldSettings, cache: str | Path, encoder: VideoEncoder, storage: str = "float32"
) -> Path:
    """Returns the folder of an encoder's features of the rendered videos, which may not exist yet."""
    return world_folder(world, cache) / "features" / digest(feature_settings(encoder, storage))


class RenderedVideos(VideoSource):
    """Features of the rendered videos, as `vmr extract data=shapes` writes them."""

    encodes = True

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
            world: settings of the data set, `${data.protocol.world}`.
            cache: `paths.cache`.
            encoder: encodes the videos.
            part: "video" for clip features, "patches" for those of the grid cells.
            processes: number of encoding processes; None: one per available core.
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
    def _files(self) -> dict[str, Path]:
        """Feature file by video id, extracted if necessary."""
        folder = generate_world(self.world, self.cache, self.processes)
        videos = {scene.video_id: video_path(folder, scene.video_id) for _, scene in scenes(self.world)}
        out = features_folder(self.world, self.cache, self.encoder)
        node = {"_target_": "vmr_zoo.data.worlds.shapes.GridEncoder", **asdict(self.encoder)}
        with lock_folder(out):
            failed = extract(videos, self.encoder, node, out, processes=self.processes)
        if failed:
            raise VmrError(
                f"{len(failed)} rendered videos cannot be encoded. The first: {failed[0].message} "
                f"Delete {folder} to render them again."
            )
        return {video_id: out / f"{video_id}.npz" for video_id in videos}

    def prepare(self, protocol: Protocol) -> None:
        """Renders and encodes what the cache lacks."""
        _ = self._files

    def load(self, video_id: str) -> Array:
        """Returns (T, dim) float32, or (T, P, dim) for patches.

        Raises:
            FeatureError: if the world has no such video, or its file is broken.
        """
        if video_id not in self._files:
            raise FeatureError(
                "missing",
                f"The world of shapes has no video '{video_id}'. features=shapes serves data=shapes only, "
                "with the same settings (data.protocol.world).",
            )
        path = self._files[video_id]
        try:
            with np.load(path, allow_pickle=False) as arrays:
                stored = arrays["features" if self.part == "video" else "patches"]
        except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
            raise FeatureError(
                "unreadable", f"{path} cannot be read ({error}). Delete it to extract it again."
            ) from error
        return stored.astype(np.float32)

    def encode(self, path: Path) -> Array:
        """Computes (T, dim) float32 for any video file, although the hues are chosen for shapes."""
        return encode_video(self.encoder, path)

    def missing(self, video_ids: Sequence[str]) -> list[Problem]:
        """Finds videos that the world does not have."""
        lacking = tuple(video_id for video_id in video_ids if video_id not in self._files)
        detail = "features=shapes serves data=shapes only, with the same settings (data.protocol.world)."
        return [Problem("video shapes", "missing", lacking, detail)] if lacking else []

    def manifest(self) -> dict[str, Any]:
        """Returns the encoder's settings."""
        return self.encoder.manifest()


def narrate_world(world: WorldSettings, cache: str | Path, narrator: SceneNarrator) -> Path:
    """Narrates every video of a world, unless the narrations exist.

    Args:
        world: settings of the data set.
        cache: `paths.cache`.
        narrator: the narrator with its error rates.

    Returns:
        The file of narrations.
    """
    file = narrations_path(world, cache, narrator)
    # The manifest is written last: narrations without one are incomplete.
    if not manifest_path(file).exists():
        said = (
            Narration(scene.video_id, *sentence)
            for _, scene in scenes(world)
            for sentence in narrator.narrate(scene)
        )
        write_narrations(file, said, narrator.manifest())
    return file


def narrations_path(world: WorldSettings, cache: str | Path, narrator: SceneNarrator) -> Path:
    """Returns the file of a world's narrations, which may not exist yet."""
    return world_folder(world, cache) / "narrations" / f"{digest(narrator.manifest())}.jsonl"


class RenderedNarrations(NarrationFile):
    """Narrations of the rendered videos by the noisy narrator."""

    def __init__(
        self,
        world: WorldSettings,
        cache: str | Path,
        narrator: SceneNarrator,
        encoder: TextEncoder,
        normalise: bool,
    ) -> None:
        """Stores the settings; the narrations are written on first use.

        Args:
            world: settings of the data set, `${data.protocol.world}`.
            cache: `paths.cache`.
            narrator: the narrator with its error rates.
            encoder: embeds the sentences.
            normalise: as `NarrationFile` describes it.
        """
        super().__init__(narrations_path(world, cache, narrator), encoder, normalise)
        self.world = world
        self.cache = cache
        self.narrator = narrator

    @cached_property
    def _narrations(self) -> tuple[dict[str, list[Narration]], dict[str, Any]]:
        return read_narrations(narrate_world(self.world, self.cache, self.narrator))
