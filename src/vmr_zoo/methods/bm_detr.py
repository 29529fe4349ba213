"""BM-DETR: a background-aware moment detection transformer.

Paper: Jung et al., "Overcoming Weak Visual-Textual Alignment for Video Moment Retrieval", arXiv 2306.02728.
Stands on Moment-DETR. Adds, in the names of its Table 7: BMD, frames weighted by how well they match the
query and not a negative query on the same video (Eq. 1-8); FS, semantic alignment of pooled video and query
(Eq. 9-11, 17); LS, learnable spans (section 3.3.4); TS, a second copy of each video with the moment moved
elsewhere (section 3.4).

Where paper and released code (minjoong507/BM-DETR) differ, an argument decides (paper | released):
- `decoder_memory`: the decoder reads frame features weighted by Eq. 8 (`weighted`) | unweighted ones (`raw`).
- `frame_softmax`: Eq. 7 over the valid clips (`masked`) | over the padded length (`padded`, whose result
  depends on what else is in the batch).
- `pooling`: Eq. 9-11 as written (`linear`) | a hidden layer in the scorer and two more Linear maps
  (`projected`).
- `positive_in_denominator`: Eq. 17 leaves the row's own pair out of the denominator | InfoNCE keeps it.
- `shift_tef`: the shifted copy's clips are numbered anew | clips keep the endpoint feature of their old
  place.
- `span_unit`: spans are fractions of the duration | of the clips read.
- `criterion.cost_class`: Eq. 12 counts the class probability once | 8 times.
- `loss_weights.class_error`: absent | a constant without gradient, part of the reported total.
Which negatives and shifts there are is the data module's affair (`data.negatives`, `data.shift`).
The equations' literal Eq. 8 shrinks features by the number of clips; `frame_weight: softmax_times_length`
undoes it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vmr_zoo.blocks.clips import clips_inside
from vmr_zoo.blocks.decoder import AnchorDecoder, QueryDecoder, SpanHeads
from vmr_zoo.blocks.distinct import per_video
from vmr_zoo.blocks.encoder import Encoder
from vmr_zoo.blocks.extent import Extent
from vmr_zoo.blocks.joint_encoder import Encoded, JointEncoder
from vmr_zoo.blocks.pooling import AttentivePooling
from vmr_zoo.blocks.position import append_tef
from vmr_zoo.blocks.projection import Activation
from vmr_zoo.blocks.ranking import like_ranked, rank
from vmr_zoo.errors import VmrError, unknown
from vmr_zoo.losses.contrastive import pair_contrast
from vmr_zoo.losses.frame_probability import frame_probability_loss
from vmr_zoo.losses.margin import margin_loss, sample_pairs
from vmr_zoo.losses.set_criterion import SetCriterion
from vmr_zoo.methods.base import Method, Training
from vmr_zoo.spans import to_centre_width
from vmr_zoo.types import Batch, Prediction


class FrameQueryMatcher(nn.Module):
    """Probabilistic frame-query matcher, Eq. 5: sigma(tanh(f W1) W2), without biases."""

    def __init__(self, dim: int) -> None:
        """Builds W1 (D, D / 2) and W2 (D / 2, 1)."""
        super().__init__()
        self.w1 = nn.Linear(dim, dim // 2, bias=False)
        self.w2 = nn.Linear(dim // 2, 1, bias=False)

    def forward(self, frames: Tensor) -> Tensor:
        """Maps frame features (B, Lv, D) to probabilities (B, Lv)."""
        return self.w2(self.w1(frames).tanh()).squeeze(-1).sigmoid()


class Frames(NamedTuple):
    """What the frame-query matcher makes of the frames.

    Attributes:
        positive: (B, Lv) P(f | Q+), Eq. 4.
        negative: (B, Lv) P(f | Q-), Eq. 4; 0 in rows without a negative query. None if there are none at all.
        joint: (B, Lv) p, Eq. 6; 0 on padding.
        attention: (B, Lv) o, Eq. 7.
        weighted: (B, Lv, D) v', Eq. 8.
    """

    positive: Tensor
    negative: Tensor | None
    joint: Tensor
    attention: Tensor
    weighted: Tensor


class Output(NamedTuple):
    """What the network computes.

    Attributes:
        logits: (layers, B, M, 2), index 0 = foreground.
        spans: (layers, B, M, 2) centre and width.
        encoded: the encoder's memory X+.
        memory: (B, Lv + Lq, D) X'+, the frames weighted; equal to X+ without the matcher.
        frames: see `Frames`; None without the matcher.
        saliency: (B, Lv) f W of Eq. 15; None without that loss. Meaningless on padding.
        pooled: the video and query vectors of Eq. 11, (B, E) each, of length 1; None without that loss.
        states: (layers, B, M, D) of the decoder, normalised.
        references: (layers, B, M, 2) learnable spans, None without them.
    """

    logits: Tensor
    spans: Tensor
    encoded: Encoded
    memory: Tensor
    frames: Frames | None
    saliency: Tensor | None
    pooled: tuple[Tensor, Tensor] | None
    states: Tensor
    references: Tensor | None


class Rows(NamedTuple):
    """The rows of one training step: the batch, followed by its shifted copy if there is one.

    Attributes:
        batch: fields of the contract for all rows, `video` with TEF already.
        inside: (R, Lv), the clips of the moment.
        margin_inside: (R, Lv), the clips that the margin loss draws its positives from.
        copies: 1, or 2 with a shifted copy.
    """

    batch: Batch
    inside: Tensor
    margin_inside: Tensor
    copies: int


class BMDETR(Method):
    """BM-DETR."""

    def __init__(
        self,
        *,
        video_dim: int,
        query_dim: int,
        dim: int,
        heads: int,
        feedforward_dim: int,
        encoder_layers: int,
        decoder_layers: int,
        queries: int,
        activation: Activation,
        projection_layers: int,
        dropout: float,
        input_dropout: float,
        background: bool,
        negatives: bool,
        learnable_spans: bool,
        refine: bool,
        shifting: bool,
        decoder_memory: str,
        frame_softmax: str,
        frame_weight: str,
        pooling: str,
        pooling_dim: int,
        positive_in_denominator: bool,
        temperature: float,
        shift_tef: str,
        aux_losses: bool,
        criterion: SetCriterion,
        margin: float,
        span_unit: str,
        max_clips: int,
        training: Training,
    ) -> None:
        """Builds the network.

        The heads of the margin and the semantic alignment loss exist if their loss weight is not None.

        Args:
            video_dim: width of the clip features, without TEF.
            query_dim: width of the token features.
            dim: D, width of the model.
            heads: attention heads.
            feedforward_dim: width inside the position-wise networks.
            encoder_layers: layers of the encoder.
            decoder_layers: layers of the decoder.
            queries: M, the number of predicted moments.
            activation: of the position-wise networks.
            projection_layers: Linear maps per input projection.
            dropout: in encoder and decoder.
            input_dropout: in the input projections.
            background: BMD, Eq. 1-8; without it the memory stays as the encoder left it.
            negatives: train with negative queries; without them the joint probability is P(f | Q+) (Table 9).
            learnable_spans: LS; without it Moment-DETR's encoder positions and decoder.
            refine: move the learnable spans after every decoder layer, as DAB-DETR does and the released code
                does not.
            shifting: TS.
            decoder_memory: "weighted" or "raw", see above.
            frame_softmax: "masked" or "padded", see above.
            frame_weight: "softmax" (Eq. 8), or "softmax_times_length", with which the mean weight of a clip
                is 1.
            pooling: "linear" or "projected", see above.
            pooling_dim: E, width of the pooled vectors under `pooling="projected"`.
            positive_in_denominator: see above.
            temperature: tau of Eq. 17.
            shift_tef: "renumbered" or "travels", see above.
            aux_losses: apply the set losses to every decoder layer instead of the last one.
            criterion: matching (Eq. 12-13) and set losses (Eq. 14).
            margin: Delta of Eq. 15.
            span_unit: see `blocks.extent.Extent`.
            max_clips: see `blocks.extent.Extent`.
            training: see `Method`.

        Raises:
            VmrError: for an unknown value of a switch, or a frame probability loss without `background`.
        """
        super().__init__(training)
        for name, value, valid in (
            ("decoder_memory", decoder_memory, ("weighted", "raw")),
            ("frame_softmax", frame_softmax, ("masked", "padded")),
            ("frame_weight", frame_weight, ("softmax", "softmax_times_length")),
            ("pooling", pooling, ("linear", "projected")),
            ("shift_tef", shift_tef, ("renumbered", "travels")),
        ):
            if value not in valid:
                raise unknown(f"method.{name}", value, valid)
        if not background and self.weight("frame_probability") is not None:
            raise VmrError(
                "The frame probability loss needs the frame-query matcher, but method.background is false. "
                "Set method.training.loss_weights.frame_probability=null too."
            )
        self.needs = frozenset(
            {"saliency"}
            | ({"negative_query"} if background and negatives else set())
            | ({"shift"} if shifting else set())
        )
        self.negatives, self.shifting, self.aux_losses = background and negatives, shifting, aux_losses
        self.decoder_memory, self.frame_softmax, self.frame_weight = (
            decoder_memory,
            frame_softmax,
            frame_weight,
        )
        self.positive_in_denominator, self.temperature = positive_in_denominator, temperature
        self.shift_tef = shift_tef
        self.criterion = criterion
        self.margin = margin
        self.extent = Extent(span_unit, max_clips)

        encoder = Encoder(
            dim,
            heads,
            feedforward_dim,
            encoder_layers,
            activation=activation,
            dropout=dropout,
            scale_positions=learnable_spans,
        )
        self.encoder = JointEncoder(
            video_dim + 2,
            query_dim,
            encoder,
            dim,
            projection_layers=projection_layers,
            input_dropout=input_dropout,
        )
        self.matcher = FrameQueryMatcher(dim) if background else None
        self.decoder: AnchorDecoder | QueryDecoder
        if learnable_spans:
            self.decoder = AnchorDecoder(
                dim,
                heads,
                feedforward_dim,
                decoder_layers,
                queries,
                activation=activation,
                dropout=dropout,
                refine=refine,
                width_first=True,
            )
        else:
            self.decoder = QueryDecoder(
                dim, heads, feedforward_dim, decoder_layers, queries, activation=activation, dropout=dropout
            )
        self.heads = SpanHeads(dim)
        self.saliency = nn.Linear(dim, 1) if self.weight("margin") is not None else None
        self.video_pooling: nn.Module | None = None
        if self.weight("semantic") is not None:
            projected = pooling == "projected"
            self.video_pooling = AttentivePooling(dim, hidden=projected)
            self.query_pooling = AttentivePooling(dim, hidden=projected)
            self.video_out = nn.Linear(dim, pooling_dim) if projected else nn.Identity()
            self.query_out = nn.Linear(dim, pooling_dim) if projected else nn.Identity()

    def match_frames(
        self, positive: Encoded, negative: Encoded | None, has_negative: Tensor | None, video_mask: Tensor
    ) -> Frames | None:
        """Weights the frames by the joint probability, Eq. 4-8.

        Args:
            positive: X+.
            negative: X-, None at inference and when nothing is negative.
            has_negative: (B,) bool, which rows have a negative query; None if `negative` is.
            video_mask: (B, Lv), True = valid.

        Returns:
            The probabilities and weighted frames, None without the matcher.
        """
        if self.matcher is None:
            return None
        likely = self.matcher(positive.video)  # Eq. 4
        unlikely = None
        joint = likely
        if negative is not None and has_negative is not None:
            unlikely = self.matcher(negative.video) * has_negative.unsqueeze(1)  # Eq. 4
            joint = likely * (1 - unlikely)  # Eq. 6
        joint = joint * video_mask
        if self.frame_softmax == "masked":
            attention = joint.masked_fill(~video_mask, -torch.inf).softmax(1)  # Eq. 7
        else:
            attention = joint.softmax(1)
        weight = attention
        if self.frame_weight == "softmax_times_length":
            weight = weight * video_mask.sum(1, keepdim=True)
        return Frames(likely, unlikely, joint, attention, weight.unsqueeze(-1) * positive.video)  # Eq. 8

    def forward(
        self,
        frames_in: Tensor,
        video_mask: Tensor,
        query: Tensor,
        query_mask: Tensor,
        negative: Tensor | None = None,
        negative_mask: Tensor | None = None,
    ) -> Output:
        """Runs the network on projected clips; the decoder reads the positive query's memory only.

        Args:
            frames_in: (B, Lv, D).
            video_mask: (B, Lv), True = valid.
            query: (B, Lq, Dq).
            query_mask: (B, Lq), True = valid.
            negative: (B, Ln, Dq) negative queries, None at inference.
            negative_mask: (B, Ln), True = valid; a row without any True has no negative.

        Returns:
            See `Output`.
        """
        encoded = self.encoder(
            frames_in, video_mask, self.encoder.project_query(query), query_mask
        )  # Eq. 2-3
        encoded_negative = has_negative = None
        if self.matcher is not None and negative is not None and negative_mask is not None:
            projected = self.encoder.project_query(negative)
            encoded_negative = self.encoder(frames_in, video_mask, projected, negative_mask)  # Eq. 3
            has_negative = negative_mask.any(1)
        frames = self.match_frames(encoded, encoded_negative, has_negative, video_mask)
        video_memory = encoded.video if frames is None else frames.weighted
        memory = torch.cat((video_memory, encoded.query), 1)  # X'+

        states, references = self.decode(memory, encoded)
        logits, spans = self.heads(states, references)

        pooled = None
        if self.video_pooling is not None:
            pooled = (
                F.normalize(
                    self.video_out(self.video_pooling(video_memory, video_mask)), dim=-1
                ),  # Eq. 9, 11
                F.normalize(
                    self.query_out(self.query_pooling(encoded.query, query_mask)), dim=-1
                ),  # Eq. 10, 11
            )
        saliency = None if self.saliency is None else self.saliency(video_memory).squeeze(-1)
        return Output(logits, spans, encoded, memory, frames, saliency, pooled, states, references)

    def decode(
        self, memory: Tensor, encoded: Encoded, record: list[Tensor] | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Decodes X'+ (`memory`) or X+ (`encoded`), as `decoder_memory` says; see the decoders."""
        read = memory if self.decoder_memory == "weighted" else encoded.memory
        return self.decoder(read, encoded.mask, encoded.position, record=record)

    def rows(self, batch: Batch) -> Rows:
        """Lays out the rows of a training step: the batch and its shifted copy (section 3.4) if `shifting`.

        The copy keeps query, negative query and ratings; its clips, and with them the ratings, are permuted.
        """
        mask = batch["video_mask"]
        inside = clips_inside(
            batch["spans"], batch["span_mask"], batch["duration"], batch["clip_seconds"], mask
        )
        video = append_tef(batch["video"], mask)
        rows: Batch = {**batch, "video": video}
        if not self.shifting:
            return Rows(rows, inside, inside, copies=1)
        order = batch["shift_order"]
        index = order.unsqueeze(-1)
        if self.shift_tef == "travels":
            moved = video.gather(1, index.expand_as(video))
        else:
            moved = append_tef(batch["video"].gather(1, index.expand_as(batch["video"])), mask)
        shifted: Batch = {
            **batch,
            "video": moved,
            "spans": batch["shifted_spans"],
            "saliency": batch["saliency"].gather(1, order),
            "saliency_mask": batch["saliency_mask"].gather(1, order),
        }
        for key, value in shifted.items():
            if isinstance(value, Tensor):
                rows[key] = torch.cat((rows[key], value))  # type: ignore[literal-required]
        # The released code moves the right clips but reports a moment one clip too short, and the margin loss
        # draws from the moment that is reported; with exact moments the two agree.
        moved_inside = clips_inside(
            batch["shifted_spans"], batch["span_mask"], batch["duration"], batch["clip_seconds"], mask
        )
        return Rows(
            rows, torch.cat((inside, inside.gather(1, order))), torch.cat((inside, moved_inside)), copies=2
        )

    def run_rows(self, rows: Batch) -> Output:
        """Runs the network on the rows of a training step, with their negative queries if it uses any."""
        frames = self.encoder.project_video(rows["video"])
        inputs = [frames, rows["video_mask"], rows["query"], rows["query_mask"]]
        if self.negatives:
            inputs += [rows["negative_query"], rows["negative_query_mask"]]
        return self(*inputs)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """All losses; each is the mean of the batch's and its shifted copy's."""
        rows = self.rows(batch)
        pairs = sample_pairs(
            rows.margin_inside,
            rows.batch["video_mask"],
            rows.batch["saliency"],
            rows.batch["saliency_mask"],
        )
        return self.losses_of(self.run_rows(rows.batch), rows, *pairs)

    def losses_of(
        self, output: Output, rows: Rows, positive: Tensor, negative: Tensor, usable: Tensor
    ) -> dict[str, Tensor]:
        """Computes the losses of an output on given margin pairs; see `losses.margin.margin_loss`.

        Returns:
            "span_l1" and "span_giou" (Eq. 14), "label" and "class_error" (class loss), and those of "margin"
            (Eq. 15), "frame_probability" (Eq. 16) and "semantic" (Eq. 17) that are switched on.
        """
        batch = rows.batch
        targets = to_centre_width(self.extent.targets(batch["spans"], batch))
        losses = self.criterion.over_layers(
            output.logits, output.spans, targets, batch["span_mask"], every=self.aux_losses
        )
        if output.saliency is not None:
            losses["margin"] = margin_loss(output.saliency, positive, negative, usable, self.margin)
        if output.frames is not None:
            losses["frame_probability"] = frame_probability_loss(
                output.frames.joint, rows.inside, batch["video_mask"]
            )
        if output.pooled is not None:
            # Each copy by itself: a video and its shifted self are not a negative pair.
            copies = zip(*(vectors.chunk(rows.copies) for vectors in output.pooled), strict=True)
            contrasts = [
                pair_contrast(
                    video,
                    query,
                    temperature=self.temperature,
                    positive_in_denominator=self.positive_in_denominator,
                )
                for video, query in copies
            ]
            losses["semantic"] = torch.stack(contrasts).mean()
        return losses

    def predict(self, batch: Batch, *, details: bool = False) -> Prediction:
        """Ranks the moments by their foreground probability, without negatives or shifting (section 4.1).

        Args:
            batch: see `Batch`.
            details: also return `frame_probability` and `frame_attention`, if there is a matcher,
                `decoder_attention` and `decoder_word_attention`.
        """
        mask = batch["video_mask"]
        frames = per_video(self.encoder.project_clips, batch, batch["video"], mask, training=self.training)
        output = self(frames, mask, batch["query"], batch["query_mask"])
        spans, scores = rank(output.logits[-1], output.spans[-1], self.extent.scale(batch))
        prediction: Prediction = {"spans": spans, "scores": scores}
        if output.saliency is not None:
            prediction["saliency"] = output.saliency
        if details:
            prediction["details"] = self._details(output)
        return prediction

    def _details(self, output: Output) -> dict[str, Tensor]:
        """Collects p (Eq. 6, without a negative query P(f | Q+)), o (Eq. 7, Figure 4) and attention."""
        record: list[Tensor] = []
        self.decode(output.memory, output.encoded, record)
        attention = like_ranked(record[-1], output.logits[-1])
        clips = output.encoded.clips
        details = {
            "decoder_attention": attention[..., :clips],
            "decoder_word_attention": attention[..., clips:],
        }
        if output.frames is not None:
            details["frame_probability"] = output.frames.joint
            details["frame_attention"] = output.frames.attention
        return details
