"""MESM's released code (lntzm/MESM, commit 8501bde): its names, options and golden cases."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from vmr_zoo.blocks.clips import clips_inside
from vmr_zoo.errors import VmrError
from vmr_zoo.losses.margin import Pairs
from vmr_zoo.methods.base import Method
from vmr_zoo.methods.mesm.frame_word import WordMasking
from vmr_zoo.methods.mesm.method import MESM
from vmr_zoo.methods.qd_detr.method import QDDETR, ProjectedInputs, QDDETROutput
from vmr_zoo.metrics.settings import Rounding
from vmr_zoo.parity.case import Case, Number, Released, gradients
from vmr_zoo.parity.released import detr, qd_detr
from vmr_zoo.parity.released.qd_detr import (
    CROSS_PARTS,
    GRADIENT,
    LOSS,
    NORM,
    OUTPUT,
    RELATIVE,
    cross_encoder_names,
)
from vmr_zoo.parity.weights import WeightNames
from vmr_zoo.spans import to_centre_width
from vmr_zoo.types import Batch

_SETTINGS = {
    "hidden_dim": "network.dim",
    "nheads": "network.heads",
    "dim_feedforward": "network.feedforward_dim",
    "t2v_layers": "aligner.layers",
    "enc_layers": "network.encoder_layers",
    "dec_layers": "network.decoder_layers",
    "num_queries": "network.queries",
    "n_input_proj": "network.projection_layers",
    "dropout": "network.dropout",
    "input_dropout": "network.input_dropout",
    "rank_coef": "saliency.rank_divisor",
    "saliency_margin": "saliency.margin",
    "aux_loss": "criterion.every_layer",
    "eos_coef": "criterion.background_weight",
    "set_cost_span": "criterion.cost_l1",
    "set_cost_giou": "criterion.cost_giou",
    "set_cost_class": "criterion.cost_class",
    "lr": "training.optimizer.lr",
    "weight_decay": "training.optimizer.weight_decay",
    "loss_span_coef": "training.loss_weights.span_l1",
    "loss_giou_coef": "training.loss_weights.span_giou",
    "loss_label_coef": "training.loss_weights.label",
}
_ALSO = (
    "dataset_name",
    "iou_gamma",
    "loss_recfw_coef",
    "loss_recss_coef",
    "loss_saliency_coef",
    "num_recfw_layers",
    "num_recss_layers",
    "recss_tau",
    "share_MLP",
    "use_triplet",
)
_OWN_TAIL = {f"{part}_1": f"tails.1.{part}" for part in ("linear1", "linear2", "norm1", "norm2")}
_NO_WORDS_UNUSED = {r"enhance_encoder\..*": "with rec_fw off the authors' network does not use it"}
_DATA = {
    "charades": "charades_sta",
    "charades-cg": "charades_cg",
    "charades-cd": "charades_cd",
    "tacos": "tacos",
    "qvhighlights": "qvhighlights",
}


class MESMReleased(Released):
    """MESM."""

    names = WeightNames(
        rules=[
            cross_encoder_names(r"enhance_encoder\.t2v_encoder", "enhancer", CROSS_PARTS | _OWN_TAIL),
            cross_encoder_names(r"t2v_encoder\.t2v_encoder", "aligner"),
            cross_encoder_names(r"ss_reconstructor\.recon_trans", "generator"),
            (r"ss_reconstructor\.masked_sent_token", "masked_sentence"),
            (r"masked_token", "masked_word"),
            (r"unknown_token", "missing_word"),
            (r"output_txt_proj\.0\.LayerNorm\.(.*)", r"word_head.0.\1"),
            (r"output_txt_proj\.0\.net\.1\.(.*)", r"word_head.2.\1"),
            (r"output_txt_proj\.1\.(.*)", r"word_head.4.\1"),
            *qd_detr.SHARED_NAMES,
        ],
        unused=detr.UNUSED | {r"ss_reconstructor\.output_sent_proj\..*": detr.NEVER_USED},
    )

    def __init__(self, normalise: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]) -> None:
        """Takes the data package's normalisation of word features; the cases store raw ones."""
        self.normalise = normalise

    def settings(self, options: Mapping[str, Any], weights: Mapping[str, Tensor]) -> dict[str, Any]:
        """Translates the options; FW-MESM or SS-MESM is null where the options turn it off."""
        settings = detr.settings(options, _SETTINGS, also=_ALSO)
        settings |= qd_detr.saliency_weights(options["loss_saliency_coef"])
        if not options["use_triplet"]:
            settings["training.loss_weights.margin"] = None
        words, sentences = options.get("rec_fw", True), options.get("rec_ss", True)
        names = qd_detr.unused_with(type(self).names, options["dec_layers"])
        self.names = names if words else replace(names, unused=names.unused | _NO_WORDS_UNUSED)
        frame_word: dict[str, Any] = {"frame_word": None}
        clip = options.get("tokenizer_type") == "CLIP"
        if words:
            frame_word = {
                "frame_word.layers": options["num_recfw_layers"],
                "frame_word.vocabulary": len(detr.weight_of(weights, "output_txt_proj.1.bias"))
                - (3 if clip else 1),
                "frame_word.end_classes": clip,
                "frame_word.separate_tail": not options["share_MLP"],
            }
        segment_sentence: dict[str, Any] = {"segment_sentence": None}
        if sentences:
            segment_sentence = {
                "segment_sentence.layers": options["num_recss_layers"],
                "segment_sentence.contrast.gamma": options["iou_gamma"],
                "segment_sentence.contrast.temperature": options["recss_tau"],
            }
        return {
            **settings,
            **frame_word,
            **segment_sentence,
            "video_dim": detr.video_dim(weights),
            "query_dim": detr.query_dim(weights),
            "moment_clips": "rated" if options["dataset_name"] == "qvhighlights" else "inclusive",
            "training.loss_weights.word_reconstruction": options["loss_recfw_coef"] if words else None,
            "training.loss_weights.segment_contrast": options["loss_recss_coef"] if sentences else None,
        }

    def data(self, options: Mapping[str, Any]) -> str:
        """Names our data set for the authors' option dataset_name."""
        name = str(options.get("dataset_name")).lower()
        if name not in _DATA:
            raise VmrError(
                f"The checkpoint was trained on dataset_name={name}, which no data set of vmr_zoo "
                "corresponds to. Name the data set: data=…"
            )
        return _DATA[name]

    def recompute(self, method: Method, case: Case) -> dict[str, Number]:
        """Recomputes a case; the tolerances come from the notes beside the cases."""
        assert isinstance(method, MESM)
        options = case.options
        batch, groups, results = self.batch(method, case)
        masking = masking_of(method, case)
        negatives, clip_pairs = case["input/neg_index"], margin_pairs(method, case)
        exists = torch.ones_like(negatives, dtype=torch.bool)
        multiple = options["clip_len"] if options["clip_len"] > 0 else None
        rounding = Rounding(decimals=4, clamp=(0, options["max_ts_val"]), multiple_of=multiple)

        # The case also holds the network with fixed masks. It runs first and leaves no gradients behind.
        for group, kind in qd_detr.PASSES:
            qd_detr.set_padding_mask(method, kind)
            method.train()
            inputs = project(method, batch, groups)
            output = method.run(inputs, negatives)
            # The group identifies the video: on QVHighlights several clips form one video.
            grouped: Batch = {**batch, "video_index": groups}
            losses = method.losses_of(output, grouped, exists, clip_pairs, masking)
            total = method.total_loss(losses)
            results |= qd_detr.outputs(method, output, batch, group, "neg_saliency_scores")
            results |= qd_detr.named_losses(losses, total, group)
            results |= _own_outputs(output, group) | _own_losses(losses, group)
            if masking is not None:
                words = method.reconstruct(batch, inputs, masking)
                results |= _words(*words, masking, inputs.query_mask, group)
            method.eval()
            with torch.no_grad():
                answer = method.run(project(method, batch, groups), None)
            results |= qd_detr.answers(answer, batch, group, rounding, 1e-6 if multiple else 2e-4)
            if group:
                norm = Number(qd_detr.gradient_norm(method, total), NORM, 1e-5)
                results[f"loss{group}/grad_norm_before_clip"] = norm
        if "target/norm_span" in case:
            for name in list(results):
                if "/match_" in name:  # with one target each, the case lists only the slot
                    results[name] = Number(results[name].value[:, 1], 0)
        return results | gradients(
            method,
            self.names,
            case,
            total,
            norm_key="loss/grad_norm_before_clip",
            clip=options["grad_clip"],
            atol=GRADIENT,
            rtol=RELATIVE,
        )

    def batch(self, method: MESM, case: Case) -> tuple[Batch, Tensor, dict[str, Number]]:
        """Builds the contract's batch.

        Returns:
            The batch; (N,) the group of sentences of each row; and the inputs and targets of the case that
            can be recomputed.
        """
        options = case.options
        video, video_mask = case["input/video_feat"], case["input/video_mask"]
        query, query_mask = self._query(case)
        duration = case["input/duration"]
        step = float(options["clip_len"])
        clip_seconds = torch.full_like(duration, step) if step > 0 else duration / video_mask.sum(1)
        groups = torch.repeat_interleave(torch.arange(len(case["input/num_clips"])), case["input/num_clips"])
        spans, span_mask = _targets(case)
        graded = "target/saliency_label" in case
        batch: Batch = {
            "video": video[..., :-2],
            "video_mask": video_mask,
            "query": query,
            "query_mask": query_mask,
            "spans": spans,
            "span_mask": span_mask,
            "duration": duration,
            "clip_seconds": clip_seconds,
            "video_index": torch.arange(len(duration)) if graded else groups,
            "video_id": [str(row) for row in range(len(duration))],
            "saliency": torch.zeros_like(video_mask, dtype=torch.float32),
        }
        if method.moment_clips == "inclusive":
            one_more = torch.stack((torch.zeros_like(duration), clip_seconds / duration), -1)
            longer = spans + one_more.unsqueeze(1)
            batch["moment_clips"] = clips_inside(longer, span_mask, duration, clip_seconds, video_mask)
        rated: Batch = {**batch, "saliency": case["target/saliency_label"]} if graded else batch
        inside = method.clips_of_moments(rated)
        batch["saliency"] = rated["saliency"] if graded else inside.float()
        batch["saliency_mask"] = batch["saliency"] > 0
        results = {
            "input/clip_mask": Number(inside, 0),
            "target/clip_mask": Number(inside, 0),
        }
        flat = to_centre_width(spans)[span_mask]
        results["target/norm_span_flat" if graded else "target/norm_span"] = Number(flat, 1e-6)
        if not graded:
            results["target/moment"] = Number(spans[:, 0] * duration[:, None], 1e-3)
        return batch, groups, results

    def _query(self, case: Case) -> tuple[Tensor, Tensor]:
        """Reads the word features, cut to the authors' length and normalised as they do, and their mask."""
        width = case.options["max_words_l"]
        raw, mask = case["input/words_feat"][:, :width], case["input/words_mask"][:, :width]
        if case.options.get("normalize_txt", True):
            raw = torch.from_numpy(self.normalise(raw.numpy()))
        return raw * mask.unsqueeze(-1), mask


