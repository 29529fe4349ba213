"""MESM: frames enhanced by word reconstruction, queries by a generated token.

Paper: Liu, Li, Xie, Li, Ge, Liu, Jin, "Towards Balanced Alignment: Modal-Enhanced Semantic Modeling for Video
Moment Retrieval", AAAI 2024, arXiv 2312.12155. Stands on QD-DETR: without its two levels and with QD-DETR's
saliency losses it is QD-DETR.

Where paper and released code (lntzm/MESM) differ, an argument decides (paper | released):
- `context`: sentences about the same video are keys beside the frames (`attended`) | cannot reach the
  generated token, since Eq. 3 has cross-attention to frames only (`inert`).
- `normalise_token`: the generated token enters the query as it is | at length 1.
- `reconstruct_from`: Eq. 2's keys are all frames (`video`) | those of the ground truth (`segment`).
- `unknown_word`: words outside the vocabulary stay | are replaced by a learned vector before masking.
- `label_smoothing`: none | 0.1.
- `contrast`: Eq. 5 as written | cosines of means, segments against sentences, mean of logs, generalised IoU.
- `loss_weights.clip_entropy` with `similarity: mlp`: Eq. 6 | QD-DETR's three saliency losses with its token.
- `token_is_key` (with a token): frames attend to it, as in QD-DETR | it is masked as padding.
- `moment_clips`: clips up to the one that the moment ends before (`exclusive`) | ends in (`inclusive`); on
  QVHighlights those that the annotators rated above 0 (`rated`).
- `padding_mask`: see QD-DETR.
Paper and contract: Eq. 3 averages projected words; the contract's sibling vectors are averages that are
projected here, as the released code does. The released code draws nouns, verbs, adjectives and adverbs twice
as often when it masks words; here, as in the paper, all words are alike.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vmr_zoo.blocks.cross_encoder import attention_mask
from vmr_zoo.blocks.dropout import Dropout
from vmr_zoo.blocks.other_video import negative_rows
from vmr_zoo.blocks.projection import Activation
from vmr_zoo.errors import VmrError, unknown
from vmr_zoo.losses.reconstruction import word_reconstruction
from vmr_zoo.losses.saliency import clip_entropy
from vmr_zoo.losses.segment_contrast import SegmentContrast
from vmr_zoo.losses.set_criterion import SetCriterion
from vmr_zoo.methods.base import Training
from vmr_zoo.methods.qd_detr import QDDETR, Fused, Output, Read
from vmr_zoo.types import Batch

CONTEXTS = ("attended", "inert")
RECONSTRUCT_FROM = ("video", "segment")
MOMENT_CLIPS = ("exclusive", "inclusive", "rated")


class Masking(NamedTuple):
    """What is hidden from the word reconstruction.

    Attributes:
        labels: (B, Lq) word classes, 0 = unknown.
        unknown: (B, Lq) bool, words that the unknown vector replaces.
        masked: (B, Lq) bool, words that the mask vector replaces.
    """

    labels: Tensor
    unknown: Tensor
    masked: Tensor


def draw_words(mask: Tensor) -> Tensor:
    """Draws a third of the words of each row, at least one; none of a single word.

    Args:
        mask: (B, Lq), True = valid.

    Returns:
        (B, Lq) bool.
    """
    # Drawn place by place, so that more padding does not change what the places before it get.
    keys = torch.rand(mask.shape[1], mask.shape[0], device=mask.device).T.masked_fill(~mask, 2)
    count = mask.sum(1, keepdim=True)
    wanted = torch.where(count > 1, (count // 3).clamp(min=1), 0)
    return keys.argsort(1).argsort(1) < wanted


class MESM(QDDETR):
    """MESM."""

    def __init__(
        self,
        *,
        video_dim: int,
        query_dim: int,
        dim: int,
        heads: int,
        feedforward_dim: int,
        frame_word_layers: int | None,
        generator_layers: int | None,
        aligner_layers: int,
        encoder_layers: int,
        decoder_layers: int,
        queries: int,
        activation: Activation,
        projection_layers: int,
        dropout: float,
        input_dropout: float,
        vocabulary: int,
        separate_tail: bool,
        unknown_word: bool,
        reconstruct_from: str,
        label_smoothing: float,
        context: str,
        normalise_token: bool,
        contrast: SegmentContrast,
        moment_clips: str,
        similarity: str,
        token_is_key: bool,
        padding_mask: str,
        negative_pair: str,
        rank_levels: int,
        rank_divisor: float,
        rank_temperature: float,
        margin: float,
        aux_losses: bool,
        criterion: SetCriterion,
        span_unit: str,
        max_clips: int,
        training: Training,
    ) -> None:
        """Builds the network; arguments that are not listed are QD-DETR's.

        Args:
            video_dim: see `QDDETR`.
            query_dim: see `QDDETR`.
            dim: see `QDDETR`.
            heads: see `QDDETR`.
            feedforward_dim: see `QDDETR`.
            frame_word_layers: cross-attention layers of FW-MESM; None leaves it out.
            generator_layers: cross-attention layers of SS-MESM; None leaves it out.
            aligner_layers: of the modality aligner, see `QDDETR`.
            encoder_layers: see `QDDETR`.
            decoder_layers: see `QDDETR`.
            queries: see `QDDETR`.
            activation: see `QDDETR`.
            projection_layers: see `QDDETR`.
            dropout: see `QDDETR`.
            input_dropout: see `QDDETR`.
            vocabulary: word classes; words that are rarer in the training split count as unknown.
            separate_tail: words are reconstructed with norms and position-wise networks of their own; only
                the attention is shared (released for TACoS).
            unknown_word: see above.
            reconstruct_from: "video" or "segment", see above.
            label_smoothing: see `losses.reconstruction.word_reconstruction`.
            context: "attended" or "inert", see above.
            normalise_token: see above.
            contrast: Eq. 5.
            moment_clips: "exclusive", "inclusive" or "rated", see above.
            similarity: s of Eq. 6, see `blocks.saliency_encoder.SaliencyEncoder`.
            token_is_key: see there.
            padding_mask: see `QDDETR`.
            negative_pair: see `QDDETR`.
            rank_levels: see `QDDETR`.
            rank_divisor: see `QDDETR`.
            rank_temperature: see `QDDETR`.
            margin: see `QDDETR`.
            aux_losses: see `QDDETR`.
            criterion: see `QDDETR`.
            span_unit: see `QDDETR`.
            max_clips: see `QDDETR`.
            training: see `Method`. "word_reconstruction" (Eq. 2), "segment_contrast" (Eq. 5) and
                "clip_entropy" (Eq. 6) come on top of QD-DETR's.

        Raises:
            VmrError: for an unknown value of a switch, or a loss on a part that is left out.
        """
        super().__init__(
            video_dim=video_dim,
            query_dim=query_dim,
            dim=dim,
            heads=heads,
            feedforward_dim=feedforward_dim,
            aligner_layers=aligner_layers,
            encoder_layers=encoder_layers,
            decoder_layers=decoder_layers,
            queries=queries,
            activation=activation,
            projection_layers=projection_layers,
            dropout=dropout,
            input_dropout=input_dropout,
            padding_mask=padding_mask,
            negative_pair=negative_pair,
            rank_levels=rank_levels,
            rank_divisor=rank_divisor,
            rank_temperature=rank_temperature,
            margin=margin,
            aux_losses=aux_losses,
            criterion=criterion,
            span_unit=span_unit,
            max_clips=max_clips,
            training=training,
            similarity=similarity,
            token_is_key=token_is_key,
        )
        for name, value, valid in (
            ("context", context, CONTEXTS),
            ("reconstruct_from", reconstruct_from, RECONSTRUCT_FROM),
            ("moment_clips", moment_clips, MOMENT_CLIPS),
        ):
            if value not in valid:
                raise unknown(f"method.{name}", value, valid)
        for loss, part, layers in (
            ("word_reconstruction", "frame_word_layers", frame_word_layers),
            ("segment_contrast", "generator_layers", generator_layers),
        ):
            if layers is None and self.weight(loss) is not None:
                raise VmrError(f"method.{part} is null; set method.training.loss_weights.{loss}=null too.")
        self.vocabulary, self.unknown_word = vocabulary, unknown_word
        self.reconstruct_from, self.label_smoothing = reconstruct_from, label_smoothing
        self.context, self.normalise_token = context, normalise_token
        self.contrast, self.moment_clips = contrast, moment_clips

        if moment_clips == "rated":
            self.needs |= {"saliency"}
        self.enhancer = None
        if frame_word_layers is not None:
            self.enhancer = self.cross_encoder(frame_word_layers, tails=2 if separate_tail else 1)
        self.word_head = None
        if self.weight("word_reconstruction") is not None:
            self.needs |= {"query_words"}
            self.masked_word = nn.Parameter(torch.zeros(query_dim))
            self.missing_word = nn.Parameter(torch.zeros(query_dim)) if unknown_word else None
            self.word_head = nn.Sequential(
                nn.LayerNorm(dim),
                Dropout(dropout),
                nn.Linear(dim, dim),
                nn.ReLU(),
                nn.Linear(dim, vocabulary + 1),
            )
        self.generator = None
        if generator_layers is not None:
            self.needs |= {"sibling_queries"} if context == "attended" else set()
            self.generator = self.cross_encoder(generator_layers)
            self.masked_sentence = nn.Parameter(torch.randn(dim))

    def read(self, batch: Batch) -> Read:
        """Projects the inputs and generates each query's complementary token."""
        read = super().read(batch)
        if self.generator is None:
            return read
        keys, mask = read.video, read.video_mask
        if self.context == "attended":
            keys = torch.cat((keys, self.project_query(batch["sibling_query"])), 1)
            mask = torch.cat((mask, batch["sibling_mask"]), 1)
        return read._replace(token=self.generate(keys, mask, batch["video_index"]))

    def generate(self, keys: Tensor, mask: Tensor, video_index: Tensor) -> Tensor:
        """Generates the complementary token of each query from a masked sentence, Eq. 3.

        Eq. 3 runs all sentences of a video through layers that only attend to the keys, and keeps the masked
        sentence; the others, which the result does not depend on, are not run.

        Args:
            keys: (B, L, D) the video, and what else there is to learn from.
            mask: (B, L), True = valid.
            video_index: (B,), equal numbers are sentences about the same video.

        Returns:
            (B, D).
        """
        assert self.generator is not None
        sentence = self.masked_sentence.expand(len(keys), 1, -1)
        one = torch.ones_like(mask[:, :1])
        if self.generator.padding_mask == "head_order":
            mask = _sentence_mask(mask, video_index, self.generator.heads)
        token = self.generator(sentence, one, None, keys, mask).squeeze(1)
        return F.normalize(token, dim=-1) if self.normalise_token else token

    def fuse(self, read: Read, record: list[Tensor] | None = None) -> Fused:
        """Enhances the frames (Eq. 1) and aligns them with the enhanced query."""
        if self.enhancer is None:
            return super().fuse(read, record)
        enhanced = self.enhancer(
            read.video, read.video_mask, read.position, read.query, read.query_mask, record=record
        )
        return super().fuse(read._replace(video=enhanced))._replace(enhanced=enhanced)

    def inside(self, batch: Batch) -> Tensor:
        """Marks the clips of the moments, (B, Lv)."""
        if self.moment_clips == "exclusive":
            return super().inside(batch)
        if self.moment_clips == "rated":
            return (batch["saliency"] > 0) & batch["video_mask"]
        one_more = torch.stack(
            (torch.zeros_like(batch["duration"]), batch["clip_seconds"] / batch["duration"]), -1
        )
        longer: Batch = {**batch, "spans": batch["spans"] + one_more.unsqueeze(1)}
        return super().inside(longer)

    def masking(self, batch: Batch) -> Masking:
        """Draws the words to reconstruct."""
        return self._masking(batch, draw_words(batch["query_mask"]))

    def _masking(self, batch: Batch, masked: Tensor) -> Masking:
        """Says what reconstruction reads and expects when the words `masked` (B, Lq) are hidden."""
        labels = torch.where(batch["query_words"] > self.vocabulary, 0, batch["query_words"])
        strange = (labels == 0) & batch["query_mask"] & self.unknown_word
        return Masking(labels, strange, masked)

    def reconstruct(self, batch: Batch, read: Read, masking: Masking) -> tuple[Tensor, Tensor]:
        """Reconstructs the words of each query from the video, with the layers that enhance the frames.

        Args:
            batch: the batch.
            read: its projected inputs.
            masking: what is hidden.

        Returns:
            F_q^r (B, Lq, D), and the logits of P (B, Lq, classes), before the softmax of Eq. 2.
        """
        assert self.enhancer is not None
        assert self.word_head is not None
        words = batch["query"]
        if self.missing_word is not None:
            words = torch.where(masking.unknown.unsqueeze(-1), self.missing_word, words)
        words = torch.where(masking.masked.unsqueeze(-1), self.masked_word, words)
        frames = read.video_mask
        if self.reconstruct_from == "segment":
            frames = self.inside(batch)
            if self.enhancer.padding_mask == "head_order":
                frames = _segment_mask(read.query_mask, frames, self.enhancer.heads)
        found = self.enhancer(
            self.project_query(words), read.query_mask, None, read.video, frames, read.position, tail=-1
        )
        return found, self.word_head(found)

    def word_probability(self, batch: Batch, read: Read) -> Tensor:
        """Returns the probability P of Eq. 2 that a masked word is the true one, (B, Lq), 0 on padding.

        Words meet the frames and not each other, so that masking all at once says the same as masking one at
        a time. A word outside the vocabulary is true if the class of unknown words is.
        """
        mask = batch["query_mask"]
        masking = self._masking(batch, mask)
        _, logits = self.reconstruct(batch, read, masking)
        return logits.softmax(-1).gather(2, masking.labels.unsqueeze(2)).squeeze(2) * mask

    def details_of(self, output: Output, batch: Batch) -> dict[str, Tensor]:
        """Adds `word_probability` to QD-DETR's details where the batch has `query_words`."""
        details = super().details_of(output, batch)
        if self.word_head is not None and "query_words" in batch:
            details["word_probability"] = self.word_probability(batch, output.read)
        return details

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """QD-DETR's losses that are switched on, and those of Eq. 2, 5 and 6."""
        rows, exists = negative_rows(batch["video_index"], self.negative_pair)
        output = self(batch, rows if self.contrasts else None)
        pairs = self.pairs(batch)
        masking = None if self.word_head is None else self.masking(batch)
        return self.losses_of(output, batch, exists, pairs, masking)

    def losses_of(
        self,
        output: Output,
        batch: Batch,
        exists: Tensor,
        pairs: tuple[Tensor, Tensor, Tensor] | None,
        masking: Masking | None,
    ) -> dict[str, Tensor]:
        """Computes the losses of an output on given draws.

        Args:
            output: of the batch.
            batch: the batch.
            exists: (B,), False for a row without a negative query.
            pairs: see `QDDETR.pairs`.
            masking: see `masking`; None without that loss.
        """
        read = output.read
        losses = self.set_losses(output, batch) | self.saliency_losses(output, batch, exists, pairs)
        if self.weight("clip_entropy") is not None:
            losses["clip_entropy"] = clip_entropy(
                output.positive.saliency, self.inside(batch), read.video_mask
            )
        if masking is not None:
            _, logits = self.reconstruct(batch, read, masking)
            losses["word_reconstruction"] = word_reconstruction(
                logits, masking.labels, read.query_mask, self.label_smoothing
            )
        if self.weight("segment_contrast") is not None:
            losses["segment_contrast"] = self.contrast(
                read.video, self.inside(batch), *read.text, _hull(batch), batch["video_index"]
            )
        return losses


