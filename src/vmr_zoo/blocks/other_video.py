"""For every row of a batch, another row that can serve as its negative."""

from __future__ import annotations

import torch
from torch import Tensor

from vmr_zoo.errors import unknown

PAIRINGS = ("other_video", "rolled")


def negative_rows(video_index: Tensor, pairing: str) -> tuple[Tensor, Tensor]:
    """Pairs each row with another one.

    "other_video": the next row, cyclically, whose video is another one. "rolled": the next row (QD-DETR's
    released code), which may be about the same video and is the row itself in a batch of one.

    Args:
        video_index: (B,), equal numbers are the same video.
        pairing: one of `PAIRINGS`.

    Returns:
        rows: (B,) int64, the row itself where there is none.
        exists: (B,) bool, whether there is one.

    Raises:
        VmrError: for another pairing.
    """
    if pairing not in PAIRINGS:
        raise unknown("negative_pair", pairing, PAIRINGS)
    count = len(video_index)
    here = torch.arange(count, device=video_index.device)
    if pairing == "rolled":
        return (here + 1) % count, torch.ones_like(here, dtype=torch.bool)
    differs = video_index[:, None] != video_index[None]
    distance = ((here[None] - here[:, None]) % count).masked_fill(~differs, count)
    nearest, rows = distance.min(1)
    exists = nearest < count
    return torch.where(exists, rows, here), exists
