"""What every encoder of raw video offers: clips of a file, and their features."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


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
