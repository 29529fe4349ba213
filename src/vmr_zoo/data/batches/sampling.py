"""Which rows form which batch, and every random number that the data module uses.

Both are functions of (seed, epoch, row) alone: no global generator is read or advanced. So a run does not
depend on the number of workers, and a resumed run meets the batches that the uninterrupted one would have
met.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import distributed
from torch.utils.data import DataLoader, DistributedSampler

from vmr_zoo.errors import VmrError

ORDER, NEGATIVE, OTHER_VIDEO, MOMENTS, SHIFT, GROUPS = range(6)
"""What a stream of random numbers is for; two streams of the same seed and epoch are independent."""


class RowBatch(NamedTuple):
    """The rows of one batch.

    Attributes:
        epoch: what the rows' random choices are drawn for; None in evaluation, where nothing is random.
        rows: (B,) int64 indices into the split's queries.
    """

    epoch: int | None
    rows: NDArray[np.int64]


def uniform(seed: int, epoch: int, stream: int, count: int) -> NDArray[np.float64]:
    """Draws (count,) numbers in [0, 1), one for each row of a split, for one epoch and purpose."""
    return np.random.default_rng((seed, epoch, stream)).random(count)


def group_by_video(video: NDArray[np.int64], most: int | None, seed: int) -> list[NDArray[np.int64]]:
    """Groups the rows of a split by video, for batches that hold whole videos.

    Args:
        video: (n,) the video of each row.
        most: rows per group; a video with more is cut into groups at random, the same in every epoch (MESM's
            released code does so on TACoS, where a video has 130 sentences on average). None: no limit.
        seed: what the cut is drawn from.

    Returns:
        Row indices by group, in the order in which the videos first appear.
    """
    _, first, inverse = np.unique(video, return_index=True, return_inverse=True)
    appearance = np.argsort(np.argsort(first))[inverse]
    rank = uniform(seed, 0, GROUPS, len(video)) if most else np.arange(len(video))
    rows = np.lexsort((rank, appearance))
    edges = np.flatnonzero(np.diff(appearance[rows])) + 1
    groups = np.split(rows, edges) if len(rows) else []
    if most is None:
        return groups
    return [np.sort(group[i : i + most]) for group in groups for i in range(0, len(group), most)]


class EpochBatchSampler(DistributedSampler[RowBatch]):
    """Yields whole batches, reordered in each epoch by (seed, epoch) only.

    It is the `sampler` of a loader with `batch_size=None`, so that the data set is asked for a batch at a
    time, and because Lightning 2.6 calls `set_epoch` on a loader's sampler but not on its batch sampler. It
    is a `DistributedSampler` by type because Lightning wraps any other sampler under DDP in one that hides
    `set_epoch`.

    Batches of similar length: the shuffled groups are cut into pools of `bucket_batches` batches, each pool
    is sorted by length, cut into batches, and the batches of all pools are shuffled.
    """

    def __init__(
        self,
        groups: Sequence[NDArray[np.int64]],
        lengths: NDArray[np.int64],
        batch_size: int,
        *,
        seed: int | None = None,
        bucket_batches: int = 1,
        distinct: NDArray[np.int64] | None = None,
    ) -> None:
        """Prepares the sampler; nothing is drawn yet.

        Args:
            groups: rows that stay together: one row each, or all rows of a video.
            lengths: (len(groups),) what a pool is sorted by, such as the number of clips.
            batch_size: groups per batch.
            seed: of the order; None keeps the given order in every epoch (evaluation).
            bucket_batches: batches per pool; 1 composes every batch at random.
            distinct: (n,) the video of each row, if no batch may hold a video twice: of several rows on one
                video a batch keeps the first, and the others are left out for that epoch (BM-DETR's released
                code).
        """
        connected = distributed.is_available() and distributed.is_initialized()
        super().__init__(
            groups,  # type: ignore[arg-type]
            num_replicas=distributed.get_world_size() if connected else 1,
            rank=distributed.get_rank() if connected else 0,
            shuffle=seed is not None,
            seed=seed or 0,
        )
        self.groups = groups
        self.lengths = lengths
        self.batch_size = batch_size
        self.fixed_order = seed is None
        self.bucket_batches = bucket_batches
        self.distinct = distinct
        self._resume_at: tuple[int, int] | None = None

    def __len__(self) -> int:
        """Counts the batches of one epoch on this process; the same in every epoch."""
        batches = -(-len(self.groups) // self.batch_size)
        if self.fixed_order:
            return len(range(self.rank, batches, self.num_replicas))
        return -(-batches // self.num_replicas)

    def __iter__(self) -> Iterator[RowBatch]:
        """Yields this process's batches of the current epoch, from where a resumed run had got to."""
        epoch = None if self.fixed_order else self.epoch
        for rows in self._batches()[self.start :]:
            yield RowBatch(epoch, rows)

    def resume_at(self, epoch: int, batch: int) -> None:
        """Makes the given epoch, and only that, begin at its batch number `batch`."""
        self.set_epoch(epoch)
        self._resume_at = (epoch, batch)

    @property
    def start(self) -> int:
        """Number of the first batch to yield in the current epoch."""
        return self._resume_at[1] if self._resume_at and self._resume_at[0] == self.epoch else 0

    def _batches(self) -> list[NDArray[np.int64]]:
        order = np.arange(len(self.groups))
        if not self.fixed_order:
            rng = np.random.default_rng((self.seed, self.epoch, ORDER))
            pool = order // (self.batch_size * self.bucket_batches)
            order = rng.permutation(len(order))
            if self.bucket_batches > 1:
                order = order[np.lexsort((self.lengths[order], pool))]
        chunks = [order[i : i + self.batch_size] for i in range(0, len(order), self.batch_size)]
        if not self.fixed_order:
            chunks = [chunks[i] for i in rng.permutation(len(chunks))]
            # Every process must see equally many batches or DDP waits for ever; evaluation has no such step.
            chunks += chunks[: len(self) * self.num_replicas - len(chunks)]
        return [self._rows(chunk) for chunk in chunks[self.rank :: self.num_replicas]]

    def _rows(self, chunk: NDArray[np.int64]) -> NDArray[np.int64]:
        rows = np.concatenate([self.groups[i] for i in chunk])
        if self.distinct is None:
            return rows
        _, first = np.unique(self.distinct[rows], return_index=True)
        return rows[np.sort(first)]


class ResumableLoader(DataLoader[Any]):
    """A training loader that Lightning's checkpoints can resume in the middle of an epoch.

    Iteration is lazy: Lightning asks for an iterator before it calls `set_epoch` when a run is resumed.
    """

    delivered = 0

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """Yields the batches of the epoch that the sampler stands at when the first one is asked for."""
        self.delivered = self._epoch_sampler.start
        for batch in super().__iter__():
            self.delivered += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Returns the epoch and how many of its batches were handed out."""
        return {"epoch": self._epoch_sampler.epoch, "delivered": self.delivered}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continues where `state_dict` was taken."""
        self._epoch_sampler.resume_at(state["epoch"], state["delivered"])

    @property
    def _epoch_sampler(self) -> EpochBatchSampler:
        if not isinstance(self.sampler, EpochBatchSampler):
            raise VmrError(
                f"The training loader expected its own batch sampler but found "
                f"{type(self.sampler).__name__}, which trainer.overfit_batches puts there. Use "
                "trainer.limit_train_batches instead."
            )
        return self.sampler
