"""Per-video computation: what depends on the video alone is computed once for all its queries in a batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from vmr_zoo.types import Batch


class UniqueVideos(NamedTuple):
    """The distinct videos of a batch.

    Attributes:
        first: (V,) the first row of each video.
        video: (B,) index of each row's video, 0 to V - 1.
    """

    first: Tensor
    video: Tensor


def unique_videos(batch: Batch) -> UniqueVideos:
    """Finds the distinct videos by their ids, which are on the host: no device synchronisation."""
    number: dict[str, int] = {}
    first, video = [], []
    for row, video_id in enumerate(batch["video_id"]):
        if video_id not in number:
            number[video_id] = len(number)
            first.append(row)
        video.append(number[video_id])
    device = batch["video"].device
    return UniqueVideos(*(torch.tensor(x).to(device, non_blocking=True) for x in (first, video)))


def per_video(
    compute: Callable[..., Tensor], batch: Batch, *inputs: Tensor, training: bool = False
) -> Tensor:
    """Applies a function once per distinct video of the batch instead of once per row.

    Args:
        compute: a function of tensors (V, ...) that treats rows independently.
        batch: the batch.
        inputs: (B, ...) each, equal in rows on the same video.
        training: compute every row, since each has its own dropout.

    Returns:
        The result of `compute` for every row, (B, ...).
    """
    if training or torch.compiler.is_compiling():  # video ids would trigger recompilation in every batch
        return compute(*inputs)
    first, video = unique_videos(batch)
    if len(first) == len(video):
        return compute(*inputs)
    return compute(*(x[first] for x in inputs))[video]
