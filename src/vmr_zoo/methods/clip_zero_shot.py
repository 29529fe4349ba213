"""ClipZeroShot: intervals in which a video resembles the sentence; nothing is trained.

Paper: Diwan et al. 2022, "Zero-shot Video Moment Retrieval With Off-the-Shelf Models",
https://arxiv.org/abs/2211.02178: moment proposal, moment-query matching, post-processing, all by models that
were trained for something else.

Differs from the paper in all three steps, because clip features replace the video file:
- proposals: the paper cuts videos into shots; here they are runs of clips above several levels of the
  smoothed similarity curve, as in temporal actionness grouping (Zhao et al. 2017, https://arxiv.org/abs/1704.06228);
- matching: mean similarity inside minus outside of the interval, as in Zheng et al. 2024,
  https://arxiv.org/abs/2408.16219, times a power of the interval's length;
- post-processing: NMS.

Two numbers remain, the smoothing and that power. The selection split chooses them by mean IoU, unless one of
each is given; no other moment is read. Training videos and sentences are not used.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vmr_zoo.errors import VmrError
from vmr_zoo.methods.base import Training
from vmr_zoo.methods.one_pass import OnePass
from vmr_zoo.spans import nms
from vmr_zoo.types import Batch, Prediction
from vmr_zoo.utils.switches import check_switches

LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Levels between the lowest (0) and the highest (1) similarity of a video."""

_NMS_IOU = 0.7


