"""MESM (lntzm/MESM, commit 8501bde): from its data files to its batches.

The comparison ends at the arrays that enter the network and the losses. The word vectors are the one
exception: a case holds none, so each token's id takes the place of its vector on the way through our features
and batches, and the ids are compared.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import hydra
import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import DictConfig
from torch import Tensor

from vmr_zoo.blocks.position import append_tef
from vmr_zoo.data.annotations.records import TRAIN, Query
from vmr_zoo.data.batches.datamodule import VMRDataModule
from vmr_zoo.data.batches.sampling import RowBatch
from vmr_zoo.data.batches.split_dataset import SplitDataset
from vmr_zoo.data.features.queries import WordVectorQueries
from vmr_zoo.data.text.clip import ClipTextEncoder
from vmr_zoo.errors import VmrError
from vmr_zoo.methods.mesm.method import MESM
from vmr_zoo.parity.case import Case, Number, texts
from vmr_zoo.parity.files import ReleasedFiles
from vmr_zoo.spans import to_centre_width
from vmr_zoo.types import Batch
from vmr_zoo.utils.arrays import Array

_BITS = 17
"""Binary digits that hold every id of CLIP's vocabulary."""
_CLIP_WIDTH = 77
"""The authors pad CLIP's ids to this length."""
_SPECIAL = ["<PAD>", "<UNK>"]
_EXACT, _FLOAT32 = 0.0, 1e-6

_RECIPES = {
    ("charades", "clip"): "charades_sta",
    ("charades", "vgg"): "charades_sta_vgg",
    ("charades-cg", "clip"): "charades_cg",
    ("tacos", "c3d"): "tacos",
}
"""Our experiment by the authors' folder of annotations and the start of the first feature file's name."""
_FOLDERS = {"charades": "charades", "charades-cg": "charades_cg", "tacos": "tacos"}


class TokenIds(ClipTextEncoder):
    """CLIP's tokens without its weights: the vector of a token is its id in binary digits, 1 and -1."""

    revision = "ids"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Takes the arguments of the encoder whose place it takes."""
        super().__init__(*args, **kwargs)
        self.token_dim = self.dim = _BITS

    _model = None

    def _forward(self, ids: list[list[int]]) -> tuple[Array, Array]:
        digits = np.array(ids)[..., None] >> np.arange(_BITS) & 1
        vectors = (2 * digits - 1).astype(np.float16)
        return vectors, vectors[:, 0]


class MESMFiles(ReleasedFiles):
    """Lays out MESM's files, and rebuilds its batches from ours."""

    def overrides(self, case: Case, folder: Path) -> list[str]:
        """Lays out the files of a case for our readers; see `ReleasedFiles`."""
        options = case.options
        if not (options["use_tef"] and options["normalize_video"]):
            raise VmrError(f"{case.path}: all released recipes of MESM have use_tef and normalize_video.")
        data, recipe = _recipe(options)
        source = folder / options["ann_path"]
        target = folder / "ours" / _FOLDERS[data]
        shutil.copytree(source, target)
        if data == "tacos" and not (target / "val.json").exists():
            shutil.copy(target / "test.json", target / "val.json")  # released: selected on test
        found = [
            f"experiment=mesm/{recipe}",
            f"paths.annotations='{folder / 'ours'}'",
            f"data.batch_size={options['batch_size']}",
            f"data.eval_batch_size={options['eval_batch_size']}",
            f"features.video.max_clips={options['max_video_l']}",
            f"method.frame_word.vocabulary={options['vocab_size']}",
            "data.content_words.tagger=table",
            f"data.content_words.table='{folder / 'pos_tags.json'}'",
            f"data.word_counts='{_counts(source, options)}'",
        ]
        if options["clip_len"] > 0:
            found.append(f"features.clip_seconds={options['clip_len']}")
        if options["max_gather_size"] > 0:
            found.append(f"data.rows_per_video={options['max_gather_size']}")
        dims = [_width(case, file) for file in options["feat_files"]]
        found.append(f"features.video_dim={sum(dims)}")
        for i, (file, dim) in enumerate(zip(options["feat_files"], dims, strict=True)):
            at = f"features.video.sources.{i}"
            found += [f"{at}.dim={dim}", f"{at}.store.file='{folder / file}'"]
        return found + _word_overrides(source, folder, options)

    def recompute(self, case: Case, data: VMRDataModule, cfg: DictConfig) -> dict[str, Number]:
        """Recomputes the batches of a case; see `ReleasedFiles`."""
        method = hydra.utils.instantiate(cfg.method)
        assert isinstance(method, MESM)
        data.prepare_data()
        results: dict[str, Number] = {}
        words = data.features.query
        if isinstance(words, WordVectorQueries):
            results["batch/vocabulary"] = Number(texts([*_SPECIAL, *words.table.rows]), _EXACT)
        names = dict.fromkeys(key.split("/")[1] for key in case.keys if key.count("/") == 2)
        for name in (name for name in names if f"batch/{name}/num_clips" in case):
            trained = name.startswith("train")
            split = TRAIN if trained else data.test_names[0]
            dataset, prefix = data.dataset(split, details=not trained), f"batch/{name}/"
            most = data.rows_per_video if trained else data.eval_rows_per_video
            queries = data.split(split).queries
            rows = _rows(case.part(prefix.removesuffix("/")), queries, data, dataset, most, trained)
            if rows is None:
                continue  # its arrays count as not recomputed
            part = _Part(
                case, prefix, method, dataset, rows, dataset[RowBatch(0 if trained else None, rows)], queries
            )
            results |= {prefix + key: number for key, number in part.numbers().items()}
        return results


