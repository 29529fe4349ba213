"""From data files to batches in the released code of the Moment-DETR family.

The loaders of Moment-DETR, QD-DETR and BM-DETR differ little: the parts that they share are here.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import hydra
import numpy as np
import torch
from omegaconf import DictConfig
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from vmr_zoo.blocks.position import append_tef
from vmr_zoo.blocks.span_unit import SpanUnit
from vmr_zoo.data.annotations.records import SELECTION, TRAIN
from vmr_zoo.data.batches import sampling
from vmr_zoo.data.batches.datamodule import VMRDataModule
from vmr_zoo.data.batches.sampling import EpochBatchSampler, RowBatch
from vmr_zoo.data.batches.split_dataset import SplitDataset
from vmr_zoo.errors import VmrError
from vmr_zoo.losses.margin import PairChoices
from vmr_zoo.methods.base import Method
from vmr_zoo.methods.moment_detr import MomentDETR
from vmr_zoo.methods.qd_detr.method import QDDETR
from vmr_zoo.parity.case import Case, Number, texts
from vmr_zoo.parity.files import ReleasedFiles
from vmr_zoo.spans import to_centre_width
from vmr_zoo.types import Batch

EPOCH = 0
"""The epoch of the recorded draws."""

VECTORS, SPANS = 1e-6, 1e-6
"""Tolerances of features, and of moments as fractions."""

_OPTIONS = {
    "bsz": "data.batch_size",
    "eval_bsz": "data.eval_batch_size",
    "max_windows": "data.max_moments",
    "clip_len": "features.clip_seconds",
    "max_v_l": "features.video.max_clips",
    "max_q_l": "features.query.max_tokens",
}
"""Our key by the authors' option."""

_ONLY = {
    "ctx_mode": "video_tef",
    "data_ratio": 1.0,
    "normalize_t": True,
    "normalize_v": True,
    "span_loss_type": "l1",
    "txt_drop_ratio": 0,
}


class Part(NamedTuple):
    """One batch of a case, and ours.

    Attributes:
        prefix: prefix of its arrays.
        case: the case.
        dataset: our split.
        rows: (B,) its rows.
        batch: our batch of these rows.
        method: the method.
        trained: whether it is a batch of the training split.
    """

    prefix: str
    case: Case
    dataset: SplitDataset
    rows: np.ndarray[Any, np.dtype[np.int64]]
    batch: Batch
    method: Method
    trained: bool

    def __contains__(self, key: object) -> bool:
        return f"{self.prefix}{key}" in self.case

    def stored(self, key: str) -> Tensor:
        """Returns an array of the case."""
        return self.case.stored(self.prefix + key)


