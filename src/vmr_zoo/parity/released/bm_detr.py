"""BM-DETR's released code (minjoong507/BM-DETR, commit b9afb3d): names, options and golden cases."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vmr_zoo.blocks.position import append_tef
from vmr_zoo.data.batches.shifting import TemporalShift
from vmr_zoo.errors import VmrError
from vmr_zoo.methods.base import Method
from vmr_zoo.methods.bm_detr.background import WeightedFrames
from vmr_zoo.methods.bm_detr.method import BMDETR, BMDETROutput
from vmr_zoo.methods.bm_detr.shifting import TrainingRows
from vmr_zoo.parity.case import Case, Number, gradients, pairs, windows
from vmr_zoo.parity.released import detr
from vmr_zoo.parity.weights import WeightNames
from vmr_zoo.spans import to_centre_width
from vmr_zoo.types import Batch

_NEAR = 1e-4
LOSSES = {
    "loss_span": "span_l1",
    "loss_giou": "span_giou",
    "loss_label": "label",
    "loss_class": "class_error",
    "loss_saliency": "margin",
    "loss_contrastive_align": "semantic",
    "loss_prob_guidance": "frame_probability",
}

_ACTIVATIONS = {"prelu": "torch.nn.PReLU", "relu": "torch.nn.ReLU", "gelu": "torch.nn.GELU"}
_SIDE = {"vid": "video", "txt": "query"}
_POOLING = {
    "feat2att.weight": "score.0.weight",
    "to_alpha.weight": "score.2.weight",
    "fc.weight": "out.weight",
    "fc.bias": "out.bias",
}


class BMDETRReleased(detr.DETRReleased):
    """BM-DETR."""

    names = WeightNames(
        rules=[
            (r"transformer\.encoder\.query_scale\.(.*)", r"encoder.encoder.position_scale.\1"),
            *detr.ANCHOR_DECODER_NAMES,
            (r"FPM\.0\.weight", r"matcher.w1.weight"),
            (r"FPM\.2\.weight", r"matcher.w2.weight"),
            (r"(vid|txt)_att_pooling\.(.*)", lambda m: f"{_SIDE[m[1]]}_pooling.{_POOLING[m[2]]}"),
            (
                r"contrastive_align_(vid|txt)_proj\.(weight|bias)",
                lambda m: f"{_SIDE[m[1]]}_out.{m[2]}",
            ),
            *detr.SHARED_NAMES,
        ],
        unused=detr.UNUSED,
        rows={"decoder.width_head.layers.1.weight": 1, "decoder.width_head.layers.1.bias": 1},
    )

    def __init__(
        self, normalise: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]], shift: TemporalShift
    ) -> None:
        """Stores the data functions whose results are compared with the case's inputs.

        Args:
            normalise: L2 normalisation of one feature source.
            shift: temporal shifting as released.
        """
        self.normalise, self.shift = normalise, shift

    def settings(self, options: Mapping[str, Any], weights: Mapping[str, Tensor]) -> dict[str, Any]:
        """Derives settings from the authors' options and the shapes of their weights."""
        names = detr.SHARED_SETTINGS | {
            "max_v_l": "span_unit.max_clips",
            "contrastive_hdim": "alignment.pooling_dim",
            "temperature": "alignment.temperature",
            "lw_prob_loss_coef": "training.loss_weights.frame_probability",
            "lw_contrastive_loss_coef": "training.loss_weights.semantic",
            "class_loss_coef": "training.loss_weights.class_error",
        }
        if options.get("prob_thd", 1.0) != 1.0:
            raise VmrError(
                f"The authors' option prob_thd is {options['prob_thd']}; Eq. 16 and the scripts have 1."
            )
        activation = options.get("transformer_activation", "prelu")
        if activation not in _ACTIVATIONS:
            raise VmrError(
                f"The authors' option transformer_activation is {activation}; vmr_zoo implements "
                f"{', '.join(_ACTIVATIONS)}."
            )
        found = detr.settings(options, names) | {
            "video_dim": detr.video_dim(weights),
            "query_dim": detr.query_dim(weights),
            "network.activation": {"_target_": _ACTIVATIONS[activation], "_partial_": True},
        }
        if "shifting" not in (options.get("additional_losses") or ()):
            found["shifting"] = None
        return found

    def recompute(self, method: Method, case: Case) -> dict[str, Number]:
        """Recomputes the arrays of a case; the tolerances are from the notes beside the cases."""
        assert isinstance(method, BMDETR)
        batch, results = self._batch(case)
        rows = method.training_rows(batch)
        method.train()
        losses, total = self._training(method, case, rows)
        results |= losses | self._inference(method, case, batch, rows)
        return results | gradients(
            method,
            self.names,
            case,
            total,
            norm_key="loss/grad_norm",
            clip=case.options["grad_clip"],
            atol=_NEAR,
            rtol=_NEAR,
        )

    def _training(self, method: BMDETR, case: Case, rows: TrainingRows) -> tuple[dict[str, Number], Tensor]:
        """Recomputes outputs, targets and losses of a training step, for the batch and its shifted copy.

        Returns:
            Recomputed arrays by key, and the total loss of the step.
        """
        copies = ("", "shift.")[: rows.copies]
        positive, negative = (
            torch.cat([case[f"target/{copy}saliency_{side}_labels"] for copy in copies])
            for side in ("pos", "neg")
        )
        usable = torch.ones_like(positive).bool()
        output = method.run_rows(rows.batch)
        total = method.total_loss(method.losses_of(output, rows, positive, negative, usable))
        results = {"loss/total": Number(total, _NEAR, 1e-5)}
        count = len(positive) // rows.copies
        for i, copy in enumerate(copies):
            part = part_of(output, rows, i)
            results |= self._targets(method, copy, *part)
            results |= self._outputs(copy or "train.", *part)
            chunk = slice(i * count, (i + 1) * count)
            own = method.losses_of(*part, positive[chunk], negative[chunk], usable[chunk])
            for theirs, ours in LOSSES.items():
                results[f"loss/{copy}{theirs}"] = Number(own[ours], _NEAR, 1e-5)
            name = "loss/shift.weighted" if copy else "loss/weighted_main"
            results[name] = Number(method.total_loss(own), _NEAR, 1e-5)
        return results, total

    def _inference(self, method: BMDETR, case: Case, batch: Batch, rows: TrainingRows) -> dict[str, Number]:
        """Recomputes the outputs at inference and the windows that the released code derives from them."""
        method.eval()
        with torch.no_grad():
            video, mask = rows.batch["video"][: len(batch["duration"])], batch["video_mask"]
            frames = method.encoder.project_video(video)
            answer = method(frames, mask, batch["query"], batch["query_mask"])
        clip, clips = float(case.options["clip_length"]), case.options["max_v_l"]
        longest = torch.clamp(batch["duration"], max=clips * clip)
        post = detr.post_windows(answer.logits[-1], answer.spans[-1], longest, clip, clips)
        return self._outputs("", answer, rows) | detr.compare_windows(post)

    def _batch(self, case: Case) -> tuple[Batch, dict[str, Number]]:
        """Builds the batch, and recomputes the inputs that derive from others."""
        video, video_mask = case["input/src_vid"], case["input/src_vid_mask"] > 0
        duration = case["input/duration"]
        seconds = case["input/windows_sec"]
        spans, span_mask = windows(seconds, duration)
        clip_seconds = torch.full_like(duration, float(case.options["clip_length"]))
        batch: Batch = {
            "video": video[..., :-2],
            "video_mask": video_mask,
            "query": case["input/src_txt"],
            "query_mask": case["input/src_txt_mask"] > 0,
            "negative_query": case["input/neg_src_txt"],
            "negative_query_mask": case["input/neg_src_txt_mask"] > 0,
            "spans": spans,
            "span_mask": span_mask,
            "duration": duration,
            "clip_seconds": clip_seconds,
            "saliency": torch.zeros_like(video_mask, dtype=torch.float32),  # the case gives the pairs
            "saliency_mask": torch.zeros_like(video_mask),
            "all_spans": spans,
            "all_span_mask": span_mask,
        }
        raw = detr.normalise(case["input/raw_video"], case.options["video_source_dims"], self.normalise)
        results = {"input/src_vid": Number(append_tef(raw, video_mask), 1e-6)}
        return batch, results | self.shift_rows(case, batch, seconds[:, 0])

    def shift_rows(self, case: Case, batch: Batch, seconds: Tensor) -> dict[str, Number]:
        """Adds to a batch the drawn shift of a case that has one.

        Args:
            case: the case, or one step of a trajectory.
            batch: the batch, to which `shift_order` and `shifted_spans` are added.
            seconds: (B, 2) start and end of the moments.

        Returns:
            The shifted arrays, recomputed, by key.
        """
        if "input/shifted_vid" not in case:
            return {}
        video, mask, clip_seconds = case["input/src_vid"], batch["video_mask"], batch["clip_seconds"]
        clips = mask.sum(1)
        first, last = self.shift.window(seconds, clips, clip_seconds)
        start = case["input/shift_start"]
        order, moved = self.shift.move(seconds, first, last, start, clips, clip_seconds, clips * clip_seconds)
        batch["shift_order"] = order
        batch["shifted_spans"] = (moved / batch["duration"][:, None]).unsqueeze(1)
        return {
            "input/shifted_vid": Number(video.gather(1, order.unsqueeze(-1).expand_as(video)), 0),
            "input/shifted_vid_mask": Number(mask.float(), 0),
        }

    def _targets(
        self, method: BMDETR, copy: str, output: BMDETROutput, rows: TrainingRows
    ) -> dict[str, Number]:
        """Recomputes the targets and the matching of one copy."""
        batch = rows.batch
        mask = batch["span_mask"]
        targets = to_centre_width(method.span_unit.targets(batch["spans"], batch))
        matched = pairs(*method.criterion.match(output.logits[-1], output.spans[-1], targets, mask))
        return {
            f"target/{copy}span_labels": Number(targets[mask], 1e-6),
            f"target/{copy}span_counts": Number(mask.sum(1), 0),
            f"target/{copy}match_labels": Number(rows.inside.long(), 0),
            f"target/{copy}logit_mask": Number(batch["video_mask"].float(), 0),
            f"match/{copy}batch": Number(matched[:, 0], 0),
            f"match/{copy}pred": Number(matched[:, 1], 0),
            f"match/{copy}target": Number(matched[:, 2], 0),
        }

    def _outputs(self, copy: str, output: BMDETROutput, rows: TrainingRows) -> dict[str, Number]:
        """Returns the outputs of one pass by key."""
        assert output.frames is not None
        assert output.saliency is not None
        assert output.pooled is not None
        assert output.references is not None
        count = output.logits.shape[1]
        clips = rows.batch["video_mask"][:count]
        both = output.encoded.mask.unsqueeze(-1)
        frames = output.frames
        numbers = {
            "pred_logits": Number(output.logits[-1], _NEAR),
            "pred_spans": Number(output.spans[-1], _NEAR),
            "saliency_scores": Number(output.saliency, _NEAR, where=clips),
            "vid_logits": Number(frames.joint, _NEAR),
            "frame_attention": Number(frames.attention, _NEAR),
            "frame_prob_pos": Number(frames.positive, _NEAR, where=clips),
            "encoder_memory": Number(output.encoded.memory, _NEAR, where=both),
            "weighted_memory": Number(output.memory, _NEAR, where=both),
            "hs": Number(output.states, _NEAR),
            "reference": Number(output.references[:1], _NEAR),
            "proj_vid_mem": Number(output.pooled[0], _NEAR),
            "proj_txt_mem": Number(output.pooled[1], _NEAR),
        }
        if frames.negative is not None:
            numbers["frame_prob_neg"] = Number(frames.negative, _NEAR, where=clips)
        return {f"output/{copy}{name}": number for name, number in numbers.items()}


def part_of(output: BMDETROutput, rows: TrainingRows, copy: int) -> tuple[BMDETROutput, TrainingRows]:
    """Returns the output and the rows of one copy of a training step."""
    count = len(rows.inside) // rows.copies
    cut = slice(copy * count, (copy + 1) * count)
    encoded, frames = output.encoded, output.frames
    assert frames is not None
    assert output.saliency is not None
    assert output.pooled is not None
    assert output.references is not None
    part = BMDETROutput(
        output.logits[:, cut],
        output.spans[:, cut],
        encoded._replace(memory=encoded.memory[cut], mask=encoded.mask[cut], position=encoded.position[cut]),
        output.memory[cut],
        WeightedFrames(
            frames.positive[cut],
            None if frames.negative is None else frames.negative[cut],
            frames.joint[cut],
            frames.attention[cut],
            frames.weighted[cut],
        ),
        output.saliency[cut],
        (output.pooled[0][cut], output.pooled[1][cut]),
        output.states[:, cut],
        output.references[:, cut],
    )
    batch: Batch = {key: value[cut] for key, value in rows.batch.items()}  # type: ignore[assignment,index]
    return part, TrainingRows(batch, rows.inside[cut], rows.margin_inside[cut], copies=1)
