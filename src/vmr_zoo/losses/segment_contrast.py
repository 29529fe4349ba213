"""Contrast between ground-truth segments and enhanced sentences (MESM Eq. 4-5)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vmr_zoo.errors import unknown
from vmr_zoo.spans import giou, iou, pairwise

SIMILARITIES = ("dot", "cosine")
OVER = ("segments", "sentences")
POSITIVES = ("log_of_sum", "mean_of_logs")
OVERLAPS = ("iou", "giou")


class SegmentContrast:
    """Asks a sentence, with its generated token, to resemble its own segment and the near copies of that.

    Segments are near copies if they belong to one video and overlap by at least gamma. The first value of
    each choice is that of the equations, the second one that of the released code.
    """

    def __init__(
        self,
        *,
        gamma: float,
        temperature: float,
        similarity: str = "dot",
        over: str = "segments",
        positives: str = "log_of_sum",
        overlap: str = "iou",
    ) -> None:
        """Stores the choices.

        Args:
            gamma: overlap from which on two segments of a video count as one.
            temperature: tau.
            similarity: "dot" sums the inner products of all words with the segment; "cosine" takes the cosine
                of the mean word and the segment.
            over: what the softmax of one sentence runs over, "segments"; or of one segment, "sentences".
            positives: "log_of_sum" of the positives' probabilities, or "mean_of_logs".
            overlap: "iou" or "giou".

        Raises:
            VmrError: for an unknown choice.
        """
        for name, value, valid in (
            ("similarity", similarity, SIMILARITIES),
            ("over", over, OVER),
            ("positives", positives, POSITIVES),
            ("overlap", overlap, OVERLAPS),
        ):
            if value not in valid:
                raise unknown(f"method.contrast.{name}", value, valid)
        self.gamma, self.temperature = gamma, temperature
        self.similarity, self.over, self.positives = similarity, over, positives
        self.overlap = iou if overlap == "iou" else giou

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
        segment = (video * clips).sum(1) / clips.sum(1).clamp(min=1)  # Eq. 4
        words = (text * text_mask.unsqueeze(-1)).sum(1)
        if self.similarity == "cosine":
            segment = F.normalize(segment, dim=-1)
            words = F.normalize(words, dim=-1)  # the sum has the direction of the mean
        similarity = words @ segment.T / self.temperature  # (sentence, segment)
        positive = self.overlap(pairwise(spans), spans.unsqueeze(0)) >= self.gamma
        positive &= video_index[:, None] == video_index[None]
        positive |= torch.eye(len(spans), dtype=torch.bool, device=spans.device)
        axis = 1 if self.over == "segments" else 0
        log_probability = similarity.log_softmax(axis)
        if self.positives == "log_of_sum":
            return -log_probability.masked_fill(~positive, -torch.inf).logsumexp(axis).mean()
        return -((log_probability * positive).sum(axis) / positive.sum(axis)).mean()
