"""Background-aware moment detection (BMD): frames weighted by how well they match the query, Eq. 1-8, 16."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from vmr_zoo.utils.switches import check_switches


class FrameQueryMatcher(nn.Module):
    """Probabilistic frame-query matcher, PFM, Eq. 5: sigma(tanh(f W1) W2), without biases."""

    def __init__(self, dim: int) -> None:
        """Builds W1 (D, D / 2) and W2 (D / 2, 1)."""
        super().__init__()
        self.w1 = nn.Linear(dim, dim // 2, bias=False)
        self.w2 = nn.Linear(dim // 2, 1, bias=False)

    def forward(self, frames: Tensor) -> Tensor:
        """Maps frame features (B, Lv, D) to probabilities (B, Lv)."""
        return self.w2(self.w1(frames).tanh()).squeeze(-1).sigmoid()  # Eq. 5


class WeightedFrames(NamedTuple):
    """The frame probabilities and the frames that they weight.

    Attributes:
        positive: (B, Lv) P(f | Q+), Eq. 4.
        negative: (B, Lv) P(f | Q-), Eq. 4; 0 in rows without a negative query. None if no row has one.
        joint: (B, Lv) p, Eq. 6; 0 on padding.
        attention: (B, Lv) o, Eq. 7.
        weighted: (B, Lv, D) v'+, Eq. 8.
    """

    positive: Tensor
    negative: Tensor | None
    joint: Tensor
    attention: Tensor
    weighted: Tensor


@check_switches
@dataclass(frozen=True)
class FrameWeighting:
    """How the frame probabilities weight the frames.

    Attributes:
        negatives: train with negative queries. Without them the joint probability is P(f | Q+) (Table 9).
        frame_softmax: Eq. 7 over the valid clips ("masked", paper) or over the padded length ("padded",
            released), where the result depends on the rest of the batch.
        frame_weight: "softmax" is Eq. 8 to the letter: the weights sum to 1, which shrinks the features by
            the number of clips. "softmax_times_length" rescales them to mean weight 1.
    """

    negatives: bool
    frame_softmax: Literal["masked", "padded"]
    frame_weight: Literal["softmax", "softmax_times_length"]

    def weigh(
        self, frames: Tensor, video_mask: Tensor, positive: Tensor, negative: Tensor | None
    ) -> WeightedFrames:
        """Computes Eq. 6-8.

        Args:
            frames: (B, Lv, D) v+.
            video_mask: (B, Lv), True = valid.
            positive: (B, Lv) P(f | Q+).
            negative: (B, Lv) P(f | Q-), or None.
        """
        joint = positive if negative is None else positive * (1 - negative)  # Eq. 1 and 6
        joint = joint * video_mask
        if self.frame_softmax == "masked":
            attention = joint.masked_fill(~video_mask, -torch.inf).softmax(1)  # Eq. 7
        else:
            attention = joint.softmax(1)  # Eq. 7 as released
        weight = attention
        if self.frame_weight == "softmax_times_length":
            weight = weight * video_mask.sum(1, keepdim=True)
        weighted = weight.unsqueeze(-1) * frames  # Eq. 8
        return WeightedFrames(positive, negative, joint, attention, weighted)


def frame_probability_loss(probability: Tensor, inside: Tensor, video_mask: Tensor) -> Tensor:
    """Frame probability loss, Eq. 16: encourages a high probability inside the moments and a low one outside.

    Args:
        probability: (B, Lv) in [0, 1].
        inside: (B, Lv) bool, the clips inside a moment.
        video_mask: (B, Lv), True = valid.

    Returns:
        Mean over the rows of 1 - (mean probability inside) + (mean probability outside). A mean over no clips
        counts as 0.
    """
    outside = ~inside & video_mask
    high = (probability * inside).sum(1) / inside.sum(1).clamp(min=1)
    low = (probability * outside).sum(1) / outside.sum(1).clamp(min=1)
    return (1 - high + low).mean()  # Eq. 16
