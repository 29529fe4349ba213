"""Finds moments in a video file without any training, by the similarity of clips and sentence.

    retriever = load_zero_shot("clip_vit_b32")
    video = retriever.encode("clip.mp4")      # the interface of a trained run, `Retriever.from_run`
    for moment in video.search("a red circle"):
        print(moment.start, moment.end, moment.score)

An image-text model encodes clips and sentences into one space, and `method=clip_zero_shot` proposes moments.
What a selection split would choose for it, smoothing and power, is set in `conf/zero_shot`. The score of the
best moment of a video is its mean cosine similarity, so moments of different videos can be ranked together.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from omegaconf import OmegaConf

from vmr_zoo.config.compose import build, compose
from vmr_zoo.data.features.feature_set import FeatureSet
from vmr_zoo.data.features.queries import EncodedQueries
from vmr_zoo.data.features.source import VideoSource
from vmr_zoo.data.text.encoder import TextEncoder
from vmr_zoo.engine.index import VideoIndex
from vmr_zoo.engine.retriever import Retriever
from vmr_zoo.errors import VmrError
from vmr_zoo.utils.arrays import Array
from vmr_zoo.video.encoder import VideoEncoder, encode_video
from vmr_zoo.video.torch_models import find_device

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from vmr_zoo.methods.base import Method

DEFAULT = "clip_vit_b32"
"""The member of `conf/zero_shot` that is used when nothing else is named."""


def load_zero_shot(name: str = DEFAULT, *overrides: str) -> Retriever:
    """Builds a zero-shot retriever by name.

    Args:
        name: a member of `conf/zero_shot`.
        overrides: of `vmr predict`, such as "zero_shot.pretrained=FILE" or "paths.cache=DIR".

    Raises:
        VmrError: as `build_zero_shot`.
        hydra.errors.HydraException: for an unknown name or key.
    """
    return build_zero_shot(compose("predict", [f"zero_shot={name}", *overrides]).zero_shot)


def build_zero_shot(node: DictConfig, window_seconds: float | None = None) -> Retriever:
    """Builds the retriever of a node of `conf/zero_shot`.

    Args:
        node: the node.
        window_seconds: length of search windows; None: as in the node.

    Raises:
        VmrError: if the weights of the image-text model cannot be loaded; says how to point at a file.
    """
    built: DictConfig = node.retriever
    if window_seconds is not None:
        built = cast("DictConfig", OmegaConf.merge(built, {"window_seconds": window_seconds}))
    try:
        retriever: Retriever = build(built)
    except VmrError as error:
        raise VmrError(
            f"The image-text model of zero_shot={node.name} cannot be used: {error}\n"
            "Here these keys are zero_shot.model (a name of open_clip, or local-dir:FOLDER) and "
            "zero_shot.pretrained (a tag, downloaded once, or a file of weights copied here)."
        ) from error
    return retriever


def zero_shot_retriever(
    encoder: VideoEncoder,
    text_encoder: TextEncoder,
    method: Method,
    *,
    name: str,
    cache: str | Path | None = None,
    window_seconds: float | None = None,
    device: str | None = None,
) -> Retriever:
    """Builds a retriever from the two towers of an image-text model.

    Args:
        encoder: encodes clips.
        text_encoder: encodes sentences, in the space of `encoder`.
        method: a `ClipZeroShot` with one smoothing and one power.
        name: of the image-text model, in messages.
        cache: folder of the index of videos; None: videos are not remembered.
        window_seconds: a longer video is searched in windows of this length; None: never.
        device: of the method; None: a GPU if there is one.

    Returns:
        The interface of a trained run.

    Raises:
        VmrError: if clips and sentences have vectors of different sizes, or a window is not longer than 0 s.
    """
    if encoder.dim != text_encoder.dim:
        raise VmrError(
            f"{name} encodes clips as {encoder.dim} numbers and sentences as {text_encoder.dim}: they are in "
            "no common space. Take both towers of one image-text model (zero_shot.model)."
        )
    query = EncodedQueries(text_encoder, normalise=False, max_tokens=None)
    features = FeatureSet(
        name=name,
        origin="real",
        video_dim=encoder.dim,
        query_dim=query.dim,
        clip_seconds=encoder.clip_seconds,
        video=NewVideos(encoder),
        query=query,
        joint_space=name,
    )
    index = None if cache is None else VideoIndex(cache, features.video)
    return Retriever(method, features, device=find_device(device), window_seconds=window_seconds, index=index)


class NewVideos(VideoSource):
    """Clip vectors of any video file, by one encoder."""

    encodes = True

    def __init__(self, encoder: VideoEncoder) -> None:
        self.encoder = encoder
        self.dim = encoder.dim

    def encode(self, path: Path) -> Array:
        """Computes (T, dim) float32 for a video file."""
        return encode_video(self.encoder, path)

    def load(self, video_id: str) -> Array:
        """Raises an error: nothing is stored."""
        raise VmrError(f"No features are stored under the id '{video_id}': encode its file.")

    def manifest(self) -> dict[str, Any]:
        """Returns the encoder's settings."""
        return self.encoder.manifest()
