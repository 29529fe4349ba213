"""From data files to batches in BM-DETR's released code (minjoong507/BM-DETR, commit b9afb3d)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vmr_zoo.blocks.clips import clips_inside
from vmr_zoo.data.batches import sampling
from vmr_zoo.data.batches.datamodule import VMRDataModule
from vmr_zoo.errors import VmrError
from vmr_zoo.losses.margin import PairChoices
from vmr_zoo.methods.bm_detr.method import BMDETR
from vmr_zoo.methods.bm_detr.shifting import TrainingRows, training_rows
from vmr_zoo.parity.case import Number
from vmr_zoo.parity.files_released.detr import (
    SPANS,
    VECTORS,
    DETRFiles,
    Part,
    matched,
    pairs,
    place,
    targets_of,
)

_CHARADES_STA = {
    ("slowfast_features", "clip_features"): "charades_sta",
    ("c3d_features",): "charades_sta_c3d",
    ("vgg_features",): "charades_sta_vgg",
}
_MIDDLE = 0.5
"""A fixed number is in the middle of those that make the same choice."""


class BMDETRFiles(DETRFiles):
    """BM-DETR."""

    method = "bm_detr"

    def experiment(self, options: Mapping[str, Any]) -> str:
        """Returns the experiment of the authors' data set and features."""
        name = options["dset_name"]
        folders = tuple(Path(folder).name for folder in options["v_feat_dirs"])
        if name == "charades" and folders in _CHARADES_STA:
            return _CHARADES_STA[folders]
        if name == "charades-CD" and folders == ("i3d_features",):
            return "charades_cd"
        if name == "hl":
            return super().experiment(options)
        raise VmrError(
            "The authors' scripts train on hl, on charades with slowfast_features and clip_features, "
            f"c3d_features or vgg_features, and on charades-CD with i3d_features; found {name} with "
            f"{', '.join(folders)}."
        )

    def annotations(self, options: Mapping[str, Any], folder: Path, data: Path) -> list[str]:
        """Puts the authors' lists where our readers expect them."""
        if options["dset_name"] == "hl":
            return super().annotations(options, folder, data)
        lists = data / "bm_detr" / options["dset_name"]
        place(folder / options["train_path"], lists / "train.jsonl")
        for name in ("val.jsonl", "test.jsonl", "test_iid.jsonl", "test_ood.jsonl"):
            place(folder / options["eval_path"], lists / name)
        ours = {"charades": "bm_detr_charades_sta", "charades-CD": "bm_detr_charades_cd"}
        return [f"+data/lists@data.protocol={ours[options['dset_name']]}"]

    def draws(self, part: Part, data: VMRDataModule) -> dict[int, Tensor]:
        """Adds the numbers of the recorded negative queries and new places."""
        negative = _negative_draws(part, data)
        found = super().draws(part, data) | {sampling.NEGATIVE: negative, sampling.OTHER_VIDEO: negative}
        return found | ({sampling.SHIFT: _shift_draws(part)} if "shifted_relevant_windows" in part else {})

    def choices(self, part: Part) -> PairChoices:
        """Lists the clips that our code may draw for the margin loss, the shifted copy behind the batch."""
        assert isinstance(part.method, BMDETR)
        return part.method.pair_choices(_rows(part))

    def numbers(self, part: Part, data: VMRDataModule) -> dict[str, Number]:
        """Adds the clips of the moments, the negative queries and the shifted copy."""
        count = len(part.rows)
        rows = _rows(part)
        kept = torch.tensor([int(query_id) for query_id in part.dataset.query_ids])
        found = super().numbers(part, data) | {"rows_kept_qid": Number(kept, 0)}
        found["match_labels"] = Number(rows.inside[:count].long(), 0)
        found |= _windows(part)
        if part.trained:
            found |= _negatives(part, data)
        if rows.copies == 2:
            found |= _shifted(part, rows, self.choices(part))
        return found


