"""The data module: serves a protocol and its features as batches (`docs/contract.md`)."""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import KW_ONLY, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import lightning
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from vmr_zoo.data.annotations.records import SELECTION, TRAIN, Protocol, Split
from vmr_zoo.data.batches.negatives import NegativePool, NegativeSampling
from vmr_zoo.data.batches.residency import Residency, memory_budget
from vmr_zoo.data.batches.sampling import EpochBatchSampler, ResumableLoader, group_by_video
from vmr_zoo.data.batches.shifting import TemporalShift
from vmr_zoo.data.batches.split_dataset import Choices, SplitDataset
from vmr_zoo.data.batches.word_ranks import frequency_ranks, listed_ranks
from vmr_zoo.data.features.feature_set import FeatureSet
from vmr_zoo.data.features.read_once import read_once
from vmr_zoo.data.features.word_loss import refuse_lost_words, word_losses
from vmr_zoo.data.text.tagging import ContentWords
from vmr_zoo.errors import VmrError, unknown
from vmr_zoo.types import NEEDS, Batch
from vmr_zoo.utils.switches import check_switches

log = logging.getLogger(__name__)

HELDOUT = "heldout"
TRAINING_ONLY = frozenset({"negative_query", "shift"})
"""Needs that evaluation never serves."""
FOR_DETAILS = frozenset({"patches", "query_words", "word_weights", "moment_clips"})
"""Needs that evaluation serves for details alone; predictions do not read them."""
_AT_LEAST_ONE = (
    "batch_size",
    "eval_batch_size",
    "bucket_batches",
    "max_moments",
    "rows_per_video",
    "eval_rows_per_video",
    "repeat_batch",
)
SERVED_BY = {
    "narration": "a feature set with narrations (features.narration)",
    "narration_query": "a feature set with words for the narrations (features/narration_query=as_narration)",
    "patches": "a feature set with patch features (features.patches)",
    "query_tokens": "a query source with token ids (features/query=minilm or =glove)",
    "sentence": "features of an image-text model (features.joint_space), such as features=shapes_clip",
    "noun_mask": "a query source with noun chunks (features/query=minilm)",
}