class DETRFiles(ReleasedFiles):
    """What the adapters of the family share.

    Attributes:
        method: the method, as in conf/experiment.
    """

    method: str

    def overrides(self, case: Case, folder: Path) -> list[str]:
        """Lays out the files of a case for our readers; see `ReleasedFiles`."""
        options = case.options
        if wrong := {key: options[key] for key, only in _ONLY.items() if options.get(key, only) != only}:
            raise VmrError(
                f"{case.path}: the authors' options {wrong} are in no released script; see {_ONLY}."
            )
        experiment, data = self.experiment(options), folder / "annotations"
        found = [f"experiment={self.method}/{experiment}", f"paths.annotations='{data}'"]
        found += self.annotations(options, folder, data)
        found += [f"{ours}={options[theirs]}" for theirs, ours in _OPTIONS.items()]
        width = 0
        for i, source in enumerate(options["v_feat_dirs"]):
            dim = _width(case, source)
            width += dim
            at = f"features.video.sources.{i}"
            found += [f"{at}.dim={dim}", f"{at}.store.folder='{folder / source}'"]
        dim = _width(case, options["q_feat_dir"])
        text = "features.query.source"
        return [
            *found,
            f"features.video_dim={width}",
            f"features.query_dim={dim}",
            f"{text}.dim={dim}",
            f"{text}.store.folder='{folder / options['q_feat_dir']}'",
        ]

    def experiment(self, options: Mapping[str, Any]) -> str:
        """Returns the experiment, a file in conf/experiment/METHOD.

        Raises:
            VmrError: if there is none for the authors' data set and features.
        """
        if options["dset_name"] != "hl":
            raise VmrError(
                f"The authors' scripts of {self.method} train on QVHighlights (dset_name=hl) only, found "
                f"dset_name={options['dset_name']}."
            )
        return "qvhighlights"

    def annotations(self, options: Mapping[str, Any], folder: Path, data: Path) -> list[str]:
        """Puts the annotation files where our readers expect them.

        Args:
            options: the authors' options.
            folder: holds the files of the case.
            data: the annotations directory.

        Returns:
            Overrides that select a reader, if it is not that of the data set.
        """
        place(folder / options["train_path"], data / "qvhighlights" / "highlight_train_release.jsonl")
        for name in ("highlight_val_release.jsonl", "highlight_test_with_gt.jsonl"):
            place(folder / options["eval_path"], data / "qvhighlights" / name)
        return []

    def recompute(self, case: Case, data: VMRDataModule, cfg: DictConfig) -> dict[str, Number]:
        """Recomputes the batches of a case; see `ReleasedFiles`."""
        method: Method = hydra.utils.instantiate(cfg.method)
        data.setup()
        names = {key.split("/")[1]: None for key in case.keys if key.startswith("batch/")}
        found: dict[str, Number] = {}
        for name in names:
            trained = name.startswith("train")
            dataset = data.dataset(TRAIN if trained else SELECTION)
            part = Part(f"batch/{name}/", case, dataset, np.empty(0, np.int64), Batch(), method, trained)
            rows = self._rows(part, data, every=name == "train_rows")
            if rows is None:
                continue  # its arrays count as not recomputed
            part = part._replace(rows=rows)
            part = part._replace(batch=dataset[RowBatch(EPOCH if trained else None, rows)])
            if trained:
                dataset.fix_draws(EPOCH, self.draws(part, data))
                part = part._replace(batch=dataset[RowBatch(EPOCH, rows)])
            found |= {part.prefix + key: number for key, number in self.numbers(part, data).items()}
        return found

    def _rows(
        self, part: Part, data: VMRDataModule, every: bool
    ) -> np.ndarray[Any, np.dtype[np.int64]] | None:
        """Returns the rows of a batch: in file order in evaluation, in the recorded order in training.

        Returns:
            (B,), without rows that our sampler would not put into one batch; None for an unknown query.
        """
        everything = np.arange(len(part.dataset))
        if every:
            return everything
        if not part.trained:
            return everything[: data.eval_batch_size]
        number = {query_id: i for i, query_id in enumerate(part.dataset.query_ids)}
        try:
            recorded = [number[str(qid)] for qid in part.stored("qid").tolist()]
        except KeyError:
            return None
        sampler = data.train_dataloader().sampler
        assert isinstance(sampler, EpochBatchSampler)
        return sampler.rows_of(np.array(list(dict.fromkeys(recorded))))

    def draws(self, part: Part, data: VMRDataModule) -> dict[int, Tensor]:
        """Returns numbers by stream from which our code makes the recorded choices."""
        return {sampling.MOMENTS: _moment_draws(part)}

    def choices(self, part: Part) -> PairChoices:
        """Lists the clips that our code may draw for the margin loss."""
        assert isinstance(part.method, MomentDETR | QDDETR)
        return part.method.pair_choices(part.batch)

    def numbers(self, part: Part, data: VMRDataModule) -> dict[str, Number]:
        """Recomputes the arrays of one batch, by key without prefix."""
        batch, dataset = part.batch, part.dataset
        mask = batch["video_mask"]
        found = {
            "qid": Number(torch.tensor([int(dataset.query_ids[row]) for row in part.rows]), 0),
            "video_id": Number(texts(batch["video_id"]), 0),
            "duration": Number(dataset.duration[part.rows], 0),
            "src_txt": Number(batch["query"], VECTORS),
            "src_txt_mask": Number(batch["query_mask"].float(), 0),
            "src_vid": Number(append_tef(batch["video"], mask), VECTORS),
            "src_vid_mask": Number(mask.float(), 0),
        }
        found |= spans(part)
        return found | pairs(part, self.choices(part).of_rows(slice(len(part.rows))))


