"""BiasQuery: moments that training sentences of similar meaning had; ignores the video.

How much of a score does the sentence alone explain? Following Yuan et al. 2021, "A Closer Look at Temporal
Sentence Grounding in Videos: Dataset and Metric", https://arxiv.org/abs/2101.09028, whose baseline draws from
the density of all training moments (`bias_kde`), this one conditions the density on the sentence. The
conditional density is the usual kernel estimate (Rosenblatt 1969; Hall, Racine and Li 2004, "Cross-Validation
and the Estimation of Conditional Probability Densities"): a Gaussian kernel over normalised (start, end), and
weights that fall with the distance of the sentences.

    density(c | q) = sum_i w_i(q) exp(-|c - m_i|^2 / (2 h^2)),   w_i(q) = softmax_i(cos(q, q_i) / t)

A sentence is the mean of its token vectors minus the mean over the training sentences. Candidates c are
training moments. The bandwidth h and the temperature t are those whose first answer has the highest mean IoU
on training sentences, each answered from the sentences about other videos.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vmr_zoo.errors import VmrError
from vmr_zoo.methods.base import Training
from vmr_zoo.methods.one_pass import OnePass
from vmr_zoo.spans import iou, nms
from vmr_zoo.types import Batch, Prediction

BANDWIDTHS = (0.02, 0.04, 0.08, 0.12, 0.16, 0.24)
"""Standard deviations of the kernel over moments, in fractions of the video."""

TEMPERATURES = (0.02, 0.04, 0.08, 0.16, 0.32, 1.0)
"""Divisors of the cosine similarity; the largest is close to equal weights."""

_LEFT_OUT = 1000
"""Training sentences that choose bandwidth and temperature, at equal distances in the training split."""

_CANDIDATES = 1000
"""Candidate moments, at equal distances in the sorted distinct training moments."""

_NMS_IOU = 0.7
_STORED = ("moments", "sentences", "centre", "widths")


class BiasQuery(OnePass):
    """Answers from the sentence alone; has no trainable parameters.

    Attributes:
        moments: (N, 2) the normalised training moments.
        sentences: (N, D) the unit vectors of their sentences.
        centre: (D,) the mean sentence, subtracted before vectors get unit length.
        widths: (2,) bandwidth and temperature. All four are buffers and part of checkpoints.
        candidates: (C, 2) distinct training moments, sorted.
        kernel: (N, C) the kernel between training moments and candidates; both follow from the others.
    """

    moments: Tensor
    sentences: Tensor
    centre: Tensor
    widths: Tensor
    candidates: Tensor
    kernel: Tensor

    def __init__(
        self,
        *,
        training: Training,
        bandwidths: Sequence[float] = BANDWIDTHS,
        temperatures: Sequence[float] = TEMPERATURES,
        samples: int = 10,
    ) -> None:
        """Starts without a density; one pass over the training split provides it.

        Args:
            training: what validation computes.
            bandwidths: bandwidths to choose from.
            temperatures: temperatures to choose from.
            samples: number of moments per query, at least 5.

        Raises:
            VmrError: if `samples` is below 5, or a bandwidth or a temperature is not positive.
        """
        super().__init__(training, samples)
        for key, values in (("bandwidths", bandwidths), ("temperatures", temperatures)):
            if not values or min(values) <= 0:
                raise VmrError(f"Expected positive numbers in method.{key}, found {list(values)}.")
        self.bandwidths, self.temperatures = list(bandwidths), list(temperatures)
        for name in _STORED:
            self.register_buffer(name, torch.zeros(0))
        for name in ("candidates", "kernel"):
            self.register_buffer(name, torch.zeros(0), persistent=False)
        self._seen: list[tuple[Tensor, Tensor, list[str]]] = []

    def training_step(self, batch: Batch, batch_idx: int) -> None:  # type: ignore[override]
        """Collects the sentences and moments of one batch."""
        row, place = batch["span_mask"].nonzero(as_tuple=True)
        videos = [batch["video_id"][index] for index in row.tolist()]
        self._seen.append((_mean_tokens(batch)[row], batch["spans"][row, place], videos))

    def on_validation_epoch_start(self) -> None:
        """Fits the density after the training split, before the selection split."""
        if self._seen:
            sentences, moments, videos = zip(*self._seen, strict=True)
            self.fit_density(torch.cat(sentences), torch.cat(moments), list(itertools.chain(*videos)))
            self._seen.clear()

    def fit_density(self, sentences: Tensor, moments: Tensor, videos: Sequence[str]) -> None:
        """Stores the training moments, and chooses bandwidth and temperature.

        Args:
            sentences: (N, D) mean token vectors.
            moments: (N, 2) their normalised moments.
            videos: N video ids: a sentence is answered without those about its own video.

        Raises:
            VmrError: if all sentences are about one video.
        """
        number = {video: place for place, video in enumerate(sorted(set(videos)))}
        if len(number) < 2:
            raise VmrError(
                f"Expected training sentences about two or more videos, found {len(number)}. bias_query "
                "answers each from the sentences about the others to choose its kernel."
            )
        # Batches arrive in random order; sorted rows make the sums of floats the same for every order.
        index = torch.tensor([number[video] for video in videos], device=moments.device)
        sums = sentences.double().sum(1)
        order = _sorted_rows(torch.stack((index.double(), *moments.double().unbind(1), sums), 1))
        index, self.moments = index[order], moments[order].float()
        self.centre = sentences[order].double().mean(0).float()
        self.sentences = self._unit(sentences[order])
        self.candidates = self._candidates()
        self.widths = self._choose_widths(index)
        self.kernel = self._kernel(float(self.widths[0]))

    def _choose_widths(self, videos: Tensor) -> Tensor:
        """Returns (bandwidth, temperature) with the best first answers to training sentences.

        Args:
            videos: (N,) number of the video of each training sentence.
        """
        left_out = _spread(len(videos), _LEFT_OUT, videos.device)
        similarity = self.sentences[left_out] @ self.sentences.T
        similarity = similarity.masked_fill(videos[left_out][:, None] == videos, -torch.inf)
        best, chosen = -1.0, (self.bandwidths[0], self.temperatures[0])
        for bandwidth in self.bandwidths:
            kernel = self._kernel(bandwidth)
            for temperature in self.temperatures:
                density = (similarity / temperature).softmax(1) @ kernel
                answer = self.candidates[density.argmax(1)]
                reached = iou(answer, self.moments[left_out]).mean().item()
                if reached > best:
                    best, chosen = reached, (bandwidth, temperature)
        return torch.tensor(chosen, device=videos.device)

    def _candidates(self) -> Tensor:
        """Returns (C, 2) distinct training moments, sorted."""
        distinct = self.moments.unique(dim=0)
        return distinct[_spread(len(distinct), _CANDIDATES, distinct.device)]

    def _kernel(self, bandwidth: float) -> Tensor:
        return torch.exp(-0.5 * (torch.cdist(self.moments, self.candidates) / bandwidth) ** 2)

    def _unit(self, sentences: Tensor) -> Tensor:
        return F.normalize(sentences.float() - self.centre, dim=1)

    def predict(self, batch: Batch, *, details: bool = False) -> Prediction:
        """Ranks training moments by their density given the sentence, after NMS; there are no details."""
        if not len(self.moments):
            raise VmrError(
                "bias_query has seen no training sentences. Train it first: vmr train method=bias_query …"
            )
        similarity = self._unit(_mean_tokens(batch)) @ self.sentences.T
        density = (similarity / float(self.widths[1])).softmax(1) @ self.kernel
        missing = max(0, self.samples - len(self.candidates))
        spans = F.pad(self.candidates, (0, 0, 0, missing)).expand(len(density), -1, -1)
        kept, scores = nms(spans, F.pad(density, (0, missing)), _NMS_IOU, keep=self.samples)
        return {"spans": kept, "scores": scores}

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        """Resizes the buffers to the number of sentences in the checkpoint."""
        for name in _STORED:
            stored = state_dict.get(f"{prefix}{name}")
            if isinstance(stored, Tensor):
                setattr(self, name, torch.zeros_like(stored))
        super()._load_from_state_dict(state_dict, prefix, *args)
        if len(self.moments):
            self.candidates = self._candidates()
            self.kernel = self._kernel(float(self.widths[0]))


def _mean_tokens(batch: Batch) -> Tensor:
    """Returns (B, D) the mean token vector of each sentence."""
    mask = batch["query_mask"].unsqueeze(-1)
    return torch.where(mask, batch["query"], 0).sum(1) / mask.sum(1)


def _spread(count: int, most: int, device: torch.device) -> Tensor:
    """Returns at most `most` row numbers of `count`, at equal distances."""
    if count <= most:
        return torch.arange(count, device=device)
    return torch.linspace(0, count - 1, most, device=device).long()


def _sorted_rows(keys: Tensor) -> Tensor:
    """Returns the order of the rows of (N, K) keys, by the first column, then the next."""
    order = torch.arange(len(keys), device=keys.device)
    for column in reversed(range(keys.shape[1])):
        order = order[keys[order, column].argsort(stable=True)]
    return order
