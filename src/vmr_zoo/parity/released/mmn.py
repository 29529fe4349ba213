"""MMN's released code (MCG-NJU/MMN, commit e694e69): weight names, options and golden cases."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vmr_zoo.errors import VmrError
from vmr_zoo.methods.base import Method
from vmr_zoo.methods.mmn import MMN, CandidateEmbeddings, SentenceEmbeddings
from vmr_zoo.parity.case import Case, Number, Released, gradients
from vmr_zoo.parity.weights import WeightNames
from vmr_zoo.spans import iou
from vmr_zoo.types import Batch

_OUTPUT, _LOSS, _GRADIENT = 5e-6, 1e-5, 1e-5
_OPTIONS = {
    "num_pre_clips": "network.segments",
    "num_clips": "network.clips",
    "pooling_counts": "network.diagonals",
    "min_iou": "iou_score.low",
    "max_iou": "iou_score.high",
    "iou_logit_scale": "iou_score.scale",
    "top_k": "contrast.positives",
    "margin": "contrast.margin",
    "neg_iou": "contrast.negative_iou",
    "sent_removal_iou": "contrast.sibling_iou",
    "tau_video": "contrast.moment_temperature",
    "tau_sent": "contrast.sentence_temperature",
    "contrastive_weight": "training.loss_weights.moment_to_sentence",
    "late_phase_contrastive_factor": "contrast.late_factor",
    "score_pow": "ranking.fusion_power",
    "nms_thresh": "ranking.nms_iou",
    "lr": "training.optimizer.lr",
}
"""Key below `method` by the authors' option."""

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
        """Translates options and shapes; options that a checkpoint lacks keep their configured values."""
        try:
            project = weights["featpool.conv.weight"]
            kernels = [
                w for name, w in weights.items() if re.fullmatch(r"proposal_conv\.convs\.\d+\.weight", name)
            ]
            joint, text_dim = weights["text_encoder.fc_out1.weight"].shape
            found: dict[str, Any] = {
                "video_dim": project.shape[1],
                "network.dim": project.shape[0],
                "network.map_dim": kernels[0].shape[0],
                "network.kernel": kernels[0].shape[-1],
                "network.layers": len(kernels),
                "network.joint_dim": joint,
            }
        except (KeyError, IndexError) as error:
            raise VmrError(f"Expected an MMN checkpoint, found one without the weight {error}.") from error
        if any(name.startswith(_BERT) for name in weights):
            found["text"] = {"_target_": "vmr_zoo.blocks.text_encoder.distilbert", "folder": None}
        else:
            found["text.dim"] = text_dim
        found |= {key: options[option] for option, key in _OPTIONS.items() if option in options}
        if "contrastive_weight" in options:
            found["training.loss_weights.sentence_to_moment"] = options["contrastive_weight"]
        return found

    def data(self, options: Mapping[str, Any]) -> str:
        """Returns the data set of a golden case."""
        name = str(options.get("dataset"))
        if name not in _DATA:
            raise VmrError(
                "Expected the data set of the checkpoint, which MMN's checkpoints do not store. Specify the "
                "authors' settings, such as experiment=mmn/charades_sta, or data=…"
            )
        return _DATA[name]

    def recompute(self, method: Method, case: Case) -> dict[str, Number]:
        """Recomputes a case, in evaluation mode and then in training mode."""
        assert isinstance(method, MMN)
        batch = _batch(case)
        results = self._inputs(method, case, batch)
        results |= self._evaluation(method, case, batch)
        return results | self._training(method, case, batch)

    def _evaluation(self, method: MMN, case: Case, batch: Batch) -> dict[str, Number]:
        """Recomputes embeddings, scores and predictions in evaluation mode."""
        cells = method.cells
        method.eval()
        with torch.no_grad():
            moments, sentences = method(batch)
            results = self._outputs(method, moments, sentences, "eval")
            vectors = method.text(batch, batch["query_mask"].unsqueeze(0))[0]
            fused = method.fused(moments, sentences)
            cosine = F.normalize(sentences.contrastive, dim=1).unsqueeze(1)
            cosine = (moments.contrastive[moments.video] * cosine).sum(2)
        results |= {
            "output/sent_pooled": Number(vectors, _OUTPUT),
            "output/sent_layernorm": Number(sentences.normed, _OUTPUT),
            "output/sent_contrastive": Number(sentences.contrastive, _OUTPUT),
            "output/sent_iou": Number(sentences.iou, _OUTPUT),
            "output/eval/score_contrastive": Number(cells.scatter(cosine), _OUTPUT),
            "output/eval/score_fused": Number(cells.scatter(fused), _OUTPUT),
        }
        return results | self._predictions(method, case, batch)

    def _training(self, method: MMN, case: Case, batch: Batch) -> dict[str, Number]:
        """Recomputes losses, batch statistics, gradients and one optimizer step in training mode."""
        method.train()
        moments, sentences = method(batch)
        results = self._outputs(method, moments, sentences, "train")
        losses = method.matching_losses(moments, sentences, batch)
        total = method.total_loss(losses)
        contrastive = losses["moment_to_sentence"] + losses["sentence_to_moment"]
        weight = case.options["contrastive_weight"]
        late = losses["iou"] + method.contrast.late_factor * weight * contrastive
        results |= {
            "loss/vid": Number(losses["moment_to_sentence"], 1e-6, _LOSS),
            "loss/sent": Number(losses["sentence_to_moment"], 1e-6, _LOSS),
            "loss/iou": Number(losses["iou"], 1e-6, _LOSS),
            "loss/contrastive_weighted": Number(weight * contrastive, 1e-6, _LOSS),
            "loss/total": Number(total, 1e-6, _LOSS),
            "loss/total_late": Number(late, 1e-6, _LOSS),
        }
        for name, value in _stored_group(case, "output/train/bn/").items():
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
            clip=case.options["optimizer"]["clip_grad_norm"],
            atol=_GRADIENT,
            rtol=_GRADIENT,
        )
        return results | {key: _without_noise(key, number, found) for key, number in found.items()}

    def _inputs(self, method: MMN, case: Case, batch: Batch) -> dict[str, Number]:
        """Recomputes segment means, targets, supported cells and kernel weights."""
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
            "input/feats": Number(method.network.segment_means(padded, mask), 1e-6),
            "input/num_sentence": Number(case["input/video_index"].bincount(), 0),
            "target/iou2d": Number(everywhere, 1e-6, where=above),
            "target/iou2d_scaled": Number(method.iou_score.target(everywhere), 5e-6, where=above),
            "target/positive_index": Number(best, 0),
            "target/positive_cell": Number(cells.cells[best], 0),
            "output/mask2d": Number(cells.scatter(torch.ones(len(cells))) > 0, 0),
            "output/mask_cells": Number(cells.cells, 0),
            **{
                f"output/conv_weight_{i}": Number(_whole_map(method, method.map.weights(i), i), 1e-6)
                for i in range(len(method.map.sides))
            },
        }

    @staticmethod
    def _outputs(
        method: MMN, moments: CandidateEmbeddings, sentences: SentenceEmbeddings, mode: str
    ) -> dict[str, Number]:
        """Returns the arrays that are stored for both modes; a copy reruns the map to return its layers."""
        cells = method.cells
        raw = cells.scatter(cells.pool(moments.clips))
        with torch.no_grad():
            layers = copy.deepcopy(method.map).layers(raw)
        numbers = {
            "clip_feats": moments.clips,
            "map2d_raw": raw,
            "map_contrastive": method.contrastive_moment(moments.grid),
            "map_iou": method.iou_moment(moments.grid),
            "score_iou": cells.scatter(method.iou_logits(moments, sentences).sigmoid()),
            **{f"conv_out_{i}": _whole_map(method, layer, i) for i, layer in enumerate(layers)},
        }
        return {f"output/{mode}/{key}": Number(value, _OUTPUT) for key, value in numbers.items()}

    @staticmethod
    def _predictions(method: MMN, case: Case, batch: Batch) -> dict[str, Number]:
        """Applies NMS to the stored scores, because near ties may be ordered differently in ours."""
        cells, duration = method.cells, batch["duration"]
        spans, scores = cells.rank(
            cells.gather(case.stored("output/eval/score_fused")),
            duration,
            threshold=method.ranking.nms_iou,
            count=len(cells),
            unit=method.ranking.nms_unit,
        )
        removed = scores == 0
        seconds = spans * duration[:, None, None]
        ends = (spans * cells.clips).round().long() - torch.tensor([0, 1])
        overlap = iou(spans, batch["spans"])
        results = {
            "nms_moments": seconds.masked_fill(removed.unsqueeze(2), torch.nan),
            "nms_cells": ends.masked_fill(removed.unsqueeze(2), -1),
            "nms_scores": scores.masked_fill(removed, torch.nan),
            "nms_count": (~removed).sum(1),
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
    """Converts a case to a batch with one row per sentence."""
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


def _whole_map(method: MMN, window: Tensor, layer: int) -> Tensor:
    """Pads the window of a layer with zeros to the whole map."""
    return F.pad(window, [(method.map.sides[layer] - window.shape[-1]) // 2] * 4)


def _stored_group(case: Case, start: str) -> dict[str, Tensor]:
    return {key.removeprefix(start): case.stored(key) for key in case.keys if key.startswith(start)}


def _all(value: Tensor) -> Tensor:
    return torch.ones_like(value, dtype=torch.bool)


def _without_noise(key: str, number: Number, numbers: Mapping[str, Number]) -> Number:
    """Excludes values that are rounding noise in the authors' code as well.

    Batch normalisation cancels the biases of the convolutions, so their gradients are noise. AdamW turns
    noise, and any gradient near 0, into steps of up to the learning rate.
    """
    group, _, name = key.partition("/")
    if re.fullmatch(_BIAS, name):
        return replace(number, where=torch.zeros_like(number.value, dtype=torch.bool))
    if group == "after_step":
        return replace(number, where=numbers[f"grad/{name}"].value.abs() > 1e-5)
    return number
