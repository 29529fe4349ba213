"""QD-DETR's released code (wjun0830/QD-DETR, commit 56c63b2): its names, options and golden cases.

Also holds what MESM's released code copied from it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from vmr_zoo.blocks.cross_encoder import CrossEncoder, PaddingMask
from vmr_zoo.errors import VmrError
from vmr_zoo.losses.margin import Pairs
from vmr_zoo.methods.base import Method
from vmr_zoo.methods.qd_detr.method import QDDETR, QDDETROutput
from vmr_zoo.metrics.settings import Rounding
from vmr_zoo.parity.case import Case, Number, gradients, pairs
from vmr_zoo.parity.released import detr
from vmr_zoo.parity.weights import Replacement, WeightNames
from vmr_zoo.spans import to_centre_width, to_start_end
from vmr_zoo.types import Batch

OUTPUT, LOSS, GRADIENT, NORM = 2e-5, 2e-5, 1e-4, 1e-4
RELATIVE = 5e-6  # in addition: float32 rounds relative to the size of a number
SALIENCY_LOSSES = ("negative_pair", "rank_contrast", "margin")
PASSES: tuple[tuple[str, PaddingMask], ...] = (("_fixmask", "own_row"), ("", "head_order"))
"""Suffix of a case's groups, and how that pass masks padding."""
CROSS_PARTS = {
    "self_attn": "attention",
    "linear1": "tails.0.linear1",
    "linear2": "tails.0.linear2",
    "norm1": "tails.0.norm1",
    "norm2": "tails.0.norm2",
    "activation": "activation",
}


def cross_encoder_names(
    theirs: str, ours: str, parts: Mapping[str, str] = CROSS_PARTS
) -> tuple[str, Callable[[re.Match[str]], str]]:
    """Names the weights of a cross-modal encoder.

    Args:
        theirs: the authors' name of the stack, a regular expression without groups.
        ours: our name of it.
        parts: our name of each part of a layer.

    Returns:
        A rule of `WeightNames`.
    """
    pattern = rf"{theirs}\.layers\.(\d+)\.({'|'.join(map(re.escape, parts))})\.(.*)"
    return pattern, lambda m: f"{ours}.layers.{m[1]}.{parts[m[2]]}.{m[3]}"


SHARED_NAMES: list[tuple[str, Replacement]] = [
    detr.projection_names("project_"),
    (r"transformer\.decoder\.bbox_embed\.(.*)", r"decoder.refine.\1"),
    *detr.ANCHOR_DECODER_NAMES,
    (r"global_rep_token", "encoder.token"),
    (r"global_rep_pos", "encoder.token_position"),
    (r"saliency_proj1\.(.*)", r"encoder.score_frames.\1"),
    (r"saliency_proj2\.(.*)", r"encoder.score_token.\1"),
    *detr.SHARED_NAMES,
]
_SETTINGS = detr.SHARED_SETTINGS | {"saliency_margin": "saliency.margin"}
_ONE_LAYER_UNUSED = {r"transformer\.decoder\.bbox_embed\..*": "a decoder of one layer refines nothing"}


@dataclass(frozen=True)
class TefLast(WeightNames):
    """Names of weights whose first video projection reads [video; TEF; audio], ours [video; audio; TEF].

    Attributes:
        tef_at: the column of the first TEF feature in theirs; None where TEF is last there too.
    """

    tef_at: int | None = None

    def reads_video(self, name: str) -> bool:
        """Returns whether the last axis of a weight, by our name, runs over the input features."""
        return self.tef_at is not None and name in (
            "project_video.0.weight",
            "project_video.0.bias",
            "project_video.2.weight",
        )

    def keep(self, name: str, weight: Tensor) -> Tensor:
        """Moves the columns of TEF to the end."""
        weight = super().keep(name, weight)
        return move_tef(weight, self.tef_at) if self.reads_video(name) else weight


def move_tef(x: Tensor, tef_at: int | None) -> Tensor:
    """Moves columns `tef_at` and `tef_at` + 1 of (..., D) to the end; None moves nothing."""
    if tef_at is None:
        return x
    return torch.cat((x[..., :tef_at], x[..., tef_at + 2 :], x[..., tef_at : tef_at + 2]), -1)


def _tef_back(x: Tensor, tef_at: int) -> Tensor:
    """Undoes `move_tef`."""
    return torch.cat((x[..., :tef_at], x[..., -2:], x[..., tef_at:-2]), -1)


def layers(weights: Mapping[str, Tensor], stack: str) -> int:
    """Counts the layers of a stack by the names of its weights.

    Raises:
        VmrError: if there are none.
    """
    found = {m[1] for name in weights if (m := re.match(rf"{re.escape(stack)}\.layers\.(\d+)\.", name))}
    if not found:
        raise VmrError(f"The checkpoint has no weights '{stack}.layers.…': it is not of this method.")
    return len(found)


def saliency_weights(value: float) -> dict[str, float]:
    """Gives each saliency loss the weight of their sum, by dotted key of `method`."""
    return {f"training.loss_weights.{name}": value for name in SALIENCY_LOSSES}


