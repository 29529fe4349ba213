"""What every encoder of raw video offers: clips of a file, and their features."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np

from vmr_zoo.video.decode import VideoError

Array = np.ndarray[Any, np.dtype[Any]]
T = TypeVar("T")


class VideoEncoder(ABC):
    """Turns a video into one vector per clip, and into patch vectors where it has any.

    Decoding and encoding are apart, so that a thread can decode ahead, and so that one batch may hold clips
    of several videos: a clip's features do not depend on the clips beside it.

    Attributes:
        clip_seconds: length of a clip.
        dim: size of a clip vector.
        patch_dim: size of a patch vector; None without patches.
        patches: patches per clip; None without patches.
        one_process_per_core: whether encoding is one core's work, of which several processes do several;
            otherwise one process encodes batches, and uses the cores or the GPU by itself.
    """

    clip_seconds: float
    dim: int
    patch_dim: int | None
    patches: int | None
    one_process_per_core: ClassVar[bool] = False

    @abstractmethod
    def clips(self, path: Path) -> Iterator[Any]:
        """Decodes a file and prepares it for `encode`, one item per clip, in order.

        Raises:
            VideoError: if the file holds no usable video, at the start or at any later clip.
        """

    @abstractmethod
    def encode(self, clips: Sequence[Any]) -> tuple[Array, Array | None]:
        """Encodes clips, which may stem from several videos.

        Args:
            clips: N >= 1 items of `clips`.

        Returns:
            (N, dim) float32, and (N, patches, patch_dim) float32 or None.
        """

    @abstractmethod
    def manifest(self) -> dict[str, Any]:
        """Returns everything that decides the features, JSON-able."""


def in_clips(samples: Iterable[T], size: int) -> Iterator[list[T]]:
    """Groups the samples of a video into clips.

    Args:
        samples: evenly spaced in time.
        size: samples per clip.

    Yields:
        Lists of `size` samples; of a last clip that the video does not fill those that there are, if it fills
        at least half of it or is the only one.
    """
    clip: list[T] = []
    only = True
    for item in samples:
        clip.append(item)
        if len(clip) == size:
            yield clip
            clip, only = [], False
    if clip and (only or 2 * len(clip) >= size):
        yield clip


def encode_video(encoder: VideoEncoder, path: Path, batch_size: int = 32) -> Array:
    """Encodes one file, holding no more than a batch of clips.

    Args:
        encoder: what turns clips into features.
        path: any video that PyAV decodes.
        batch_size: clips that are encoded together.

    Returns:
        (T, dim) float32.

    Raises:
        VideoError: if the file holds no usable video, or none of a clip's length.
    """
    clips = encoder.clips(path)
    batches = iter(lambda: list(itertools.islice(clips, batch_size)), [])
    features = [encoder.encode(batch)[0] for batch in batches]
    if not features:
        raise VideoError("empty", f"{path} is too short for one clip of {encoder.clip_seconds:g} s.")
    return np.concatenate(features)
