"""MMN: mutual matching of moments and sentences over a 2D map of candidates.

Paper: Wang et al., "Negative Sample Matters: A Renaissance of Metric Learning for Temporal Grounding", AAAI
2022, https://arxiv.org/abs/2109.04872, as VDI (CVPR 2023) restates it in Eq. 6-10 and the released code
(MCG-NJU/MMN) computes it. Baseline of VDI. Stands on 2D-TAN (Zhang et al., AAAI 2020).

Where text and released code differ, an argument decides (paper | released):
- `contrast.own_cells`: candidates like the true moment are no negatives, nor is a positive its own | the
  released code's slip, see `MutualContrast`.
- `last_frame`: every frame counts | the last one is lost.
- `nms_unit`: NMS on whole clips | on rounded seconds.
VDI's equations leave out what the released code has, and a literal reading hardly trains: Eq. 6-7 put a raw
cosine into the cross-entropy against the raw IoU of every pair (`iou_scale: 1`, `iou_low: 0`, `iou_high:
1`), Eq. 8 has neither margin nor top-k (`contrast.margin: 0`, `contrast.positives: 1`), Eq. 10 multiplies
plain scores and takes the argmax (`fusion_power: 1`). Both presets take the released values, per data set
(conf/experiment/mmn). After `late_epoch` the contrastive losses get `late_factor`; the released code's log
says that they are switched off.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vmr_zoo.blocks.candidate_map import (
    CandidateCells,
    LastFrame,
    MapConvolution,
    NmsUnit,
    segment_means,
)
from vmr_zoo.blocks.distinct import distinct_videos
from vmr_zoo.blocks.text_encoder import GivenTokens, TransformerText
from vmr_zoo.errors import VmrError
from vmr_zoo.losses.mutual_contrastive import MutualContrast
from vmr_zoo.losses.scaled_iou import scaled_iou_loss
from vmr_zoo.methods.base import Method, Training
from vmr_zoo.types import Batch, Prediction

CONTRASTIVE = ("moment_to_sentence", "sentence_to_moment")


class Moments(NamedTuple):
    """The candidates of V distinct videos.

    Attributes:
        frames: (V, P, Dv), segment means of the frame features.
        clips: (V, H, N).
        grid: (V, Hm, N, N), the last layer of the map; only supported cells mean anything.
        iou: (V, K, J), unit vectors.
        contrastive: (V, K, J), unit vectors.
        video: (S,) which of the videos each sentence is on.
    """

    frames: Tensor
    clips: Tensor
    grid: Tensor
    iou: Tensor
    contrastive: Tensor
    video: Tensor


class Sentences(NamedTuple):
    """The sentences of a batch.

    Attributes:
        normed: (S, Dt), after the LayerNorm.
        iou: (S, J), not normalised.
        contrastive: (S, J), not normalised.
    """

    normed: Tensor
    iou: Tensor
    contrastive: Tensor


class MMN(Method):
    """MMN."""

    def __init__(
        self,
        *,
        video_dim: int,
        text: GivenTokens | TransformerText,
        segments: int,
        last_frame: LastFrame,
        clips: int,
        diagonals: list[int],
        dim: int | None,
        map_dim: int,
        map_kernel: int,
        map_layers: int,
        joint_dim: int,
        iou_scale: float,
        iou_low: float,
        iou_high: float,
        contrast: MutualContrast,
        late_epoch: int,
        late_factor: float,
        fusion_power: float,
        nms_iou: float,
        nms_unit: NmsUnit,
        answers: int,
        text_rate: float,
        frozen_text_epochs: int,
        training: Training,
    ) -> None:
        """Builds the network.

        Args:
            video_dim: width of the frame features.
            text: makes sentence vectors.
            segments: P, a multiple of `clips`; every video's frames are averaged into this many.
            last_frame: see `segment_means`.
            clips: N, the side of the map.
            diagonals: which cells of the map are candidates, see `supported_cells`.
            dim: H, width after the pointwise linear of the clip pooling; None leaves linear and ReLU out
                (VDI).
            map_dim: Hm, width of the map's convolutions.
            map_kernel: their kernel.
            map_layers: how many.
            joint_dim: J, width of the spaces in which moments and sentences meet.
            iou_scale: multiplies the cosine before the sigmoid.
            iou_low: IoU that counts as 0.
            iou_high: IoU that counts as 1.
            contrast: the contrastive losses.
            late_epoch: from this epoch on, counted from 0, they weigh `late_factor` of their weight.
            late_factor: see there.
            fusion_power: a in ((1 + c) / 2)^a * s, c the contrastive cosine, s the IoU score.
            nms_iou: see `CandidateCells.rank`.
            nms_unit: see `CandidateCells.rank`.
            answers: moments in a prediction.
            text_rate: learning rate of the text encoder, relative to everything else.
            frozen_text_epochs: in its first epochs it is not trained.
            training: see `Method`.

        Raises:
            VmrError: if the segments do not divide into clips.
        """
        super().__init__(training)
        if segments % clips:
            raise VmrError(
                f"Expected method.segments to be a multiple of method.clips, found {segments}, {clips}."
            )
        self.needs = text.needs
        self.segments, self.last_frame = segments, last_frame
        self.cells = CandidateCells(clips, diagonals)
        self.project = None if dim is None else nn.Conv1d(video_dim, dim, 1)
        self.map = MapConvolution(self.cells, dim or video_dim, map_dim, map_kernel, map_layers)
        self.iou_moment = nn.Conv2d(map_dim, joint_dim, 1)
        self.contrastive_moment = nn.Conv2d(map_dim, joint_dim, 1)
        self.text = text
        self.text_norm = nn.LayerNorm(text.dim)
        self.iou_sentence = nn.Linear(text.dim, joint_dim)
        self.contrastive_sentence = nn.Linear(text.dim, joint_dim)
        self.iou_scale, self.iou_low, self.iou_high = iou_scale, iou_low, iou_high
        self.contrast = contrast
        self.late_epoch, self.late_factor = late_epoch, late_factor
        self.fusion_power = fusion_power
        self.nms_iou, self.nms_unit, self.answers = nms_iou, nms_unit, answers
        self.text_rate, self.frozen_text_epochs = text_rate, frozen_text_epochs
        self._trained_text = [p for p in text.parameters() if p.requires_grad]

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compiles the map, nearly all of the work; `forward` reads ids, which are new in each batch."""
        self.map.compile(*args, **kwargs)

    def moments(self, batch: Batch) -> Moments:
        """Computes the candidates of each distinct video."""
        first, video = distinct_videos(batch)
        frames = segment_means(
            batch["video"][first], batch["video_mask"][first], self.segments, self.last_frame
        )
        clips = frames.transpose(1, 2)
        if self.project is not None:
            clips = self.project(clips).relu()
        clips = F.avg_pool1d(clips, self.segments // self.cells.clips)
        grid = self.map(self.cells.spread(self.cells.pool(clips)))
        cells = self.cells.gather(grid).unsqueeze(3)  # (V, Hm, K, 1)
        iou, contrastive = (
            F.normalize(head(cells).squeeze(3).transpose(1, 2), dim=2)
            for head in (self.iou_moment, self.contrastive_moment)
        )
        return Moments(frames, clips, grid, iou, contrastive, video)

    def sentences(self, vectors: Tensor) -> Sentences:
        """Brings sentence vectors (S, Dt) to both joint spaces."""
        normed = self.text_norm(vectors)
        return Sentences(normed, self.iou_sentence(normed), self.contrastive_sentence(normed))

    def forward(self, batch: Batch, visible: Tensor | None = None) -> tuple[Moments, Sentences]:
        """Runs the network on whole queries, or on the tokens that are `visible` (S, Lq)."""
        visible = batch["query_mask"] if visible is None else visible
        return self.moments(batch), self.sentences(self.text(batch, visible.unsqueeze(0))[0])

    def iou_logits(self, moments: Moments, sentences: Sentences) -> Tensor:
        """Scores each sentence's own candidates before the sigmoid, (S, K)."""
        return self.iou_scale * _own_cosine(sentences.iou, moments.iou, moments.video)

    def fused(self, moments: Moments, sentences: Sentences) -> Tensor:
        """Scores each sentence's own candidates: ((1 + c) / 2)^a * s (VDI Eq. 10), (S, K)."""
        cosine = _own_cosine(sentences.contrastive, moments.contrastive, moments.video)
        score = self.iou_logits(moments, sentences).sigmoid()
        return ((1 + cosine) / 2).clamp(min=0) ** self.fusion_power * score

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Computes "iou" (VDI Eq. 7), "moment_to_sentence" and "sentence_to_moment" (Eq. 8)."""
        moments, sentences = self(batch)
        return self.matching_losses(moments, sentences, batch)

    def matching_losses(self, moments: Moments, sentences: Sentences, batch: Batch) -> dict[str, Tensor]:
        """Computes the losses of an output; see `losses`."""
        overlap = self.cells.overlap(batch["spans"], batch["span_mask"])
        cosine = torch.einsum("sj,vkj->svk", F.normalize(sentences.contrastive, dim=1), moments.contrastive)
        both = self.contrast(cosine, moments.video, overlap, batch["spans"], batch["span_mask"])
        logits = self.iou_logits(moments, sentences)
        return {
            "iou": scaled_iou_loss(logits, overlap, self.iou_low, self.iou_high),
            **dict(zip(CONTRASTIVE, both, strict=True)),
        }

    def weight(self, name: str) -> float | None:
        """See `Method.weight`; the contrastive losses weigh less in late epochs."""
        weight = super().weight(name)
        if weight is not None and name in CONTRASTIVE and self.current_epoch >= self.late_epoch:
            return weight * self.late_factor
        return weight

    def predict(self, batch: Batch, *, details: bool = False) -> Prediction:
        """Ranks the candidates by their fused score.

        Args:
            batch: see `Batch`.
            details: also return `score_map`, the fused scores.
        """
        moments, sentences = self(batch)
        return self.rank(batch, moments, sentences, details)

    def rank(self, batch: Batch, moments: Moments, sentences: Sentences, details: bool) -> Prediction:
        """Ranks the candidates of an output; see `predict`."""
        fused = self.fused(moments, sentences)
        spans, scores = self.cells.rank(
            fused,
            batch["duration"],
            threshold=self.nms_iou,
            answers=self.answers,
            unit=self.nms_unit,
        )
        prediction: Prediction = {"spans": spans, "scores": scores}
        if details:
            prediction["details"] = {"score_map": self.cells.spread(fused)}
        return prediction

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Gives the text encoder its own learning rate."""
        text = {id(p) for p in self.text.parameters()}
        groups: list[dict[str, Any]] = [
            {"params": [p for p in self.parameters() if p.requires_grad and id(p) not in text]}
        ]
        if self._trained_text:
            if not isinstance(self._optimizer, functools.partial) or "lr" not in self._optimizer.keywords:
                raise VmrError(
                    "method.training.optimizer needs lr, of which the text encoder gets method.text_rate."
                )
            groups.append(
                {"params": self._trained_text, "lr": self.text_rate * self._optimizer.keywords["lr"]}
            )
        return groups

    def on_train_epoch_start(self) -> None:
        """Trains the text encoder once its first epochs are over."""
        for parameter in self._trained_text:
            parameter.requires_grad_(self.current_epoch >= self.frozen_text_epochs)


def _own_cosine(sentences: Tensor, moments: Tensor, video: Tensor) -> Tensor:
    """Compares (S, J) sentences with the (V, K, J) unit vectors of their own video, to (S, K)."""
    return (moments[video] @ F.normalize(sentences, dim=1).unsqueeze(2)).squeeze(2)
