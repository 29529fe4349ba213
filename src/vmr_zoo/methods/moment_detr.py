"""Moment-DETR: set prediction of moments by a transformer over video and query.

Paper: Lei, Berg, Bansal, "Detecting Moments and Highlights in Videos via Natural Language Queries", NeurIPS
2021, arXiv 2107.09609. Baseline of BM-DETR and QD-DETR.

Differs from the released code (jayleicn/moment_detr) in two switches:
- `span_unit.unit`: targets are fractions of the duration (`duration`) | of the clips read (`clips`).
- `margin_pairs`: a random pair of the margin loss is a clip inside and a clip outside the moments, where both
  exist (`usable`) | a rated and an unrated clip, and always counts (`rated`).
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from vmr_zoo.blocks.clips import clips_inside
from vmr_zoo.blocks.decoder import SpanHeads
from vmr_zoo.blocks.detr_network import DETRNetwork
from vmr_zoo.blocks.joint_encoder import Encoded
from vmr_zoo.blocks.per_video import per_video
from vmr_zoo.blocks.ranking import like_ranked, rank
from vmr_zoo.blocks.span_unit import SpanUnit
from vmr_zoo.losses.margin import PairChoices, PairRule, margin_loss, pair_choices
from vmr_zoo.losses.set_criterion import SetCriterion
from vmr_zoo.methods.base import Method, Training
from vmr_zoo.spans import to_centre_width
from vmr_zoo.types import Batch, Prediction
from vmr_zoo.utils.switches import check_switches


class MomentDETROutput(NamedTuple):
    """What the network computes.

    Attributes:
        logits: (layers, B, M, 2), index 0 = foreground.
        spans: (layers, B, M, 2) centre and width.
        saliency: (B, Lv); meaningless on padding.
        encoded: the encoder's memory.
        states: (layers, B, M, D) of the decoder, normalised.
    """

    logits: Tensor
    spans: Tensor
    saliency: Tensor
    encoded: Encoded
    states: Tensor


@check_switches
class MomentDETR(Method):
    """Moment-DETR."""

    family = "DETR"
    needs = frozenset({"saliency", "all_spans"})

    def __init__(
        self,
        *,
        video_dim: int,
        query_dim: int,
        network: DETRNetwork,
        criterion: SetCriterion,
        margin: float,
        margin_pairs: PairRule,
        span_unit: SpanUnit,
        training: Training,
    ) -> None:
        """Builds the network.

        Args:
            video_dim: width of the clip features, without TEF.
            query_dim: width of the token features.
            network: sizes of encoder and decoder.
            criterion: matching and set losses.
            margin: by how much the saliency of a relevant clip should exceed that of an irrelevant one.
            margin_pairs: which clips are compared.
            span_unit: unit of the predicted spans.
            training: loss weights, optimizer, and what validation computes.
        """
        super().__init__(training)
        self.encoder = network.joint_encoder(video_dim, query_dim)
        self.decoder = network.query_decoder()
        self.heads = SpanHeads(network.dim)
        self.saliency = nn.Linear(network.dim, 1)
        self.criterion, self.span_unit = criterion, span_unit
        self.margin, self.margin_pairs = margin, margin_pairs

    def forward(self, batch: Batch) -> MomentDETROutput:
        """Runs the network."""
        video_mask = batch["video_mask"]
        project = self.encoder.project_clips
        video = per_video(project, batch, batch["video"], video_mask, training=self.training)
        query = self.encoder.project_query(batch["query"])
        encoded = self.encoder(video, video_mask, query, batch["query_mask"])
        states, references = self.decoder(encoded.memory, encoded.mask, encoded.position)
        logits, spans = self.heads(states, references)
        return MomentDETROutput(logits, spans, self.saliency(encoded.video).squeeze(-1), encoded, states)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Computes the set losses of the last decoder layer, or of every layer, and the saliency margin."""
        return self.losses_of(self(batch), batch, *self.pair_choices(batch).draw())

    def pair_choices(self, batch: Batch) -> PairChoices:
        """Lists the clips that the margin loss may compare."""
        mask = batch["video_mask"]
        seconds = batch["duration"], batch["clip_seconds"]
        inside = clips_inside(batch["all_spans"], batch["all_span_mask"], *seconds, mask)
        return pair_choices(self.margin_pairs, inside, mask, batch["saliency"], batch["saliency_mask"])

    def losses_of(
        self, output: MomentDETROutput, batch: Batch, positive: Tensor, negative: Tensor, usable: Tensor
    ) -> dict[str, Tensor]:
        """Computes the losses of an output; the margin loss compares the given pairs of clips, (B, P)."""
        targets = to_centre_width(self.span_unit.targets(batch["spans"], batch))
        losses = self.criterion.over_layers(output.logits, output.spans, targets, batch["span_mask"])
        losses["margin"] = margin_loss(output.saliency, positive, negative, usable, self.margin)
        return losses

    def predict(self, batch: Batch, *, details: bool = False) -> Prediction:
        """Ranks the last layer's moments by their foreground probability.

        Args:
            batch: the batch.
            details: also return `decoder_attention` and `decoder_word_attention`.
        """
        output = self(batch)
        spans, scores = rank(output.logits[-1], output.spans[-1], self.span_unit.scale(batch))
        prediction: Prediction = {"spans": spans, "scores": scores, "saliency": output.saliency}
        if details:
            record: list[Tensor] = []
            encoded = output.encoded
            self.decoder(encoded.memory, encoded.mask, encoded.position, record=record)
            attention = like_ranked(record[-1], output.logits[-1])
            prediction["details"] = {
                "decoder_attention": attention[..., : encoded.clips],
                "decoder_word_attention": attention[..., encoded.clips :],
            }
        return prediction