@check_switches
class ClipZeroShot(OnePass):
    """Ranks intervals by the similarity of clips and sentence in a joint space; has no parameters.

    Attributes:
        chosen: (2,) smoothing in seconds and power of the length, a buffer that is part of checkpoints; NaN
            until a selection split chose them. With one of each there is no choice.
    """

    family = "Zero-shot"
    needs = frozenset({"sentence"})
    chosen: Tensor

    def __init__(
        self,
        *,
        training: Training,
        smoothings: Sequence[float] = (0.0, 2.0, 4.0, 8.0, 16.0),
        powers: Sequence[float] = (0.0, 0.25, 0.5, 1.0),
        samples: int = 10,
        scores: Literal["contrast", "similarity"] = "contrast",
    ) -> None:
        """Stores the settings to choose from.

        Args:
            training: what validation computes.
            smoothings: widths of the moving average over similarities, in seconds; 0: none.
            powers: exponents of the length, as a fraction of the video, in the score of an interval.
            samples: number of moments per query, at least 5.
            scores: what a score is; the order of moments is the same. "contrast": what ranks them, comparable
                within one video. "similarity": for the best moment its mean cosine similarity, which compares
                videos for one sentence; the others' are less in proportion to their contrast.

        Raises:
            VmrError: if `samples` is below 5, or there is nothing to choose from.
        """
        super().__init__(training, samples)
        for key, values in (("smoothings", smoothings), ("powers", powers)):
            if not values or min(values) < 0:
                raise VmrError(f"Expected numbers of 0 or more in method.{key}, found {list(values)}.")
        self.scores = scores
        self.settings = list(itertools.product(map(float, smoothings), map(float, powers)))
        self.trials = nn.ModuleList(training.metrics.clone() for _ in self.settings)
        only = self.settings[0] if len(self.settings) == 1 else (torch.nan, torch.nan)
        self.register_buffer("chosen", torch.tensor(only))

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Answers one batch of the selection split with all settings."""
        similarity = self._similarity(batch)
        for setting, metrics in zip(self.settings, self.trials, strict=True):
            metrics.update(self._rank(similarity, batch, *setting), batch)  # type: ignore[operator]

    def on_validation_epoch_end(self) -> None:
        """Keeps the best settings, and logs their metrics."""
        found = [metrics.compute() for metrics in self.trials]  # type: ignore[operator]
        for metrics in self.trials:
            metrics.reset()  # type: ignore[operator]
        best = max(range(len(found)), key=lambda number: float(found[number]["mIoU"]))
        self.chosen = torch.tensor(self.settings[best], device=self.chosen.device)
        self.log_dict({f"selection/{name}": value for name, value in found[best].items()})

    def predict(self, batch: Batch, *, details: bool = False) -> Prediction:
        """Ranks intervals with the chosen settings; there are no details."""
        if self.chosen.isnan().any():
            raise VmrError(
                "clip_zero_shot has seen no selection split, which chooses its smoothing. Run it first: "
                "vmr train method=clip_zero_shot …"
            )
        return self._rank(self._similarity(batch), batch, *self.chosen.tolist())

    def _similarity(self, batch: Batch) -> Tensor:
        """Returns (B, Lv) cosine similarities of the clips and the sentence, 0 on padding."""
        sentence = batch["sentence"].unsqueeze(1)
        image = batch["video"][..., : sentence.shape[-1]]
        return F.cosine_similarity(image, sentence, dim=-1).masked_fill(~batch["video_mask"], 0)

    def _rank(self, similarity: Tensor, batch: Batch, smoothing: float, power: float) -> Prediction:
        """Finds and ranks intervals; the smoothed curve becomes the saliency."""
        mask, clip_seconds = batch["video_mask"], batch["clip_seconds"]
        curve = _smooth(similarity, mask, smoothing / clip_seconds)
        row, start, end = _runs(_scale(curve, mask), mask)
        length = mask.sum(1)[row]
        # The smoothed curve is low near the ends of a run; its score comes from the clips themselves.
        sums = F.pad(_scale(similarity, mask).masked_fill(~mask, 0).cumsum(1), (1, 0))
        inside = sums[row, end] - sums[row, start]
        outside = (sums[row, -1] - inside) / (length - (end - start)).clamp(min=1)
        contrast = inside / (end - start) - outside
        score = contrast * ((end - start) / length) ** power
        spans = torch.stack((start, end), -1) * (clip_seconds / batch["duration"])[row, None]
        padded = _pad_rows(row, torch.cat((spans.clamp(0, 1), score[:, None]), -1), len(mask), self.samples)
        kept, scores = nms(padded[..., :2], padded[..., 2].clamp(min=0), _NMS_IOU, keep=self.samples)
        if self.scores == "similarity":
            best = kept[:, :1] * (batch["duration"] / clip_seconds)[:, None, None]
            first = scores[:, :1]  # 0 in a video whose clips are all alike
            share = (scores / first).where(first > 0, torch.eye(1, scores.shape[1], device=mask.device))
            scores = share * _means(similarity, best, mask).clamp(min=0)
        return {"spans": kept, "scores": scores, "saliency": curve}


def _smooth(curve: Tensor, mask: Tensor, width: Tensor) -> Tensor:
    """Averages (B, L) values over the valid clips within `width` (B,) / 2 clips on either side."""
    half = (width / 2).floor().long()[:, None]
    place = torch.arange(curve.shape[1], device=curve.device)
    first = (place - half).clamp(min=0)
    last = torch.minimum(place + half + 1, mask.sum(1, keepdim=True))
    return _interval_means(curve, first, last).masked_fill(~mask, 0)


def _means(curve: Tensor, clips: Tensor, mask: Tensor) -> Tensor:
    """Averages (B, L) values over intervals (B, K, 2) in clips."""
    first, last = clips.round().long().unbind(-1)
    return _interval_means(curve, first, torch.minimum(last, mask.sum(1, keepdim=True)))


def _interval_means(curve: Tensor, first: Tensor, last: Tensor) -> Tensor:
    """Averages (B, L) values from `first` (B, K) to before `last` (B, K); 0 over nothing."""
    sums = F.pad(curve.double().cumsum(1), (1, 0))
    mean = (sums.gather(1, last) - sums.gather(1, first)) / (last - first).clamp(min=1)
    return mean.to(curve.dtype)


def _scale(curve: Tensor, mask: Tensor) -> Tensor:
    """Scales the valid values of each row to [0, 1]; 1 where they are all equal."""
    low = curve.masked_fill(~mask, torch.inf).amin(1, keepdim=True)
    high = curve.masked_fill(~mask, -torch.inf).amax(1, keepdim=True)
    spread = high - low
    return torch.where(spread > 0, (curve - low) / spread.where(spread > 0, torch.ones_like(spread)), 1.0)


def _runs(level: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Finds the runs of clips that reach each of `LEVELS`.

    Args:
        level: (B, L) in [0, 1].
        mask: (B, L).

    Returns:
        Row, first clip, and the clip after the last one, of N runs, ordered by row.
    """
    levels = torch.tensor(LEVELS, device=level.device)
    above = (level[:, None] >= levels[:, None]) & mask[:, None]
    before, after = F.pad(above, (1, 0))[..., :-1], F.pad(above, (0, 1))[..., 1:]
    row, _, start = (above & ~before).nonzero(as_tuple=True)
    end = (above & ~after).nonzero(as_tuple=True)[2] + 1
    return row, start, end


def _pad_rows(row: Tensor, values: Tensor, rows: int, least: int) -> Tensor:
    """Puts (N, K) values, ordered by row, into (rows, C, K) with zero padding; C is at least `least`."""
    counts = torch.bincount(row, minlength=rows)
    place = torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row]
    padded = values.new_zeros(rows, max(least, int(counts.max())), values.shape[1])
    padded[row, place] = values
    return padded
