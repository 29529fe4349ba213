"""Features written by `vmr extract`, described by the manifests beside them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vmr_zoo.data.features.files import FileFeatures, VideoFiles
from vmr_zoo.data.features.problems import FeatureError
from vmr_zoo.data.features.store import FileStore
from vmr_zoo.errors import VmrError
from vmr_zoo.utils.arrays import Array, l2_normalise
from vmr_zoo.utils.hashing import content_hash
from vmr_zoo.utils.trees import through_json
from vmr_zoo.video.encoder import VideoEncoder, encode_video
from vmr_zoo.video.manifest import (
    MANIFEST_NAME,
    build_encoder,
    check_target,
    combined_entry,
    feature_settings,
    read_manifest,
)


class ExtractedVideos(VideoFiles):
    """Clip vectors of one or several folders, concatenated in the declared order, cut to the shortest.

    Attributes:
        encoders: the configuration node of each folder's encoder.
    """

    encodes = True

    def __init__(
        self,
        folders: Sequence[str | Path],
        encoders: Sequence[Mapping[str, Any]],
        normalise: bool,
        max_clips: int | None = None,
        overlong: Literal["truncate", "mean_pool"] = "truncate",
    ) -> None:
        """Reads the manifests.

        Args:
            folders: folders written by `vmr extract`, in the order of concatenation.
            encoders: the nodes of their encoders, `${extracted:encoders,…}`.
            normalise: whether to L2-normalise the vectors of each folder separately.
            max_clips: longest video in clips.
            overlong: treatment of longer videos.

        Raises:
            VmrError: if a folder has no manifest, clips differ in length, or an encoder is not part of this
                package.
        """
        combined_entry("clip_seconds", folders)  # refuses clips of different lengths
        self.manifests = [read_manifest(folder) for folder in folders]
        self.encoders = list(encoders)
        self.normalise = normalise
        # Not compared with the nodes in the manifests: this machine may store the weights elsewhere.
        for node in self.encoders:
            check_target(node.get("_target_"), "features.video.encoders")
        super().__init__(
            [
                FileFeatures(
                    manifest["backbone"],
                    manifest["dim"],
                    _DescribedFiles(folder, "features", manifest["dtype"], (manifest["dim"],)),
                    normalise,
                )
                for folder, manifest in zip(folders, self.manifests, strict=True)
            ],
            max_clips,
            overlong,
        )
        backbones = re.sub(r"[^\w.-]+", "_", "_".join(source.backbone for source in self.sources))
        digest = content_hash(json.dumps(self._settings(), sort_keys=True)).hex()
        self.content = f"{backbones}-{digest[:8]}"

    def _settings(self) -> list[dict[str, Any]]:
        """Returns each folder's manifest without the node of its encoder, which holds paths of weights."""
        return [{k: value for k, value in manifest.items() if k != "encoder"} for manifest in self.manifests]

    @cached_property
    def _built(self) -> list[VideoEncoder]:
        """The encoders, each compared with the manifest of its folder."""
        built = []
        for node, manifest in zip(self.encoders, self.manifests, strict=True):
            encoder = build_encoder(node)
            now = through_json(feature_settings(encoder, manifest["dtype"]))
            differing = [key for key in now if now[key] != manifest.get(key)]
            if differing:
                listed = "; ".join(f"{key}: {manifest.get(key)!r}, now {now[key]!r}" for key in differing)
                raise VmrError(
                    f"The encoder {manifest['backbone']} is not the one that made the features of the run: "
                    f"{listed}. Give it the same weights (features.video.encoders in the run's config.yaml)."
                )
            built.append(encoder)
        return built

    def encode(self, path: Path) -> Array:
        """Computes (T, dim) float32 for a video file, with the encoders of the folders.

        A long video is pooled as in training, but never cut.

        Raises:
            VideoError: if the file cannot be decoded.
            VmrError: if an encoder is not the one that made the features.
        """
        arrays = []
        for encoder, manifest in zip(self._built, self.manifests, strict=True):
            clips = encode_video(encoder, path).astype(manifest["dtype"]).astype(np.float32)
            arrays.append(l2_normalise(clips) if self.normalise else clips)
        return self.concatenate(arrays)

    def manifest(self) -> dict[str, Any]:
        """Returns the order, the treatment of long videos, and each folder's manifest."""
        return {**super().manifest(), "encoders": self._settings()}


