"""Computing each video of a batch once, however many of its rows are queries on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from vmr_zoo.types import Batch


class Distinct(NamedTuple):
    """The distinct videos of a batch.

    Attributes:
        first: (V,) the first row of each.
        video: (B,) which of them each row is on.
    """

    first: Tensor
    video: Tensor


def distinct_videos(batch: Batch) -> Distinct:
    """Finds the distinct videos; the ids lie on the host, so that no device has to be waited for."""
    number: dict[str, int] = {}
    first, video = [], []
    for row, video_id in enumerate(batch["video_id"]):
        if video_id not in number:
            number[video_id] = len(number)
            first.append(row)
        video.append(number[video_id])
    device = batch["video"].device
    return Distinct(*(torch.tensor(x).to(device, non_blocking=True) for x in (first, video)))


def per_video(
    compute: Callable[..., Tensor], batch: Batch, *inputs: Tensor, training: bool = False
) -> Tensor:
    """Computes what depends on a row's video alone, once for each video of the batch.

    Args:
        compute: row by row, of tensors (V, ...).
        batch: whose videos.
        inputs: (B, ...) each, equal in rows on the same video.
        training: compute every row, since each draws a dropout of its own.

    Returns:
        What `compute` makes of the inputs, (B, ...).
    """
    if training or torch.compiler.is_compiling():  # compiled code would be made anew for every batch's ids
        return compute(*inputs)
    first, video = distinct_videos(batch)
    if len(first) == len(video):
        return compute(*inputs)
    return compute(*(x[first] for x in inputs))[video]
