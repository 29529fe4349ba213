"""MESM's released code (lntzm/MESM, commit 8501bde): its names, options and golden cases."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from vmr_zoo.errors import VmrError
from vmr_zoo.methods.base import Method
from vmr_zoo.methods.mesm import MESM, Masking
from vmr_zoo.methods.qd_detr import QDDETR, Output, Read
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
    "hidden_dim": "dim",
    "nheads": "heads",
    "dim_feedforward": "feedforward_dim",
    "t2v_layers": "aligner_layers",
    "enc_layers": "encoder_layers",
    "dec_layers": "decoder_layers",
    "num_queries": "queries",
    "n_input_proj": "projection_layers",
    "dropout": "dropout",
    "input_dropout": "input_dropout",
    "rank_coef": "rank_divisor",
    "saliency_margin": "margin",
    "iou_gamma": "contrast.gamma",
    "recss_tau": "contrast.temperature",
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
    "loss_recfw_coef",
    "loss_recss_coef",
    "loss_saliency_coef",
    "num_recfw_layers",
    "num_recss_layers",
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
        """Takes the data side's normalisation of word features, which the cases hold raw."""
        self.normalise = normalise

    def settings(self, options: Mapping[str, Any], weights: Mapping[str, Tensor]) -> dict[str, Any]:
        """See `Released.settings`."""
        settings = detr.settings(options, _SETTINGS, also=_ALSO)
        settings |= qd_detr.saliency_weights(options["loss_saliency_coef"])
        if not options["use_triplet"]:
            settings["training.loss_weights.margin"] = None
        words, sentences = options.get("rec_fw", True), options.get("rec_ss", True)
        names = qd_detr.unused_with(type(self).names, options["dec_layers"])
        self.names = names if words else replace(names, unused=names.unused | _NO_WORDS_UNUSED)
        return settings | {
            "video_dim": detr.video_dim(weights),
            "query_dim": detr.query_dim(weights),
            "frame_word_layers": options["num_recfw_layers"] if words else None,
            "generator_layers": options["num_recss_layers"] if sentences else None,
            "vocabulary": len(detr.weight_of(weights, "output_txt_proj.1.bias")) - 1 if words else 1,
            "moment_clips": "rated" if options["dataset_name"] == "qvhighlights" else "inclusive",
            "separate_tail": not options["share_MLP"],
            "training.loss_weights.word_reconstruction": options["loss_recfw_coef"] if words else None,
            "training.loss_weights.segment_contrast": options["loss_recss_coef"] if sentences else None,
        }

    def data(self, options: Mapping[str, Any]) -> str:
        """See `Released.data`."""
        name = str(options.get("dataset_name")).lower()
        if name not in _DATA:
            raise VmrError(
                f"The checkpoint was trained on dataset_name={name}, which no data set of vmr_zoo "
                "corresponds to. Name the data set: data=…"
            )
        return _DATA[name]

    def recompute(self, method: Method, case: Case) -> dict[str, Number]:
        """See `Released.recompute`; tolerances from the notes beside the cases."""
        assert isinstance(method, MESM)
        options = case.options
        batch, groups, results = self._batch(method, case)
        masking = _masking(method, case)
        negatives, pairs = case["input/neg_index"], _margin_pairs(method, case)
        multiple = options["clip_len"] if options["clip_len"] > 0 else None
        rounding = Rounding(decimals=4, clamp=(0, options["max_ts_val"]), multiple_of=multiple)

        # The case holds the network with its masks mended too; that one first, it leaves no gradients behind.
        for group, kind in (("_fixmask", "own_row"), ("", "head_order")):
            qd_detr.set_padding_mask(method, kind)
            method.train()
            read = _read(method, batch, groups)
            output = method.run(read, negatives)
            exists = torch.ones_like(negatives, dtype=torch.bool)
            # Sentences of one video are told by the group: QVHighlights joins several clips to a video.
            losses = method.losses_of(output, {**batch, "video_index": groups}, exists, pairs, masking)
            total = method.total_loss(losses)
            results |= qd_detr.outputs(method, output, batch, group, "neg_saliency_scores")
            results |= qd_detr.named_losses(losses, total, group)
            results |= _own_outputs(output, group)
            if masking is not None:
                results |= _words(*method.reconstruct(batch, read, masking), masking, read.query_mask, group)
                results[f"loss{group}/loss_rec_fw"] = Number(losses["word_reconstruction"], LOSS, RELATIVE)
            if "segment_contrast" in losses:
                results[f"loss{group}/loss_rec_ss"] = Number(losses["segment_contrast"], LOSS, RELATIVE)
            method.eval()
            with torch.no_grad():
                answer = method.run(_read(method, batch, groups), None)
            results |= qd_detr.answers(answer, batch, group, rounding, 1e-6 if multiple else 2e-4)
            if group:
                results[f"loss{group}/grad_norm_before_clip"] = Number(
                    qd_detr.gradient_norm(method, total), NORM, 1e-5
                )
        if "target/norm_span" in case:
            for name in list(results):
                if "/match_" in name:  # one target each: they list the slot only
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

    def _batch(self, method: MESM, case: Case) -> tuple[Batch, Tensor, dict[str, Number]]:
        """Builds the contract's batch.

        Returns:
            The batch; (N,) which group of sentences each row belongs to; and what could be recomputed of the
            inputs and targets.
        """
        options = case.options
        video, video_mask = case["input/video_feat"], case["input/video_mask"]
        words_mask = case["input/words_mask"]
        width = options["max_words_l"]
        raw = case["input/words_feat"][:, :width]
        words_mask = words_mask[:, :width]
        if options.get("normalize_txt", True):
            raw = torch.from_numpy(self.normalise(raw.numpy()))
        query = raw * words_mask.unsqueeze(-1)
        duration = case["input/duration"]
        clips = video_mask.sum(1)
        step = float(options["clip_len"])
        clip_seconds = torch.full_like(duration, step) if step > 0 else duration / clips
        groups = torch.repeat_interleave(torch.arange(len(case["input/num_clips"])), case["input/num_clips"])
        if "target/norm_span" in case:
            spans = case["target/norm_moment"].unsqueeze(1)
            counts = torch.ones(len(spans), dtype=torch.int64)
        else:
            counts = case["target/num_spans"]
            spans = pad_sequence(
                list(case["target/norm_moment_flat"].split(counts.tolist())), batch_first=True
            )
        span_mask = torch.arange(spans.shape[1]) < counts[:, None]
        graded = "target/saliency_label" in case
        batch: Batch = {
            "video": video[..., :-2],
            "video_mask": video_mask,
            "query": query,
            "query_mask": words_mask,
            "spans": spans,
            "span_mask": span_mask,
            "duration": duration,
            "clip_seconds": clip_seconds,
            "video_index": torch.arange(len(duration)) if graded else groups,
            "video_id": [str(row) for row in range(len(duration))],
            "saliency": torch.zeros_like(video_mask, dtype=torch.float32),
        }
        inside = method.inside(batch | {"saliency": case["target/saliency_label"]} if graded else batch)
        batch["saliency"] = case["target/saliency_label"] if graded else inside.float()
        results = {
            "input/clip_mask": Number(inside, 0),
            "target/clip_mask": Number(inside, 0),
        }
        flat = to_centre_width(spans)[span_mask]
        results["target/norm_span_flat" if graded else "target/norm_span"] = Number(flat, 1e-6)
        if not graded:
            results["target/moment"] = Number(spans[:, 0] * duration[:, None], 1e-3)
        return batch, groups, results


