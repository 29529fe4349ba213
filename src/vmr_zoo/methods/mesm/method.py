"""MESM: frames enhanced by word reconstruction, queries by a generated token.

Paper: Liu, Li, Xie, Li, Ge, Liu, Jin, "Towards Balanced Alignment: Modal-Enhanced Semantic Modeling for Video
Moment Retrieval", AAAI 2024, arXiv 2312.12155. Builds on QD-DETR: without FW-MESM and SS-MESM, and with
QD-DETR's saliency losses, it is QD-DETR.

- FW-MESM, enhanced frames and word reconstruction (Eq. 1-2): `frame_word.py`.
- SS-MESM, the generated token (Eq. 3): `segment_sentence.py`.
- The losses of Eq. 2, 5 and 6: `losses.py`.
- The network: this file. A new loss goes into `MESM.own_losses`.

Where paper and released code (lntzm/MESM) differ, a switch decides (paper | released):
- `segment_sentence.context`: other sentences about the video are keys beside the frames (`attended`) | cannot
  reach the generated token (`inert`).
- `segment_sentence.normalise_token`: the generated token enters the query as it is | at length 1.
- `segment_sentence.contrast`: Eq. 5 as written | cosines of means, segments against sentences, mean of logs,
  generalised IoU.
- `frame_word.reconstruct_from`: keys of Eq. 2 are all frames (`video`) | the true moment's (`segment`).
- `frame_word.unknown_word`: words outside the vocabulary stay | are replaced by a learned vector.
- `frame_word.label_smoothing`: none | 0.1.
- `training.loss_weights.clip_entropy` with `saliency.score: mlp`: Eq. 6 | QD-DETR's losses and token.
- `saliency.token_is_key` (with a token): frames attend to it, as in QD-DETR | it is masked as padding.
- `moment_clips`: which clips are inside a moment.
- `aligner.padding_mask`: as in QD-DETR.
- `frame_word.draw`: all words are masked alike | nouns, verbs, adjectives and adverbs twice as often.
- `frame_word.end_classes`: the start and the end token have no classes | they have, with CLIP.
Eq. 3 averages projected words; here, as in the released code, the data module's averages are projected.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vmr_zoo.blocks.cross_encoder import Aligner, CrossEncoder
from vmr_zoo.blocks.detr_network import DETRNetwork
from vmr_zoo.blocks.span_unit import SpanUnit
from vmr_zoo.errors import VmrError
from vmr_zoo.losses.margin import Pairs
from vmr_zoo.losses.set_criterion import SetCriterion
from vmr_zoo.methods.base import Training
from vmr_zoo.methods.mesm.frame_word import FrameWord, WordMasking, draw_words, segment_mask
from vmr_zoo.methods.mesm.losses import clip_entropy, moment_hull, word_reconstruction
from vmr_zoo.methods.mesm.segment_sentence import SegmentSentence, sentence_mask
from vmr_zoo.methods.qd_detr.method import (
    QDDETR,
    FusedSequence,
    ProjectedInputs,
    QDDETROutput,
)
from vmr_zoo.methods.qd_detr.saliency import Saliency
from vmr_zoo.metrics.subspace import subspace_similarity
from vmr_zoo.types import Batch
from vmr_zoo.utils.switches import check_switches


@check_switches
class MESM(QDDETR):
    """MESM.

    To add a loss: compute it in `own_losses` under a new name, and give that name a weight in
    `training.loss_weights` of `conf/method/mesm.yaml` (docs/add_a_method.md).

    Attributes:
        frame_word: FW-MESM; None leaves it out.
        segment_sentence: SS-MESM; None leaves it out.
        moment_clips: a moment's clips in Eq. 2, 4 and 6: those before the clip in which it ends
            ("exclusive"), that one too ("inclusive"), or those rated above 0 ("rated").
    """

    def __init__(
        self,
        *,
        video_dim: int,
        query_dim: int,
        network: DETRNetwork,
        aligner: Aligner,
        saliency: Saliency,
        frame_word: FrameWord | None,
        segment_sentence: SegmentSentence | None,
        moment_clips: Literal["exclusive", "inclusive", "rated"],
        criterion: SetCriterion,
        span_unit: SpanUnit,
        training: Training,
    ) -> None:
        """Adds the two levels of semantic modeling to QD-DETR."""
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
        self.frame_word, self.segment_sentence = frame_word, segment_sentence
        self.moment_clips, self.input_dropout = moment_clips, network.input_dropout
        read = {"exclusive": "all_spans", "inclusive": "moment_clips", "rated": "saliency"}
        self.needs |= {read[moment_clips]}
        self._build_frame_word(query_dim, network, aligner)
        self._build_segment_sentence(network, aligner)

    def _build_frame_word(self, query_dim: int, network: DETRNetwork, aligner: Aligner) -> None:
        """Builds FW-MESM: the enhancer, and what its training needs."""
        self.enhancer: CrossEncoder | None = None
        self.word_head: nn.Sequential | None = None
        reconstructs = self.weight("word_reconstruction") is not None
        if self.frame_word is None:
            if reconstructs:
                raise _without("frame_word", "word_reconstruction")
            return
        self.enhancer = aligner.build(network, self.frame_word.layers, self.frame_word.tails)
        if reconstructs:
            self.needs |= {"query_words"} | ({"word_weights"} if self.frame_word.draw == "by_tag" else set())
            self.masked_word = nn.Parameter(torch.zeros(query_dim))
            unknown = self.frame_word.unknown_word
            self.missing_word = nn.Parameter(torch.zeros(query_dim)) if unknown else None
            self.word_head = self.frame_word.word_head(network)

    def _build_segment_sentence(self, network: DETRNetwork, aligner: Aligner) -> None:
        """Builds SS-MESM: the generator and its masked sentence."""
        self.generator: CrossEncoder | None = None
        if self.segment_sentence is None:
            if self.weight("segment_contrast") is not None:
                raise _without("segment_sentence", "segment_contrast")
            return
        self.needs |= {"sibling_queries"} if self.segment_sentence.context == "attended" else set()
        self.generator = aligner.build(network, self.segment_sentence.layers, xavier=False)
        self.masked_sentence = nn.Parameter(torch.zeros(network.dim))

    def project(self, batch: Batch) -> ProjectedInputs:
        """Projects the inputs and generates each query's complementary token."""
        inputs = super().project(batch)
        if self.segment_sentence is None:
            return inputs
        keys, mask = inputs.video, inputs.video_mask
        if self.training and self.input_dropout > 0:
            keys = self.project_clips(batch["video"], mask)  # with dropout of its own (released)
        if self.segment_sentence.context == "attended":
            keys = torch.cat((keys, self.project_query(batch["sibling_query"])), 1)
            mask = torch.cat((mask, batch["sibling_mask"]), 1)
        return inputs._replace(token=self.generate(keys, mask, batch["video_index"]))

    def generate(self, keys: Tensor, mask: Tensor, video_index: Tensor) -> Tensor:
        """Generates the complementary token of each query, F_s^gen of Eq. 3, from a masked sentence.

        Eq. 3 runs all sentences of a video through layers that only attend to the keys, and keeps the masked
        sentence. The result does not depend on the others, so they are not computed.

        Args:
            keys: (B, L, D) the video, and any other sequence to learn from.
            mask: (B, L), True = valid.
            video_index: (B,), equal numbers are sentences about the same video.

        Returns:
            (B, D).
        """
        assert self.generator is not None
        assert self.segment_sentence is not None
        sentence = self.masked_sentence.expand(len(keys), 1, -1)
        one = torch.ones_like(mask[:, :1])
        if self.generator.padding_mask == "head_order":
            mask = sentence_mask(mask, video_index, self.generator.heads)
        token = self.generator(sentence, one, None, keys, mask).squeeze(1)  # Eq. 3
        return F.normalize(token, dim=-1) if self.segment_sentence.normalise_token else token

    def fuse(self, inputs: ProjectedInputs, record: list[Tensor] | None = None) -> FusedSequence:
        """Enhances the frames (Eq. 1) and aligns them with the enhanced query."""
        if self.enhancer is None:
            return super().fuse(inputs, record)
        enhanced = self.enhancer(  # F_v^enh of Eq. 1
            inputs.video, inputs.video_mask, inputs.position, inputs.query, inputs.query_mask, record=record
        )
        return super().fuse(inputs._replace(video=enhanced))._replace(enhanced=enhanced)

    def clips_of_moments(self, batch: Batch) -> Tensor:
        """Marks the clips of all moments by the rule `moment_clips`, (B, Lv)."""
        if self.moment_clips == "exclusive":
            return super().clips_of_moments(batch)
        if self.moment_clips == "rated":
            return (batch["saliency"] > 0) & batch["video_mask"]
        return batch["moment_clips"]

    def draw_masking(self, batch: Batch) -> WordMasking | None:
        """Draws the words to reconstruct; None without that loss."""
        if self.word_head is None:
            return None
        assert self.frame_word is not None
        mask = batch["query_mask"]
        weights = batch["word_weights"] if self.frame_word.draw == "by_tag" else None
        return self.frame_word.mask_words(batch["query_words"], mask, draw_words(mask, weights))

    def reconstruct(
        self, batch: Batch, inputs: ProjectedInputs, masking: WordMasking
    ) -> tuple[Tensor, Tensor]:
        """Reconstructs the words of each query from the video, with the layers that enhance the frames.

        Args:
            batch: the batch.
            inputs: its projected inputs.
            masking: the words that are hidden.

        Returns:
            F_q^r (B, Lq, D), and the logits of P (B, Lq, classes), before the softmax of Eq. 2.
        """
        assert self.enhancer is not None
        assert self.word_head is not None
        assert self.frame_word is not None
        words = inputs.query  # with the same dropout as in Eq. 1 (released)
        if self.missing_word is not None:
            words = torch.where(masking.unknown.unsqueeze(-1), self.project_query(self.missing_word), words)
        hidden = masking.masked.unsqueeze(-1)
        words = torch.where(hidden, self.project_query(self.masked_word), words)  # F_q^m
        frames = inputs.video_mask
        if self.frame_word.reconstruct_from == "segment":
            frames = self.clips_of_moments(batch)
            if self.enhancer.padding_mask == "head_order":
                frames = segment_mask(inputs.query_mask, frames, self.enhancer.heads)
        found = self.enhancer(words, inputs.query_mask, None, inputs.video, frames, inputs.position, tail=-1)
        return found, self.word_head(found)

    def word_probability(self, batch: Batch, inputs: ProjectedInputs) -> Tensor:
        """Returns the probability P of Eq. 2 that a masked word is the true one, (B, Lq), 0 on padding.

        Words attend to the frames and not to each other: masking all words at once gives the same
        probabilities as masking one at a time. For a word outside the vocabulary, the class of unknown words
        is the true one.
        """
        assert self.frame_word is not None
        mask = batch["query_mask"]
        masking = self.frame_word.mask_words(batch["query_words"], mask, mask)
        _, logits = self.reconstruct(batch, inputs, masking)
        return logits.softmax(-1).gather(2, masking.labels.unsqueeze(2)).squeeze(2) * mask

    def details_of(self, output: QDDETROutput, batch: Batch) -> dict[str, Tensor]:
        """Adds Figure 5's similarities to QD-DETR's details, and, with `query_words`, `word_probability`."""
        details = super().details_of(output, batch) | self.text_in_segment(output, batch)
        if self.word_head is not None and "query_words" in batch:
            details["word_probability"] = self.word_probability(batch, output.inputs)
        return details

    def text_in_segment(self, output: QDDETROutput, batch: Batch) -> dict[str, Tensor]:
        """Computes the lines of Figure 5: how much of a query lies in the space of its true moment's clips.

        Returns:
            (B, Lq) each, at i - 1 the similarity of the top-i singular vectors, 0 beyond the text's rank:
            `text_in_segment` of F_q and F_v, `text_in_enhanced_segment` of F_q and F_v^enh, and
            `enhanced_text_in_enhanced_segment` of F_q^enh and F_v^enh.
        """
        inputs, enhanced = output.inputs, output.positive.fused.enhanced
        inside = self.clips_of_moments(batch)
        text, text_mask = inputs.text
        lines = {"text_in_segment": (inputs.query, inputs.query_mask, inputs.video)}
        if enhanced is not None:
            lines["text_in_enhanced_segment"] = (inputs.query, inputs.query_mask, enhanced)
            lines["enhanced_text_in_enhanced_segment"] = (text, text_mask, enhanced)
        found = {}
        for name, (words, mask, clips) in lines.items():
            found[name] = words.new_zeros(inputs.query_mask.shape)
            for row in range(len(words)):
                values = subspace_similarity(words[row][mask[row]], clips[row][inside[row]])
                values = values[: int(inputs.query_mask[row].sum())].to(found[name])
                found[name][row, : len(values)] = values
        return found

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Runs the network, draws margin pairs and masked words, and computes the losses (Eq. 8)."""
        output, exists = self.run_with_negatives(batch)
        pairs, masking = self.draw_margin_pairs(batch), self.draw_masking(batch)
        return self.losses_of(output, batch, exists, pairs, masking)

    def losses_of(
        self,
        output: QDDETROutput,
        batch: Batch,
        exists: Tensor,
        pairs: Pairs | None,
        masking: WordMasking | None = None,
    ) -> dict[str, Tensor]:
        """Computes QD-DETR's losses that are on, and MESM's own; `masking` is None without Eq. 2."""
        inherited = super().losses_of(output, batch, exists, pairs)
        return inherited | self.own_losses(output, batch, masking)

    def own_losses(
        self, output: QDDETROutput, batch: Batch, masking: WordMasking | None
    ) -> dict[str, Tensor]:
        """Computes those of Eq. 2, 5 and 6 that are on.

        Args:
            output: the network's output for the batch.
            batch: the batch.
            masking: the words to reconstruct; None without Eq. 2.

        Returns:
            Unweighted scalars by name.
        """
        losses: dict[str, Tensor] = {}
        inputs = output.inputs
        if self.weight("clip_entropy") is not None:
            losses["clip_entropy"] = clip_entropy(  # Eq. 6
                output.positive.saliency, self.clips_of_moments(batch), inputs.video_mask
            )
        if masking is not None:
            assert self.frame_word is not None
            _, logits = self.reconstruct(batch, inputs, masking)
            losses["word_reconstruction"] = word_reconstruction(  # Eq. 2
                logits, masking.labels, inputs.query_mask, self.frame_word.label_smoothing
            )
        if self.weight("segment_contrast") is not None:
            assert self.segment_sentence is not None
            hull = moment_hull(batch["spans"], batch["span_mask"])
            losses["segment_contrast"] = self.segment_sentence.contrast(  # Eq. 4-5
                inputs.video, self.clips_of_moments(batch), *inputs.text, hull, batch["video_index"]
            )
        return losses


def _without(part: str, loss: str) -> VmrError:
    """Returns the error of a loss whose part is left out."""
    return VmrError(f"method.{part} is null; set method.training.loss_weights.{loss}=null too.")
