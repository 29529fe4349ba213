"""The interface of video encoders: clips of a file, and their features."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np

from vmr_zoo.utils.arrays import Array
from vmr_zoo.video.ahead import ahead
from vmr_zoo.video.decode import VideoError

T = TypeVar("T")

_BATCH = 32
"""Clips per forward pass."""

_listener: ContextVar[Callable[[float], None] | None] = ContextVar("listener", default=None)


class VideoEncoder(ABC):
    """Encodes a video as one vector per clip and, optionally, patch vectors.

    Decoding and encoding are separate: a thread can decode ahead, and one batch may hold clips of several
    videos. The features of a clip do not depend on other clips.

    Attributes:
        clip_seconds: length of a clip.
        dim: size of a clip vector.
        patch_dim: size of a patch vector; None without patches.
        patches: patches per clip; None without patches.
        one_process_per_core: whether encoding runs on one core, and several processes encode in parallel;
            otherwise one process encodes batches and uses all cores or the GPU.
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
            VideoError: if the file holds no usable video, at the first or at any later clip.
        """

    @abstractmethod
    def encode(self, clips: Sequence[Any]) -> tuple[Array, Array | None]:
        """Encodes clips, possibly of several videos.

        Args:
            clips: N >= 1 items of `clips`.

        Returns:
            (N, dim) float32, and (N, patches, patch_dim) float32 or None.
        """

    @abstractmethod
    def manifest(self) -> dict[str, Any]:
        """Returns everything that determines the features, JSON-able."""


def in_clips(samples: Iterable[T], size: int) -> Iterator[list[T]]:
    """Groups the samples of a video into clips.

    Args:
        samples: evenly spaced in time.
        size: samples per clip.

    Yields:
        Lists of `size` samples; fewer in a partial last clip, which is left out if it is less than half full,
        unless it is the only one.
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


@contextmanager
def reporting(listener: Callable[[float], None]) -> Iterator[None]:
    """Calls a function during `encode_video`, however many layers above call that.

    Args:
        listener: gets the seconds of video that are encoded, after each batch; what it raises ends the
            encoding.
    """
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def encode_video(encoder: VideoEncoder, path: Path) -> Array:
    """Encodes one file, while a thread decodes the next batch of clips.

    Args:
        encoder: encodes the clips.
        path: any video that PyAV decodes.

    Returns:
        (T, dim) float32.

    Raises:
        VideoError: if the file holds no usable video or is shorter than one clip.
    """
    with closing(ahead(encoder.clips(path), _BATCH)) as clips:
        batches = iter(lambda: list(itertools.islice(clips, _BATCH)), [])
        features = []
        for batch in batches:
            features.append(encoder.encode(batch)[0])
            if (listener := _listener.get()) is not None:
                listener(sum(map(len, features)) * encoder.clip_seconds)
    if not features:
        raise VideoError("empty", f"{path} is too short for one clip of {encoder.clip_seconds:g} s.")
    return np.concatenate(features)
