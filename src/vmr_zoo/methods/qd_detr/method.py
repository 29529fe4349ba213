"""QD-DETR: the video attends to the query before it is encoded, and learns to reject mismatched queries.

Paper: Moon, Hyun, Park, Park, Heo, "Query-Dependent Video Representation for Moment Retrieval and Highlight
Detection", CVPR 2023, https://arxiv.org/abs/2303.13874. Builds on Moment-DETR; MESM and LMR build on it.

- Cross-attention from video to query (section 3.2): `vmr_zoo.blocks.cross_encoder`.
- Saliency token, scores, negative pairs and their losses (sections 3.3 and 3.4): `saliency.py`.
- The network and its losses: this file.

Differs from the released code (wjun0830/QD-DETR) in four switches (fixed | released):
- `aligner.padding_mask`: keys are masked by their own row (`own_row`) | by a mask laid out in the wrong order
  (`head_order`).
- `saliency.negative_pair`: the negative query is about another video (`other_video`) | is the next row's, on
  whatever video (`rolled`).
- `saliency.margin_pairs`: as in Moment-DETR (`usable` | `rated`).
- `span_unit.unit`: spans are fractions of the duration (`duration`) | of the clips read (`clips`).
Negative pairs are encoded in training only, and never decoded; the released code does both and drops the
result.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vmr_zoo.blocks.clips import clips_inside
from vmr_zoo.blocks.cross_encoder import Aligner
from vmr_zoo.blocks.decoder import SpanHeads
from vmr_zoo.blocks.detr_network import DETRNetwork
from vmr_zoo.blocks.per_video import per_video
from vmr_zoo.blocks.position import append_tef, sine_position
from vmr_zoo.blocks.ranking import like_ranked, rank
from vmr_zoo.blocks.rows import join_rows, split_rows
from vmr_zoo.blocks.span_unit import SpanUnit
from vmr_zoo.losses.margin import PairChoices, Pairs, margin_loss, pair_choices
from vmr_zoo.losses.set_criterion import SetCriterion
from vmr_zoo.methods.base import Method, Training
from vmr_zoo.methods.qd_detr.saliency import (
    Saliency,
    SaliencyEncoder,
    ScoredSequence,
    negative_pair_loss,
    rank_contrast,
)
from vmr_zoo.spans import to_centre_width
from vmr_zoo.types import Batch, Prediction


class ProjectedNarration(NamedTuple):
    """Narration sentences at the model's width.

    Attributes:
        sentences: (B, Ln, D).
        mask: (B, Ln), True = valid.
        position: (B, Ln, D) of their times.
        query: (B, Lq', D) the words that they are fused with.
        query_mask: (B, Lq'), True = valid.
    """

    sentences: Tensor
    mask: Tensor
    position: Tensor
    query: Tensor
    query_mask: Tensor

    def with_queries_of(self, rows: Tensor) -> ProjectedNarration:
        """Returns the same narrations, row i with the words of row `rows[i]`; `rows` is (B,)."""
        return self._replace(query=self.query[rows], query_mask=self.query_mask[rows])


class ProjectedInputs(NamedTuple):
    """The inputs at the model's width.

    Attributes:
        video: (B, Lv, D).
        video_mask: (B, Lv), True = valid.
        position: (B, Lv, D) of the clips.
        query: (B, Lq, D).
        query_mask: (B, Lq), True = valid.
        token: (B, D) the token that MESM generates for the query; None in other methods.
        narration: LMR's narration of the video; None in other methods.
    """

    video: Tensor
    video_mask: Tensor
    position: Tensor
    query: Tensor
    query_mask: Tensor
    token: Tensor | None = None
    narration: ProjectedNarration | None = None

    def with_queries_of(self, rows: Tensor) -> ProjectedInputs:
        """Returns the same videos, row i with the query of row `rows[i]`; `rows` is (B,)."""
        token = None if self.token is None else self.token[rows]
        narration = None if self.narration is None else self.narration.with_queries_of(rows)
        return self._replace(
            query=self.query[rows], query_mask=self.query_mask[rows], token=token, narration=narration
        )

    @property
    def text(self) -> tuple[Tensor, Tensor]:
        """The words, after the token if there is one: (B, Lq, D) or (B, 1 + Lq, D), and their mask."""
        if self.token is None:
            return self.query, self.query_mask
        mask = torch.cat((torch.ones_like(self.query_mask[:, :1]), self.query_mask), 1)
        return torch.cat((self.token.unsqueeze(1), self.query), 1), mask


class FusedSequence(NamedTuple):
    """The encoder's input: video and query fused.

    Attributes:
        sequence: (B, L, D).
        mask: (B, L), True = valid.
        position: (B, L, D).
        clips: number of leading elements that represent the video; only their scores are used.
        decoded: number of leading elements that the decoder reads.
        enhanced: (B, Lv, D) MESM's enhanced frames, which the aligner reads; None in other methods.
    """

    sequence: Tensor
    mask: Tensor
    position: Tensor
    clips: int
    decoded: int
    enhanced: Tensor | None = None


class EncodedPair(NamedTuple):
    """A video encoded with a query.

    Attributes:
        fused: the encoder's input.
        scored: the encoder's output for the elements that are decoded.
    """

    fused: FusedSequence
    scored: ScoredSequence

    @property
    def saliency(self) -> Tensor:
        """Scores of the elements that represent the video, (B, clips)."""
        assert self.scored.saliency is not None
        return self.scored.saliency[:, : self.fused.clips]

    @property
    def mask(self) -> Tensor:
        """Mask of those elements, (B, clips)."""
        return self.fused.mask[:, : self.fused.clips]


class QDDETROutput(NamedTuple):
    """What the network computes.

    Attributes:
        logits: (layers, B, M, 2), index 0 = foreground.
        spans: (layers, B, M, 2) centre and width.
        states: (layers, B, M, D) of the decoder, normalised.
        references: (layers, B, M, 2) the spans that each layer started from.
        inputs: the projected inputs.
        positive: each video with its query.
        negative: each video with its negative query; None at inference.
    """

    logits: Tensor
    spans: Tensor
    states: Tensor
    references: Tensor
    inputs: ProjectedInputs
    positive: EncodedPair
    negative: EncodedPair | None


class QDDETR(Method):
    """QD-DETR, and what MESM and LMR inherit.

    `forward` projects, fuses, encodes and decodes; `losses` runs it and computes each loss in `losses_of`. A
    subclass overrides `project` and `fuse` to change what the encoder reads, `decoder_content` to change what
    the decoder starts from, and `losses_of` to add losses.
    """

    family = "DETR"

    def __init__(
        self,
        *,
        video_dim: int,
        query_dim: int,
        network: DETRNetwork,
        aligner: Aligner,
        saliency: Saliency,
        criterion: SetCriterion,
        span_unit: SpanUnit,
        training: Training,
    ) -> None:
        """Builds the network.

        Args:
            video_dim: width of the clip features, without TEF.
            query_dim: width of the token features.
            network: sizes of encoder and decoder.
            aligner: cross-attention from video to query.
            saliency: how clips are scored, and the constants of the saliency losses.
            criterion: matching and set losses.
            span_unit: unit of the predicted spans.
            training: loss weights, optimizer, and what validation computes.
        """
        super().__init__(training)
        self.needs = frozenset({"saliency"} if self.any_loss_on("rank_contrast", "margin") else set())
        self.needs |= {"all_spans"} if self.any_loss_on("margin") else set()
        if self.learns_mismatch:
            self.answer_evidence = "highest saliency of a clip"
        self.dim = network.dim
        self.saliency, self.criterion, self.span_unit = saliency, criterion, span_unit
        self.project_video = network.input_projection(video_dim + 2)
        self.project_query = network.input_projection(query_dim)
        self.aligner = aligner.build(network)
        self.encoder = SaliencyEncoder(network.encoder(), network.dim, saliency)
        self.decoder = network.anchor_decoder(refine=True)
        self.heads = SpanHeads(network.dim)

    def any_loss_on(self, *names: str) -> bool:
        """Returns whether any of these losses has a weight."""
        return any(self.loss_weights.get(name) is not None for name in names)

    @property
    def learns_mismatch(self) -> bool:
        """Whether a loss lowers the saliency of a video under the sentences of other videos."""
        return self.any_loss_on("negative_pair", "rank_contrast")

    def answer_score(self, prediction: Prediction, batch: Batch) -> Tensor:
        """Returns the highest saliency of a clip, if a loss lowers it under sentences of other videos.

        The foreground probability of the best moment is high with any sentence: it is never trained on a
        mismatched one. On shapes (iid, in-domain sentences) its AUROC is 61, that of the saliency 91; the
        saliency was chosen on that split (docs/no_answer.md).
        """
        if not self.learns_mismatch:
            return super().answer_score(prediction, batch)
        return prediction["saliency"].float().masked_fill(~batch["video_mask"], -torch.inf).amax(1)

    def project(self, batch: Batch) -> ProjectedInputs:
        """Projects the inputs; clips have sine positions, words none."""
        mask = batch["video_mask"]
        return ProjectedInputs(
            per_video(self.project_clips, batch, batch["video"], mask, training=self.training),
            mask,
            sine_position(mask, self.dim),
            self.project_query(batch["query"]),
            batch["query_mask"],
        )

    def project_clips(self, video: Tensor, mask: Tensor) -> Tensor:
        """Appends TEF to clips (B, Lv, Dv) and projects them, to (B, Lv, D); `mask` (B, Lv), True = valid."""
        return self.project_video(append_tef(video, mask))

    def fuse(self, inputs: ProjectedInputs, record: list[Tensor] | None = None) -> FusedSequence:
        """Lets every clip attend to the words (section 3.2).

        Args:
            inputs: the projected inputs.
            record: list to which each layer in which clips first meet words appends its attention weights,
                (B, Lv, Lq), or (B, Lv, 1 + Lq) if clips meet a token too.
        """
        video = self.aligner(inputs.video, inputs.video_mask, inputs.position, *inputs.text, record=record)
        clips = video.shape[1]
        return FusedSequence(video, inputs.video_mask, inputs.position, clips, clips)

    def encode(self, inputs: ProjectedInputs) -> EncodedPair:
        """Fuses videos with their queries, and encodes and scores the result (section 3.3)."""
        fused = self.fuse(inputs)
        return EncodedPair(fused, self.encoder(fused.sequence, fused.mask, fused.position, fused.decoded))

    def encode_both(
        self, inputs: ProjectedInputs, negatives: Tensor | None
    ) -> tuple[EncodedPair, EncodedPair | None]:
        """Encodes the positive and, with `negatives` (as in `forward`), the negative pairs."""
        if negatives is None:
            return self.encode(inputs), None
        other = inputs.with_queries_of(negatives)
        if self.aligner.padding_mask == "head_order":  # depends on the number of rows
            return self.encode(inputs), self.encode(other)
        return split_rows(self.encode(join_rows(inputs, other)))

    def decoder_content(self, inputs: ProjectedInputs) -> Tensor | None:
        """Returns what the decoder's slots start from, (B, M, D); None is zeros."""
        return None

    def decode(
        self, inputs: ProjectedInputs, encoded: EncodedPair, record: list[Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Decodes the encoded elements; arguments and result as in `AnchorDecoder`."""
        fused = encoded.fused
        first = slice(0, fused.decoded)
        return self.decoder(
            encoded.scored.memory,
            fused.mask[:, first],
            fused.position[:, first],
            self.decoder_content(inputs),
            record,
        )

    def forward(self, batch: Batch, negatives: Tensor | None = None) -> QDDETROutput:
        """Runs the network.

        Args:
            batch: the batch.
            negatives: (B,) the row whose query is the negative of each row; None encodes no negative pairs.
        """
        return self.run(self.project(batch), negatives)

    def run(self, inputs: ProjectedInputs, negatives: Tensor | None) -> QDDETROutput:
        """Runs the network on projected inputs; `negatives` as in `forward`."""
        positive, negative = self.encode_both(inputs, negatives)
        states, references = self.decode(inputs, positive)
        logits, spans = self.heads(states, references)
        return QDDETROutput(logits, spans, states, references, inputs, positive, negative)

    def clips_of_moments(self, batch: Batch) -> Tensor:
        """Marks the clips inside any moment of the row, (B, Lv), also where training draws a few of many."""
        seconds = batch["duration"], batch["clip_seconds"]
        return clips_inside(batch["all_spans"], batch["all_span_mask"], *seconds, batch["video_mask"])

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Runs the network on the batch, draws the pairs of the margin loss, and computes the losses."""
        output, exists = self.run_with_negatives(batch)
        return self.losses_of(output, batch, exists, self.draw_margin_pairs(batch))

    def run_with_negatives(self, batch: Batch) -> tuple[QDDETROutput, Tensor]:
        """Runs the network, with negative pairs if a loss needs them.

        Returns:
            The output, and (B,), False for a row without a negative query.
        """
        rows, exists = self.saliency.negative_rows(batch["video_index"])
        return self(batch, rows if self.any_loss_on("negative_pair", "rank_contrast") else None), exists

    def draw_margin_pairs(self, batch: Batch) -> Pairs | None:
        """Draws the clip pairs of the margin loss; None without that loss."""
        return self.pair_choices(batch).draw() if self.any_loss_on("margin") else None

    def pair_choices(self, batch: Batch) -> PairChoices:
        """Lists the clips that the margin loss may compare."""
        rule, inside = self.saliency.margin_pairs, self.clips_of_moments(batch)
        return pair_choices(rule, inside, batch["video_mask"], batch["saliency"], batch["saliency_mask"])

    def losses_of(
        self, output: QDDETROutput, batch: Batch, exists: Tensor, pairs: Pairs | None
    ) -> dict[str, Tensor]:
        """Computes the losses of an output on given draws.

        Args:
            output: the network's output for the batch.
            batch: the batch.
            exists: (B,), False for a row without a negative query.
            pairs: clip pairs of the margin loss; None without it.

        Returns:
            Unweighted scalars by name: the set losses of the decoder layers, and the saliency losses that are
            on.
        """
        return self.set_losses(output, batch) | self.saliency_losses(output, batch, exists, pairs)

    def set_losses(self, output: QDDETROutput, batch: Batch) -> dict[str, Tensor]:
        """Matches and scores the moments of the decoder layers (LMR Eq. 6-7; MESM Eq. 7)."""
        targets = to_centre_width(self.span_unit.targets(batch["spans"], batch))
        return self.criterion.over_layers(output.logits, output.spans, targets, batch["span_mask"])

    def saliency_losses(
        self, output: QDDETROutput, batch: Batch, exists: Tensor, pairs: Pairs | None
    ) -> dict[str, Tensor]:
        """Computes the saliency losses that are on (section 3.4); arguments as in `losses_of`."""
        losses: dict[str, Tensor] = {}
        positive, negative = output.positive, output.negative
        if self.any_loss_on("negative_pair"):
            assert negative is not None
            losses["negative_pair"] = negative_pair_loss(negative.saliency, negative.mask, exists)
        if self.any_loss_on("rank_contrast"):
            assert negative is not None
            ratings = batch["saliency"].masked_fill(~batch["saliency_mask"], 0)
            losses["rank_contrast"] = rank_contrast(
                positive.saliency,
                negative.saliency,
                positive.mask,
                exists,
                ratings[:, : positive.mask.shape[1]],
                self.saliency,
            )
        if pairs is not None:
            losses["margin"] = margin_loss(positive.saliency, *pairs, self.saliency.margin)
        return losses

    def predict(self, batch: Batch, *, details: bool = False) -> Prediction:
        """Ranks the last layer's moments by their foreground probability.

        Args:
            batch: the batch.
            details: also return what `details_of` does.
        """
        output = self(batch)
        spans, scores = rank(output.logits[-1], output.spans[-1], self.span_unit.scale(batch))
        prediction: Prediction = {"spans": spans, "scores": scores}
        if output.positive.scored.saliency is not None:
            prediction["saliency"] = output.positive.saliency
        if details:
            prediction["details"] = self.details_of(output, batch)
        return prediction

    def details_of(self, output: QDDETROutput, batch: Batch) -> dict[str, Tensor]:
        """Returns `decoder_attention` and `frame_word_attention` of an output, both of the last layer."""
        decoder: list[Tensor] = []
        fusion: list[Tensor] = []
        self.decode(output.inputs, output.positive, decoder)
        self.fuse(output.inputs, fusion)
        words, clips = output.inputs.query.shape[1], output.positive.fused.clips
        return {
            "decoder_attention": like_ranked(decoder[-1], output.logits[-1])[..., :clips],
            "frame_word_attention": fusion[-1][..., -words:],  # a token comes before the words
        }