def _rows(part: Part) -> TrainingRows:
    """Returns the rows of a training step, in evaluation without a shifted copy."""
    assert isinstance(part.method, BMDETR)
    if part.trained:
        return part.method.training_rows(part.batch)
    return training_rows(part.batch, None, part.method.within_one_clip)


def _windows(part: Part) -> dict[str, Number]:
    """Recomputes the first and the last clip of every moment, each row's in the recorded order."""
    assert isinstance(part.method, BMDETR)
    batch = part.batch
    seconds = batch["duration"], batch["clip_seconds"], batch["video_mask"]
    every, mask = batch["all_spans"], batch["all_span_mask"]
    ends = []
    for i in range(every.shape[1]):
        one = slice(i, i + 1)
        inside = clips_inside(every[:, one], mask[:, one], *seconds, part.method.within_one_clip).int()
        first = inside.argmax(1)
        ends.append(torch.stack((first, first + inside.sum(1) - 1), 1))
    windows = torch.stack(ends, 1)
    recorded, owner = part.stored("relevant_windows"), part.stored("relevant_windows_row")
    found, rows = [], []
    for i, valid in enumerate(mask):
        own, stored = windows[i][valid], recorded[owner == i]
        found.append(own[matched(own, stored)] if len(stored) == len(own) else own)
        rows += [i] * len(own)
    return {
        "relevant_windows": Number(torch.cat(found), 0),
        "relevant_windows_row": Number(torch.tensor(rows), 0),
    }


def _negative_draws(part: Part, data: VMRDataModule) -> Tensor:
    """Returns the numbers by which our code draws the recorded negatives; 0 where none makes it."""
    numbers = torch.zeros(len(part.dataset), dtype=torch.float64)
    for row, qid in zip(part.rows.tolist(), part.stored("negative_qid").tolist(), strict=False):
        choices = [part.dataset.query_ids[other] for other in data.negative_pool.choices(row)]
        if str(qid) in choices:
            numbers[row] = (choices.index(str(qid)) + _MIDDLE) / len(choices)
    return numbers


def _shift_draws(part: Part) -> Tensor:
    """Returns the numbers by which our code moves the moments to the recorded places."""
    numbers = torch.zeros(len(part.dataset), dtype=torch.float64)
    clips = part.batch["video_mask"].sum(1)
    for i, (start, end) in enumerate(part.stored("shifted_relevant_windows").tolist()[: len(part.rows)]):
        background = int(clips[i]) - (end - start + 1)
        if 0 <= start < background:
            numbers[part.rows[i]] = (start + _MIDDLE) / background
    return numbers


def _negatives(part: Part, data: VMRDataModule) -> dict[str, Number]:
    """Recomputes the negative queries from the fixed numbers."""
    numbers = _negative_draws(part, data).numpy()[part.rows]
    drawn = data.negative_pool.draw(part.rows, numbers, numbers)
    ids = torch.tensor([int(part.dataset.query_ids[row]) for row in drawn])
    return {
        "negative_qid": Number(ids, 0),
        "neg_src_txt": Number(part.batch["negative_query"], VECTORS),
        "neg_src_txt_mask": Number(part.batch["negative_query_mask"].float(), 0),
    }


def _shifted(part: Part, rows: TrainingRows, choices: PairChoices) -> dict[str, Number]:
    """Recomputes the shifted copy."""
    count, batch = len(part.rows), part.batch
    own = slice(count, None)
    # The released code takes the clip numbers for seconds, and so do the spans of our batch.
    clips = (batch["shifted_spans"][:, 0] * batch["duration"][:, None]).round().long()
    return {
        "shifted_vid": Number(rows.batch["video"][own], VECTORS),
        "shifted_vid_mask": Number(rows.batch["video_mask"][own].float(), 0),
        "shifted_match_labels": Number(rows.inside[own].long(), 0),
        "shifted_relevant_windows": Number(clips, 0),
        "shifted_span_labels": Number(targets_of(part, batch["shifted_spans"])[batch["span_mask"]], SPANS),
        "shifted_span_labels_row": Number(batch["span_mask"].nonzero()[:, 0], 0),
        **pairs(part, choices.of_rows(own), "shifted_"),
    }
