"""Computing each video of a batch once, however many of its rows are queries on it."""

from __future__ import annotations

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