def _hull(batch: Batch) -> Tensor:
    """From the first start to the last end of each row's moments, (B, 2)."""
    spans, mask = batch["spans"], batch["span_mask"].unsqueeze(-1)
    start = spans.masked_fill(~mask, torch.inf)[..., 0].amin(1)
    return torch.stack((start, spans.masked_fill(~mask, 0)[..., 1].amax(1)), -1)


def _sentence_mask(mask: Tensor, video_index: Tensor, heads: int) -> Tensor:
    """The released mask of `generate`: `attention_mask`, "head_order", at the own sentence.

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


def _segment_mask(query_mask: Tensor, inside: Tensor, heads: int) -> Tensor:
    """The released mask of `reconstruct`: `attention_mask`, "head_order", segments pushed together.

    Args:
        query_mask: (B, Lq), True = valid.
        inside: (B, Lv), the clips of the segment.
        heads: H.

    Returns:
        (B, H, Lq, Lv), True = may be attended to.
    """
    together = torch.arange(inside.shape[1], device=inside.device) < inside.sum(1, keepdim=True)
    allowed = attention_mask(query_mask, together, heads, "head_order")
    place = (inside.cumsum(1) - 1).clamp(min=0)
    spread = place[:, None, None].expand_as(allowed)
    return allowed.gather(3, spread) & inside[:, None, None]