def unused_with(names: Any, decoder_layers: int) -> Any:
    """Adds the weights that a decoder of one layer never uses."""
    extra = _ONE_LAYER_UNUSED if decoder_layers == 1 else {}
    return replace(names, unused=names.unused | extra)


class QDDETRReleased(detr.DETRReleased):
    """QD-DETR."""

    names: TefLast = TefLast(
        rules=[cross_encoder_names(r"transformer\.t2v_encoder", "aligner"), *SHARED_NAMES],
        unused=detr.UNUSED,
    )

    def settings(self, options: Mapping[str, Any], weights: Mapping[str, Tensor]) -> dict[str, Any]:
        """Translates the options, and stores the place of TEF among the video features."""
        settings = detr.settings(options, _SETTINGS, also=("aux_loss",))
        audio = options.get("a_feat_dim") if options.get("a_feat_dir") else None
        video_dim = detr.video_dim(weights)
        self.names = replace(
            unused_with(type(self).names, options["dec_layers"]),
            tef_at=None if audio is None else video_dim - audio,
        )
        return settings | {
            "video_dim": video_dim,
            "query_dim": detr.query_dim(weights),
            "aligner.layers": layers(weights, "transformer.t2v_encoder"),
            "criterion.every_layer": options["aux_loss"],
            **saliency_weights(options["lw_saliency"]),
        }

    def recompute(self, method: Method, case: Case) -> dict[str, Number]:
        """Recomputes a case; the tolerances come from the notes beside the cases."""
        assert isinstance(method, QDDETR)
        batch = self._batch(case)
        results: dict[str, Number] = {}
        # The case also holds the network with fixed masks. It runs first and leaves no gradients behind.
        for group, kind in PASSES:
            set_padding_mask(method, kind)
            method.train()
            rows, exists = _rolled(batch)
            output = method(batch, rows)
            losses = method.set_losses(output, batch)
            losses |= method.saliency_losses(output, batch, exists, margin_pairs(case))
            total = method.total_loss(losses)
            results |= outputs(method, output, batch, group, "saliency_scores_neg")
            results |= named_losses(losses, total, group)
            method.eval()
            with torch.no_grad():
                results |= answers(method(batch), batch, group, detr.ROUNDING)
            if group:
                results[f"loss{group}/grad_norm_before_clip"] = Number(
                    gradient_norm(method, total), NORM, 1e-5
                )
        found = gradients(
            method,
            self.names,
            case,
            total,
            norm_key="loss/grad_norm_before_clip",
            clip=case.options["grad_clip"],
            atol=GRADIENT,
            rtol=RELATIVE,
        )
        return results | self._their_columns(found)

    def _their_columns(self, numbers: dict[str, Number]) -> dict[str, Number]:
        """Restores the authors' order of columns in gradients of the first video projection."""
        tef_at = self.names.tef_at
        if tef_at is None:
            return numbers
        moved = dict(numbers)
        for key, number in numbers.items():
            name = self.names.ours(key.removeprefix("grad/")) if key.startswith("grad/") else None
            if name is not None and self.names.reads_video(name):
                moved[key] = replace(number, value=_tef_back(number.value, tef_at))
        return moved

    def _batch(self, case: Case) -> Batch:
        """Builds the contract's batch; audio, if there is any, is the last source of the video."""
        video, mask = case["input/src_vid"], case["input/src_vid_mask"] > 0
        sources = [video[..., :-2]]
        if "input/src_aud" in case:
            case["input/src_aud_mask"]
            sources.append(case["input/src_aud"])
        duration = case["input/duration"]
        clip_seconds = torch.full_like(duration, float(case.options["clip_length"]))
        counts = case["target/num_spans"].tolist()
        flat = to_start_end(case["target/spans_flat"])  # fractions of the clips read
        spans = pad_sequence(list(flat.split(counts)), batch_first=True)
        read = mask.sum(1) * clip_seconds
        return {
            "video": torch.cat(sources, -1),
            "video_mask": mask,
            "query": case["input/src_txt"],
            "query_mask": case["input/src_txt_mask"] > 0,
            "spans": spans * (read / duration)[:, None, None],
            "span_mask": torch.arange(spans.shape[1]) < case["target/num_spans"][:, None],
            "duration": duration,
            "clip_seconds": clip_seconds,
            "video_index": torch.arange(len(duration)),
            "video_id": [str(row) for row in range(len(duration))],
            "saliency": case["target/saliency_all_labels"],
            "saliency_mask": case["target/saliency_all_labels"] > 0,
        }


def _rolled(batch: Batch) -> tuple[Tensor, Tensor]:
    count = len(batch["duration"])
    return (torch.arange(count) + 1) % count, torch.ones(count, dtype=torch.bool)


def margin_pairs(case: Case) -> Pairs:
    """Reads the clip pairs of the margin loss; all are usable."""
    positive, negative = case["target/saliency_pos_labels"], case["target/saliency_neg_labels"]
    return positive, negative, torch.ones_like(positive, dtype=torch.bool)


