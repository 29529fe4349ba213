"""MESM's own losses: word reconstruction (Eq. 2), segment contrast (Eq. 4-5) and clip entropy (Eq. 6)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from vmr_zoo.spans import giou, iou, pairwise
from vmr_zoo.utils.switches import check_switches


def word_reconstruction(logits: Tensor, labels: Tensor, mask: Tensor, smoothing: float = 0.0) -> Tensor:
    """Computes Eq. 2: the cross-entropy of every word of a sentence, masked or not, against its label.

    Args:
        logits: (B, Lq, V).
        labels: (B, Lq) word classes.
        mask: (B, Lq), True = valid.
        smoothing: share of the label that is spread evenly over all classes; 0 in the paper.

    Returns:
        Mean over the words of a sentence, then over the sentences.
    """
    entropy = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none", label_smoothing=smoothing)
    return ((entropy * mask).sum(1) / mask.sum(1).clamp(min=1)).mean()


def clip_entropy(scores: Tensor, inside: Tensor, mask: Tensor) -> Tensor:
    """Computes Eq. 6: the binary cross-entropy of every clip against whether it is inside a moment.

    Args:
        scores: (B, Lv), s before its sigmoid.
        inside: (B, Lv), the label y.
        mask: (B, Lv), True = valid.

    Returns:
        Mean over the clips of a row, then over the rows.
    """
    entropy = F.binary_cross_entropy_with_logits(scores, inside.to(scores.dtype), reduction="none")
    return ((entropy * mask).sum(1) / mask.sum(1).clamp(min=1)).mean()


@check_switches
@dataclass(frozen=True)
class SegmentContrast:
    """Contrasts sentences, with their generated tokens, with ground-truth segments (Eq. 5).

    The positives of a sentence are its own segment and the segments of the same video that overlap it by at
    least gamma. The first value of each switch follows the equations, the second the released code.

    Attributes:
        gamma: least overlap of two segments that count as one.
        temperature: tau.
        similarity: "dot" sums the inner products of all words with the segment; "cosine" takes the cosine of
            the mean word and the segment.
        over: the softmax of a sentence runs over "segments"; or that of a segment over "sentences".
        positives: "log_of_sum" of the positives' probabilities, or "mean_of_logs".
        overlap: "iou" or "giou".
    """

    gamma: float
    temperature: float
    similarity: Literal["dot", "cosine"] = "dot"
    over: Literal["segments", "sentences"] = "segments"
    positives: Literal["log_of_sum", "mean_of_logs"] = "log_of_sum"
    overlap: Literal["iou", "giou"] = "iou"

    def __call__(
        self,
        video: Tensor,
        inside: Tensor,
        text: Tensor,
        text_mask: Tensor,
        spans: Tensor,
        video_index: Tensor,
    ) -> Tensor:
        """Computes the loss.

        Args:
            video: (B, Lv, D) projected clips, F_v.
            inside: (B, Lv) bool, the clips of each row's segment.
            text: (B, L, D) generated token and words, F_q^enh.
            text_mask: (B, L), True = valid.
            spans: (B, 2) start and end of the segment.
            video_index: (B,), equal numbers are the same video.

        Returns:
            Mean over the rows.
        """
        clips = inside.unsqueeze(-1)
        segment = (video * clips).sum(1) / clips.sum(1).clamp(min=1)  # S of Eq. 4
        words = (text * text_mask.unsqueeze(-1)).sum(1)
        if self.similarity == "cosine":
            segment = F.normalize(segment, dim=-1)
            words = F.normalize(words, dim=-1)  # the sum has the direction of the mean
        similarity = words @ segment.T / self.temperature  # the exponent of Eq. 5, (sentence, segment)
        overlap = iou if self.overlap == "iou" else giou
        positive = overlap(pairwise(spans), spans.unsqueeze(0)) >= self.gamma  # S_pos of Eq. 5
        positive &= video_index[:, None] == video_index[None]
        positive |= torch.eye(len(spans), dtype=torch.bool, device=spans.device)
        axis = 1 if self.over == "segments" else 0
        log_probability = similarity.log_softmax(axis)
        if self.positives == "log_of_sum":
            return -log_probability.masked_fill(~positive, -torch.inf).logsumexp(axis).mean()
        return -((log_probability * positive).sum(axis) / positive.sum(axis)).mean()


def moment_hull(spans: Tensor, mask: Tensor) -> Tensor:
    """Returns the interval from the first start to the last end of each row's moments, (B, 2).

    Args:
        spans: (B, N, 2).
        mask: (B, N), True = valid.
    """
    valid = mask.unsqueeze(-1)
    start = spans.masked_fill(~valid, torch.inf)[..., 0].amin(1)
    return torch.stack((start, spans.masked_fill(~valid, 0)[..., 1].amax(1)), -1)
