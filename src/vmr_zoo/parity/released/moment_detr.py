"""Moment-DETR's released code (jayleicn/moment_detr, commit b7e553a): names, options and golden cases."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vmr_zoo.blocks.position import append_tef, sine_position
from vmr_zoo.errors import VmrError
from vmr_zoo.methods.base import Method
from vmr_zoo.methods.moment_detr import MomentDETR, MomentDETROutput
from vmr_zoo.parity.case import Case, Number, encoder_layers, gradients, pairs, windows
from vmr_zoo.parity.released import detr
from vmr_zoo.parity.weights import WeightNames
from vmr_zoo.spans import to_centre_width
from vmr_zoo.types import Batch

_OUTPUT, _LOSS, _GRADIENT = 5e-5, 1e-5, 1e-4


class MomentDETRReleased(detr.DETRReleased):
    """Moment-DETR."""

    names = WeightNames(
        rules=[
            (r"transformer\.decoder\.layers\.(\d+)\.self_attn\.(.*)", r"decoder.layers.\1.self_attention.\2"),
            (
                r"transformer\.decoder\.layers\.(\d+)\.multihead_attn\.(.*)",
                r"decoder.layers.\1.cross_attention.\2",
            ),
            (r"query_embed\.weight", r"decoder.query_position.weight"),
            *detr.SHARED_NAMES,
        ],
        unused=detr.UNUSED,
    )

    def __init__(self, normalise: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]) -> None:
        """Stores the L2 normalisation of one feature source, which is compared with the case's inputs."""
        self.normalise = normalise

    def settings(self, options: Mapping[str, Any], weights: Mapping[str, Tensor]) -> dict[str, Any]:
        """Derives settings from the authors' options and the shapes of their weights."""
        if options.get("contrastive_align_loss"):
            raise VmrError(
                "The authors' option contrastive_align_loss is on; no released script sets it, "
                "and vmr_zoo's moment_detr has no such loss."
            )
        return detr.settings(options, detr.SHARED_SETTINGS, also=("aux_loss",)) | {
            "criterion.every_layer": options["aux_loss"],
            "video_dim": detr.video_dim(weights),
            "query_dim": detr.query_dim(weights),
        }

    def recompute(self, method: Method, case: Case) -> dict[str, Number]:
        """Recomputes the arrays of a case; the tolerances are from the notes beside the cases."""
        assert isinstance(method, MomentDETR)
        batch, results = self._batch(case)
        method.train()
        layers, handles = encoder_layers(method)
        output = method(batch)
        for handle in handles:
            handle.remove()
        targets = to_centre_width(method.span_unit.targets(batch["spans"], batch))
        positive, negative = case["target/saliency_pos_labels"], case["target/saliency_neg_labels"]
        losses = method.losses_of(output, batch, positive, negative, torch.ones_like(positive).bool())
        total = method.total_loss(losses)
        results["target/spans_flat"] = Number(targets[batch["span_mask"]], 1e-6)
        results |= self._outputs(output, batch["video_mask"])
        results |= self._encoder(method, case, output, batch, layers)
        results |= self._decoder_layers(method, output, targets, batch["span_mask"])
        results |= self._losses(method, losses, total, last=len(output.logits) - 1)
        results |= self._inference(method, batch)
        return results | gradients(
            method,
            self.names,
            case,
            total,
            norm_key="loss/grad_norm_before_clip",
            clip=case.options["grad_clip"],
            atol=_GRADIENT,
        )

    def _batch(self, case: Case) -> tuple[Batch, dict[str, Number]]:
        """Builds the batch, and recomputes the inputs that derive from others."""
        query, video_mask = case["input/src_txt"], case["input/src_vid_mask"] > 0
        duration = case["input/duration"]
        spans, span_mask = windows(case["input/windows_sec"], duration)
        batch: Batch = {
            "video": case["input/src_vid"][..., :-2],
            "video_mask": video_mask,
            "query": query,
            "query_mask": case["input/src_txt_mask"] > 0,
            "spans": spans,
            "span_mask": span_mask,
            "duration": duration,
            "clip_seconds": torch.full_like(duration, float(case.options["clip_length"])),
            "video_id": [str(row) for row in range(len(duration))],
        }
        video = detr.normalise(case["input/raw_video"], case.options["video_source_dims"], self.normalise)
        text = detr.normalise(case["input/raw_text"], [query.shape[-1]], self.normalise)
        return batch, {
            "input/src_vid": Number(append_tef(video, video_mask), 1e-6),
            "input/src_txt": Number(text, 1e-6),
            "target/num_spans": Number(span_mask.sum(1), 0),
        }

    def _outputs(self, output: MomentDETROutput, video_mask: Tensor) -> dict[str, Number]:
        """Returns the predictions of the last decoder layer by key."""
        logits = output.logits[-1]
        return {
            "output/pred_logits": Number(logits, _OUTPUT),
            "output/pred_score": Number(logits.softmax(-1)[..., 0], _OUTPUT),
            "output/pred_spans": Number(output.spans[-1], _OUTPUT),
            "output/saliency_scores": Number(output.saliency, _OUTPUT, where=video_mask),
            "output/decoder_hs": Number(output.states, _OUTPUT),
        }

    def _encoder(
        self, method: MomentDETR, case: Case, output: MomentDETROutput, batch: Batch, layers: list[Tensor]
    ) -> dict[str, Number]:
        """Recomputes projections and positions, and returns them with the memory and each encoder layer."""
        encoded = output.encoded
        clips, tokens, both = (
            m.unsqueeze(-1) for m in (batch["video_mask"], batch["query_mask"], encoded.mask)
        )
        video = method.encoder.project_video(case["input/src_vid"])
        query = method.encoder.project_query(batch["query"])
        position = sine_position(batch["video_mask"], encoded.memory.shape[-1])
        results = {
            "output/vid_position": Number(position, _OUTPUT, where=clips),
            "output/projed_video_feat": Number(video, _OUTPUT, where=clips),
            "output/projed_words_feat": Number(query, _OUTPUT, where=tokens),
            "output/encoder_memory": Number(encoded.memory, _OUTPUT, where=both),
            "output/memory_video": Number(encoded.video, _OUTPUT, where=clips),
            "output/memory_text": Number(encoded.query, _OUTPUT, where=tokens),
        }
        for i, layer in enumerate(layers):
            results[f"output/encoder_layer{i}"] = Number(layer, _OUTPUT, where=both)
        return results

    def _decoder_layers(
        self, method: MomentDETR, output: MomentDETROutput, targets: Tensor, target_mask: Tensor
    ) -> dict[str, Number]:
        """Recomputes the matching of every decoder layer."""
        results: dict[str, Number] = {}
        last = len(output.logits) - 1
        for i, (logits, predicted) in enumerate(zip(output.logits, output.spans, strict=True)):
            match = pairs(*method.criterion.match(logits, predicted, targets, target_mask))
            results["output/match_last" if i == last else f"output/match_aux{i}"] = Number(match, 0)
            if i < last:
                results[f"output/aux{i}_pred_logits"] = Number(logits, _OUTPUT)
                results[f"output/aux{i}_pred_spans"] = Number(predicted, _OUTPUT)
        return results

    def _losses(
        self, method: MomentDETR, losses: dict[str, Tensor], total: Tensor, last: int
    ) -> dict[str, Number]:
        """Returns the losses under the authors' names; `last` is the index of the last decoder layer."""
        results = {
            "loss/loss_saliency": Number(losses["margin"], 1e-6, _LOSS),
            "loss/total_weighted": Number(total, 1e-6, _LOSS),
        }
        for theirs, ours in detr.SET_LOSSES.items():
            results[f"loss/{theirs}"] = Number(losses[ours], 1e-6, _LOSS)
            for i in range(last if method.criterion.every_layer else 0):
                results[f"loss/{theirs}_{i}"] = Number(losses[f"{ours}/aux{i}"], 1e-6, _LOSS)
        return results

    def _inference(self, method: MomentDETR, batch: Batch) -> dict[str, Number]:
        """Recomputes windows and saliency as the released inference returns them."""
        method.eval()
        with torch.no_grad():
            answer = method(batch)
        post = detr.rounded_windows(answer.logits[-1], answer.spans[-1], batch["duration"], detr.ROUNDING)
        results = detr.compare_windows(post)
        # Submitted in float16, whose step is up to a thousandth of the value.
        half = torch.where(batch["video_mask"], answer.saliency.half().float(), torch.nan)
        results["output/post_saliency"] = Number(half, _OUTPUT, 1e-3)
        return results
