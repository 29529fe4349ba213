"""SS-MESM: a complementary token for each query, generated from the video (Eq. 3) and supervised by Eq. 5."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vmr_zoo.blocks.cross_encoder import attention_mask
from vmr_zoo.methods.mesm.losses import SegmentContrast
from vmr_zoo.utils.switches import check_switches


@check_switches
@dataclass(frozen=True)
class SegmentSentence:
    """Settings of SS-MESM.

    Attributes:
        layers: cross-attention layers of the generator.
        context: the other sentences about the video are keys beside the frames, "attended" (the paper's
            text); or cannot reach the generated token, "inert", since Eq. 3 has cross-attention to frames
            only (released).
        normalise_token: scale the generated token to length 1 (released).
        contrast: the loss of Eq. 5.
    """

    layers: int
    context: Literal["attended", "inert"]
    normalise_token: bool
    contrast: SegmentContrast


def sentence_mask(mask: Tensor, video_index: Tensor, heads: int) -> Tensor:
    """Builds the released mask of Eq. 3's keys: `attention_mask`, "head_order", for the row's own sentence.

    There the queries of a row are all sentences of its video, padded to the most sentences of a video.

    Args:
        mask: (B, L), True = valid.
        video_index: (B,), equal numbers are sentences about the same video.
        heads: H.

    Returns:
        (B, H, 1, L), True = may be attended to.
    """
    same = video_index[:, None] == video_index[None]
    own = same.tril(-1).sum(1)  # the place of a row's sentence among those of its video
    place = torch.arange(len(mask), device=mask.device)
    allowed = attention_mask(place < same.sum(1, keepdim=True), mask, heads, "head_order")
    return allowed.gather(2, own[:, None, None, None].expand(-1, heads, 1, mask.shape[1]))
