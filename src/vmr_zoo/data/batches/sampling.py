"""Batch composition, and every random number that the data module draws.

Both are functions of (seed, epoch, row) alone; no global generator is read or advanced. So batches do not
depend on the number of workers, and a resumed run sees the same batches as an uninterrupted one.
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
"""Streams of random numbers by purpose; streams of one seed and epoch are independent."""


class RowBatch(NamedTuple):
    """The rows of one batch.

    Attributes:
        epoch: epoch of the random choices; None in evaluation, where nothing is random.
        rows: (B,) int64 indices of queries of the split.
    """

    epoch: int | None
    rows: NDArray[np.int64]


def uniform(seed: int, epoch: int, stream: int, count: int) -> NDArray[np.float64]:
    """Draws (count,) numbers in [0, 1), one per row of a split, for one epoch and stream."""
    return np.random.default_rng((seed, epoch, stream)).random(count)


def group_by_video(video: NDArray[np.int64], most: int | None, seed: int) -> list[NDArray[np.int64]]:
    """Groups the rows of a split by video, for batches that hold whole videos.

    Args:
        video: (n,) the video of each row.
        most: rows per group; a video with more is cut into random groups, the same in every epoch (as MESM's
            released code does on TACoS, where a video has 130 sentences on average). None: no limit.
        seed: seed of the groups.

    Returns:
        Row indices by group, in order of the first appearance of the videos.
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
    """Yields whole batches; their composition and order depend on (seed, epoch) only.

    It is the `sampler` of a loader with `batch_size=None`: the data set then builds one batch per index, and
    Lightning 2.6 calls `set_epoch` on a loader's sampler but not on its batch sampler. It subclasses
    `DistributedSampler` because Lightning wraps any other sampler under DDP in one that hides `set_epoch`.

    Batches of similar length: shuffled groups are cut into pools of `bucket_batches` batches; each pool is
    sorted by length and cut into batches; then the batches of all pools are shuffled.
    """

    def __init__(
        self,
        groups: Sequence[NDArray[np.int64]],
        lengths: NDArray[np.int64],
        batch_size: int,
        *,
        seed: int | None = None,
        bucket_batches: int = 1,
        unique_video: NDArray[np.int64] | None = None,
        apart: NDArray[np.int64] | None = None,
        repeat: int | None = None,
    ) -> None:
        """Stores the options; draws nothing yet.

        Args:
            groups: rows that stay in one batch: a single row each, or all rows of a video.
            lengths: (len(groups),) sorting key within a pool, such as the number of clips.
            batch_size: groups per batch.
            seed: seed of the order; None keeps the given order in every epoch (evaluation).
            bucket_batches: batches per pool; 1 composes every batch at random.
            unique_video: (n,) the video of each row, if no batch may hold a video twice: a batch keeps the
                first of several rows on one video; the others are left out for that epoch (BM-DETR's released
                code).
            apart: (len(groups),) the video of each group, if a batch may hold no two groups of a video and
                must hold at least two groups; what is left over at the end is left out for that epoch.
            repeat: every epoch is this many times the first batch of epoch 0, with its random choices (each
                process has its own); None: all batches once.
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
        self.unique_video = unique_video
        self.apart = apart
        self.repeat = repeat
        self._resume_at: tuple[int, int] | None = None

    def __len__(self) -> int:
        """Returns the number of batches per epoch on this process; with `apart`, of the current epoch."""
        if self.repeat is not None:
            return self.repeat
        batches = -(-len(self.groups) // self.batch_size)
        if self.apart is not None:
            batches = len(self._chunks())
        if self.fixed_order:
            return len(range(self.rank, batches, self.num_replicas))
        return -(-batches // self.num_replicas)

    def __iter__(self) -> Iterator[RowBatch]:
        """Yields the batches of this process in the current epoch, from `start` on."""
        epoch = None if self.fixed_order else self._drawn
        for rows in self._batches()[self.start :]:
            yield RowBatch(epoch, rows)

    def resume_at(self, epoch: int, batch: int) -> None:
        """Makes the given epoch, and no other, start at batch number `batch`."""
        self.set_epoch(epoch)
        self._resume_at = (epoch, batch)

    @property
    def start(self) -> int:
        """Number of the first batch of the current epoch; not 0 after resuming within an epoch."""
        return self._resume_at[1] if self._resume_at and self._resume_at[0] == self.epoch else 0

    @property
    def _drawn(self) -> int:
        """The epoch whose random numbers are used."""
        return int(self.epoch) if self.repeat is None else 0

    def _batches(self) -> list[NDArray[np.int64]]:
        chunks = self._chunks()
        if not self.fixed_order:
            # DDP hangs unless every process has the same number of batches; evaluation does not synchronise.
            chunks += chunks[: -len(chunks) % self.num_replicas]
        mine = chunks[self.rank :: self.num_replicas]
        if self.repeat is not None:
            mine = mine[:1] * self.repeat
        return [self.rows_of(chunk) for chunk in mine]

    def _chunks(self) -> list[NDArray[np.int64]]:
        """Composes the batches of all processes, as numbers of groups."""
        order = np.arange(len(self.groups))
        if not self.fixed_order:
            rng = np.random.default_rng((self.seed, self._drawn, ORDER))
            pool = order // (self.batch_size * self.bucket_batches)
            order = rng.permutation(len(order))
            if self.bucket_batches > 1:
                order = order[np.lexsort((self.lengths[order], pool))]
        if self.apart is None:
            chunks = [order[i : i + self.batch_size] for i in range(0, len(order), self.batch_size)]
        else:
            chunks = _of_different_videos(order, self.apart, self.batch_size)
        return chunks if self.fixed_order else [chunks[i] for i in rng.permutation(len(chunks))]

    def rows_of(self, chunk: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns the rows of a batch, those left out that `unique_video` forbids.

        Args:
            chunk: numbers of its groups.
        """
        rows = np.concatenate([self.groups[i] for i in chunk])
        if self.unique_video is None:
            return rows
        _, first = np.unique(self.unique_video[rows], return_index=True)
        return rows[np.sort(first)]


