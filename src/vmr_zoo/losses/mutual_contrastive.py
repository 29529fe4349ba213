"""Mutual contrastive losses between moments and sentences (MMN; VDI Eq. 8)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vmr_zoo.errors import VmrError
from vmr_zoo.spans import iou, pairwise
from vmr_zoo.utils.switches import check_switches

OwnCells = Literal["dissimilar", "released"]


@check_switches
@dataclass(frozen=True)
class MutualContrast:
    """Both contrastive losses, with the cells of highest IoU with the sentence's moment as positives.

    L = -log(e(p) / (e(p) + sum over negatives n of exp(n / tau))), e(p) = exp((p - margin) / tau), where p
    and n are cosines.

    Attributes:
        positives: k, positive cells per sentence.
        margin: subtracted from the positive cosine.
        moment_temperature: tau of moment to sentence.
        sentence_temperature: tau of sentence to moment.
        negative_iou: cells of the sentence's own video are negatives below this IoU with its moment.
        sibling_iou: another sentence on the same video is not a negative if the IoU of the two moments is
            at least this.
        own_cells: which cells of the sentence's own video are negatives. "dissimilar": those below
            `negative_iou`, without the positives. "released": also those at or above `negative_iou`, with
            cosine 0; a positive below it is its own negative, and the denominator is increased by 1e-6.
        late_epoch: from this epoch on, counted from 0, both losses are multiplied by `late_factor`.
        late_factor: factor of the late epochs.
    """

    positives: int
    margin: float
    moment_temperature: float
    sentence_temperature: float
    negative_iou: float
    sibling_iou: float
    own_cells: OwnCells
    late_epoch: int
    late_factor: float

    def epoch_factor(self, epoch: int) -> float:
        """Returns the factor of both losses' weights in an epoch."""
        return self.late_factor if epoch >= self.late_epoch else 1.0

    def __call__(
        self, cosine: Tensor, video: Tensor, overlap: Tensor, spans: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Computes both losses.

        Args:
            cosine: (S, V, K) of each sentence with each candidate of each video.
            video: (S,) index of each sentence's own video among the V videos.
            overlap: (S, K) IoU of the own video's candidates with the sentence's moment.
            spans: (S, M, 2) ground-truth moments of the sentence.
            mask: (S, M) bool, True = valid.

        Returns:
            Moment to sentence (-log p^q of VDI Eq. 8) and sentence to moment (-log p^m); scalars, means over
            sentences and positives.

        Raises:
            VmrError: if the videos have fewer candidates than `positives`.
        """
        if not 1 <= self.positives <= overlap.shape[1]:
            raise VmrError(f"contrast.positives={self.positives}: a video has {overlap.shape[1]} candidates.")
        row = torch.arange(len(cosine), device=cosine.device)
        cells = overlap.topk(self.positives, 1).indices  # (S, k)
        # Cosine of every sentence with the positives of every other sentence: (S', S, k).
        of_positives = cosine[:, video.unsqueeze(1), cells]
        positive = of_positives[row, row] - self.margin

        # A sentence is among its own siblings: its IoU with itself is 1.
        sibling = (video.unsqueeze(1) == video) & (largest_moment_iou(spans, mask) >= self.sibling_iou)
        itself = row.unsqueeze(1) == row
        excluded = (sibling | itself).unsqueeze(2)
        sentences = _mask_out(of_positives / self.moment_temperature, excluded).logsumexp(0)
        moment_loss = _cross_entropy(positive / self.moment_temperature, sentences)  # Eq. 8, p^q

        own = cosine[row, video]
        similar = overlap >= self.negative_iou
        if self.own_cells == "released":
            own = own * ~similar / self.sentence_temperature
        else:
            own = _mask_out(own / self.sentence_temperature, similar.scatter(1, cells, True))
        moments = (cosine / self.sentence_temperature).index_put((row, video), own).flatten(1).logsumexp(1)
        if self.own_cells == "released":
            moments = torch.logaddexp(moments, moments.new_full((), 1e-6).log())
        sentence_loss = _cross_entropy(
            positive / self.sentence_temperature, moments.unsqueeze(1)
        )  # Eq. 8, p^m
        return moment_loss, sentence_loss


def largest_moment_iou(spans: Tensor, mask: Tensor) -> Tensor:
    """Computes the largest IoU between any moments of two sentences.

    Args:
        spans: (S, M, 2).
        mask: (S, M), True = valid.

    Returns:
        (S, S).
    """
    flat = iou(pairwise(spans.flatten(0, 1)), spans.flatten(0, 1))
    valid = mask.flatten()
    flat = flat * (valid.unsqueeze(1) & valid)
    return flat.unflatten(1, mask.shape).unflatten(0, mask.shape).amax((1, 3))


def _mask_out(logits: Tensor, where: Tensor) -> Tensor:
    """Removes logits from a logsumexp; the value is finite, so a sum over nothing has gradient 0."""
    return logits.masked_fill(where, torch.finfo(logits.dtype).min / 2)


def _cross_entropy(positive: Tensor, negatives: Tensor) -> Tensor:
    """Averages -log(e^p / (e^p + e^n)); p and n broadcast."""
    return (torch.logaddexp(positive, negatives) - positive).mean()
