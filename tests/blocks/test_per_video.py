"""What depends on the video alone is computed once for each video of a batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from vmr_zoo.blocks.per_video import per_video


@pytest.mark.parametrize("training", [False, True])
def test_each_video_is_computed_once_and_every_row_in_training(training: bool) -> None:
    ids = ["a", "b", "a", "a", "c", "b"]
    clips = torch.randn(3, 4, 5)[[0, 1, 0, 0, 2, 1]]
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]]).bool()[[0, 1, 0, 0, 2, 1]]
    batch: Any = {"video": clips, "video_id": ids}
    seen: list[int] = []

    def compute(video: Tensor, valid: Tensor) -> Tensor:
        seen.append(len(video))
        return (video * valid.unsqueeze(-1)).cumsum(1)

    found = per_video(compute, batch, clips, mask, training=training)
    assert torch.equal(found, (clips * mask.unsqueeze(-1)).cumsum(1))
    assert seen == [6 if training else 3]