def place(source: Path, target: Path) -> None:
    """Copies a file to where a reader expects it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, target)


def _width(case: Case, source: str) -> int:
    """Returns the width of the vectors in a folder of features."""
    start = f"files/{source.rstrip('/')}/"
    for key in case.keys:
        if key.startswith(start) and (array := case.array(key)).ndim == 2:
            return int(array.shape[1])
    raise VmrError(f"{case.path} holds no features below '{start}'.")


def targets_of(part: Part, fractions: Tensor) -> Tensor:
    """Converts fractions (B, N, 2) of the duration to the centres and widths that the set losses compare."""
    unit = part.method.span_unit
    assert isinstance(unit, SpanUnit)
    return to_centre_width(unit.targets(fractions, part.batch))


def matched(found: Tensor, recorded: Tensor) -> list[int]:
    """Assigns each recorded row of numbers to another of ours, the nearest in all.

    Args:
        found: (N, D) our rows.
        recorded: (M, D) rows on record, M <= N.

    Returns:
        Indices (M,) of our rows.
    """
    return linear_sum_assignment(torch.cdist(recorded.double(), found.double(), p=1).numpy())[1].tolist()


def _moment_draws(part: Part) -> Tensor:
    """Returns the numbers by which `data.max_moments` keeps the recorded moments of each row."""
    lengths = part.dataset.moments.lengths
    starts = lengths.cumsum(0) - lengths
    numbers = torch.full((int(lengths.sum()),), 0.75, dtype=torch.float64)
    every = targets_of(part, part.batch["all_spans"])
    recorded, owner = part.stored("span_labels"), part.stored("span_labels_row")
    for i, row in enumerate(part.rows):
        own = recorded[owner == i]
        count = int(lengths[row])
        if len(own) <= count:
            numbers[int(starts[row]) + torch.tensor(matched(every[i, :count], own), dtype=torch.int64)] = 0.25
    return numbers


def spans(part: Part) -> dict[str, Number]:
    """Recomputes the moments, each row's in the recorded order.

    In evaluation our batch holds every moment of a row, and the released code at most `max_windows`, drawn at
    random; it computes nothing from them but losses to print.
    """
    batch = part.batch
    targets = targets_of(part, batch["spans"])
    recorded, owner = part.stored("span_labels"), part.stored("span_labels_row")
    most = part.case.options["max_windows"]
    found, rows = [], []
    for i, valid in enumerate(batch["span_mask"]):
        own = targets[i][valid]
        if not part.trained and len(own) > most:
            chosen = matched(own, recorded[owner == i][:most])
            own = own[chosen]
        elif len(own) == int((owner == i).sum()):
            own = own[matched(own, recorded[owner == i])]
        found.append(own)
        rows += [i] * len(own)
    return {
        "span_labels": Number(torch.cat(found), SPANS),
        "span_labels_row": Number(torch.tensor(rows), 0),
    }


def pairs(part: Part, choices: PairChoices, prefix: str = "") -> dict[str, Number]:
    """Returns the recorded clips of the margin loss, -1 where our code cannot draw them."""
    keys = [f"{prefix}saliency_{side}_labels" for side in ("pos", "neg")]
    recorded = [part.stored(key) for key in keys]
    if any(clips.shape != choices.usable.shape for clips in recorded):
        return {}
    valid = choices.admit(*recorded)
    return {
        key: Number(torch.where(ok, clips, -1), 0)
        for key, ok, clips in zip(keys, valid, recorded, strict=True)
    }