@check_switches
@dataclass(eq=False, repr=False)
class VMRDataModule(lightning.LightningDataModule):
    """Serves the splits of one protocol, with the optional fields that one method needs.

    Every random choice depends on (seed, epoch, row) alone: not on the number of workers, on the global
    generators, or on whether the run was interrupted. Evaluation draws nothing and keeps the order of the
    published files.

    Attributes:
        name: name of the data set, as in `data=<name>`.
        protocol: the splits.
        features: the features.
        needs: optional batch fields that the method reads.
        seed: seed of batch order, negatives, shifts and subsets of moments.
        selection: the split that `protocol` selects on: "heldout", or the name of a test split, as in several
            papers. The configuration passes it to both; they must agree.
        selection_metric: metric that selects checkpoints.
        batch_size: training rows per batch; videos per batch with `by_video`.
        eval_batch_size: the same in evaluation.
        by_video: a batch holds all queries of its videos (MMN, MESM), in evaluation too.
        rows_per_video: with `by_video`, a training video with more queries is cut into random groups of at
            most this many.
        eval_rows_per_video: the same in evaluation (MESM's released code on TACoS).
        groups_apart: with `by_video`, a training batch holds groups of at least two different videos and no
            two groups of one; groups that are left over at the end are not used in that epoch (MESM's
            released code on TACoS).
        row_order: with `by_video`, the rows of a video in the order of the "file", or by the time ("start")
            or the clip ("start_clip") in which their moments start (MESM's released code).
        no_repeat_video: a training batch never holds two queries of one video; of several, all but the first
            are left out for that epoch (BM-DETR's released code: about 35 rows of Charades-STA).
        bucket_batches: training batches of similar video length are formed among this many; 1: at random.
            Queries of one video have equal lengths and share batches more often: on Charades-STA (1 s clips,
            batches of 32) 1, 8 and 32 leave 50, 22 and 10 % padding, and 35, 210 and 510 of 12,408 rows share
            a batch with an earlier row of their video.
        max_moments: a training row with more moments takes a random subset of this size.
        negatives: how negative queries are chosen; None: the defaults of `NegativeSampling`.
        shift: how moments are shifted; None: the defaults of `TemporalShift`.
        rated_clip_seconds: length of the clips that the annotators rated (QVHighlights: 2 s).
        rated_past_end: ratings of clips that a video's features lack are "dropped", or "kept" on its padding
            (released code of the Moment-DETR family).
        missing_videos: sentences about videos without features are "refused", or "dropped" from every split
            (BM-DETR's released code).
        word_counts: a file with a token and its count per line, in order of the ranks of "query_words":
            MESM's `CLIP_tokenized_count.txt` or `GloVe_tokenized_count.txt`. None: tokens are counted in the
            training split.
        max_lost_words: training refuses features that lose a larger share of a split's tokens, in [0, 1]:
            words without a vector, and tokens past the longest sentence. None: any share.
        content_words: finds nouns, verbs, adjectives and adverbs, for "word_weights"; None: the default.
        storage: type in which features are held, "float32" or "float16".
        residency: where video features reside: "memory" (RAM); "disk", read for every batch; "device", the
            training split on the GPU, the others in RAM; "auto", in RAM for each split that takes at most
            half of the free memory, else on disk. Batches are equal.
        num_workers: worker processes; 0 is faster for features in memory.
        repeat_batch: for debugging, a training epoch is this many times one batch; None: every batch once.

    Raises:
        VmrError: for an unknown need, selection split, storage or residency, or for options that exclude each
            other.
    """

    name: str = field()
    protocol: Protocol
    features: FeatureSet
    _: KW_ONLY
    needs: Collection[str] = ()
    seed: int = 0
    selection: str = HELDOUT
    selection_metric: str = "R1@0.7"
    batch_size: int = 32
    eval_batch_size: int = 100
    by_video: bool = False
    rows_per_video: int | None = None
    eval_rows_per_video: int | None = None
    groups_apart: bool = False
    row_order: Literal["file", "start", "start_clip"] = "file"
    no_repeat_video: bool = False
    bucket_batches: int = 16
    max_moments: int = 5
    negatives: NegativeSampling | None = None
    shift: TemporalShift | None = None
    rated_clip_seconds: float = 2.0
    rated_past_end: Literal["dropped", "kept"] = "dropped"
    missing_videos: Literal["refused", "dropped"] = "refused"
    word_counts: str | Path | None = None
    content_words: ContentWords | None = None
    max_lost_words: float | None = 0.05
    storage: Literal["float32", "float16"] = "float32"
    residency: Residency = "auto"
    num_workers: int = 0
    repeat_batch: int | None = None

    def __post_init__(self) -> None:
        super().__init__()
        self.needs = frozenset(self.needs)
        self._check_options()
        self._prepared: FeatureSet | None = None
        self._loaded: dict[tuple[str, frozenset[str]], SplitDataset] = {}

    def _check_options(self) -> None:
        for need in sorted(frozenset(self.needs) - NEEDS):
            raise unknown("need of the method", need, NEEDS)
        if self.residency == "device" and self.num_workers:
            raise VmrError(
                f"data.num_workers={self.num_workers} builds batches in other processes, which cannot gather "
                "them on the GPU. Set data.num_workers=0 or data.residency=memory."
            )
        if self.max_lost_words is not None and not 0 <= self.max_lost_words <= 1:
            raise VmrError(
                f"Expected data.max_lost_words to be a share in [0, 1] or null; found {self.max_lost_words}."
            )
        if (self.selection != HELDOUT) != self.protocol.selected_on_test:
            raise VmrError(
                f"data.selection={self.selection}, but {self.protocol.name} selects on: "
                f"{self.protocol.selection_origin}. Give data.protocol `selection: ${{..selection}}` if its "
                "function takes that argument."
            )
        if self.by_video and self.no_repeat_video:
            raise VmrError(
                "data.by_video puts all queries of a video into one batch, data.no_repeat_video allows only "
                "one. Turn one of them off."
            )
        for key in _AT_LEAST_ONE:
            value = getattr(self, key)
            if value is not None and value < 1:
                raise VmrError(f"Expected data.{key} >= 1, found {value}.")
        grouped = {
            "rows_per_video": self.rows_per_video is not None,
            "eval_rows_per_video": self.eval_rows_per_video is not None,
            "groups_apart": self.groups_apart,
            "row_order": self.row_order != "file",
        }
        for key in (key for key, used in grouped.items() if used and not self.by_video):
            raise VmrError(f"data.{key} is about the groups of data.by_video=true. Turn that on.")

    @property
    def test_names(self) -> tuple[str, ...]:
        """The test splits, in the order of the loaders that `test_dataloader` returns."""
        return tuple(self.protocol.tests)

    def prepare_data(self, splits: Collection[str] | None = None) -> None:
        """Prepares and checks the features; under DDP the first process does so before the others.

        Args:
            splits: the splits that will be loaded, whose features stay in memory after the check; None: all.

        Raises:
            VmrError: for a need that the features cannot serve, a split without queries among those that
                will be loaded, or missing or broken features.
        """
        if self._prepared is not None:
            return
        wanted = list(self.protocol.splits if splits is None else splits)
        if TRAIN in wanted and self.protocol.only_tests:
            other = self.protocol.train_with
            training = f"Train with data={other}" if other else "Add train=FILE, or use other data"
            raise VmrError(
                f"{self.protocol.name} has no training data; it only tests. {training}, then test that run: "
                f"vmr eval run=DIR data={self.name if other else 'jsonl test=FILE'}."
            )
        for need in sorted((frozenset(self.needs) & SERVED_BY.keys()) - self.features.served()):
            raise VmrError(
                f"The method needs '{need}', which {SERVED_BY[need]} serves; features={self.features.name} "
                f"serves {', '.join(sorted(self.features.served())) or 'none of the optional fields'}. "
                "Choose other features or another method."
            )
        if not self.features.query.dim and "query_tokens" not in self.needs:
            raise VmrError(
                "The method reads a vector per word, but the query features are token ids alone "
                "(features/query=clip_tokens, for method/text=clip). Choose features/query=clip or =minilm."
            )
        if self.missing_videos == "dropped":
            self.protocol = self.features.without_missing_videos(self.protocol)
        for split in map(self.split, wanted):
            if not split.queries:
                raise VmrError(
                    f"Split '{split.name}' of {self.protocol.name} has no queries (read from "
                    f"{split.source or 'nowhere'}): nothing to train on or to score. Fetch its file again or "
                    "choose other data."
                )
        loaded = [self.split(name) for name in wanted]
        budget = memory_budget(self.residency)
        self._read_once = read_once(self.features, loaded, getattr(torch, self.storage), budget)
        self._read_once.prepare(self.protocol, self.needs)
        self._prepared = self.features

    def check_words(self) -> None:
        """Logs which share of the words the features lose, and refuses to train without too many.

        Raises:
            VmrError: if a split loses a larger share than `max_lost_words`.
        """
        losses = word_losses(self.features, self.protocol, self.needs)
        for loss in losses:
            if loss.share:
                log.info(f"Lost words: {loss}.")
        refuse_lost_words(losses, self.max_lost_words, self.features.name, self.protocol.name)

    def setup(self, stage: str | None = None) -> None:
        """Loads the splits of a stage.

        Args:
            stage: "fit", "validate", "test" or "predict"; None: all.

        Raises:
            VmrError: if the features cannot serve the needs, are missing or broken.
        """
        self.prepare_data()
        if stage in ("fit", None):
            self.dataset(TRAIN)
        if stage in ("fit", "validate", None):
            self.dataset(SELECTION)
        if stage in ("test", "predict", None):
            for name in self.test_names:
                self.dataset(name)

    def train_dataloader(self) -> ResumableLoader:
        """Returns the shuffled batches of the training split."""
        data = self.dataset(TRAIN)
        groups = self.groups(data, self.rows_per_video)
        video = data.video_index.numpy()
        sampler = EpochBatchSampler(
            groups,
            data.clips.numpy()[[group[0] for group in groups]],
            self.batch_size,
            seed=self.seed,
            bucket_batches=self.bucket_batches,
            unique_video=video if self.no_repeat_video else None,
            apart=video[[group[0] for group in groups]] if self.groups_apart else None,
            repeat=self.repeat_batch,
        )
        options = self._loader_options()
        if self.residency == "device":
            options["pin_memory"] = False  # tensors on the GPU cannot be pinned
        return ResumableLoader(data, sampler=sampler, batch_size=None, **options)

    def val_dataloader(self) -> DataLoader[Batch]:
        """Returns the batches of the selection split."""
        return self.eval_dataloader(SELECTION)

    def test_dataloader(self) -> list[DataLoader[Batch]]:
        """Returns a loader for each of `test_names`."""
        return [self.eval_dataloader(name) for name in self.test_names]

    def eval_dataloader(
        self, split: str, *, details: bool = False, negatives: bool = False
    ) -> DataLoader[Batch]:
        """Returns the batches of a selection or test split, in the order of the file.

        Args:
            split: "selection" or the name of a test split.
            details: also serve the needs that only details read, `FOR_DETAILS`; features without token ids
                serve no "query_words" and "word_weights".
            negatives: also serve "negative_query", if it is a need: negatives of the split itself, the same
                in every call.

        Raises:
            VmrError: for an unknown split, or for missing or broken features.
        """
        self.prepare_data()
        if split not in (SELECTION, *self.test_names):
            raise unknown(f"split of {self.name}", split, (SELECTION, *self.test_names))
        data = self.dataset(split, details, negatives)
        groups = self.groups(data, self.eval_rows_per_video)
        lengths = data.clips.numpy()[[group[0] for group in groups]]
        sampler = EpochBatchSampler(groups, lengths, self.eval_batch_size)
        batches = -(-len(groups) // self.eval_batch_size)
        if batches < sampler.num_replicas:
            raise VmrError(
                f"Split {split} has {batches} batches, fewer than the {sampler.num_replicas} processes. "
                f"Set data.eval_batch_size={max(1, len(groups) // sampler.num_replicas)} or fewer devices."
            )
        return DataLoader(data, sampler=sampler, batch_size=None, **self._loader_options())

    def groups(self, data: SplitDataset, most: int | None) -> list[NDArray[np.int64]]:
        """Returns the rows that stay in one batch: single ones, or those of a video, at most `most`."""
        if not self.by_video:
            return list(np.arange(len(data))[:, None])
        groups = group_by_video(data.video_index.numpy(), most, self.seed)
        return [self.ordered(data, group) for group in groups]

    def ordered(self, data: SplitDataset, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns rows of one video in `row_order`; equal ones in the order of the file."""
        rows = np.sort(rows)
        if self.row_order == "file":
            return rows
        start = torch.stack([data.moments.items[row].min() for row in rows]).numpy()
        if self.row_order == "start_clip":
            start = np.minimum(start // data.clip_seconds[rows].numpy(), data.clips[rows].numpy() - 1)
        return rows[np.argsort(start, kind="stable")]

    def split(self, name: str) -> Split:
        """Returns the queries of a split."""
        if name not in self.protocol.splits:
            raise unknown(f"split of {self.name}", name, self.protocol.splits)
        return self.protocol.splits[name]

    @cached_property
    def negative_pool(self) -> NegativePool:
        """The candidates of every training query for its negative."""
        pool = self._negatives_of(TRAIN)
        if warning := pool.warning():
            log.warning(warning)
        return pool

    def _negatives_of(self, name: str) -> NegativePool:
        return (self.negatives or NegativeSampling()).pool(self.split(name).queries)

    @cached_property
    def _word_ranks(self) -> dict[int, int]:
        """Frequency rank of each token id in the training split, or its place in a file; for all splits."""
        query = self.features.query
        if self.word_counts is not None:
            return listed_ranks(Path(self.word_counts), query)
        ids = map(query.token_ids, self.protocol.train.queries)
        return frequency_ranks(one[~np.isin(one, query.end_ids)] for one in ids)

    def _served(self, name: str, details: bool, negatives: bool) -> frozenset[str]:
        """Returns the needs that the batches of a split serve."""
        needs = frozenset(self.needs)
        if name == TRAIN:
            return needs
        served = needs - (TRAINING_ONLY - {"negative_query"} if negatives else TRAINING_ONLY)
        if not details:
            return served - FOR_DETAILS
        return served if self.features.query.has_token_ids else served - {"query_words", "word_weights"}

    def dataset(self, name: str, details: bool = False, negatives: bool = False) -> SplitDataset:
        """Loads a split, once for each set of served needs.

        Args:
            name: "train", "selection" or the name of a test split.
            details: as in `eval_dataloader`.
            negatives: as in `eval_dataloader`.
        """
        served = self._served(name, details, negatives)
        if (name, served) not in self._loaded:
            # Evaluation reads each row once, or once an epoch: RAM is enough.
            residency = "memory" if self.residency == "device" and name != TRAIN else self.residency
            self._loaded[name, served] = SplitDataset(
                self.split(name),
                self._read_once
                if self.features is self._prepared
                else self.features,  # a probe replaces them
                served,
                choices=self._choices(name, served),
                word_ranks=self._word_ranks if "query_words" in served else None,
                content_words=self.content_words or ContentWords(),
                storage=getattr(torch, self.storage),
                residency=residency,
                rated_clip_seconds=self.rated_clip_seconds,
                rated_past_end=self.rated_past_end,
            )
        return self._loaded[name, served]

    def _choices(self, name: str, served: frozenset[str]) -> Choices | None:
        """Returns what the batches of a split draw; None: nothing."""
        if name == TRAIN:
            return self._training_choices()
        if "negative_query" in served:
            return Choices(self.seed, negatives=self._negatives_of(name), every_epoch=False)
        return None

    def _training_choices(self) -> Choices:
        """Returns what training draws, or refuses to train.

        The checks are made here and not in `prepare_data` because evaluation does not need what they require.
        """
        if self.residency == "device" and not torch.cuda.is_available():
            raise VmrError(
                "data.residency=device needs a GPU, and torch finds none. Set data.residency=auto."
            )
        if "query_words" in self.needs and not self.features.query.has_token_ids:
            raise VmrError(
                f"The method learns to reconstruct words, but features={self.features.name} has no token ids "
                "for them. Choose features/query=minilm or =glove, or turn that loss off "
                "(method.training.loss_weights.word_reconstruction=null)."
            )
        return Choices(
            seed=self.seed,
            max_moments=self.max_moments,
            negatives=self.negative_pool if "negative_query" in self.needs else None,
            shift=(self.shift or TemporalShift()) if "shift" in self.needs else None,
        )

    def _loader_options(self) -> dict[str, Any]:
        return {
            "num_workers": self.num_workers,
            "persistent_workers": self.num_workers > 0,
            "pin_memory": torch.cuda.is_available(),
            # A loader draws a base seed for its workers in every epoch, here not from the global generator.
            "generator": torch.Generator(),
        }
