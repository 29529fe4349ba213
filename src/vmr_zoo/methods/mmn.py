"""MMN: mutual matching of moments and sentences over a 2D map of candidate moments.

Paper: Wang et al., "Negative Sample Matters: A Renaissance of Metric Learning for Temporal Grounding", AAAI
2022, https://arxiv.org/abs/2109.04872. Equations are numbered as in VDI (CVPR 2023), which restates MMN in
Eq. 6-10; the candidate map is that of 2D-TAN (Zhang et al., AAAI 2020). Baseline of VDI.

Differs from the released code (MCG-NJU/MMN) in three switches (paper | released):
- `contrast.own_cells`: candidates similar to the true moment are not negatives, and a positive is not its own
  negative | they are (a bug of the released code).
- `network.last_frame`: every frame counts | the last one is dropped.
- `ranking.nms_unit`: NMS on integer clips | on rounded seconds.

Both variants take the released values where VDI's equations leave out what the released code has, because a
literal reading hardly trains: Eq. 6-7 put a raw cosine into the cross-entropy against the raw IoU of every
pair (`iou_score.scale: 1`, `low: 0`, `high: 1`), Eq. 8 has neither margin nor top-k (`contrast.margin: 0`,
`positives: 1`), and Eq. 10 multiplies the cosines and takes the argmax (`ranking.fusion_power: 1` multiplies
shifted scores). The late factor of the contrastive losses is also the released one, although that code logs
that it turns them off.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vmr_zoo.blocks.candidate_map import CandidateMap, NmsUnit
from vmr_zoo.blocks.per_video import unique_videos
from vmr_zoo.blocks.text_encoder import QueryEncoder
from vmr_zoo.errors import VmrError
from vmr_zoo.losses.mutual_contrastive import MutualContrast
from vmr_zoo.methods.base import Method, Training
from vmr_zoo.types import Batch, Prediction
from vmr_zoo.utils.switches import check_switches

CONTRASTIVE = ("moment_to_sentence", "sentence_to_moment")


@dataclass(frozen=True)
class IoUScore:
    """The predicted IoU of a candidate and its target (VDI Eq. 6-7; 2D-TAN Eq. 6-7).

    Attributes:
        scale: multiplies the cosine before the sigmoid.
        low: IoU at which the target is 0.
        high: IoU at which the target is 1.
    """

    scale: float
    low: float
    high: float

    def logits(self, cosine: Tensor) -> Tensor:
        """Scales cosines to the logits of the score."""
        return self.scale * cosine

    def target(self, overlap: Tensor) -> Tensor:
        """Rescales IoUs from [low, high] to [0, 1], clamped."""
        return ((overlap - self.low) / (self.high - self.low)).clamp(0, 1)

    def loss(self, logits: Tensor, overlap: Tensor) -> Tensor:
        """Computes L^iou of VDI Eq. 7.

        Args:
            logits: (S, K).
            overlap: (S, K), IoU with the ground truth.

        Returns:
            Mean over sentences and candidates, a scalar.
        """
        return F.binary_cross_entropy_with_logits(logits, self.target(overlap))


@check_switches
@dataclass(frozen=True)
class FusedRanking:
    """How candidates are ranked in inference.

    Attributes:
        fusion_power: a in ((1 + c) / 2)^a * s, where c is the contrastive cosine and s the IoU score.
        nms_iou: IoU above which the candidate with the lower score is removed.
        nms_unit: unit in which IoUs are computed: "clips", or "seconds" (rounded).
        answers: K, predicted moments per sentence.
    """

    fusion_power: float
    nms_iou: float
    nms_unit: NmsUnit
    answers: int

    def fuse(self, cosine: Tensor, score: Tensor) -> Tensor:
        """Multiplies the shifted cosine and the score (VDI Eq. 10)."""
        return ((1 + cosine) / 2).clamp(min=0) ** self.fusion_power * score


@dataclass(frozen=True)
class TextTraining:
    """How the text encoder is trained.

    Attributes:
        lr_factor: its learning rate, relative to that of all other parameters.
        frozen_epochs: number of first epochs in which it is frozen.
    """

    lr_factor: float
    frozen_epochs: int


class CandidateEmbeddings(NamedTuple):
    """The candidate moments of the V distinct videos of a batch.

    Attributes:
        frames: (V, P, Dv), segment means of the frame features.
        clips: (V, H, N).
        grid: (V, Hm, N, N), last layer of the map (X^m of VDI); valid in supported cells only.
        iou: (V, K, J), unit vectors.
        contrastive: (V, K, J), unit vectors.
        video: (S,) index of each sentence's video.
    """

    frames: Tensor
    clips: Tensor
    grid: Tensor
    iou: Tensor
    contrastive: Tensor
    video: Tensor


class SentenceEmbeddings(NamedTuple):
    """The sentences of a batch.

    Attributes:
        normed: (S, Dt), after `text_norm`.
        iou: (S, J), not normalised.
        contrastive: (S, J), not normalised.
    """

    normed: Tensor
    iou: Tensor
    contrastive: Tensor


class MMN(Method):
    """MMN."""

    family = "2D maps"

    def __init__(
        self,
        *,
        video_dim: int,
        text: QueryEncoder,
        text_norm: Callable[[int], nn.Module],
        network: CandidateMap,
        iou_score: IoUScore,
        contrast: MutualContrast,
        ranking: FusedRanking,
        text_training: TextTraining,
        training: Training,
    ) -> None:
        """Builds the network.

        Args:
            video_dim: width of the frame features.
            text: encodes queries as sentence vectors.
            text_norm: builds the normalisation of the sentence vectors, given their width. LayerNorm keeps a
                mean that all sentences share; BatchNorm1d removes it.
            network: sizes of the map and its convolutions.
            iou_score: predicted IoU and its loss.
            contrast: contrastive losses.
            ranking: fusion of the two scores, and NMS.
            text_training: learning rate of the text encoder.
            training: loss weights, optimizer, and what validation computes.
        """
        super().__init__(training)
        self.needs = text.needs
        self.network = network
        self.cells = network.cells()
        self.project = network.clip_projection(video_dim)
        self.map = network.convolution(self.cells, video_dim)
        self.iou_moment = network.moment_head()
        self.contrastive_moment = network.moment_head()
        self.text = text
        self.text_norm = text_norm(text.dim)
        self.iou_sentence = nn.Linear(text.dim, network.joint_dim)
        self.contrastive_sentence = nn.Linear(text.dim, network.joint_dim)
        self.iou_score, self.contrast, self.ranking = iou_score, contrast, ranking
        self.text_training = text_training
        self._trained_text = [p for p in text.parameters() if p.requires_grad]

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compiles the map, nearly all of the work; `forward` reads video ids, which change every batch."""
        self.map.compile(*args, **kwargs)

    def moments(self, batch: Batch) -> CandidateEmbeddings:
        """Embeds the candidates of each distinct video."""
        first, video = unique_videos(batch)
        frames = self.network.segment_means(batch["video"][first], batch["video_mask"][first])
        clips = frames.transpose(1, 2)
        if self.project is not None:
            clips = self.project(clips).relu()
        clips = F.avg_pool1d(clips, self.network.segments // self.cells.clips)
        grid = self.map(self.cells.scatter(self.cells.pool(clips)))
        cells = grid.permute(2, 3, 0, 1).flatten(0, 1)[self.cells.flat]  # (K, V, Hm)
        iou, contrastive = (
            F.normalize(F.linear(cells, head.weight.flatten(1), head.bias), dim=2).transpose(0, 1)
            for head in (self.iou_moment, self.contrastive_moment)  # Conv1D of Eq. 6 and 8
        )
        return CandidateEmbeddings(frames, clips, grid, iou, contrastive, video)

    def sentences(self, vectors: Tensor) -> SentenceEmbeddings:
        """Projects sentence vectors (S, Dt) into both joint spaces (FC of VDI Eq. 6 and 8)."""
        normed = self._norm(vectors)
        return SentenceEmbeddings(normed, self.iou_sentence(normed), self.contrastive_sentence(normed))

    def _norm(self, vectors: Tensor) -> Tensor:
        norm = self.text_norm
        if (
            self.training
            and len(vectors) == 1
            and isinstance(norm, nn.BatchNorm1d)
            and norm.track_running_stats
        ):
            # One sentence has no variance; torch raises. Its own mean would turn it into zeros.
            mean, variance = norm.running_mean, norm.running_var
            return F.batch_norm(vectors, mean, variance, norm.weight, norm.bias, eps=norm.eps)
        return norm(vectors)

    def forward(
        self, batch: Batch, visible: Tensor | None = None
    ) -> tuple[CandidateEmbeddings, SentenceEmbeddings]:
        """Runs the network on whole queries, or on the tokens that are `visible` (S, Lq)."""
        visible = batch["query_mask"] if visible is None else visible
        return self.moments(batch), self.sentences(self.text(batch, visible.unsqueeze(0))[0])

    def iou_logits(self, moments: CandidateEmbeddings, sentences: SentenceEmbeddings) -> Tensor:
        """Scores the candidates of each sentence's own video before the sigmoid (VDI Eq. 6), (S, K)."""
        return self.iou_score.logits(_own_cosine(sentences.iou, moments.iou, moments.video))

    def fused(self, moments: CandidateEmbeddings, sentences: SentenceEmbeddings) -> Tensor:
        """Scores the candidates of each sentence's own video by both scores, (S, K)."""
        cosine = _own_cosine(sentences.contrastive, moments.contrastive, moments.video)  # Eq. 9
        return self.ranking.fuse(cosine, self.iou_logits(moments, sentences).sigmoid())  # Eq. 10

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Computes "iou" (VDI Eq. 7), "moment_to_sentence" and "sentence_to_moment" (Eq. 8)."""
        moments, sentences = self(batch)
        return self.matching_losses(moments, sentences, batch)

    def matching_losses(
        self, moments: CandidateEmbeddings, sentences: SentenceEmbeddings, batch: Batch
    ) -> dict[str, Tensor]:
        """Computes the losses of given embeddings."""
        overlap = self.cells.overlap(batch["spans"], batch["span_mask"])
        cosine = _cosine(sentences.contrastive, moments.contrastive)
        both = self.contrast(cosine, moments.video, overlap, batch["spans"], batch["span_mask"])  # Eq. 8
        logits = self.iou_logits(moments, sentences)
        return {
            "iou": self.iou_score.loss(logits, overlap),  # Eq. 7
            **dict(zip(CONTRASTIVE, both, strict=True)),
        }

    def weight(self, name: str) -> float | None:
        """Returns the weight of a loss; those of the contrastive losses change in late epochs."""
        weight = super().weight(name)
        if weight is None or name not in CONTRASTIVE:
            return weight
        return weight * self.contrast.epoch_factor(self.current_epoch)

    def predict(self, batch: Batch, *, details: bool = False) -> Prediction:
        """Ranks the candidates by their fused score.

        Args:
            batch: the queries and their videos.
            details: also return `score_map`, the fused scores.
        """
        moments, sentences = self(batch)
        return self.rank(batch, moments, sentences, details)

    def rank(
        self, batch: Batch, moments: CandidateEmbeddings, sentences: SentenceEmbeddings, details: bool
    ) -> Prediction:
        """Ranks the candidates of given embeddings."""
        fused = self.fused(moments, sentences)
        ranking = self.ranking
        spans, scores = self.cells.rank(
            fused,
            batch["duration"],
            threshold=ranking.nms_iou,
            count=ranking.answers,
            unit=ranking.nms_unit,
        )
        prediction: Prediction = {"spans": spans, "scores": scores}
        if details:
            prediction["details"] = {"score_map": self.cells.scatter(fused)}
        return prediction

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Puts the text encoder into a group with its own learning rate.

        Raises:
            VmrError: if the optimizer has no learning rate to derive it from.
        """
        text = {id(p) for p in self.text.parameters()}
        groups: list[dict[str, Any]] = [
            {"params": [p for p in self.parameters() if p.requires_grad and id(p) not in text]}
        ]
        if self._trained_text:
            if not isinstance(self._optimizer, functools.partial) or "lr" not in self._optimizer.keywords:
                raise VmrError(
                    "Expected method.training.optimizer to set lr, from which the learning rate of the text "
                    "encoder is computed (times method.text_training.lr_factor), found none. Set "
                    "method.training.optimizer.lr."
                )
            lr = self.text_training.lr_factor * self._optimizer.keywords["lr"]
            groups.append({"params": self._trained_text, "lr": lr})
        return groups

    def on_train_epoch_start(self) -> None:
        """Freezes the text encoder in the first epochs."""
        for parameter in self._trained_text:
            parameter.requires_grad_(self.current_epoch >= self.text_training.frozen_epochs)


def _own_cosine(sentences: Tensor, moments: Tensor, video: Tensor) -> Tensor:
    """Compares sentences (S, J) with the unit vectors (V, K, J) of their own video, (S, K)."""
    return _cosine(sentences, moments)[torch.arange(len(video), device=video.device), video]


def _cosine(sentences: Tensor, moments: Tensor) -> Tensor:
    """Compares sentences (S, J) with the unit vectors (V, K, J) of all videos, (S, V, K).

    One matrix product takes less time than a copy of its own video's vectors for each sentence.
    """
    flat = F.normalize(sentences, dim=1) @ moments.flatten(0, 1).T
    return flat.unflatten(1, moments.shape[:2])
