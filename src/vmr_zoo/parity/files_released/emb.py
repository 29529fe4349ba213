"""EMB (Raymond-sci/EMB, commit a81e57a): from its data files to its batches.

The comparison ends where the network begins: at the pooled snippets, the words' vectors and the labels. Ids
of words and characters are numbers of the authors' vocabulary, which is rebuilt here from our words; a word's
id follows from its vector in our batch. Our EMB has no characters, as the authors' network discards them.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import hydra
import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor

from vmr_zoo.blocks.span_predictor import span_to_indices
from vmr_zoo.data.annotations.records import PUBLISHED, Query
from vmr_zoo.data.batches.datamodule import VMRDataModule
from vmr_zoo.data.batches.sampling import RowBatch
from vmr_zoo.data.features.queries import WordVectorQueries
from vmr_zoo.errors import unknown
from vmr_zoo.methods.emb import EMB
from vmr_zoo.parity.case import Case, Number, texts
from vmr_zoo.parity.files import ReleasedFiles
from vmr_zoo.parity.files_released.annotations import write_charades_lengths
from vmr_zoo.types import Batch

_TASKS = {
    "charades": ("charades_sta", "charades"),
    "activitynet": ("activitynet", "activitynet"),
    "tacos": ("tacos", "tacos"),
}
"""Our experiment and folder of annotations by the authors' name of the data set."""

_PAD, _UNKNOWN = "<PAD>", "<UNK>"
_RARE = 5
"""A character that occurs less often has no id."""

_EXACT, _FLOAT32 = 0.0, 3e-7
"""Absolute tolerance of copies, relative tolerance of sums and of times that a batch holds as float32."""


class EMBFiles(ReleasedFiles):
    """Lays out EMB's files, and rebuilds its batches from ours."""

    def overrides(self, case: Case, folder: Path) -> list[str]:
        """Lays out the annotations and chooses the authors' word vectors."""
        task, version = case.options["task"], case.options["fv"]
        if task not in _TASKS:
            raise unknown("task of the case", str(task), _TASKS)
        experiment, target = _TASKS[task]
        annotations = folder / "annotations" / target
        annotations.mkdir(parents=True)
        for file in (folder / "data" / "dataset" / task).iterdir():
            if file.name == "charades.json":
                videos = json.loads(file.read_text(encoding="utf-8"))
                write_charades_lengths(
                    annotations, {name: video["duration"] for name, video in videos.items()}
                )
            else:
                shutil.copy(file, annotations / file.name)
        dim, words = case.options["video_dim"], case.options["word_dim"]
        return [
            f"experiment=emb/{experiment}",
            f"paths.annotations='{folder / 'annotations'}'",
            f"paths.features='{folder / 'data' / 'features' / task / version}'",
            f"features.video_dim={dim}",
            f"features.video.sources.0.dim={dim}",
            "features/query=glove",
            f"features.query.file='{folder / 'data' / 'features' / 'glove.840B.300d.txt'}'",
            "features.query.name=glove_840b_300d",
            f"features.query.dim={words}",
            f"features.query_dim={words}",
        ]

    def recompute(self, case: Case, data: VMRDataModule, cfg: DictConfig) -> dict[str, Number]:
        """Recomputes a case."""
        method = hydra.utils.instantiate(cfg.method)
        assert isinstance(method, EMB)
        words = data.features.query
        assert isinstance(words, WordVectorQueries)
        protocol = hydra.utils.instantiate(cfg.data.protocol, selection="heldout")
        val = [protocol.selection] if protocol.selection_origin == PUBLISHED else []
        everything = [protocol.published["train"], *val, *protocol.tests.values()]
        vocabulary = _Vocabulary.of(words, [query for split in everything for query in split.queries])
        numbers = {
            query.query_id: i for i, query in enumerate(q for split in everything for q in split.queries)
        }
        results = {
            "batch/words": Number(texts(vocabulary.words), _EXACT),
            "batch/chars": Number(texts(vocabulary.characters), _EXACT),
            "batch/word_vectors": Number(vocabulary.vectors, _EXACT),
        }
        parts = {"train": "train", "eval": data.test_names[0], "val": "selection"}
        for part in {key.split("/")[1] for key in case.keys if key.startswith("batch/")} & parts.keys():
            split = data.dataset(parts[part])
            own = [numbers[query_id] for query_id in split.query_ids]
            rows = _rows(case.array(f"batch/{part}/sample_id").tolist(), own, shuffled=part == "train")
            queries = {query.query_id: query for query in data.split(parts[part]).queries}
            batch = split[RowBatch(0, np.array(rows))]
            made = _Part(method, batch, [queries[query_id] for query_id in batch["query_id"]], vocabulary)
            results[f"batch/{part}/sample_id"] = Number(torch.tensor([own[row] for row in rows]), _EXACT)
            results |= {f"batch/{part}/{key}": number for key, number in made.numbers().items()}
        return results