def _of_different_videos(
    order: NDArray[np.int64], video: NDArray[np.int64], most: int
) -> list[NDArray[np.int64]]:
    """Cuts an order of groups into batches of two to `most` groups, no two of them of one video.

    A batch takes the first groups that it may hold; groups that are left over at the end are in none.
    """
    waiting = order.tolist()
    chunks: list[NDArray[np.int64]] = []
    while True:
        chunk: dict[int, int] = {}
        for group in waiting:
            if len(chunk) < most:
                chunk.setdefault(int(video[group]), group)
        if len(chunk) < 2:
            return chunks
        chunks.append(np.array(list(chunk.values()), np.int64))
        taken = set(chunk.values())
        waiting = [group for group in waiting if group not in taken]


class ResumableLoader(DataLoader[Any]):
    """A training loader that Lightning's checkpoints can resume within an epoch.

    Iteration is lazy: on resuming, Lightning requests an iterator before it calls `set_epoch`.
    """

    delivered = 0

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """Yields the batches of the epoch that is set when the first one is requested."""
        self.delivered = self._epoch_sampler.start
        for batch in super().__iter__():
            self.delivered += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Returns the epoch and the number of its batches delivered so far."""
        return {"epoch": self._epoch_sampler.epoch, "delivered": self.delivered}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Resumes where `state_dict` was taken."""
        self._epoch_sampler.resume_at(state["epoch"], state["delivered"])

    @property
    def _epoch_sampler(self) -> EpochBatchSampler:
        if not isinstance(self.sampler, EpochBatchSampler):
            raise VmrError(
                f"Expected the training loader's own batch sampler, found {type(self.sampler).__name__}. "
                "trainer.overfit_batches replaces it: use debug=overfit, which repeats one batch."
            )
        return self.sampler