def _recipe(options: Mapping[str, Any]) -> tuple[str, str]:
    """Returns the authors' data set and our experiment."""
    data = next((name for name in sorted(_FOLDERS, key=len, reverse=True) if name in _ann(options)), None)
    feature = Path(options["feat_files"][0]).name.lower()
    for (known, start), recipe in _RECIPES.items():
        if known == data and feature.startswith(start):
            return known, recipe
    raise VmrError(
        f"Expected annotations and features of one of MESM's recipes, {sorted(_RECIPES)}; found ann_path="
        f"{options['ann_path']} and feat_files={options['feat_files']}. On QVHighlights the released loader "
        "groups clips of a YouTube video, which ours does not (docs/methods/mesm.md)."
    )


def _ann(options: Mapping[str, Any]) -> str:
    return str(options["ann_path"]).lower().replace("_", "-")


def _counts(source: Path, options: Mapping[str, Any]) -> Path:
    kind = "CLIP" if options["tokenizer_type"] == "CLIP" else "GloVe"
    return source / f"{kind}_tokenized_count.txt"


def _word_overrides(source: Path, folder: Path, options: Mapping[str, Any]) -> list[str]:
    """Puts ids in place of the words' vectors."""
    most = options["max_words_l"]
    if options["tokenizer_type"] == "CLIP":
        return [
            f"features.query.encoder._target_={TokenIds.__module__}.TokenIds",
            f"features.query.encoder.longest={most - 2}",
            f"features.query_dim={_BITS}",
        ]
    lines = _counts(source, options).read_text(encoding="utf-8").split("\n")
    words = sorted(line.split(" ")[0] for line in lines if line)
    np.savez(folder / "words.npz", words=np.array(words), vectors=np.eye(len(words), dtype=np.float32))
    return [
        f"features.query.file='{folder / 'words.npz'}'",
        f"features.query.dim={len(words)}",
        f"features.query_dim={len(words)}",
        f"features.query.max_tokens={most}",
    ]


def _width(case: Case, file: str) -> int:
    """Returns the size of the vectors in a feature file."""
    for key in case.keys:
        if key.startswith(f"files/{file}#"):
            return int(case.array(key).shape[-1])
    raise VmrError(f"{case.path} holds no features 'files/{file}#…'.")


def _rows(
    part: Case,
    queries: tuple[Query, ...],
    data: VMRDataModule,
    dataset: SplitDataset,
    most: int | None,
    trained: bool,
) -> NDArray[np.int64] | None:
    """Finds our rows of a recorded batch, each video's in our order; None if no batch of ours is like it.

    Which videos, in which order, and which sentences of a group of at most `most` were drawn.
    """
    videos = [str(video).removesuffix(".avi") for video in part.array("video_id")]
    sentences, moments = part.array("sentence"), part.array("moment")
    runs = [i for i, video in enumerate(videos) if i == 0 or video != videos[i - 1]]
    if len({videos[i] for i in runs}) < len(runs) or (trained and data.groups_apart and len(runs) < 2):
        return None
    if len(runs) > (data.batch_size if trained else data.eval_batch_size):
        return None
    found = []
    for start, stop in zip(runs, [*runs[1:], len(videos)], strict=True):
        own = [row for row, query in enumerate(queries) if query.video_id == videos[start]]
        if most is not None and len(own) > most:
            left, drawn = list(own), []
            for i in range(start, stop):
                same = [
                    row
                    for row in left
                    if queries[row].text == str(sentences[i])
                    and np.allclose(queries[row].moments[0], moments[i], atol=1e-4)
                ]
                if not same:
                    return None
                left.remove(same[0])
                drawn.append(same[0])
            if len(drawn) not in {most, len(own) % most}:
                return None
            own = drawn
        if not own:
            return None
        found.append(data.ordered(dataset, np.array(own)))
    return np.concatenate(found)


