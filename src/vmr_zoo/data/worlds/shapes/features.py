"""Serves features and narrations of the rendered videos; computes them if the cache lacks them."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from vmr_zoo.data.annotations.records import Protocol
from vmr_zoo.data.features.problems import FeatureError, Problem
from vmr_zoo.data.features.source import VideoSource
from vmr_zoo.data.features.store import FileStore
from vmr_zoo.data.narrations import Narration, NarrationFile, manifest_path, read_narrations, write_narrations
from vmr_zoo.data.text.encoder import TextEncoder
from vmr_zoo.data.worlds.shapes.generate import (
    digest,
    generate_world,
    scenes,
    verify,
    video_path,
    world_folder,
)
from vmr_zoo.data.worlds.shapes.narrator import SceneNarrator
from vmr_zoo.data.worlds.shapes.world import WorldSettings
from vmr_zoo.errors import VmrError, unknown
from vmr_zoo.utils.arrays import Array
from vmr_zoo.utils.checksums import verify_checksums, write_checksums
from vmr_zoo.utils.files import lock_folder
from vmr_zoo.video.encoder import VideoEncoder, encode_video
from vmr_zoo.video.extraction import extract
from vmr_zoo.video.manifest import feature_settings

if TYPE_CHECKING:
    from vmr_zoo.data.worlds.shapes.encoder import GridEncoder
    from vmr_zoo.video.open_clip import OpenClip


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
        encoder: GridEncoder | OpenClip,
        part: Literal["video", "patches"] = "video",
        processes: int | None = None,
    ) -> None:
        """Stores the settings; videos are rendered and encoded on first use.

        Args:
            world: settings of the data set, `${data.protocol.world}`.
            cache: `paths.cache`.
            encoder: encodes the videos.
            part: "video" for clip features, "patches" for those of the grid cells.
            processes: number of rendering processes, and of encoding ones if the encoder has no network;
                None: one per available core.

        Raises:
            VmrError: if there is no such part.
        """
        if part not in ("video", "patches"):
            raise unknown("part of the rendered features", part, ("video", "patches"))
        if part == "patches" and encoder.patch_dim is None:
            raise VmrError("The encoder has no patches. Set features.video.encoder.patch_tokens=projected.")
        self.world = world
        self.cache = cache
        self.encoder = encoder
        self.part = part
        self.processes = processes
        self.dim = encoder.dim if part == "video" else int(encoder.patch_dim or 0)

    @cached_property
    def _files(self) -> dict[str, Path]:
        """Feature file by video id, extracted if necessary."""
        folder = generate_world(self.world, self.cache, self.processes)
        videos = {scene.video_id: video_path(folder, scene.video_id) for _, scene in scenes(self.world)}
        out = features_folder(self.world, self.cache, self.encoder)
        verify(folder, [path for name, path in videos.items() if not (out / f"{name}.npz").exists()])
        processes = self.processes if self.encoder.one_process_per_core else None
        complete = all((out / f"{name}.npz").exists() for name in videos)
        # A complete cache may be read-only.
        with contextlib.nullcontext() if complete else lock_folder(out):
            failed = extract(videos, self.encoder, self.encoder.node(), out, processes=processes)
        if failed:
            raise VmrError(
                f"{len(failed)} rendered videos cannot be encoded. The first: {failed[0].message} "
                f"Delete {folder} to render them again."
            )
        return {video_id: out / f"{video_id}.npz" for video_id in videos}

    @cached_property
    def _store(self) -> FileStore:
        folder = next(iter(self._files.values())).parent
        return FileStore(folder, ".npz", key="features" if self.part == "video" else "patches")

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
            stored, _ = self._store.read(video_id)
        except FeatureError as error:
            raise FeatureError(error.kind, f"{error} Delete {path} to extract it again.") from error
        return stored.astype(np.float32)

    def encode(self, path: Path) -> Array:
        """Computes (T, dim) float32 for any video file, although the encoders were made for shapes."""
        return encode_video(self.encoder, path)

    def missing(self, video_ids: Sequence[str]) -> list[Problem]:
        """Finds videos that the world does not have."""
        lacking = tuple(video_id for video_id in video_ids if video_id not in self._files)
        detail = "features=shapes serves data=shapes only, with the same settings (data.protocol.world)."
        return [Problem("video shapes", "missing", lacking, detail)] if lacking else []

    def manifest(self) -> dict[str, Any]:
        """Returns the encoder's settings."""
        return self.encoder.manifest()


class JoinedVideos(VideoSource):
    """Features of several encoders, concatenated clip by clip in the listed order, cut to the shortest."""

    encodes = True

    def __init__(self, sources: Sequence[RenderedVideos]) -> None:
        """Stores the sources, of equal clip length.

        Raises:
            VmrError: if clips differ in length.
        """
        lengths = [source.encoder.clip_seconds for source in sources]
        if len(set(lengths)) > 1:
            raise VmrError(
                f"Expected clips of one length, found {lengths} s. Change features.video.sources[i].encoder."
            )
        self.sources = list(sources)
        self.dim = sum(source.dim for source in sources)

    def prepare(self, protocol: Protocol) -> None:
        """Renders and encodes what the cache lacks."""
        for source in self.sources:
            source.prepare(protocol)

    def load(self, video_id: str) -> Array:
        """Returns (T, dim) float32."""
        return _concatenate([source.load(video_id) for source in self.sources])

    def encode(self, path: Path) -> Array:
        """Computes (T, dim) float32 for any video file."""
        return _concatenate([source.encode(path) for source in self.sources])

    def missing(self, video_ids: Sequence[str]) -> list[Problem]:
        """Finds videos that the world does not have."""
        return self.sources[0].missing(video_ids)

    def manifest(self) -> dict[str, Any]:
        """Returns the settings of each encoder, in order."""
        return {"encoders": [source.manifest() for source in self.sources]}


def _concatenate(arrays: Sequence[Array]) -> Array:
    """Joins (T, D) arrays along D, cut to the shortest T."""
    clips = min(map(len, arrays))
    return np.concatenate([array[:clips] for array in arrays], axis=1)


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
    checksums = file.with_suffix(".checksums.json")  # written last: narrations without it are incomplete
    if not checksums.exists():
        said = (
            Narration(scene.video_id, *sentence)
            for _, scene in scenes(world)
            for sentence in narrator.narrate(scene)
        )
        write_narrations(file, said, narrator.manifest())
        write_checksums(checksums, [file, manifest_path(file)])
    verify_checksums(
        checksums, [file, manifest_path(file)], f"Delete {checksums} to write the narrations again."
    )
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
