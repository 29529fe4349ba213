"""MMN's released code (MCG-NJU/MMN, commit e694e69): its names, options and golden cases."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vmr_zoo.blocks.candidate_map import segment_means
from vmr_zoo.errors import VmrError
from vmr_zoo.losses.scaled_iou import scaled_iou
from vmr_zoo.methods.base import Method
from vmr_zoo.methods.mmn import MMN, Moments, Sentences
from vmr_zoo.parity.case import Case, Number, Released, gradients
from vmr_zoo.parity.weights import WeightNames
from vmr_zoo.spans import iou
from vmr_zoo.types import Batch

_OUTPUT, _LOSS, _GRADIENT = 5e-6, 1e-5, 1e-5
_OPTIONS = {
    "num_pre_clips": "segments",
    "num_clips": "clips",
    "pooling_counts": "diagonals",
    "min_iou": "iou_low",
    "max_iou": "iou_high",
    "iou_logit_scale": "iou_scale",
    "top_k": "contrast.positives",
    "margin": "contrast.margin",
    "neg_iou": "contrast.negative_iou",
    "sent_removal_iou": "contrast.sibling_iou",
    "tau_video": "contrast.moment_temperature",
    "tau_sent": "contrast.sentence_temperature",
    "contrastive_weight": "training.loss_weights.moment_to_sentence",
    "late_phase_contrastive_factor": "late_factor",
    "score_pow": "fusion_power",
    "nms_thresh": "nms_iou",
    "lr": "training.optimizer.lr",
}
"""The authors' option, and the key of `method` that it sets."""

_DATA = {"charades": "charades_sta", "activitynet": "activitynet", "tacos": "tacos"}
_BERT = "text_encoder.bert."
_BIAS = r"proposal_conv\.convs\.\d+\.bias"