class _Part(NamedTuple):
    """A recorded batch, and ours.

    Attributes:
        case: the case.
        prefix: prefix of its arrays.
        method: the method.
        dataset: our split.
        rows: (B,) its rows.
        batch: our batch of these rows.
        queries: the queries of the split.
    """

    case: Case
    prefix: str
    method: MESM
    dataset: SplitDataset
    rows: NDArray[np.int64]
    batch: Batch
    queries: tuple[Query, ...]

    def numbers(self) -> dict[str, Number]:
        """Recomputes the arrays of the batch."""
        batch, inside = self.batch, self.method.clips_of_moments(self.batch)
        own = [self.queries[row] for row in self.rows]
        tacos = "tacos" in _ann(self.case.options)
        place = torch.arange(inside.shape[1])
        moment = torch.tensor([query.moments[0] for query in own])
        exact = {
            "num_clips": torch.unique_consecutive(batch["video_index"], return_counts=True)[1],
            "video_mask": batch["video_mask"],
            "duration": batch["duration"],
            "moment": moment,
            "clip_mask": inside,
            "start_idx": torch.where(inside, place, len(place)).amin(1),
            "end_idx": torch.where(inside, place, -1).amax(1),
            "qid": torch.from_numpy(self.rows) + tacos,
            "video_id": texts(video + ".avi" * tacos for video in batch["video_id"]),
            "sentence": texts(query.text for query in own),
            **self._words(),
            **self._pairs(),
        }
        vectors = {
            "video_feat": append_tef(batch["video"], batch["video_mask"]),
            "norm_moment": batch["spans"][:, 0],
            "norm_span": to_centre_width(batch["spans"][:, 0]),
        }
        return {key: Number(value, _EXACT) for key, value in exact.items()} | {
            key: Number(value, _FLOAT32) for key, value in vectors.items()
        }

    def _words(self) -> dict[str, Tensor]:
        """Recomputes ids, weights and labels of the words."""
        batch, options = self.batch, self.case.options
        mask, vectors, width = batch["query_mask"], batch["query"], options["max_words_l"]
        if options["tokenizer_type"] == "CLIP":
            ids = ((vectors > 0).long() << torch.arange(_BITS)).sum(2).masked_fill(~mask, 0)
            ids = _padded(ids, _CLIP_WIDTH)
        else:
            ids = torch.where(vectors.any(2), vectors.argmax(2) + len(_SPECIAL), 1).masked_fill(~mask, 0)
            ids = _padded(ids, width)
        found = {
            "words_id": ids,
            "words_mask": ids > 0,
            "words_weight": _padded(batch["word_weights"].long(), width),
        }
        assert self.method.frame_word is not None
        masking = self.method.frame_word.mask_words(batch["query_words"], mask, torch.zeros_like(mask))
        # Our class 0 is the authors' class after all words of the vocabulary.
        size = options["vocab_size"]
        labels = torch.where(masking.labels > size, masking.labels, (masking.labels - 1) % (size + 1))
        return found | {
            "words_label": _padded(labels.masked_fill(~mask, 0), width),
            "unknown_mask": _padded(masking.unknown, width),
        }

    def _pairs(self) -> dict[str, Tensor]:
        """Returns the recorded clips of the margin loss, -1 where our code cannot draw them."""
        batch = self.batch
        every: Batch = {**batch, "all_spans": batch["spans"], "all_span_mask": batch["span_mask"]}
        recorded = [self.case.stored(f"{self.prefix}{side}_idx") for side in ("pos", "neg")]
        choices = self.method.pair_choices(every)
        if any(clips.shape != choices.usable.shape for clips in recorded):
            return {}
        valid = choices.admit(*recorded)
        return {
            f"{side}_idx": torch.where(ok, clips, -1)
            for side, ok, clips in zip(("pos", "neg"), valid, recorded, strict=True)
        }


def _padded(values: Tensor, width: int) -> Tensor:
    """Pads (B, L) with zeros to (B, width); a longer one stays, and then differs from the recorded one."""
    return torch.nn.functional.pad(values, (0, max(0, width - values.shape[1])))
