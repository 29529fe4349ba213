"""BM-DETR: a background-aware moment detection transformer.

Paper: Jung et al., "Overcoming Weak Visual-Textual Alignment for Video Moment Retrieval", arXiv 2306.02728.
Extends Moment-DETR by four components, here in the names of Table 7:

- BMD, background-aware moment detection (Eq. 1-8, 16): `background.py`.
- FS, fine-grained semantic alignment (Eq. 9-11, 17): `alignment.py`.
- LS, learnable spans (section 3.3.4): `vmr_zoo.blocks.decoder.AnchorDecoder`.
- TS, temporal shifting (section 3.4): `shifting.py`. The data module draws the new place of the moment.

Differs from the released code (minjoong507/BM-DETR) in these switches (paper | released):
- `decoder_memory`: the decoder reads frames weighted by Eq. 8 (`weighted`) | unweighted frames (`raw`).
- `background.frame_softmax`, `background.frame_weight`: Eq. 7 and 8.
- `alignment.pooling`, `alignment.positive_in_denominator`: Eq. 9-11 and 17.
- `shifting.tef`: which endpoint features the shifted clips get.
- `span_unit.unit`: spans are fractions of the duration (`duration`) | of the clips read (`clips`).
- `criterion.cost_class`: Eq. 12 counts the class probability once (1) | 8 times (8).
- `training.loss_weights.class_error`: absent (null) | a constant without gradient (1).
- `margin_pairs`: clips that the margin loss compares; `within_one_clip`: clips of a moment inside of one.
- `data.negatives` and `data.shift`: which negatives and which shifts the data module draws.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vmr_zoo.blocks.clips import WithinOne, clips_inside
from vmr_zoo.blocks.decoder import AnchorDecoder, QueryDecoder, SpanHeads
from vmr_zoo.blocks.detr_network import DETRNetwork
from vmr_zoo.blocks.joint_encoder import Encoded
from vmr_zoo.blocks.per_video import per_video
from vmr_zoo.blocks.ranking import like_ranked, rank
from vmr_zoo.blocks.rows import split_rows
from vmr_zoo.blocks.span_unit import SpanUnit
from vmr_zoo.errors import VmrError
from vmr_zoo.losses.margin import PairChoices, PairRule, margin_loss, pair_choices
from vmr_zoo.losses.set_criterion import SetCriterion
from vmr_zoo.methods.base import Method, Training
from vmr_zoo.methods.bm_detr.alignment import AttentivePooling, SemanticAlignment
from vmr_zoo.methods.bm_detr.background import (
    FrameQueryMatcher,
    FrameWeighting,
    WeightedFrames,
    frame_probability_loss,
)
from vmr_zoo.methods.bm_detr.shifting import ShiftedCopy, TrainingRows, training_rows
from vmr_zoo.spans import to_centre_width
from vmr_zoo.types import Batch, Prediction
from vmr_zoo.utils.switches import check_switches


@dataclass(frozen=True)
class LearnableSpans:
    """Learnable spans as the decoder's slots (LS, section 3.3.4).

    Attributes:
        refine: move the spans after every decoder layer, as DAB-DETR does and the released code does not.
    """

    refine: bool


class BMDETROutput(NamedTuple):
    """What the network computes.

    Attributes:
        logits: (layers, B, M, 2), index 0 = foreground.
        spans: (layers, B, M, 2) centre and width.
        encoded: the encoder's memory X+.
        memory: (B, Lv + Lq, D) X'+, with weighted frames; equal to X+ without the matcher.
        frames: probabilities and weighted frames; None without the matcher.
        saliency: (B, Lv) f W of Eq. 15; None without that loss. Meaningless on padding.
        pooled: the video and query vectors of Eq. 11, (B, E) each, of length 1; None without Eq. 17.
        states: (layers, B, M, D) of the decoder, normalised.
        references: (layers, B, M, 2) learnable spans; None without them.
    """

    logits: Tensor
    spans: Tensor
    encoded: Encoded
    memory: Tensor
    frames: WeightedFrames | None
    saliency: Tensor | None
    pooled: tuple[Tensor, Tensor] | None
    states: Tensor
    references: Tensor | None


@check_switches
class BMDETR(Method):
    """BM-DETR."""

    family = "DETR"
    decoder: AnchorDecoder | QueryDecoder
    video_pooling: AttentivePooling | None

    def __init__(
        self,
        *,
        video_dim: int,
        query_dim: int,
        network: DETRNetwork,
        background: FrameWeighting | None,
        decoder_memory: Literal["weighted", "raw"],
        alignment: SemanticAlignment,
        learnable_spans: LearnableSpans | None,
        shifting: ShiftedCopy | None,
        criterion: SetCriterion,
        margin: float,
        margin_pairs: PairRule,
        within_one_clip: WithinOne,
        span_unit: SpanUnit,
        training: Training,
    ) -> None:
        """Builds the network; the heads of Eq. 15 and Eq. 17 exist if the weight of their loss is not None.

        Args:
            video_dim: width of the clip features, without TEF.
            query_dim: width of the token features.
            network: sizes of encoder and decoder.
            background: BMD; None leaves the memory as the encoder computes it.
            decoder_memory: the decoder reads X'+ ("weighted", paper) or X+ ("raw", released).
            alignment: FS; `training.loss_weights.semantic` null turns it off.
            learnable_spans: LS; None gives Moment-DETR's decoder.
            shifting: TS; None trains without shifted copies.
            criterion: matching (Eq. 12-13) and set losses (Eq. 14).
            margin: Delta of Eq. 15.
            margin_pairs: the clips that Eq. 15 compares.
            within_one_clip: the clip of a moment inside one clip (`clips_inside`).
            span_unit: unit of the predicted spans.
            training: loss weights, optimizer, and what validation computes.
        """
        super().__init__(training)
        self.background, self.decoder_memory = background, decoder_memory
        self.alignment, self.shifting = alignment, shifting
        self.criterion, self.margin, self.margin_pairs = criterion, margin, margin_pairs
        self.span_unit, self.within_one_clip = span_unit, within_one_clip
        self.needs = self._needs()
        dim, spans = network.dim, learnable_spans
        self.encoder = network.joint_encoder(video_dim, query_dim)
        self.matcher = None if background is None else FrameQueryMatcher(dim)
        if spans is None:
            self.decoder = network.query_decoder()
        else:
            self.decoder = network.anchor_decoder(refine=spans.refine, width_first=True)
        self._build_heads(dim)

    def _build_heads(self, dim: int) -> None:
        """Builds what reads a network of width `dim`; the heads of a loss that is off have no weights."""
        self.heads = SpanHeads(dim)
        self.saliency = nn.Linear(dim, 1) if self.weight("margin") is not None else None
        self.video_pooling = None
        if self.weight("semantic") is not None:
            build = self.alignment
            self.video_pooling, self.query_pooling = (build.attentive_pooling(dim) for _ in range(2))
            self.video_out, self.query_out = build.projection(dim), build.projection(dim)

    def _needs(self) -> frozenset[str]:
        """Returns the optional batch fields that the configured parts read.

        Raises:
            VmrError: if the frame probability loss is on without the matcher.
        """
        if self.background is None and self.weight("frame_probability") is not None:
            raise VmrError(
                "The frame probability loss needs the frame-query matcher, but method.background is null. "
                "Set method.training.loss_weights.frame_probability=null too."
            )
        needs = {"saliency", "all_spans"}
        if self.background is not None and self.background.negatives:
            needs.add("negative_query")
        if self.shifting is not None:
            needs.add("shift")
        return frozenset(needs)

    def forward(
        self,
        frames_in: Tensor,
        video_mask: Tensor,
        query: Tensor,
        query_mask: Tensor,
        negative: Tensor | None = None,
        negative_mask: Tensor | None = None,
    ) -> BMDETROutput:
        """Runs the network on projected clips; the decoder reads the memory of the positive query only.

        Args:
            frames_in: (B, Lv, D) projected clips.
            video_mask: (B, Lv), True = valid.
            query: (B, Lq, Dq).
            query_mask: (B, Lq), True = valid.
            negative: (B, Ln, Dq) negative queries, None at inference.
            negative_mask: (B, Ln), True = valid; a row without any True has no negative query.
        """
        if self.matcher is None or negative is None or negative_mask is None:
            projected = self.encoder.project_query(query)
            positive, other = self.encoder(frames_in, video_mask, projected, query_mask), None  # Eq. 2-3
        else:
            clips, words = (frames_in, video_mask), (query, query_mask)
            positive, other = self._encode_both(clips, words, (negative, negative_mask))
        frames = None
        if self.matcher is not None and self.background is not None:
            likely = self.matcher(positive.video)  # Eq. 4
            unlikely = None
            if other is not None and negative_mask is not None:
                unlikely = self.matcher(other.video) * negative_mask.any(1).unsqueeze(1)  # Eq. 4
            frames = self.background.weigh(positive.video, video_mask, likely, unlikely)  # Eq. 6-8
        video_memory = positive.video if frames is None else frames.weighted
        memory = torch.cat((video_memory, positive.query), 1)  # X'+
        states, references = self.decode(memory, positive)
        logits, spans = self.heads(states, references)
        pooled = self._pool(video_memory, video_mask, positive.query, query_mask)
        saliency = None if self.saliency is None else self.saliency(video_memory).squeeze(-1)  # Eq. 15, f W
        return BMDETROutput(logits, spans, positive, memory, frames, saliency, pooled, states, references)

    def _encode_both(
        self, clips: tuple[Tensor, Tensor], query: tuple[Tensor, Tensor], negative: tuple[Tensor, Tensor]
    ) -> tuple[Encoded, Encoded]:
        """Encodes X+ and X- (Eq. 2-3) in one pass; each argument is a padded sequence and its mask.

        Returns:
            X+, and X-, which may have more padding than `negative`.
        """
        width = max(query[1].shape[1], negative[1].shape[1])
        words = torch.cat([F.pad(x, (0, 0, 0, width - x.shape[1])) for x in (query[0], negative[0])])
        mask = torch.cat([F.pad(x, (0, width - x.shape[1])) for x in (query[1], negative[1])])
        frames, video_mask = (torch.cat((x, x)) for x in clips)
        both = self.encoder(frames, video_mask, self.encoder.project_query(words), mask)
        positive, other = split_rows(both)
        length = positive.clips + query[1].shape[1]
        memory, mask, position = (x[:, :length] for x in (positive.memory, positive.mask, positive.position))
        return Encoded(memory, mask, position, positive.clips), other

    def _unlikely(
        self,
        matcher: FrameQueryMatcher,
        frames_in: Tensor,
        video_mask: Tensor,
        negative: Tensor,
        negative_mask: Tensor,
    ) -> Tensor:
        """Computes P(f | Q-), Eq. 3-4: (B, Lv), 0 in rows without a negative query."""
        projected = self.encoder.project_query(negative)
        other = self.encoder(frames_in, video_mask, projected, negative_mask)  # X-, Eq. 3
        return matcher(other.video) * negative_mask.any(1).unsqueeze(1)  # Eq. 4

    def _pool(
        self, video: Tensor, video_mask: Tensor, query: Tensor, query_mask: Tensor
    ) -> tuple[Tensor, Tensor] | None:
        """Pools v' and q' to the unit vectors whose product is Eq. 11; None without semantic alignment."""
        if self.video_pooling is None:
            return None
        video_vector = self.video_out(self.video_pooling(video, video_mask))  # Eq. 9
        query_vector = self.query_out(self.query_pooling(query, query_mask))  # Eq. 10
        return F.normalize(video_vector, dim=-1), F.normalize(query_vector, dim=-1)  # Eq. 11

    def decode(
        self, memory: Tensor, encoded: Encoded, record: list[Tensor] | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Decodes X'+ (`memory`) or X+ (`encoded`), as `decoder_memory` says.

        Returns:
            Decoder states (layers, B, M, D), and reference spans (layers, B, M, 2) or None.
        """
        read = memory if self.decoder_memory == "weighted" else encoded.memory
        return self.decoder(read, encoded.mask, encoded.position, record=record)

    def training_rows(self, batch: Batch) -> TrainingRows:
        """Returns the batch and, with temporal shifting, its shifted copy."""
        return training_rows(batch, self.shifting, self.within_one_clip)

    def run_rows(self, rows: Batch) -> BMDETROutput:
        """Runs the network on the rows of a training step, with their negative queries if it uses them."""
        frames = self.encoder.project_video(rows["video"])
        inputs = [frames, rows["video_mask"], rows["query"], rows["query_mask"]]
        if self.background is not None and self.background.negatives:
            inputs += [rows["negative_query"], rows["negative_query_mask"]]
        return self(*inputs)

    def clips_inside(self, batch: Batch) -> Tensor:
        """Marks the clips inside the moments of each row as Eq. 16 does, (B, Lv) bool."""
        seconds = batch["duration"], batch["clip_seconds"]
        mask = batch["video_mask"]
        return clips_inside(batch["spans"], batch["span_mask"], *seconds, mask, self.within_one_clip)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Computes all losses, each as the mean over the batch and its shifted copy."""
        rows = self.training_rows(batch)
        return self.losses_of(self.run_rows(rows.batch), rows, *self.pair_choices(rows).draw())

    def pair_choices(self, rows: TrainingRows) -> PairChoices:
        """Lists the clips that Eq. 15 may compare."""
        saliency, saliency_mask = rows.batch["saliency"], rows.batch["saliency_mask"]
        video_mask = rows.batch["video_mask"]
        return pair_choices(self.margin_pairs, rows.margin_inside, video_mask, saliency, saliency_mask)

    def losses_of(
        self, output: BMDETROutput, rows: TrainingRows, positive: Tensor, negative: Tensor, usable: Tensor
    ) -> dict[str, Tensor]:
        """Computes the losses of an output.

        Args:
            output: the output for the rows.
            rows: the rows of the training step.
            positive: (R, P) clips of the margin pairs that should score higher.
            negative: (R, P) clips that should score lower.
            usable: (R, P) bool, False where there is no such pair.

        Returns:
            "span_l1", "span_giou", "label", "class_error", and "margin", "frame_probability" and "semantic"
            where their parts exist.
        """
        batch = rows.batch
        targets = to_centre_width(self.span_unit.targets(batch["spans"], batch))
        prediction = output.logits, output.spans
        losses = self.criterion.over_layers(*prediction, targets, batch["span_mask"])  # Eq. 12-14, class loss
        if output.saliency is not None:
            losses["margin"] = margin_loss(output.saliency, positive, negative, usable, self.margin)  # Eq. 15
        if output.frames is not None:
            joint, mask = output.frames.joint, batch["video_mask"]
            losses["frame_probability"] = frame_probability_loss(joint, rows.inside, mask)  # Eq. 16
        if output.pooled is not None:
            losses["semantic"] = self.alignment.loss(output.pooled, rows.copies)  # Eq. 17
        return losses

    def predict(self, batch: Batch, *, details: bool = False) -> Prediction:
        """Ranks the moments by their foreground probability, without negatives or shifting (section 4.1).

        Args:
            batch: the batch.
            details: also return `decoder_attention`, `decoder_word_attention` and, with the matcher,
                `frame_probability` and `frame_attention`. If the batch has negative queries,
                `frame_probability` is that of training (Table 9).
        """
        mask = batch["video_mask"]
        frames = per_video(self.encoder.project_clips, batch, batch["video"], mask, training=self.training)
        output = self(frames, mask, batch["query"], batch["query_mask"])
        spans, scores = rank(output.logits[-1], output.spans[-1], self.span_unit.scale(batch))
        prediction: Prediction = {"spans": spans, "scores": scores}
        if output.saliency is not None:
            prediction["saliency"] = output.saliency
        if details:
            prediction["details"] = self._details(output, batch, frames)
        return prediction

    def _details(self, output: BMDETROutput, batch: Batch, frames_in: Tensor) -> dict[str, Tensor]:
        """Collects decoder attention, p (Eq. 6; P(f | Q+) without negatives) and o (Eq. 7, Figure 4)."""
        record: list[Tensor] = []
        self.decode(output.memory, output.encoded, record)
        attention = like_ranked(record[-1], output.logits[-1])
        clips = output.encoded.clips
        details = {
            "decoder_attention": attention[..., :clips],
            "decoder_word_attention": attention[..., clips:],
        }
        if output.frames is not None:
            details["frame_probability"] = self._joint(output.frames, batch, frames_in)
            details["frame_attention"] = output.frames.attention
        return details

    def _joint(self, frames: WeightedFrames, batch: Batch, frames_in: Tensor) -> Tensor:
        """Returns p, Eq. 6: (B, Lv), with the negative queries of the batch if the method uses them."""
        background, matcher = self.background, self.matcher
        if background is None or matcher is None or not background.negatives or "negative_query" not in batch:
            return frames.joint
        unlikely = self._unlikely(
            matcher, frames_in, batch["video_mask"], batch["negative_query"], batch["negative_query_mask"]
        )
        return frames.joint * (1 - unlikely)
