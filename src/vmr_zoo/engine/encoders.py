"""Encodes new videos and sentences for runs that were trained on published feature files.

The files name the networks that made them (`backbone` in `conf/features`); `conf/encoders` says how to
compute the same here. A run on files of other networks cannot be asked about a new video.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig

from vmr_zoo.config.compose import build, compose
from vmr_zoo.data.features.feature_set import FeatureSet
from vmr_zoo.data.features.files import FileFeatures, QueryFiles, VideoFiles
from vmr_zoo.data.features.manifest import present_name
from vmr_zoo.data.features.packed import PackedVideos
from vmr_zoo.data.features.queries import EncodedQueries
from vmr_zoo.errors import VmrError
from vmr_zoo.utils.arrays import Array, l2_normalise
from vmr_zoo.video.encoder import VideoEncoder, encode_video

log = logging.getLogger(__name__)

_STORED = "float16"
"""The published files hold float16."""


class EncodedVideoFiles(VideoFiles):
    """The files of several backbones, with the encoders that make the same of a new video."""

    encodes = True

    def __init__(self, files: VideoFiles, encoders: Sequence[VideoEncoder]) -> None:
        """Stores the parts.

        Args:
            files: as in training.
            encoders: one for each of its sources.
        """
        super().__init__(files.sources, files.max_clips, files.overlong, files.bin_edges)
        self.encoders = list(encoders)

    def encode(self, path: Path) -> Array:
        """Computes (T, dim) float32 for a video file; a long video is pooled as in training, but never cut.

        Raises:
            VideoError: if the file cannot be decoded.
        """
        arrays = []
        for source, encoder in zip(self.sources, self.encoders, strict=True):
            clips = encode_video(encoder, path).astype(_STORED).astype(np.float32)
            arrays.append(l2_normalise(clips, source.epsilon) if source.normalise else clips)
        return self.concatenate(arrays)

    def encoding(self) -> dict[str, Any]:
        """Returns the treatment of the files, and each encoder's settings."""
        return {**self.manifest(), "encoders": [encoder.manifest() for encoder in self.encoders]}


def with_encoders(features: FeatureSet, run: Path, nodes: DictConfig | None = None) -> FeatureSet:
    """Gives ready-made features the encoders of their backbones.

    Args:
        features: of a run, of which clips or sentences come from files.
        run: the run, for messages.
        nodes: configuration nodes by backbone; None: those of `conf/encoders/published.yaml`.

    Returns:
        The same features; `encode` of clips and sentences works.

    Raises:
        VmrError: if there is no encoder for a backbone, or it cannot be built.
    """
    nodes = compose("predict", []).encoders if nodes is None else nodes
    video = features.video.source if isinstance(features.video, PackedVideos) else features.video
    query = features.query
    changed: dict[str, Any] = {}
    made = []
    if not video.encodes:
        sources = video.sources if isinstance(video, VideoFiles) else []
        names = [_encoder_name(source, features, nodes, run, "clips") for source in sources]
        if not names:
            raise _unknown(run, features, "clips", type(video).__name__, nodes)
        if features.clip_seconds is None:
            raise _unknown(run, features, "clips", "of no fixed length in seconds", nodes)
        length = {"clip_seconds": features.clip_seconds}
        encoders = [_build(nodes, name, length) for name in names]
        for source, encoder, name in zip(sources, encoders, names, strict=True):
            _check_size(source, encoder.dim, name)
        assert isinstance(video, VideoFiles)
        changed["video"] = EncodedVideoFiles(video, encoders)
        made += names
    if not query.encodes:
        if not isinstance(query, QueryFiles):
            raise _unknown(run, features, "sentences", "stored text", nodes)
        name = _encoder_name(query.source, features, nodes, run, "sentences")
        text = _build(nodes, name, {})
        _check_size(query.source, text.token_dim, name)
        changed["query"] = EncodedQueries(text, query.source.normalise, query.max_tokens)
        made.append(name)
    if not changed:
        raise _unknown(run, features, "sentences", "narration_query", nodes)
    log.warning(
        f"{run} was trained on published files (features={features.name}). New videos are encoded here by "
        f"{', '.join(made)}, as docs/extract.md describes; the vectors were not compared with those files."
    )
    return replace(features, **changed)


def _encoder_name(
    source: FileFeatures, features: FeatureSet, nodes: Mapping[str, Any], run: Path, part: str
) -> str:
    """Returns the name of the encoder of a source."""
    name = present_name(source.backbone, features.name.split(" ")[0])
    if name not in nodes or source.part != "vector" or source.layer is not None:
        raise _unknown(run, features, part, name, nodes)
    return name


def _build(nodes: DictConfig, name: str, given: Mapping[str, Any]) -> Any:
    node = nodes[name].copy()
    node.update(given)
    try:
        return build(node)
    except VmrError as error:
        raise VmrError(
            f"The encoder {name} of the run's features cannot be used: {error}\nHere its keys are "
            f"encoders.{name}.…, such as encoders.slowfast_r50.weights=FILE."
        ) from error


def _check_size(source: FileFeatures, dim: int, name: str) -> None:
    if dim != source.dim:
        raise VmrError(
            f"The run's features of {source.backbone} have {source.dim} numbers; the encoder {name} yields "
            f"{dim}. Set encoders.{name}.… to the network that made them."
        )


def _unknown(run: Path, features: FeatureSet, part: str, found: str, nodes: Mapping[str, Any]) -> VmrError:
    return VmrError(
        f"{run} was trained on features={features.name}, whose {part} come from ready-made files ({found}): "
        f"here only {', '.join(map(str, nodes))} can be computed for a new video. Train on features made "
        "here (`vmr extract`, then features=extracted; docs/extract.md), and use that run."
    )