def _masking(method: MESM, case: Case) -> Masking | None:
    """Reads which words were hidden and what is to be found; a network without that loss ignores them."""
    keys = ("target/words_label", "input/unknown_mask", "input/mlm_masked")
    if "input/words_weight" in case:
        case["input/words_weight"]  # what the masked words were drawn by
    if method.word_head is not None:
        return Masking(*(case[key] for key in keys))
    for key in keys:
        if key in case:
            case[key]
    return None


def _margin_pairs(method: MESM, case: Case) -> tuple[Tensor, Tensor, Tensor] | None:
    """Reads the clip pairs of the margin loss, which are stored without that loss too."""
    if method.weight("margin") is None and "target/pos_idx" not in case:
        return None
    positive, negative = case["target/pos_idx"], case["target/neg_idx"]
    if method.weight("margin") is None:
        return None
    return positive, negative, torch.ones_like(positive, dtype=torch.bool)


def _read(method: MESM, batch: Batch, groups: Tensor) -> Read:
    """Reads a batch; tokens are generated from all clips of a row's group, one after the other."""
    read = QDDETR.read(method, batch)
    if method.generator is None:
        return read
    same = groups[:, None] == groups[None]
    one = batch["video_index"][:, None] == batch["video_index"][None]
    # Rows of one group on one video repeat the same clips: the first of them counts.
    chosen = same & (one.int().argmax(1) == torch.arange(len(groups)))
    keys = [read.video[rows][read.video_mask[rows]] for rows in chosen]
    padded = pad_sequence(keys, batch_first=True)
    mask = torch.arange(padded.shape[1]) < torch.tensor([len(key) for key in keys])[:, None]
    return read._replace(token=method.generate(padded, mask, groups))


def _own_outputs(output: Output, group: str) -> dict[str, Number]:
    """Lists the outputs that only MESM has, but for the words'."""
    read = output.read
    text, text_mask = read.text
    clips = read.video_mask.unsqueeze(-1)
    found = {
        "expanded_words_feat": Number(text, OUTPUT, RELATIVE, where=text_mask.unsqueeze(-1)),
        "expanded_words_mask": Number(text_mask, 0),
    }
    if read.token is not None:
        found["recon_feat"] = Number(read.token, OUTPUT, RELATIVE)
    for prefix, encoded in (("", output.positive), ("neg_", output.negative)):
        assert encoded is not None
        # With rec_fw off the frames stay as they were projected.
        enhanced = read.video if encoded.fused.enhanced is None else encoded.fused.enhanced
        found[f"{prefix}enhanced_video_feat"] = Number(enhanced, OUTPUT, RELATIVE, where=clips)
    return {f"output{group}/{name}": number for name, number in found.items()}


def _words(
    reconstructed: Tensor, logits: Tensor, masking: Masking, mask: Tensor, group: str
) -> dict[str, Number]:
    """Lists what is reconstructed of the words, and how often the true word is the likeliest."""
    hits = (logits.argmax(-1) == masking.labels)[mask]
    valid = mask.unsqueeze(-1)
    return {
        f"output{group}/mlm_words_feat": Number(reconstructed, OUTPUT, RELATIVE, where=valid),
        f"output{group}/recfw_words_logit": Number(logits, OUTPUT, RELATIVE, where=valid),
        f"loss{group}/rec_fw_acc": Number(hits.float().mean(), 1e-6),
    }