class MMNReleased(Released):
    """MMN."""

    names = WeightNames(
        rules=[
            (r"featpool\.conv\.(.*)", r"project.\1"),
            (r"proposal_conv\.convs\.(\d+)\.(.*)", r"map.convolutions.\1.\2"),
            (r"proposal_conv\.bn\.(\d+)\.(.*)", r"map.norms.\1.\2"),
            (r"proposal_conv\.conv1x1_(iou|contrastive)\.(.*)", r"\1_moment.\2"),
            (r"text_encoder\.layernorm\.(.*)", r"text_norm.\1"),
            (r"text_encoder\.fc_out1\.(.*)", r"iou_sentence.\1"),
            (r"text_encoder\.fc_out2\.(.*)", r"contrastive_sentence.\1"),
            (re.escape(_BERT) + r"(.*)", r"text.model.\1"),
        ],
        unused={re.escape(_BERT) + r"embeddings\.position_ids": "it holds 0, 1, 2, …, not weights"},
    )

    def settings(self, options: Mapping[str, Any], weights: Mapping[str, Tensor]) -> dict[str, Any]:
        """See `Released.settings`; a checkpoint has weights only: absent options stay as configured."""
        try:
            project = weights["featpool.conv.weight"]
            kernels = [
                w for name, w in weights.items() if re.fullmatch(r"proposal_conv\.convs\.\d+\.weight", name)
            ]
            joint, text_dim = weights["text_encoder.fc_out1.weight"].shape
            found: dict[str, Any] = {
                "video_dim": project.shape[1],
                "dim": project.shape[0],
                "map_dim": kernels[0].shape[0],
                "map_kernel": kernels[0].shape[-1],
                "map_layers": len(kernels),
                "joint_dim": joint,
            }
        except (KeyError, IndexError) as error:
            raise VmrError(f"The checkpoint lacks the weight {error}: it is not MMN's.") from error
        if any(name.startswith(_BERT) for name in weights):
            found["text"] = {"_target_": "vmr_zoo.blocks.text_encoder.distilbert", "folder": None}
        else:
            found["text.dim"] = text_dim
        found |= {key: options[option] for option, key in _OPTIONS.items() if option in options}
        if "contrastive_weight" in options:
            found["training.loss_weights.sentence_to_moment"] = options["contrastive_weight"]
        return found

    def data(self, options: Mapping[str, Any]) -> str:
        """See `Released.data`."""
        name = str(options.get("dataset"))
        if name not in _DATA:
            raise VmrError(
                "MMN's checkpoints do not say what they were trained on. Name the authors' settings: "
                "experiment=mmn/charades_sta, or the data set: data=…"
            )
        return _DATA[name]

    def recompute(self, method: Method, case: Case) -> dict[str, Number]:
        """See `Released.recompute`."""
        assert isinstance(method, MMN)
        cells, options = method.cells, case.options
        batch = _batch(case)
        results = self._inputs(method, case, batch)

        method.eval()
        with torch.no_grad():
            moments, sentences = method(batch)
            results |= self._outputs(method, batch, moments, sentences, "eval")
            vectors = method.text(batch, batch["query_mask"].unsqueeze(0))[0]
            fused = method.fused(moments, sentences)
            cosine = F.normalize(sentences.contrastive, dim=1).unsqueeze(1)
            cosine = (moments.contrastive[moments.video] * cosine).sum(2)
        results |= {
            "output/sent_pooled": Number(vectors, _OUTPUT),
            "output/sent_layernorm": Number(sentences.normed, _OUTPUT),
            "output/sent_contrastive": Number(sentences.contrastive, _OUTPUT),
            "output/sent_iou": Number(sentences.iou, _OUTPUT),
            "output/eval/score_contrastive": Number(cells.spread(cosine), _OUTPUT),
            "output/eval/score_fused": Number(cells.spread(fused), _OUTPUT),
        }
        results |= self._answers(method, case, batch)

        method.train()
        moments, sentences = method(batch)
        results |= self._outputs(method, batch, moments, sentences, "train")
        losses = method.matching_losses(moments, sentences, batch)
        total = method.total_loss(losses)
        contrastive = losses["moment_to_sentence"] + losses["sentence_to_moment"]
        weight = options["contrastive_weight"]
        late = losses["iou"] + method.late_factor * weight * contrastive
        results |= {
            "loss/vid": Number(losses["moment_to_sentence"], 1e-6, _LOSS),
            "loss/sent": Number(losses["sentence_to_moment"], 1e-6, _LOSS),
            "loss/iou": Number(losses["iou"], 1e-6, _LOSS),
            "loss/contrastive_weighted": Number(weight * contrastive, 1e-6, _LOSS),
            "loss/total": Number(total, 1e-6, _LOSS),
            "loss/total_late": Number(late, 1e-6, _LOSS),
        }
        for name, value in _named(case, "output/train/bn/").items():
            own = self.names.ours(name)
            assert own is not None
            results[f"output/train/bn/{name}"] = Number(
                method.get_buffer(own).clone(), 1e-6, where=_all(value)
            )
        found = gradients(
            method,
            self.names,
            case,
            total,
            norm_key="grad_norm",
            clip=options["optimizer"]["clip_grad_norm"],
            atol=_GRADIENT,
            rtol=_GRADIENT,
        )
        return results | {key: _steady(key, number, found) for key, number in found.items()}

    def _inputs(self, method: MMN, case: Case, batch: Batch) -> dict[str, Number]:
        cells, options = method.cells, case.options
        raw = [case[f"input/raw_feats_{i}"] for i in range(options["batch_videos"])]
        padded = torch.nn.utils.rnn.pad_sequence(
            [F.normalize(frames, dim=1) for frames in raw], batch_first=True
        )
        mask = torch.arange(padded.shape[1]) < torch.tensor([len(frames) for frames in raw]).unsqueeze(1)
        n = cells.clips
        first, last = torch.meshgrid(torch.arange(n), torch.arange(n), indexing="ij")
        everywhere = iou(torch.stack((first, last + 1), -1) / n, batch["spans"].unsqueeze(2))
        above = first <= last
        best = cells.overlap(batch["spans"], batch["span_mask"]).topk(method.contrast.positives, 1).indices
        return {
            "input/feats": Number(segment_means(padded, mask, method.segments, method.last_frame), 1e-6),
            "input/num_sentence": Number(case["input/video_index"].bincount(), 0),
            "target/iou2d": Number(everywhere, 1e-6, where=above),
            "target/iou2d_scaled": Number(
                scaled_iou(everywhere, method.iou_low, method.iou_high), 5e-6, where=above
            ),
            "target/positive_index": Number(best, 0),
            "target/positive_cell": Number(cells.cells[best], 0),
            "output/mask2d": Number(cells.spread(torch.ones(len(cells))) > 0, 0),
            "output/mask_cells": Number(cells.cells, 0),
            **{
                f"output/conv_weight_{i}": Number(_whole(method, method.map.weights(i), i), 1e-6)
                for i in range(len(method.map.sides))
            },
        }

    @staticmethod
    def _outputs(
        method: MMN, batch: Batch, moments: Moments, sentences: Sentences, mode: str
    ) -> dict[str, Number]:
        """Lays out what both modes store; a copy runs the map once more, for its layers."""
        cells = method.cells
        raw = cells.spread(cells.pool(moments.clips))
        with torch.no_grad():
            layers = copy.deepcopy(method.map).layers(raw)
        numbers = {
            "clip_feats": moments.clips,
            "map2d_raw": raw,
            "map_contrastive": method.contrastive_moment(moments.grid),
            "map_iou": method.iou_moment(moments.grid),
            "score_iou": cells.spread(method.iou_logits(moments, sentences).sigmoid()),
            **{f"conv_out_{i}": _whole(method, layer, i) for i, layer in enumerate(layers)},
        }
        return {f"output/{mode}/{key}": Number(value, _OUTPUT) for key, value in numbers.items()}

    @staticmethod
    def _answers(method: MMN, case: Case, batch: Batch) -> dict[str, Number]:
        """Suppresses the stored scores, since theirs and ours may order near ties differently."""
        cells, duration = method.cells, batch["duration"]
        spans, scores = cells.rank(
            cells.gather(case.stored("output/eval/score_fused")),
            duration,
            threshold=method.nms_iou,
            answers=len(cells),
            unit=method.nms_unit,
        )
        gone = scores == 0
        seconds = spans * duration[:, None, None]
        ends = (spans * cells.clips).round().long() - torch.tensor([0, 1])
        overlap = iou(spans, batch["spans"])
        results = {
            "nms_moments": seconds.masked_fill(gone.unsqueeze(2), torch.nan),
            "nms_cells": ends.masked_fill(gone.unsqueeze(2), -1),
            "nms_scores": scores.masked_fill(gone, torch.nan),
            "nms_count": (~gone).sum(1),
            "top1_iou": overlap[:, 0],
            "mIoU": overlap[:, 0].mean(),
        }
        for rank in (1, 5):
            prefix = f"output/eval/metric/R@{rank},IoU@"
            thresholds = [key.removeprefix(prefix) for key in case.keys if key.startswith(prefix)]
            recalls = [(overlap[:, :rank].amax(1) >= float(t)).float().mean() for t in thresholds]
            results |= {f"metric/R@{rank},IoU@{t}": r for t, r in zip(thresholds, recalls, strict=True)}
            if recalls:
                results[f"metric/Best_R{rank}"] = torch.stack(recalls).mean()
        tolerance = {"nms_moments": 1e-4, "nms_cells": 0.0, "nms_count": 0.0}
        return {f"output/eval/{k}": Number(v, tolerance.get(k, 1e-6)) for k, v in results.items()}


