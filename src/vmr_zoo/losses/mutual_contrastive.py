"""Mutual matching (MMN; VDI Eq. 8): a moment finds its sentence, a sentence its moment."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from vmr_zoo.errors import unknown
from vmr_zoo.spans import iou, pairwise

OwnCells = Literal["dissimilar", "released"]


class MutualContrast:
    """Both contrastive losses, on the same positives: the cells of highest IoU with the sentence's moment.

    L = -log(e(p) / (e(p) + sum over negatives n of exp(n / tau))), e(p) = exp((p - margin) / tau), p and n
    cosines.
    """

    def __init__(
        self,
        *,
        positives: int,
        margin: float,
        moment_temperature: float,
        sentence_temperature: float,
        negative_iou: float,
        sibling_iou: float,
        own_cells: OwnCells,
    ) -> None:
        """Stores the settings.

        Args:
            positives: k, cells per sentence.
            margin: taken off the positive cosine.
            moment_temperature: tau where a moment looks for its sentence.
            sentence_temperature: tau where a sentence looks for its moment.
            negative_iou: cells of the sentence's own video are negatives below this IoU with its moment.
            sibling_iou: another sentence on the same video is no negative if the IoU of both moments
                reaches this.
            own_cells: "dissimilar": as just said, and a positive is never a negative. "released": cells at
                or above `negative_iou` are not left out but count as negatives with cosine 0, a positive
                below it is its own negative, and 1e-6 is added to the denominator.

        Raises:
            VmrError: for an unknown `own_cells`.
        """
        if own_cells not in ("dissimilar", "released"):
            raise unknown("own_cells", own_cells, ("dissimilar", "released"))
        self.positives = positives
        self.margin = margin
        self.moment_temperature = moment_temperature
        self.sentence_temperature = sentence_temperature
        self.negative_iou = negative_iou
        self.sibling_iou = sibling_iou
        self.own_cells = own_cells

    def __call__(
        self, cosine: Tensor, video: Tensor, overlap: Tensor, spans: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Computes both losses.

        Args:
            cosine: (S, V, K) of each sentence with each candidate of each video.
            video: (S,) each sentence's own video, an index into V.
            overlap: (S, K) IoU of the own video's candidates with the sentence's moment.
            spans: (S, M, 2) the sentence's moments.
            mask: (S, M) bool, True = valid.

        Returns:
            Moment to sentences, sentence to moments; scalars, means over sentences and positives.
        """
        row = torch.arange(len(cosine), device=cosine.device)
        cells = overlap.topk(self.positives, 1).indices  # (S, k)
        # Every sentence's cosine with the positives of every other: (S', S, k).
        of_positives = cosine[:, video.unsqueeze(1), cells]
        positive = of_positives[row, row] - self.margin

        sibling = (video.unsqueeze(1) == video) & (
            truth_overlap(spans, mask) >= self.sibling_iou
        )  # the sentence itself among them: its IoU with itself is 1
        itself = row.unsqueeze(1) == row
        excluded = (sibling | itself).unsqueeze(2)
        sentences = _lowest(of_positives / self.moment_temperature, excluded).logsumexp(0)
        moment_loss = _cross_entropy(positive / self.moment_temperature, sentences)

        own = cosine[row, video]
        similar = overlap >= self.negative_iou
        if self.own_cells == "released":
            own = own * ~similar / self.sentence_temperature
        else:
            own = _lowest(own / self.sentence_temperature, similar.scatter(1, cells, True))
        moments = (cosine / self.sentence_temperature).index_put((row, video), own).flatten(1).logsumexp(1)
        if self.own_cells == "released":
            moments = torch.logaddexp(moments, moments.new_full((), 1e-6).log())
        sentence_loss = _cross_entropy(positive / self.sentence_temperature, moments.unsqueeze(1))
        return moment_loss, sentence_loss


def truth_overlap(spans: Tensor, mask: Tensor) -> Tensor:
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


def _lowest(logits: Tensor, where: Tensor) -> Tensor:
    """Takes logits out of a sum of exponentials; finite: a sum over nothing has a gradient, of 0."""
    return logits.masked_fill(where, torch.finfo(logits.dtype).min / 2)


def _cross_entropy(positive: Tensor, negatives: Tensor) -> Tensor:
    """Means of -log(e^p / (e^p + e^n)); p and n broadcast."""
    return (torch.logaddexp(positive, negatives) - positive).mean()
