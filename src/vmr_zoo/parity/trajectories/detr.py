"""Shared by the trajectories of the Moment-DETR family."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from vmr_zoo.blocks.clips import clips_inside
from vmr_zoo.blocks.position import append_tef
from vmr_zoo.parity.case import Case, Number, windows
from vmr_zoo.parity.released.detr import SET_LOSSES
from vmr_zoo.parity.trajectories.base import ReleasedTrajectory, StepInputs
from vmr_zoo.types import Batch

SIZES = frozenset(
    {
        "video_dim",
        "query_dim",
        *(
            f"network.{name}"
            for name in (
                "dim",
                "heads",
                "feedforward_dim",
                "encoder_layers",
                "decoder_layers",
                "queries",
                "projection_layers",
                "dropout",
                "input_dropout",
            )
        ),
    }
)
_CANCELS = "spans are fractions of the clips read, from which the duration cancels; within a clip of them"


class DrawnPairs(NamedTuple):
    """The clip pairs of the margin loss.

    Attributes:
        positive: (B, P) clips that should score higher.
        negative: (B, P) clips that should score lower.
    """

    positive: Tensor
    negative: Tensor

    @property
    def all_usable(self) -> tuple[Tensor, Tensor, Tensor]:
        """The pairs, all of which count."""
        return self.positive, self.negative, torch.ones_like(self.positive, dtype=torch.bool)


class DETRTrajectory(ReleasedTrajectory[DrawnPairs]):
    """What the adapters of the family share."""

    sizes = SIZES
    # The authors' scripts leave these at a value which turns them off, and nothing here has them.
    only: ClassVar[Mapping[str, Any]] = {"lr_warmup": -1, "txt_drop_ratio": 0}

    def recipe(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the values of the training loop by our key."""
        return {
            "trainer.gradient_clip_val": options["grad_clip"],
            "trainer.max_epochs": options["n_epoch"],
            "data.batch_size": options["bsz"],
        }

    def epochs(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the epoch of the drop of the learning rate."""
        return {"training.scheduler.step_size": options["lr_drop"]}


def weights(options: Mapping[str, Any], names: Mapping[str, tuple[str, ...]]) -> dict[str, float]:
    """Translates the authors' `weight_dict`.

    Args:
        options: the authors' options.
        names: our names by the authors'.

    Returns:
        Weights by our name; intermediate layers have "/auxN" appended.
    """
    found = {}
    for theirs, weight in options["weight_dict"].items():
        term, _, layer = theirs.rpartition("_")
        aux = f"/aux{layer}" if layer.isdigit() else ""
        for ours in names[term if aux else theirs]:
            found[ours + aux] = weight
    return found


def set_losses(losses: Mapping[str, Tensor], names: Mapping[str, str] = SET_LOSSES) -> dict[str, Tensor]:
    """Lists the losses of every decoder layer by the authors' names."""
    found = {}
    for theirs, ours in names.items():
        for name, value in losses.items():
            if name == ours or name.startswith(f"{ours}/aux"):
                found["loss/" + theirs + name.removeprefix(ours).replace("/aux", "_")] = value
    return found


def step(case: Case) -> StepInputs[Any]:
    """Builds a batch from the arrays that the family's data sets return; the draws are None."""
    video, mask = case["input/src_vid"], case["input/src_vid_mask"] > 0
    query, query_mask = case["input/src_txt"], case["input/src_txt_mask"] > 0
    duration, seconds = case["input/duration"], case["input/windows_sec"]
    clip = float(case.options["clip_length"])
    spans, span_mask = windows(seconds, duration)
    found: Batch = {
        "video": video[..., :-2],
        "video_mask": mask,
        "query": query,
        "query_mask": query_mask,
        "spans": spans,
        "span_mask": span_mask,
        "all_spans": spans,
        "all_span_mask": span_mask,
        "duration": duration,
        "clip_seconds": torch.full_like(duration, clip),
        "video_index": torch.arange(len(duration)),
        "video_id": [str(row) for row in range(len(duration))],
    }
    numbers = {
        "input/src_vid": Number(append_tef(video[..., :-2] * mask.unsqueeze(-1), mask), 1e-6),
        "input/src_vid_mask": Number(leading(mask), 0),
        "input/src_txt": Number(query * query_mask.unsqueeze(-1), 0),
        "input/src_txt_mask": Number(leading(query_mask), 0),
    }
    clips = mask.sum(1)
    full = clips >= case.options["max_v_l"]
    far = (duration - clips * clip).abs() > clip
    outside = (seconds > duration[:, None, None]).any(-1).any(-1)
    violations = {"input/duration": int(((far & ~full) | outside).sum())}
    return StepInputs(found, None, numbers, violations, {"input/duration": _CANCELS})


def leading(mask: Tensor) -> Tensor:
    """Puts the True entries of every row of (B, L) first."""
    return torch.arange(mask.shape[1]) < mask.sum(1, keepdim=True)


def inside(case_batch: Batch) -> Tensor:
    """Marks the clips inside the moments, (B, Lv)."""
    return clips_inside(
        case_batch["spans"],
        case_batch["span_mask"],
        case_batch["duration"],
        case_batch["clip_seconds"],
        case_batch["video_mask"],
    )


def with_pairs(
    inputs: StepInputs[Any], case: Case, within: Tensor, copy: str = "", *, rated: bool
) -> tuple[Tensor, Tensor]:
    """Reads the clip pairs of the margin loss, and adds to the violations the clips that cannot be drawn.

    Args:
        inputs: those of the step; their violations are extended.
        case: the step.
        within: (B, Lv), the clips inside the moments.
        copy: prefix of the keys, "shift." for a shifted copy.
        rated: whether the first pair is of rated clips, whose negative one may be inside a moment.

    Returns:
        The clips that should score higher, and those that should score lower, (B, P) each.
    """
    keys = [f"target/{copy}saliency_{side}_labels" for side in ("pos", "neg")]
    positive, negative = case[keys[0]], case[keys[1]]
    outside = ~within & inputs.batch["video_mask"]
    wrong = ~outside.gather(1, negative) & outside.any(1)[:, None]
    if rated:
        wrong[:, 0] = ~inputs.batch["video_mask"].gather(1, negative[:, :1]).squeeze(1)
    inputs.violations[keys[0]] = int((~within.gather(1, positive)).sum())
    inputs.violations[keys[1]] = int(wrong.sum())
    return positive, negative
