"""Trajectories of MMN's released code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from vmr_zoo.methods.base import Method
from vmr_zoo.methods.mmn import MMN
from vmr_zoo.parity.case import Case, Number
from vmr_zoo.parity.trajectories.base import Losses, ReleasedTrajectory, StepInputs
from vmr_zoo.types import Batch

_LOSSES = {"vid": "moment_to_sentence", "sent": "sentence_to_moment", "iou": "iou"}


class MMNTrajectory(ReleasedTrajectory[None]):
    """MMN, with a small DistilBERT that is trained along."""

    sizes = frozenset(
        {
            "video_dim",
            *(
                f"network.{name}"
                for name in (
                    "segments",
                    "clips",
                    "diagonals",
                    "dim",
                    "map_dim",
                    "kernel",
                    "layers",
                    "joint_dim",
                )
            ),
        }
    )
    rates = ("lr", "lr_text")

    def overrides(self, case: Case, folder: Path) -> list[str]:
        """Selects the authors' text encoder, from a folder as of a download."""
        from transformers import DistilBertConfig, DistilBertModel
        from transformers.utils import logging

        logging.disable_progress_bar()
        DistilBertModel(DistilBertConfig(**case.options["distilbert"])).save_pretrained(folder)
        return ["method/text=distilbert", f"method.text.folder={folder}"]

    def settings(self, case: Case) -> dict[str, Any]:
        """Returns the authors' values; `overrides` has the text encoder."""
        found = super().settings(case)
        del found["text"]
        return found

    def recipe(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the values of the training loop by our key."""
        return {
            "trainer.gradient_clip_val": options["clip_grad_norm"],
            "method.training.scheduler.gamma": options["gamma"],
            "method.text_training.lr_factor": options["lr_text"] / options["lr"],
        }

    def epochs(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the drops of the learning rate, the end of freezing, and the late phase."""
        return {
            "training.scheduler.milestones": options["milestones"],
            "text_training.frozen_epochs": options["freeze_bert_epochs"],
            "contrast.late_epoch": options["only_iou_epoch"],
        }

    def loss_weights(self, options: Mapping[str, Any]) -> dict[str, float]:
        """Returns the authors' weights in early epochs; that of the IoU loss is 1."""
        weight = options["contrastive_weight"]
        return {"iou": 1.0, "moment_to_sentence": weight, "sentence_to_moment": weight}

    def step(self, method: Method, case: Case) -> StepInputs[None]:
        """Builds the batch; nothing is drawn."""
        assert isinstance(method, MMN)
        video, duration = case["input/video_index"], case["input/duration"]
        feats, ids, lengths = case["input/feats"], case["input/token_ids"], case["input/wordlens"]
        spans = (case["target/moments"] / duration[video].unsqueeze(1)).unsqueeze(1)
        place = torch.arange(ids.shape[1])
        inner = ids[:, 1:-1]
        mask = place[: inner.shape[1]] < (lengths - 2).unsqueeze(1)
        batch: Batch = {
            "video": feats[video],
            "video_mask": torch.ones(len(video), feats.shape[1], dtype=torch.bool),
            "query_tokens": inner,
            "query_mask": mask,
            "spans": spans,
            "span_mask": torch.ones(spans.shape[:2], dtype=torch.bool),
            "duration": duration[video],
            "video_index": video,
            "video_id": [str(i) for i in video.tolist()],
        }
        start, end = case.options["start_token"], case.options["end_token"]
        expected = torch.where(place == 0, start, ids)
        expected = torch.where(place == (lengths - 1).unsqueeze(1), end, expected)
        expected = expected * (place < lengths.unsqueeze(1))
        special = int(method.text.start != start) + int(method.text.end != end)
        held = {"input/token_ids": Number(expected, 0), "input/wordlens": Number((expected != 0).sum(1), 0)}
        return StepInputs(batch, None, held, {"input/token_ids": special})

    def losses(self, method: Method, batch: Batch, draws: None) -> Losses:
        """Computes the losses."""
        assert isinstance(method, MMN)
        losses = MMN.losses(method, batch)
        return Losses(losses, {f"loss/{theirs}": losses[ours] for theirs, ours in _LOSSES.items()})
