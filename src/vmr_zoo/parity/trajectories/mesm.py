"""Trajectories of MESM's released code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vmr_zoo.blocks.position import append_tef
from vmr_zoo.errors import VmrError
from vmr_zoo.losses.margin import Pairs
from vmr_zoo.methods.base import Method
from vmr_zoo.methods.mesm.frame_word import WordMasking
from vmr_zoo.methods.mesm.method import MESM
from vmr_zoo.parity.case import Case, Number
from vmr_zoo.parity.released.mesm import MESMReleased, margin_pairs, masking_of, project
from vmr_zoo.parity.trajectories import detr, qd_detr
from vmr_zoo.parity.trajectories.base import Losses, ReleasedTrajectory, StepInputs
from vmr_zoo.types import Batch

_RECONSTRUCTIONS = {"loss_rec_fw": "word_reconstruction", "loss_rec_ss": "segment_contrast"}


class Draws(NamedTuple):
    """What was drawn for a step.

    Attributes:
        groups: (B,) the group of sentences of each row.
        negatives: (B,) the row whose query is the negative.
        pairs: clip pairs of the margin loss; None without it.
        masking: the words to reconstruct; None without that loss.
    """

    groups: Tensor
    negatives: Tensor
    pairs: Pairs | None
    masking: WordMasking | None


class MESMTrajectory(ReleasedTrajectory[Draws]):
    """MESM."""

    sizes = detr.SIZES | {
        "aligner.layers",
        "frame_word.layers",
        "frame_word.vocabulary",
        "segment_sentence.layers",
    }
    counts = frozenset({"class_error", "rec_fw_acc"})
    approximate = frozenset({"loss_saliency", "loss_rec_ss"})
    float64_tolerance = 2e-6
    released: MESMReleased

    def recipe(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the values of the training loop by our key."""
        return {
            "trainer.gradient_clip_val": options["grad_clip"],
            "trainer.max_epochs": options["n_epoch"],
            "data.batch_size": options["batch_size"],
        }

    def epochs(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the epoch of the drop of the learning rate."""
        return {"training.scheduler.step_size": options["lr_drop"]}

    def loss_weights(self, options: Mapping[str, Any]) -> dict[str, float]:
        """Translates `weight_dict`; without the triplets the margin loss is off."""
        names = qd_detr.WEIGHTED | {theirs: (ours,) for theirs, ours in _RECONSTRUCTIONS.items()}
        found = detr.weights(options, names)
        if not options["use_triplet"]:
            del found["margin"]
        return found

    def step(self, method: Method, case: Case) -> StepInputs[Draws]:
        """Builds the batch; negative query, masked words and clip pairs were drawn."""
        assert isinstance(method, MESM)
        if int(case["input/num_clips"].sum()) != len(case["input/duration"]):
            raise VmrError(f"{case.path}: input/num_clips of a step does not add up to the number of rows.")
        batch, groups, numbers = self.released.batch(method, case)
        mask = batch["video_mask"]
        video, raw = case["input/video_feat"], case["input/words_feat"]
        words_mask = case["input/words_mask"]
        masking, negatives = masking_of(method, case), case["input/neg_index"]
        pairs = margin_pairs(method, case)
        numbers |= {
            "input/video_feat": Number(append_tef(video[..., :-2] * mask.unsqueeze(-1), mask), 1e-6),
            "input/video_mask": Number(detr.leading(mask), 0),
            "input/words_feat": Number(raw * words_mask.unsqueeze(-1), 0),
            "input/words_mask": Number(detr.leading(words_mask), 0),
        }
        violations = {"input/neg_index": int((groups[negatives] == groups).sum())}
        notes = {}
        if masking is not None:
            labels = case["target/words_label"]
            numbers["target/words_label"] = Number(labels * words_mask, 0)
            numbers["input/mlm_masked"] = Number(case["input/mlm_masked"] & words_mask, 0)
            if method.missing_word is not None:
                numbers["input/unknown_mask"] = Number((labels == 0) & words_mask, 0)
        if "target/pos_idx" in case:
            positive, negative = case["target/pos_idx"], case["target/neg_idx"]
            within = method.clips_of_moments(batch)
            outside = ~within & mask
            violations["target/pos_idx"] = int((~within.gather(1, positive)).sum())
            impossible = ~outside.gather(1, negative) & outside.any(1)[:, None]
            violations["target/neg_idx"] = int(impossible.sum())
            if pairs is None:
                notes = dict.fromkeys(("target/pos_idx", "target/neg_idx"), "the margin loss is off")
        return StepInputs(batch, Draws(groups, negatives, pairs, masking), numbers, violations, notes)

    def losses(self, method: Method, batch: Batch, draws: Draws) -> Losses:
        """Computes the losses."""
        assert isinstance(method, MESM)
        inputs = project(method, batch, draws.groups)
        output = method.run(inputs, draws.negatives)
        grouped: Batch = {**batch, "video_index": draws.groups}
        exists = torch.ones_like(draws.negatives, dtype=torch.bool)
        losses = method.losses_of(output, grouped, exists, draws.pairs, draws.masking)
        curves = detr.set_losses(losses) | {"loss/loss_saliency": qd_detr.saliency(losses)}
        for theirs, ours in _RECONSTRUCTIONS.items():
            if ours in losses:
                curves[f"loss/{theirs}"] = losses[ours]
        if draws.masking is not None:
            with torch.no_grad():
                _, logits = method.reconstruct(batch, inputs, draws.masking)
            hits = (logits.argmax(-1) == draws.masking.labels)[inputs.query_mask]
            curves["loss/rec_fw_acc"] = hits.double().mean()
        return Losses(losses, curves)