def _targets(case: Case) -> tuple[Tensor, Tensor]:
    """Reads the moments (B, N, 2) and their mask (B, N)."""
    if "target/moment" in case and "target/norm_moment" not in case:
        seconds, duration = case["target/moment"], case["input/duration"]
        spans = (seconds / duration[:, None]).unsqueeze(1)
        counts = torch.ones(len(spans), dtype=torch.int64)
    elif "target/norm_span" in case:
        spans = case["target/norm_moment"].unsqueeze(1)
        counts = torch.ones(len(spans), dtype=torch.int64)
    else:
        counts = case["target/num_spans"]
        spans = pad_sequence(list(case["target/norm_moment_flat"].split(counts.tolist())), batch_first=True)
    return spans, torch.arange(spans.shape[1]) < counts[:, None]


def masking_of(method: MESM, case: Case) -> WordMasking | None:
    """Reads which words were masked, and their labels; None if the network has no such loss."""
    keys = ("target/words_label", "input/unknown_mask", "input/mlm_masked")
    if "input/words_weight" in case:
        case["input/words_weight"]  # marks as read the weights that the masked words were drawn with
    if method.word_head is not None:
        return WordMasking(*(case[key] for key in keys))
    for key in keys:
        if key in case:
            case[key]
    return None


def margin_pairs(method: MESM, case: Case) -> Pairs | None:
    """Reads the clip pairs of the margin loss; some cases store them without that loss."""
    if method.weight("margin") is None and "target/pos_idx" not in case:
        return None
    positive, negative = case["target/pos_idx"], case["target/neg_idx"]
    if method.weight("margin") is None:
        return None
    return positive, negative, torch.ones_like(positive, dtype=torch.bool)


