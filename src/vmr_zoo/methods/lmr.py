"""LMR: clip descriptions by a language model beside the video; a decoder that starts from the query.

Paper: Liu, Miao, Cao, Zhu, Liu, Nasim, Mian, "Context-Enhanced Video Moment Retrieval with Large Language
Models", arXiv 2405.12540. Builds on QD-DETR: without narrations and language queries, and with QD-DETR's
saliency losses and sizes, it is QD-DETR.

No code was released. The paper leaves these points open; this implementation chooses:
- Narrations have an input projection of their own, as the words do. With features/narration_query, the words
  that are fused with the narrations come from another encoder than those that are fused with the video
  (section IV-B, QVHighlights: Llama and CLIP) and have a projection of their own; without it both fusions
  read the same words.
- The position of a narration is the sine position of its end, as a fraction of the duration; clip i of T is
  at (i + 1) / T. Where only the first clips of a video are read, their time is the scale of both. Nothing in
  the sequence marks which part is text.
- The decoder reads the N_v video tokens of F^m (section III-C), not the N_v + N_t that H is indexed to
  (III-D; `narrations.decode`); only video tokens are scored (Eq. 5).
- The content of a moment query is the mean of the projected words (those of the video: F^l of III-A),
  repeated k times; its "trainable
  positional parameters" are QD-DETR's learnable spans, refined layer by layer.
- Eq. 6 has the centre in its L1 term and the width in its IoU term; here both terms have both, as in
  QD-DETR.
- Eq. 8 is summed over the clips and averaged over the rows, as in QD-DETR. QD-DETR's two other saliency
  losses, which the paper does not mention, stay off. Eq. 9 swaps its two weights, which are both 1.
- Without visual features (Table V) the narrations replace the video.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vmr_zoo.blocks.cross_encoder import Aligner, CrossEncoder
from vmr_zoo.blocks.detr_network import DETRNetwork
from vmr_zoo.blocks.per_video import per_video
from vmr_zoo.blocks.position import sine_coordinates
from vmr_zoo.blocks.span_unit import SpanUnit
from vmr_zoo.errors import VmrError
from vmr_zoo.losses.set_criterion import SetCriterion
from vmr_zoo.methods.base import Method, Training
from vmr_zoo.methods.qd_detr.method import (
    QDDETR,
    FusedSequence,
    ProjectedInputs,
    ProjectedNarration,
    QDDETROutput,
)
from vmr_zoo.methods.qd_detr.saliency import Saliency
from vmr_zoo.types import Batch, Prediction


@dataclass(frozen=True)
class Narrations:
    """How narrations enter the encoder (VCE of Table V).

    Attributes:
        dim: width of the sentence features; None where the features have no narrations, which is an error.
        query_dim: width of the words that only narrations are fused with; None: those of the video.
        fuse: fuse the narrations with the query first (VQF of Table VI).
        share_weights: fuse video and narrations with the same weights (WS of Table VI).
        decode: the decoder reads them beside the clips (section III-D), not the clips alone (III-C); without
            effect where there are no clips.
    """

    dim: int | None
    query_dim: int | None
    fuse: bool
    share_weights: bool
    decode: bool = False

    def checked_dim(self) -> int:
        """Returns `dim`.

        Raises:
            VmrError: if the features have no narrations.
        """
        if self.dim is None:
            raise VmrError(
                "LMR reads narrations, but these features have none (features.narration_dim is not set). "
                "Choose features with narrations, or turn narrations off (method.narrations=null)."
            )
        return self.dim


class LMR(QDDETR):
    """LMR.

    Attributes:
        narrations: how they enter the encoder; None leaves them out (Table V).
        visual: VFE of Table V; without it the sequence is the narrations.
        language_queries: LMQ of Table V; without it the decoder starts from zeros.
    """

    def __init__(
        self,
        *,
        video_dim: int,
        query_dim: int,
        network: DETRNetwork,
        aligner: Aligner,
        saliency: Saliency,
        narrations: Narrations | None,
        visual: bool,
        language_queries: bool,
        criterion: SetCriterion,
        span_unit: SpanUnit,
        training: Training,
    ) -> None:
        """Adds the narrations to QD-DETR."""
        super().__init__(
            video_dim=video_dim,
            query_dim=query_dim,
            network=network,
            aligner=aligner,
            saliency=saliency,
            criterion=criterion,
            span_unit=span_unit,
            training=training,
        )
        self.visual, self.narrations, self.language_queries = visual, narrations, language_queries
        self.narration_fusion: CrossEncoder | None = None
        if not visual:
            self._check_without_video()
            del self.project_video  # nothing would train it
            self.answer_evidence = Method.answer_evidence
        self.project_narration_query: nn.Module | None = None
        if narrations is not None:
            self.needs |= {"narration"}
            self.project_narration = network.input_projection(narrations.checked_dim())
            if narrations.fuse and narrations.query_dim is not None:
                self.needs |= {"narration_query"}
                self.project_narration_query = network.input_projection(narrations.query_dim)
                if not visual:
                    del self.project_query  # no video that its words would meet
            if visual and narrations.fuse and not narrations.share_weights:
                self.narration_fusion = aligner.build(network)

    def _check_without_video(self) -> None:
        """Checks that narrations can replace the video.

        Raises:
            VmrError: if there is nothing to encode, or a loss needs clips.
        """
        if self.narrations is None or not self.narrations.fuse:
            raise VmrError(
                "Without visual features, narrations replace the video: leave method.narrations in place and "
                "set method.narrations.fuse=true."
            )
        if self.any_loss_on("rank_contrast", "margin"):
            raise VmrError(
                "Without visual features LMR has no clips to rate. Set method.training.loss_weights."
                "rank_contrast=null and method.training.loss_weights.margin=null."
            )

    def project(self, batch: Batch) -> ProjectedInputs:
        """Projects video, narrations and words."""
        if self.narrations is None:
            return super().project(batch)
        narration = (
            per_video(self.project_narration, batch, batch["narration"], training=self.training),
            batch["narration_mask"],
            sine_coordinates(self._narration_ends(batch), self.dim),
        )
        words: tuple[Tensor, Tensor] | None = None
        if self.project_narration_query is not None:
            words = self.project_narration_query(batch["narration_query"]), batch["narration_query_mask"]
        if self.visual:
            inputs = super().project(batch)
            words = words or (inputs.query, inputs.query_mask)
            return inputs._replace(narration=ProjectedNarration(*narration, *words))
        words = words or (self.project_query(batch["query"]), batch["query_mask"])
        return ProjectedInputs(*narration, *words)

    @staticmethod
    def _narration_ends(batch: Batch) -> Tensor:
        """Returns the end of each narration, (B, Ln, 1): 1 is the end of the video, or of the clips read."""
        read = batch["video_mask"].sum(1) * batch["clip_seconds"]
        return batch["narration_spans"][..., 1:] * (batch["duration"] / read).clamp(min=1.0)[:, None, None]

    def fuse(self, inputs: ProjectedInputs, record: list[Tensor] | None = None) -> FusedSequence:
        """Fuses video and narrations with the query (VQF, Eq. 4) and concatenates them along time."""
        video = super().fuse(inputs, record)
        if self.narrations is None or inputs.narration is None:
            return video
        sentences, mask, position, *words = inputs.narration
        if self.narrations.fuse:
            fusion = self.aligner if self.narration_fusion is None else self.narration_fusion
            sentences = fusion(sentences, mask, position, *words)  # Eq. 4
        sequence = torch.cat((video.sequence, sentences), 1)
        return video._replace(
            sequence=sequence,
            decoded=sequence.shape[1] if self.narrations.decode else video.decoded,
            mask=torch.cat((video.mask, mask), 1),
            position=torch.cat((video.position, position), 1),
        )

    def decoder_content(self, inputs: ProjectedInputs) -> Tensor | None:
        """Returns the mean of the words, once for each moment query (LMQ, section III-D)."""
        if not self.language_queries:
            return None
        words = (inputs.query * inputs.query_mask.unsqueeze(-1)).sum(1)
        words = words / inputs.query_mask.sum(1, keepdim=True).clamp(min=1)
        return words.unsqueeze(1).expand(-1, self.decoder.anchors.num_embeddings, -1)

    def answer_score(self, prediction: Prediction, batch: Batch) -> Tensor:
        """Returns QD-DETR's score; without clips, which alone have a saliency, that of the best moment."""
        if not self.visual:
            return Method.answer_score(self, prediction, batch)
        return super().answer_score(prediction, batch)

    def predict(self, batch: Batch, *, details: bool = False) -> Prediction:
        """Ranks moments as QD-DETR does; without clips there are no scores per clip."""
        prediction = super().predict(batch, details=details)
        if not self.visual:
            prediction.pop("saliency", None)
        return prediction

    def details_of(self, output: QDDETROutput, batch: Batch) -> dict[str, Tensor]:
        """Returns QD-DETR's details, which include Figure 5's attention; none without clips."""
        return super().details_of(output, batch) if self.visual else {}