def _rows(recorded: list[int], own: list[int], shuffled: bool) -> list[int]:
    """Returns our rows with the recorded numbers, if a loader could have drawn them.

    Args:
        recorded: the numbers of a batch.
        own: the number of each of our rows.
        shuffled: whether the loader shuffles; otherwise a batch begins with the first row.
    """
    if not shuffled:
        return list(range(min(len(recorded), len(own))))
    place = {number: row for row, number in enumerate(own)}
    if len(set(recorded)) == len(recorded) and set(recorded) <= place.keys():
        return [place[number] for number in recorded]
    return list(range(min(len(recorded), len(own))))


@dataclass(frozen=True)
class _Vocabulary:
    """The authors' vocabulary, made of our words.

    Attributes:
        source: our words.
        words: by id.
        characters: by id.
    """

    source: WordVectorQueries
    words: list[str]
    characters: list[str]

    @classmethod
    def of(cls, source: WordVectorQueries, queries: list[Query]) -> _Vocabulary:
        """Counts the words of all queries; of equally frequent ones the first met comes first."""
        counts: Counter[str] = Counter()
        known = set()
        for query in queries:
            split = source.table.split(query.text)
            counts.update(word.text for word in split)
            known |= {word.text for word in split if word.row is not None}
        letters: Counter[str] = Counter()
        for word, count in counts.items():
            for letter in word:
                letters[letter] += count
        return cls(
            source,
            [_PAD, _UNKNOWN, *(word for word, _ in counts.most_common() if word in known)],
            [_PAD, _UNKNOWN, *(letter for letter, count in letters.most_common() if count >= _RARE)],
        )

    @cached_property
    def vectors(self) -> Tensor:
        """(words without padding and unknown word, D), as our batches hold them."""
        rows = self.source.table.rows
        return torch.from_numpy(self.source.vectors(np.array([rows[word] for word in self.words[2:]])))

    def ids(self, vectors: Tensor, mask: Tensor) -> Tensor:
        """Finds the words of (B, L, D) vectors under a (B, L) mask: (B, L) ids, -1 for an unlisted vector."""
        ids = {tuple(vector): number for number, vector in enumerate(self.vectors.tolist(), 2)}
        ids[(0.0,) * vectors.shape[2]] = 1
        found = [[ids.get(tuple(word), -1) for word in row] for row in vectors.tolist()]
        return torch.tensor(found).masked_fill(~mask, 0)


@dataclass(frozen=True)
class _Part:
    """One of our batches, and the queries of its rows."""

    method: EMB
    batch: Batch
    queries: list[Query]
    vocabulary: _Vocabulary

    def numbers(self) -> Mapping[str, Number]:
        """Recomputes the arrays of one batch."""
        batch, boundary = self.batch, self.method.boundary
        video, mask, _ = self.method.snippets(batch["video"], batch["video_mask"])
        length = mask.sum(1)
        moment = span_to_indices(batch["spans"][:, 0], mask)
        duration = torch.tensor([query.duration for query in self.queries], dtype=torch.float64)
        word_mask = batch["query_mask"]
        times = (moment + torch.arange(2)) * duration[:, None] / length[:, None]
        exact = {
            "video_id": texts(batch["video_id"]),
            "sentence": texts(" ".join(words) for words in self._words()),
            "video_len": length,
            "video_mask": mask,
            "word_ids": self.vocabulary.ids(batch["query"], word_mask),
            "char_ids": self._character_ids(word_mask.shape[1]),
            "query_mask": word_mask,
            "start_index": moment[:, 0],
            "end_index": moment[:, 1],
            # Without a proposal the label is the authors' loader's.
            "highlight": boundary.highlight_labels(moment, moment, mask),
            "seconds": torch.tensor([query.moments[0] for query in self.queries], dtype=torch.float64),
            "duration": duration,
        }
        return {key: Number(value, _EXACT) for key, value in exact.items()} | {
            "video": Number(video, _FLOAT32, rtol=_FLOAT32),
            "index_seconds": Number(times, 0.0, rtol=_FLOAT32),
        }

    def _words(self) -> list[list[str]]:
        return [[word.text for word in self.vocabulary.source.split(query)] for query in self.queries]

    def _character_ids(self, longest: int) -> Tensor:
        """Returns (B, words, letters of the longest word) ids of the letters of each word."""
        known = {letter: number for number, letter in enumerate(self.vocabulary.characters)}
        split = self._words()
        width = max(len(word) for words in split for word in words)
        ids = torch.zeros(len(split), longest, width, dtype=torch.int64)
        for row, words in enumerate(split):
            for place, word in enumerate(words):
                ids[row, place, : len(word)] = torch.tensor([known.get(letter, 1) for letter in word])
        return ids
