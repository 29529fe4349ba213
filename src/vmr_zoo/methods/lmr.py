"""LMR: clip descriptions by a language model beside the video; a decoder that starts from the query.

Paper: Liu, Miao, Cao, Zhu, Liu, Nasim, Mian, "Context-Enhanced Video Moment Retrieval with Large Language
Models", arXiv 2405.12540. Stands on QD-DETR: without narrations and language queries, and with QD-DETR's
saliency losses and sizes, it is QD-DETR.

No code was released. What the paper leaves open and is chosen here:
- Narrations have an input projection of their own, like the words. F^t and F^l come as frozen features, from
  whatever encoders features/query and features/narration name: MiniLM for both in
  conf/experiment/lmr/charades_sta, CLIP for the words and MiniLM for the narrations in
  conf/experiment/lmr/qvhighlights. The same words meet the video and the narrations.
- A narration's position is the sine position of its end, on the clips' scale; the sequence of Eq. 5 carries
  no mark of which part is text.
- The decoder reads the N_v video tokens of F^m (section III-C), not the N_v + N_t that H is indexed to
  (III-D); only they are scored (Eq. 5).
- A moment query's content is the mean of the projected words, repeated k times; its "trainable positional
  parameters" are QD-DETR's learnable spans, refined layer by layer.
- Eq. 6 has the centre in its L1 term and the width in its IoU term; here both terms have both, as in
  QD-DETR.
- Eq. 8 sums over the clips and means over the rows, as QD-DETR does; its other two saliency losses, which the
  paper does not mention, stay off. Eq. 9 swaps its two weights, which are both 1.
- Without visual features (Table V) the narrations stand for the video.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vmr_zoo.blocks.distinct import per_video
from vmr_zoo.blocks.position import sine_coordinates
from vmr_zoo.blocks.projection import Activation, InputProjection
from vmr_zoo.errors import VmrError
from vmr_zoo.losses.set_criterion import SetCriterion
from vmr_zoo.methods.base import Training
from vmr_zoo.methods.qd_detr import QDDETR, Fused, Narration, Output, Read
from vmr_zoo.types import Batch, Prediction


class LMR(QDDETR):
    """LMR."""

    def __init__(
        self,
        *,
        video_dim: int,
        query_dim: int,
        narration_dim: int | None,
        dim: int,
        heads: int,
        feedforward_dim: int,
        narrations: bool,
        visual: bool,
        fuse_narrations: bool,
        share_fusion: bool,
        language_queries: bool,
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
    ) -> None:
        """Builds the network; arguments that are not listed are QD-DETR's.

        Args:
            video_dim: see `QDDETR`.
            query_dim: see `QDDETR`.
            narration_dim: width of the narration's sentence features; None where there are none.
            dim: see `QDDETR`.
            heads: see `QDDETR`.
            feedforward_dim: see `QDDETR`.
            narrations: VCE of Table V; without it the sequence of Eq. 5 is the video.
            visual: VFE of Table V; without it the sequence is the narrations.
            fuse_narrations: VQF of Table VI; without it the narrations meet the query in the decoder only.
            share_fusion: WS of Table VI; whether both fusions have the same weights.
            language_queries: LMQ of Table V; without it the decoder starts from zeros.
            aligner_layers: of the video-query fusion, see `QDDETR`.
            encoder_layers: see `QDDETR`.
            decoder_layers: see `QDDETR`.
            queries: k of Table VII, see `QDDETR`.
            activation: see `QDDETR`.
            projection_layers: see `QDDETR`.
            dropout: see `QDDETR`.
            input_dropout: see `QDDETR`.
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
            training: see `Method`; "negative_pair" is Eq. 8.

        Raises:
            VmrError: if there is nothing to read, or a loss that needs clips goes without them.
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
        )
        if not visual and not (narrations and fuse_narrations):
            raise VmrError(
                "Without visual features, narrations stand for the video: set method.narrations=true and "
                "method.fuse_narrations=true."
            )
        if not visual and any(self.weight(name) is not None for name in ("rank_contrast", "margin")):
            raise VmrError(
                "Without visual features LMR has no clips to rate. Set method.training.loss_weights.rank_contrast=null "
                "and method.training.loss_weights.margin=null."
            )
        if narrations and narration_dim is None:
            raise VmrError(
                "LMR reads narrations, but these features have none (features.narration_dim is not set). "
                "Take features with narrations, or turn them off (method.narrations=false)."
            )
        self.visual, self.narrations = visual, narrations
        self.fuse_narrations, self.language_queries = fuse_narrations, language_queries
        self.narration_fusion = None
        if not visual:
            del self.project_video  # nothing would train it
        if narrations and narration_dim is not None:
            self.needs |= {"narration"}
            self.project_narration = InputProjection(narration_dim, dim, projection_layers, input_dropout)
            if visual and fuse_narrations and not share_fusion:
                self.narration_fusion = self.cross_encoder(aligner_layers)

    def read(self, batch: Batch) -> Read:
        """Projects video, narrations and query."""
        if not self.narrations:
            return super().read(batch)
        narration = Narration(
            per_video(self.project_narration, batch, batch["narration"], training=self.training),
            batch["narration_mask"],
            sine_coordinates(batch["narration_spans"][..., 1:], self.dim),
        )
        if self.visual:
            return super().read(batch)._replace(narration=narration)
        return Read(*narration, self.project_query(batch["query"]), batch["query_mask"])

    def fuse(self, read: Read, record: list[Tensor] | None = None) -> Fused:
        """Fuses video and narrations with the query (Eq. 4) and puts them one after the other."""
        video = super().fuse(read, record)
        if read.narration is None:
            return video
        sentences, mask, position = read.narration
        if self.fuse_narrations:
            fusion = self.aligner if self.narration_fusion is None else self.narration_fusion
            sentences = fusion(sentences, mask, position, *read.text)
        return video._replace(
            sequence=torch.cat((video.sequence, sentences), 1),
            mask=torch.cat((video.mask, mask), 1),
            position=torch.cat((video.position, position), 1),
        )

    def content(self, read: Read) -> Tensor | None:
        """The mean of the words, once for each moment query (section III-D)."""
        if not self.language_queries:
            return None
        words = (read.query * read.query_mask.unsqueeze(-1)).sum(1)
        words = words / read.query_mask.sum(1, keepdim=True).clamp(min=1)
        return words.unsqueeze(1).expand(-1, self.decoder.anchors.num_embeddings, -1)

    def predict(self, batch: Batch, *, details: bool = False) -> Prediction:
        """Ranks moments as QD-DETR does; there is no score per clip without clips."""
        prediction = super().predict(batch, details=details)
        if not self.visual:
            prediction.pop("saliency", None)
        return prediction

    def details_of(self, output: Output, batch: Batch) -> dict[str, Tensor]:
        """Returns QD-DETR's details, Figure 5's attention among them; without clips there are none."""
        return super().details_of(output, batch) if self.visual else {}