def project(method: MESM, batch: Batch, groups: Tensor) -> ProjectedInputs:
    """Projects a batch; tokens are generated from all clips of a row's group, one after the other."""
    inputs = QDDETR.project(method, batch)
    if method.generator is None:
        return inputs
    same = groups[:, None] == groups[None]
    one = batch["video_index"][:, None] == batch["video_index"][None]
    # Rows of one group on one video repeat the same clips: the first of them counts.
    chosen = same & (one.int().argmax(1) == torch.arange(len(groups)))
    keys = [inputs.video[rows][inputs.video_mask[rows]] for rows in chosen]
    padded = pad_sequence(keys, batch_first=True)
    mask = torch.arange(padded.shape[1]) < torch.tensor([len(key) for key in keys])[:, None]
    return inputs._replace(token=method.generate(padded, mask, groups))


def _own_outputs(output: QDDETROutput, group: str) -> dict[str, Number]:
    """Lists the outputs that only MESM has, except those of the word reconstruction."""
    inputs = output.inputs
    text, text_mask = inputs.text
    clips = inputs.video_mask.unsqueeze(-1)
    found = {
        "expanded_words_feat": Number(text, OUTPUT, RELATIVE, where=text_mask.unsqueeze(-1)),
        "expanded_words_mask": Number(text_mask, 0),
    }
    if inputs.token is not None:
        found["recon_feat"] = Number(inputs.token, OUTPUT, RELATIVE)
    for prefix, encoded in (("", output.positive), ("neg_", output.negative)):
        assert encoded is not None
        # With rec_fw off the frames are not enhanced after the projection.
        enhanced = inputs.video if encoded.fused.enhanced is None else encoded.fused.enhanced
        found[f"{prefix}enhanced_video_feat"] = Number(enhanced, OUTPUT, RELATIVE, where=clips)
    return {f"output{group}/{name}": number for name, number in found.items()}


def _own_losses(losses: Mapping[str, Tensor], group: str) -> dict[str, Number]:
    """Lists the losses of Eq. 2 and Eq. 5 that are on."""
    names = {"loss_rec_fw": "word_reconstruction", "loss_rec_ss": "segment_contrast"}
    return {
        f"loss{group}/{theirs}": Number(losses[ours], LOSS, RELATIVE)
        for theirs, ours in names.items()
        if ours in losses
    }


def _words(
    reconstructed: Tensor, logits: Tensor, masking: WordMasking, mask: Tensor, group: str
) -> dict[str, Number]:
    """Lists the reconstructed words, and the share of words whose true class is the most probable."""
    hits = (logits.argmax(-1) == masking.labels)[mask]
    valid = mask.unsqueeze(-1)
    return {
        f"output{group}/mlm_words_feat": Number(reconstructed, OUTPUT, RELATIVE, where=valid),
        f"output{group}/recfw_words_logit": Number(logits, OUTPUT, RELATIVE, where=valid),
        f"loss{group}/rec_fw_acc": Number(hits.float().mean(), 1e-6),
    }
