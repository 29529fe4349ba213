"""QD-DETR: the video attends to the query before it is encoded, and has to tell matching queries from others.

Paper: Moon, Hyun, Park, Park, Heo, "Query-Dependent Video Representation for Moment Retrieval and Highlight
Detection", CVPR 2023, https://arxiv.org/abs/2303.13874. Stands on Moment-DETR; baseline of MESM and LMR,
which subclass
it: they change what is fused, and what the decoder starts from.

Differs from the released code (wjun0830/QD-DETR) in three switches (mended | released):
- `padding_mask`: keys are masked by their own row (`own_row`) | by a mask laid out in the wrong order
  (`head_order`).
- `negative_pair`: the negative sentence is about another video (`other_video`) | the next row's, whichever
  that is (`rolled`).
- `span_unit`: spans are fractions of the duration (`duration`) | of the clips read (`clips`).
Negative pairs are run in training only, and never through the decoder; the released code does both and drops
the result.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from vmr_zoo.blocks.clips import clips_inside
from vmr_zoo.blocks.cross_encoder import CrossEncoder
from vmr_zoo.blocks.decoder import AnchorDecoder, SpanHeads
from vmr_zoo.blocks.distinct import per_video
from vmr_zoo.blocks.encoder import Encoder
from vmr_zoo.blocks.extent import Extent
from vmr_zoo.blocks.other_video import negative_rows
from vmr_zoo.blocks.position import append_tef, sine_position
from vmr_zoo.blocks.projection import Activation, InputProjection
from vmr_zoo.blocks.ranking import like_ranked, rank
from vmr_zoo.blocks.saliency_encoder import SaliencyEncoder, Scored
from vmr_zoo.losses.margin import margin_loss, sample_pairs
from vmr_zoo.losses.saliency import negative_pair_loss, rank_contrast
from vmr_zoo.losses.set_criterion import SetCriterion
from vmr_zoo.methods.base import Method, Training
from vmr_zoo.spans import to_centre_width
from vmr_zoo.types import Batch, Prediction

SALIENCY_LOSSES = ("negative_pair", "rank_contrast", "margin")


class Narration(NamedTuple):
    """Descriptions of the video at the model's width.

    Attributes:
        sentences: (B, Ln, D).
        mask: (B, Ln), True = valid.
        position: (B, Ln, D) of their times.
    """

    sentences: Tensor
    mask: Tensor
    position: Tensor


class Read(NamedTuple):
    """The inputs at the model's width.

    Attributes:
        video: (B, Lv, D).
        video_mask: (B, Lv), True = valid.
        position: (B, Lv, D) of the clips.
        query: (B, Lq, D).
        query_mask: (B, Lq), True = valid.
        token: (B, D) one more vector about the query's moment (MESM's generated token); None without.
        narration: what else is known about the video (LMR); None without.
    """

    video: Tensor
    video_mask: Tensor
    position: Tensor
    query: Tensor
    query_mask: Tensor
    token: Tensor | None = None
    narration: Narration | None = None

    def about(self, rows: Tensor) -> Read:
        """The same videos, each with the query of another row; `rows` (B,) says which."""
        token = None if self.token is None else self.token[rows]
        return self._replace(query=self.query[rows], query_mask=self.query_mask[rows], token=token)

    @property
    def text(self) -> tuple[Tensor, Tensor]:
        """The token, if there is one, followed by the words: (B, 1 + Lq, D) and their mask."""
        if self.token is None:
            return self.query, self.query_mask
        mask = torch.cat((torch.ones_like(self.query_mask[:, :1]), self.query_mask), 1)
        return torch.cat((self.token.unsqueeze(1), self.query), 1), mask


class Fused(NamedTuple):
    """What the encoder reads: video and query fused.

    Attributes:
        sequence: (B, L, D).
        mask: (B, L), True = valid.
        position: (B, L, D).
        clips: how many elements, the first ones, stand for the video: they are scored and decoded.
        enhanced: (B, Lv, D) the video before its last fusion; None if there is but one.
    """

    sequence: Tensor
    mask: Tensor
    position: Tensor
    clips: int
    enhanced: Tensor | None = None


class Encoded(NamedTuple):
    """A fused sequence and what the encoder made of it.

    Attributes:
        fused: what was read.
        scored: what came out.
    """

    fused: Fused
    scored: Scored

    @property
    def saliency(self) -> Tensor:
        """Scores of the elements that stand for the video, (B, clips)."""
        assert self.scored.saliency is not None
        return self.scored.saliency[:, : self.fused.clips]

    @property
    def mask(self) -> Tensor:
        """Mask of those elements, (B, clips)."""
        return self.fused.mask[:, : self.fused.clips]


class Output(NamedTuple):
    """What the network computes.

    Attributes:
        logits: (layers, B, M, 2), index 0 = foreground.
        spans: (layers, B, M, 2) centre and width.
        states: (layers, B, M, D) of the decoder, normalised.
        references: (layers, B, M, 2) the spans that each layer started from.
        read: the projected inputs.
        positive: each video with its query.
        negative: each video with another video's query; None at inference.
    """

    logits: Tensor
    spans: Tensor
    states: Tensor
    references: Tensor
    read: Read
    positive: Encoded
    negative: Encoded | None


class QDDETR(Method):
    """QD-DETR."""

    def __init__(
        self,
        *,
        video_dim: int,
        query_dim: int,
        dim: int,
        heads: int,
        feedforward_dim: int,
        aligner_layers: int,
        encoder_layers: int,
        decoder_layers: int,
        queries: int,
        activation: Activation,
        projection_layers: int,
        dropout: float,
        input_dropout: float,
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
        similarity: str = "token",
        token_is_key: bool = True,
    ) -> None:
        """Builds the network.

        Args:
            video_dim: width of the clip features, without TEF.
            query_dim: width of the token features.
            dim: D, width of the model.
            heads: attention heads.
            feedforward_dim: width inside the position-wise networks.
            aligner_layers: cross-attention layers from video to query.
            encoder_layers: layers of the encoder.
            decoder_layers: layers of the decoder.
            queries: M, the number of predicted moments.
            activation: of the position-wise networks.
            projection_layers: Linear maps per input projection.
            dropout: in aligner, encoder and decoder.
            input_dropout: in the input projections.
            padding_mask: "own_row" or "head_order", see `blocks.cross_encoder.attention_mask`.
            negative_pair: "other_video" or "rolled", see `blocks.other_video.negative_rows`.
            rank_levels: see `losses.saliency.rank_contrast`, as the next two.
            rank_divisor: see there.
            rank_temperature: see there.
            margin: by which a relevant clip's saliency should exceed an irrelevant one's.
            aux_losses: apply the set losses to every decoder layer instead of the last one.
            criterion: matching and set losses.
            span_unit: see `blocks.extent.Extent`.
            max_clips: see `blocks.extent.Extent`.
            training: see `Method`.
            similarity: what scores a clip, see `blocks.saliency_encoder.SaliencyEncoder`.
            token_is_key: see there.
        """
        super().__init__(training)
        rated = any(self.loss_weights.get(name) is not None for name in ("rank_contrast", "margin"))
        self.needs = frozenset({"saliency"} if rated else set())
        self.contrasts = any(
            self.loss_weights.get(name) is not None for name in ("negative_pair", "rank_contrast")
        )
        self.dim = dim
        self.negative_pair = negative_pair
        self.rank_levels, self.rank_divisor = rank_levels, rank_divisor
        self.rank_temperature, self.margin = rank_temperature, margin
        self.aux_losses = aux_losses
        self.criterion = criterion
        self.extent = Extent(span_unit, max_clips)

        self.project_video = InputProjection(video_dim + 2, dim, projection_layers, input_dropout)
        self.project_query = InputProjection(query_dim, dim, projection_layers, input_dropout)
        self.cross_encoder = partial(
            CrossEncoder,
            dim,
            heads,
            feedforward_dim,
            activation=activation,
            dropout=dropout,
            padding_mask=padding_mask,
        )
        self.aligner = self.cross_encoder(aligner_layers)
        self.encoder = SaliencyEncoder(
            Encoder(dim, heads, feedforward_dim, encoder_layers, activation=activation, dropout=dropout),
            dim,
            score=similarity,
            token_is_key=token_is_key,
        )
        self.decoder = AnchorDecoder(
            dim,
            heads,
            feedforward_dim,
            decoder_layers,
            queries,
            activation=activation,
            dropout=dropout,
            refine=True,
        )
        self.heads = SpanHeads(dim)

    def read(self, batch: Batch) -> Read:
        """Projects the inputs; clips have sine positions, words none."""
        mask = batch["video_mask"]
        return Read(
            per_video(self._project, batch, batch["video"], mask, training=self.training),
            mask,
            sine_position(mask, self.dim),
            self.project_query(batch["query"]),
            batch["query_mask"],
        )

    def _project(self, video: Tensor, mask: Tensor) -> Tensor:
        return self.project_video(append_tef(video, mask))

    def fuse(self, read: Read, record: list[Tensor] | None = None) -> Fused:
        """Lets every clip attend to the words.

        Args:
            read: the projected inputs.
            record: gets the attention weights of each layer in which the clips first meet the words appended,
                (B, Lv, Lq), or (B, Lv, 1 + Lq) if they meet a token too; see `blocks.attention.attend`.
        """
        video = self.aligner(read.video, read.video_mask, read.position, *read.text, record=record)
        return Fused(video, read.video_mask, read.position, video.shape[1])

    def encode(self, read: Read) -> Encoded:
        """Fuses and encodes videos with their queries."""
        fused = self.fuse(read)
        return Encoded(fused, self.encoder(fused.sequence, fused.mask, fused.position))

    def content(self, read: Read) -> Tensor | None:
        """What the decoder's slots start from, (B, M, D); None is zeros."""
        return None

    def decode(
        self, read: Read, encoded: Encoded, record: list[Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Decodes the elements that stand for the video; see `AnchorDecoder`."""
        fused = encoded.fused
        first = slice(0, fused.clips)
        return self.decoder(
            encoded.scored.memory[:, first],
            fused.mask[:, first],
            fused.position[:, first],
            self.content(read),
            record,
        )

    def forward(self, batch: Batch, negatives: Tensor | None = None) -> Output:
        """Runs the network.

        Args:
            batch: see `Batch`.
            negatives: (B,) which row's query is the negative of each row; None to go without.
        """
        return self.run(self.read(batch), negatives)

    def run(self, read: Read, negatives: Tensor | None) -> Output:
        """Runs the network on projected inputs; see `forward`."""
        positive = self.encode(read)
        negative = None if negatives is None else self.encode(read.about(negatives))
        states, references = self.decode(read, positive)
        logits, spans = self.heads(states, references)
        return Output(logits, spans, states, references, read, positive, negative)

    def inside(self, batch: Batch) -> Tensor:
        """Marks the clips inside the moments, (B, Lv)."""
        return clips_inside(
            batch["spans"], batch["span_mask"], batch["duration"], batch["clip_seconds"], batch["video_mask"]
        )

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Set losses of every decoder layer, and the saliency losses."""
        rows, exists = negative_rows(batch["video_index"], self.negative_pair)
        output = self(batch, rows if self.contrasts else None)
        return self.set_losses(output, batch) | self.saliency_losses(output, batch, exists, self.pairs(batch))

    def pairs(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor] | None:
        """Draws the clips of the margin loss, None without it; see `losses.margin.sample_pairs`."""
        if self.loss_weights.get("margin") is None:
            return None
        return sample_pairs(
            self.inside(batch), batch["video_mask"], batch["saliency"], batch["saliency_mask"]
        )

    def set_losses(self, output: Output, batch: Batch) -> dict[str, Tensor]:
        """Matches and scores the moments of every decoder layer; see `SetCriterion`."""
        targets = to_centre_width(self.extent.targets(batch["spans"], batch))
        return self.criterion.over_layers(
            output.logits, output.spans, targets, batch["span_mask"], every=self.aux_losses
        )

    def saliency_losses(
        self, output: Output, batch: Batch, exists: Tensor, pairs: tuple[Tensor, Tensor, Tensor] | None
    ) -> dict[str, Tensor]:
        """Computes those of `SALIENCY_LOSSES` that are switched on.

        Args:
            output: of the batch.
            batch: the batch.
            exists: (B,), False for a row without a negative query.
            pairs: of the margin loss, see `pairs`.
        """
        wanted = {name for name in SALIENCY_LOSSES if self.loss_weights.get(name) is not None}
        losses: dict[str, Tensor] = {}
        positive, negative = output.positive, output.negative
        if "negative_pair" in wanted:
            assert negative is not None
            losses["negative_pair"] = negative_pair_loss(negative.saliency, negative.mask, exists)
        if "rank_contrast" in wanted:
            assert negative is not None
            losses["rank_contrast"] = rank_contrast(
                positive.saliency,
                negative.saliency,
                positive.mask,
                exists,
                batch["saliency"],
                levels=self.rank_levels,
                divisor=self.rank_divisor,
                temperature=self.rank_temperature,
            )
        if pairs is not None:
            losses["margin"] = margin_loss(positive.saliency, *pairs, self.margin)
        return losses

    def predict(self, batch: Batch, *, details: bool = False) -> Prediction:
        """Ranks the last layer's moments by their foreground probability.

        Args:
            batch: see `Batch`.
            details: also return what `details_of` does.
        """
        output = self(batch)
        spans, scores = rank(output.logits[-1], output.spans[-1], self.extent.scale(batch))
        prediction: Prediction = {"spans": spans, "scores": scores}
        if output.positive.scored.saliency is not None:
            prediction["saliency"] = output.positive.saliency
        if details:
            prediction["details"] = self.details_of(output, batch)
        return prediction

    def details_of(self, output: Output, batch: Batch) -> dict[str, Tensor]:
        """Returns `decoder_attention` and `frame_word_attention` of an output, both of the last layer."""
        decoder: list[Tensor] = []
        fusion: list[Tensor] = []
        self.decode(output.read, output.positive, decoder)
        self.fuse(output.read, fusion)
        words = output.read.query.shape[1]
        return {
            "decoder_attention": like_ranked(decoder[-1], output.logits[-1]),
            "frame_word_attention": fusion[-1][..., -words:],  # a token comes before the words
        }