def set_padding_mask(method: nn.Module, kind: PaddingMask) -> None:
    """Sets how every cross-modal encoder of a method masks padding."""
    for module in method.modules():
        if isinstance(module, CrossEncoder):
            module.padding_mask = kind


def gradient_norm(method: Method, total: Tensor) -> Tensor:
    """Returns the global norm of the gradients of a loss, and clears the gradients."""
    method.zero_grad(set_to_none=True)
    total.backward()
    norm = torch.stack([p.grad.norm() for p in method.parameters() if p.grad is not None]).norm()
    method.zero_grad(set_to_none=True)
    return norm


def outputs(
    method: QDDETR, output: QDDETROutput, batch: Batch, group: str, negative_saliency: str
) -> dict[str, Number]:
    """Lists the outputs that QD-DETR and MESM share.

    Args:
        method: the network.
        output: its output, negative pairs included.
        batch: the batch.
        group: "" or "_fixmask".
        negative_saliency: the authors' name of the scores of the negative pairs.

    Returns:
        Numbers by key.
    """
    inputs, positive, negative = output.inputs, output.positive, output.negative
    assert negative is not None
    clips, words = inputs.video_mask, inputs.query_mask
    frames = clips.unsqueeze(-1)
    found = {
        "pred_logits": Number(output.logits[-1], OUTPUT, RELATIVE),
        "pred_spans": Number(output.spans[-1], OUTPUT, RELATIVE),
        "pred_score": Number(output.logits[-1].softmax(-1)[..., 0], OUTPUT, RELATIVE),
        "saliency_scores": Number(positive.saliency, OUTPUT, RELATIVE, where=clips),
        negative_saliency: Number(negative.saliency, OUTPUT, RELATIVE, where=clips),
        "vid_position": Number(inputs.position, OUTPUT, RELATIVE, where=frames),
        "projed_video_feat": Number(inputs.video, OUTPUT, RELATIVE, where=frames),
        "projed_words_feat": Number(inputs.query, OUTPUT, RELATIVE, where=words.unsqueeze(-1)),
        "decoder_hs": Number(output.states, OUTPUT, RELATIVE),
        "decoder_reference": Number(output.references, OUTPUT, RELATIVE),
    }
    for prefix, encoded in (("", positive), ("neg_", negative)):
        assert encoded.scored.token is not None
        found |= {
            f"{prefix}aligned_video_feat": Number(encoded.fused.sequence, OUTPUT, RELATIVE, where=frames),
            f"{prefix}memory": Number(encoded.scored.memory, OUTPUT, RELATIVE, where=frames),
            f"{prefix}memory_global": Number(encoded.scored.token, OUTPUT, RELATIVE),
        }
    targets, mask = to_centre_width(method.span_unit.targets(batch["spans"], batch)), batch["span_mask"]
    last = len(output.logits) - 1
    for i, (logits, spans) in enumerate(zip(output.logits, output.spans, strict=True)):
        slots, matched = method.criterion.match(logits, spans, targets, mask)
        found["match_last" if i == last else f"match_aux{i}"] = Number(pairs(slots, matched), 0)
        if i < last:
            found[f"aux{i}_pred_logits"] = Number(logits, OUTPUT, RELATIVE)
            found[f"aux{i}_pred_spans"] = Number(spans, OUTPUT, RELATIVE)
    return {f"output{group}/{name}": number for name, number in found.items()}


def named_losses(losses: Mapping[str, Tensor], total: Tensor, group: str) -> dict[str, Number]:
    """Lists the losses that QD-DETR and MESM share by their names.

    Args:
        losses: our losses by name.
        total: their weighted sum.
        group: "" or "_fixmask".
    """
    found = {
        "loss_saliency": Number(
            torch.stack([losses[name] for name in SALIENCY_LOSSES if name in losses]).sum(),
            LOSS,
            RELATIVE,
        ),
        "total_weighted": Number(total, LOSS, 1e-6),
    }
    for theirs, ours in detr.SET_LOSSES.items():
        found[theirs] = Number(losses[ours], LOSS, RELATIVE)
        for name, value in losses.items():
            if name.startswith(f"{ours}/aux"):
                found[f"{theirs}_{name.removeprefix(f'{ours}/aux')}"] = Number(value, LOSS, RELATIVE)
    return {f"loss{group}/{name}": number for name, number in found.items()}


def answers(
    output: QDDETROutput, batch: Batch, group: str, rounding: Rounding, seconds: float = 1e-6
) -> dict[str, Number]:
    """Ranks and rounds moments as the released inference does.

    Args:
        output: in evaluation mode.
        batch: the batch.
        group: "" or "_fixmask".
        rounding: of the times.
        seconds: their tolerance.
    """
    windows = detr.rounded_windows(output.logits[-1], output.spans[-1], batch["duration"], rounding)
    return detr.compare_windows(windows, f"output{group}/post_windows", seconds)