def _batch(case: Case) -> Batch:
    """Turns a case into rows of (video, sentence)."""
    video, duration = case["input/video_index"], case["input/duration"]
    feats, tokens = case.stored("input/feats")[video], case["input/token_feats"]
    spans = (case["target/moments"] / duration[video].unsqueeze(1)).unsqueeze(1)
    return {
        "video": feats,
        "video_mask": torch.ones(feats.shape[:2], dtype=torch.bool),
        "query": tokens,
        "query_mask": torch.arange(tokens.shape[1]) < case["input/wordlens"].unsqueeze(1),
        "spans": spans,
        "span_mask": torch.ones(spans.shape[:2], dtype=torch.bool),
        "duration": duration[video],
        "video_index": video,
        "video_id": [str(i) for i in video.tolist()],
        "query_id": [str(i) for i in range(len(video))],
    }


def _whole(method: MMN, window: Tensor, layer: int) -> Tensor:
    """Puts zeros around a layer's window of the map."""
    return F.pad(window, [(method.map.sides[layer] - window.shape[-1]) // 2] * 4)


def _named(case: Case, start: str) -> dict[str, Tensor]:
    return {key.removeprefix(start): case.stored(key) for key in case.keys if key.startswith(start)}


def _all(value: Tensor) -> Tensor:
    return torch.ones_like(value, dtype=torch.bool)


def _steady(key: str, number: Number, numbers: Mapping[str, Number]) -> Number:
    """Leaves out what is rounding noise in the authors' code too.

    Batch normalisation cancels the convolutions' biases, so that their gradients are noise, of which AdamW
    makes steps of any size up to the learning rate; and so it does of any gradient near 0.
    """
    group, _, name = key.partition("/")
    if re.fullmatch(_BIAS, name):
        return replace(number, where=torch.zeros_like(number.value, dtype=torch.bool))
    if group == "after_step":
        return replace(number, where=numbers[f"grad/{name}"].value.abs() > 1e-5)
    return number
