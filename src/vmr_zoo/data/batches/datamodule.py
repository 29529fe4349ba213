"""The data module: a protocol and a feature set, served as the batches of `docs/contract.md`."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import Any

import lightning
import numpy as np
import torch
from torch.utils.data import DataLoader

from vmr_zoo.data.annotations.records import SELECTION, TRAIN, Protocol, Split
from vmr_zoo.data.batches.negatives import NegativePool, NegativeSampling
from vmr_zoo.data.batches.sampling import EpochBatchSampler, ResumableLoader, group_by_video
from vmr_zoo.data.batches.shifting import TemporalShift
from vmr_zoo.data.batches.split_dataset import RESIDENCIES, SplitData, TrainingChoices, frequency_ranks
from vmr_zoo.data.features.store import FeatureSet
from vmr_zoo.errors import VmrError, unknown
from vmr_zoo.types import NEEDS, Batch

HELDOUT = "heldout"
TRAINING_ONLY = frozenset({"negative_query", "shift"})
"""Needs that evaluation never serves."""
FOR_DETAILS = frozenset({"patches", "query_words"})
"""Needs that evaluation serves only for details: predictions are made without."""
STORAGE = {"float32": torch.float32, "float16": torch.float16}
SERVED_BY = {
    "narration": "a feature set with narrations (features.narration)",
    "patches": "a feature set with patch features (features.patches)",
    "query_tokens": "a query source with token ids (features/query=minilm or =glove)",
    "noun_mask": "a query source with noun chunks (features/query=minilm)",
}


class VMRDataModule(lightning.LightningDataModule):
    """Serves the splits of one protocol, for one method's needs.

    Nothing random depends on anything but (seed, epoch, row): not on the number of workers, not on the global
    generators, not on whether the run was interrupted. Evaluation draws nothing and keeps the order of the
    published files.

    Attributes:
        test_names: the test splits, in the order of the loaders that `test_dataloader` returns.
        selection_origin: where the selection split comes from; it marks numbers selected on a test split.
    """

    def __init__(
        self,
        name: str,
        protocol: Protocol,
        features: FeatureSet,
        *,
        needs: Iterable[str] = (),
        seed: int = 0,
        selection: str = HELDOUT,
        selection_metric: str = "R1@0.7",
        batch_size: int = 32,
        eval_batch_size: int = 100,
        by_video: bool = False,
        rows_per_video: int | None = None,
        no_repeat_video: bool = False,
        bucket_batches: int = 16,
        max_moments: int = 5,
        negatives: NegativeSampling | None = None,
        shift: TemporalShift | None = None,
        rated_clip_seconds: float = 2.0,
        storage: str = "float32",
        residency: str = "auto",
        num_workers: int = 0,
    ) -> None:
        """Stores the options; reads nothing yet.

        Args:
            name: the data set, as in `data=<name>`.
            protocol: the splits.
            features: where features come from.
            needs: the optional batch fields that the method reads.
            seed: of batch order, negatives, shifts and subsets of moments.
            selection: what `protocol` was asked to select on: "heldout", or the name of a test split, as
                several papers did. The configuration hands it to both, and they must agree.
            selection_metric: what checkpoints are selected by.
            batch_size: training rows per batch; videos per batch with `by_video`.
            eval_batch_size: the same in evaluation.
            by_video: a batch holds all queries of its videos (MMN, MESM), in evaluation too.
            rows_per_video: with `by_video`, a training video with more queries is cut into random groups of
                at most this many.
            no_repeat_video: a training batch never holds two queries of one video; what collides is left out
                for that epoch (BM-DETR's released code: about 35 rows of Charades-STA).
            bucket_batches: training batches of similar video length are formed among this many; 1: at random.
                Queries of one video have one length and so meet more often: on Charades-STA (1 s clips,
                batches of 32) 1, 8 and 32 leave 50, 22 and 10 % padding, and 35, 210 and 510 of 12,408 rows
                share a batch with an earlier row on their video.
            max_moments: a training row with more takes a random subset of this size.
            negatives: how negative queries are chosen; None: the defaults of `NegativeSampling`.
            shift: how moments are shifted; None: the defaults of `TemporalShift`.
            rated_clip_seconds: length of the clips that annotators rated.
            storage: "float32" or "float16", how features are held in memory.
            residency: where video features lie while batches are made: "memory"; "disk", read anew for every
                batch; "device", the training split's on the GPU and the others' in memory; "auto", in memory
                for each split that takes no more than half of what is free, else on disk. Batches are equal.
            num_workers: worker processes; 0 is faster for features in memory.

        Raises:
            VmrError: for an unknown need, selection split, storage or residency, or options that exclude each
                other.
        """
        super().__init__()
        self.needs = frozenset(needs)
        for need in sorted(self.needs - NEEDS):
            raise unknown("need of the method", need, NEEDS)
        if storage not in STORAGE:
            raise unknown("data.storage", storage, STORAGE)
        if residency not in RESIDENCIES:
            raise unknown("data.residency", residency, RESIDENCIES)
        if residency == "device" and num_workers:
            raise VmrError(
                f"data.num_workers={num_workers} makes batches in other processes, which cannot gather them "
                "on the GPU. Set data.num_workers=0, or data.residency=memory."
            )
        if (selection != HELDOUT) != protocol.selected_on_test:
            raise VmrError(
                f"data.selection={selection}, but {protocol.name} selects on: {protocol.selection_origin}. "
                "Give data.protocol `selection: ${..selection}`, if its function takes that."
            )
        if by_video and no_repeat_video:
            raise VmrError(
                "data.by_video puts all queries of a video into one batch, data.no_repeat_video allows only "
                "one. Turn one of them off."
            )
        for key, value in {
            "batch_size": batch_size,
            "eval_batch_size": eval_batch_size,
            "bucket_batches": bucket_batches,
            "max_moments": max_moments,
            "rows_per_video": rows_per_video,
        }.items():
            if value is not None and value < 1:
                raise VmrError(f"Expected data.{key} >= 1, found {value}.")
        if rows_per_video is not None and not by_video:
            raise VmrError("data.rows_per_video cuts the groups that data.by_video=true makes; turn that on.")
        self.name = name
        self.protocol = protocol
        self.features = features
        self.seed = seed
        self.selection_metric = selection_metric
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.by_video = by_video
        self.rows_per_video = rows_per_video
        self.no_repeat_video = no_repeat_video
        self.bucket_batches = bucket_batches
        self.max_moments = max_moments
        self.negatives = negatives or NegativeSampling()
        self.shift = shift or TemporalShift()
        self.rated_clip_seconds = rated_clip_seconds
        self.storage = STORAGE[storage]
        self.residency = residency
        self.num_workers = num_workers
        self.test_names = tuple(protocol.tests)
        self.selection_origin = protocol.selection_origin
        self._prepared = False
        self._loaded: dict[tuple[str, frozenset[str]], SplitData] = {}
        self._pool: NegativePool | None = None

    def prepare_data(self) -> None:
        """Makes the features ready and checks them; under DDP the first process does so before the others.

        Raises:
            VmrError: for a need that the features cannot serve, a split without queries, or missing or
                broken features.
        """
        if self._prepared:
            return
        for need in sorted((self.needs & SERVED_BY.keys()) - self.features.served()):
            raise VmrError(
                f"The method needs '{need}', which {SERVED_BY[need]} serves; features={self.features.name} "
                f"serves {', '.join(sorted(self.features.served())) or 'none of the optional fields'}. "
                "Choose other features or another method."
            )
        for split in self.protocol.splits.values():
            if not split.queries:
                raise VmrError(
                    f"Split '{split.name}' of {self.protocol.name} has no queries (read from "
                    f"{split.source or 'nowhere'}): there is nothing to train on or to score. Fetch its file "
                    "again, or choose other data."
                )
        self.features.prepare(self.protocol, self.needs)
        self._prepared = True

    def setup(self, stage: str | None = None) -> None:
        """Loads the splits of a stage.

        Args:
            stage: "fit", "validate", "test" or "predict"; None: all.

        Raises:
            VmrError: see `prepare_data`.
        """
        self.prepare_data()
        if stage in ("fit", None):
            self._data(TRAIN)
        if stage in ("fit", "validate", None):
            self._data(SELECTION)
        if stage in ("test", "predict", None):
            for name in self.test_names:
                self._data(name)

    def train_dataloader(self) -> ResumableLoader:
        """Returns the shuffled batches of the training split."""
        data = self._data(TRAIN)
        video = data.video_index.numpy()
        if self.by_video:
            groups = group_by_video(video, self.rows_per_video, self.seed)
        else:
            groups = list(np.arange(len(data))[:, None])
        sampler = EpochBatchSampler(
            groups,
            data.clips.numpy()[[group[0] for group in groups]],
            self.batch_size,
            seed=self.seed,
            bucket_batches=self.bucket_batches,
            distinct=video if self.no_repeat_video else None,
        )
        options = self._loader_options()
        if self.residency == "device":
            options["pin_memory"] = False  # what is on the GPU cannot be pinned
        return ResumableLoader(data, sampler=sampler, batch_size=None, **options)

    def val_dataloader(self) -> DataLoader[Batch]:
        """Returns the batches of the selection split."""
        return self.eval_dataloader(SELECTION)

    def test_dataloader(self) -> list[DataLoader[Batch]]:
        """Returns a loader for each of `test_names`."""
        return [self.eval_dataloader(name) for name in self.test_names]

    def predict_dataloader(self) -> list[DataLoader[Batch]]:
        """Returns a loader for each of `test_names`."""
        return self.test_dataloader()

    def eval_dataloader(self, split: str, *, details: bool = False) -> DataLoader[Batch]:
        """Returns the batches of any split but the training split, in the order of the file.

        Args:
            split: "selection" or a test split's name.
            details: also serve what only details are made of, "patches" and "query_words", if the method
                needs them; features without token ids serve no "query_words".

        Raises:
            VmrError: for an unknown split, or for missing or broken features.
        """
        self.prepare_data()
        if split not in (SELECTION, *self.test_names):
            raise unknown(f"split of {self.name}", split, (SELECTION, *self.test_names))
        data = self._data(split, details)
        if self.by_video:
            groups = group_by_video(data.video_index.numpy(), None, self.seed)
        else:
            groups = list(np.arange(len(data))[:, None])
        lengths = data.clips.numpy()[[group[0] for group in groups]]
        sampler = EpochBatchSampler(groups, lengths, self.eval_batch_size)
        batches = -(-len(groups) // self.eval_batch_size)
        if batches < sampler.num_replicas:
            raise VmrError(
                f"Split {split} makes {batches} batches, fewer than the {sampler.num_replicas} processes. "
                f"Set data.eval_batch_size={max(1, len(groups) // sampler.num_replicas)} or fewer devices."
            )
        return DataLoader(data, sampler=sampler, batch_size=None, **self._loader_options())

    def split(self, name: str) -> Split:
        """Returns the queries of a split."""
        if name not in self.protocol.splits:
            raise unknown(f"split of {self.name}", name, self.protocol.splits)
        return self.protocol.splits[name]

    def negative_statistics(self) -> dict[str, int]:
        """Counts the training queries that have a negative, after each criterion.

        Returns:
            `queries`, `with_same_video`, `and_iou_below`, `and_similarity_below`, `candidates`; empty when
            negatives come from other videos.
        """
        return dict(self._negative_pool().counts)

    def _negative_pool(self) -> NegativePool:
        if self._pool is None:
            self._pool = self.negatives.pool(self.protocol.train.queries)
        return self._pool

    @cached_property
    def _word_ranks(self) -> dict[int, int]:
        """The place of each token id in the training split, found once for all splits."""
        return frequency_ranks(map(self.features.query.token_ids, self.protocol.train.queries))

    def _served(self, name: str, details: bool) -> frozenset[str]:
        """Returns which of the needs the batches of a split hold."""
        if name == TRAIN:
            return self.needs
        served = self.needs - TRAINING_ONLY
        if not details:
            return served - FOR_DETAILS
        return served if self.features.query.has_token_ids else served - {"query_words"}

    def _data(self, name: str, details: bool = False) -> SplitData:
        """Loads a split once for what it serves."""
        served = self._served(name, details)
        if (name, served) not in self._loaded:
            training = word_ranks = None
            residency = self.residency
            if name == TRAIN:
                if residency == "device" and not torch.cuda.is_available():
                    raise VmrError(
                        "data.residency=device needs a GPU, and torch finds none. Set data.residency=auto."
                    )
                # Refused here, not in prepare_data: evaluation does without.
                if "query_words" in self.needs and not self.features.query.has_token_ids:
                    raise VmrError(
                        f"The method learns to reconstruct words, but features={self.features.name} has none "
                        "of its token ids. Choose features/query=minilm or =glove, or turn that loss off "
                        "(method.training.loss_weights.word_reconstruction=null)."
                    )
                training = TrainingChoices(
                    seed=self.seed,
                    max_moments=self.max_moments,
                    negatives=self._negative_pool() if "negative_query" in self.needs else None,
                    shift=self.shift if "shift" in self.needs else None,
                )
            elif residency == "device":
                residency = "memory"  # passed over once, or once an epoch
            if "query_words" in served:
                word_ranks = self._word_ranks
            self._loaded[name, served] = SplitData(
                self.split(name),
                self.features,
                served,
                training=training,
                word_ranks=word_ranks,
                storage=self.storage,
                residency=residency,
                rated_clip_seconds=self.rated_clip_seconds,
            )
        return self._loaded[name, served]

    def _loader_options(self) -> dict[str, Any]:
        return {
            "num_workers": self.num_workers,
            "persistent_workers": self.num_workers > 0,
            "pin_memory": torch.cuda.is_available(),
            # A loader draws a base seed for its workers at every epoch; not from the global generator.
            "generator": torch.Generator(),
        }