class ExtractedPatches(VideoFiles):
    """Patch vectors of the one folder that has them, with as many clips as the clip vectors."""

    def __init__(self, folders: Sequence[str | Path]) -> None:
        """Finds the folder with patches.

        Args:
            folders: all folders of `ExtractedVideos`; the shortest determines the number of clips.

        Raises:
            VmrError: if not exactly one folder has patches.
        """
        dim = combined_entry("patch_dim", folders)
        if dim is None:
            raise VmrError(f"No folder has patch features: {', '.join(map(str, folders))}.")
        manifests = [read_manifest(folder) for folder in folders]
        place = next(number for number, manifest in enumerate(manifests) if manifest["patches"] is not None)
        self.found = manifests[place]
        super().__init__([_PatchFiles(folders[place], self.found)])
        others = [folder for number, folder in enumerate(folders) if number != place]
        self._lengths = [FileStore(folder, ".npz", key="features") for folder in others]

    def load(self, video_id: str) -> Array:
        """Returns (T, P, dim) float32; T is the length in the shortest folder.

        Raises:
            FeatureError: if a file is missing or cannot be used.
        """
        patches = super().load(video_id)
        return patches[: min([len(patches), *(len(store.read(video_id)[0]) for store in self._lengths)])]

    def manifest(self) -> dict[str, Any]:
        """Returns the order and the folder's manifest."""
        settings = {key: value for key, value in self.found.items() if key != "encoder"}
        return {**super().manifest(), "encoder": settings}


def extracted_patches(folders: Sequence[str | Path]) -> ExtractedPatches | None:
    """Returns the patch features of the one folder that has them; None if no folder has any.

    Args:
        folders: all folders of `ExtractedVideos`.
    """
    return None if combined_entry("patches", folders) is None else ExtractedPatches(folders)


class _PatchFiles(FileFeatures):
    """Patch vectors as `vmr extract` stores them: (T, P, dim), without a token for the whole frame."""

    def __init__(self, folder: str | Path, manifest: Mapping[str, Any]) -> None:
        dim = manifest["patch_dim"]
        store = _DescribedFiles(folder, "patches", "float16", (manifest["patches"], dim))
        super().__init__(manifest["backbone"], dim, store, normalise=False)
        self.part = "patches"

    def read(self, identifier: str) -> Array:
        """Reads one id's patches: (T, P, dim) float32."""
        array, where = self.store.read(identifier)
        array = array.astype(np.float32)
        if not np.isfinite(array).all():
            raise FeatureError("not finite", f"{where} holds NaN or infinite values.")
        return array


class _DescribedFiles(FileStore):
    """The files of a folder, each of which must be what the manifest beside it says."""

    def __init__(self, folder: str | Path, key: str, dtype: str, shape: tuple[int, ...]) -> None:
        """Stores the expectation.

        Args:
            folder: written by `vmr extract`.
            key: "features" or "patches".
            dtype: of all arrays.
            shape: of all arrays, without the first axis, the clips.
        """
        super().__init__(folder, ".npz", key=key)
        self._dtype, self._shape = dtype, shape

    def read(self, identifier: str) -> tuple[Array, str]:
        """Reads one array as `FileStore` does.

        Raises:
            FeatureError: also if the type or the shape is another one.
        """
        array, where = super().read(identifier)
        if array.dtype.name != self._dtype or array.ndim == 0 or array.shape[1:] != self._shape:
            expected = ", ".join(("T", *map(str, self._shape)))
            raise FeatureError(
                "dimension",
                f"{where} has {array.dtype} of shape {array.shape}; {self.folder / MANIFEST_NAME} says "
                f"{self._dtype} of shape ({expected}). Copy both from one extraction, or extract again.",
            )
        return array, where
