"""From row numbers to a batch: a split held in memory, and everything that its batches hold."""

from __future__ import annotations

import contextlib
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from vmr_zoo.data.annotations.records import Query, Split
from vmr_zoo.data.batches import sampling
from vmr_zoo.data.batches.negatives import NegativePool, same_video_pairs
from vmr_zoo.data.batches.sampling import RowBatch
from vmr_zoo.data.batches.shifting import TemporalShift
from vmr_zoo.data.features.store import FeatureSet, VideoSource
from vmr_zoo.errors import VmrError, some
from vmr_zoo.types import Batch

RESIDENCIES = ("auto", "disk", "memory", "device")
"""Where the video features of a split lie while batches are made; see `hold`."""

_MANY = 1000
"""Queries whose loading takes long enough to be watched."""

_SHARE = 0.5
"""Of the memory that is free, how much a split's video features may take under "auto"."""


class Ragged:
    """Tensors of different length, padded a batch at a time.

    An array of the wanted type that may be written to is not copied, so what a feature source keeps in memory
    is not there twice.
    """

    def __init__(self, arrays: Iterable[NDArray[Any]], dtype: torch.dtype) -> None:
        """Takes the arrays.

        Args:
            arrays: (n_i, …) each, equal but for their length.
            dtype: what they are held as.
        """
        self.items = [
            torch.from_numpy(array if array.flags.writeable else array.copy()).to(dtype) for array in arrays
        ]
        self.lengths = torch.tensor([len(item) for item in self.items], dtype=torch.int64)

    def __len__(self) -> int:
        """Counts the tensors."""
        return len(self.items)

    def pad(self, rows: Sequence[int], longest: int | None = None) -> tuple[Tensor, Tensor]:
        """Stacks some of the tensors.

        Args:
            rows: which, B numbers.
            longest: pad to this length; None: to the longest of them, at least 1.

        Returns:
            (B, L, …) with zeros on padding, and the mask (B, L), True = valid.
        """
        lengths = self.lengths[rows]
        if longest is None:
            longest = max(1, int(lengths.max()))
        values = pad_sequence([self.items[row] for row in rows], batch_first=True)
        if values.shape[1] < longest:
            padding = values.new_zeros(values.shape[0], longest - values.shape[1], *values.shape[2:])
            values = torch.cat((values, padding), 1)
        return values, torch.arange(longest) < lengths[:, None]


class OnDisk:
    """Videos that are read anew for every batch, each once."""

    def __init__(
        self, load: Callable[[str], NDArray[Any]], ids: Sequence[str], lengths: Tensor, dtype: torch.dtype
    ) -> None:
        """Stores how to read.

        Args:
            load: returns (n_i, …) by id.
            ids: by row.
            lengths: (number of ids,) each n_i.
            dtype: what arrays are turned into.
        """
        self.load = load
        self.ids = ids
        self.lengths = lengths
        self.dtype = dtype

    def pad(self, rows: Sequence[int], longest: int | None = None) -> tuple[Tensor, Tensor]:
        """Does what `Ragged.pad` does."""
        place = {row: number for number, row in enumerate(dict.fromkeys(rows))}
        read = Ragged((self.load(self.ids[row]) for row in place), self.dtype)
        return read.pad([place[row] for row in rows], longest)


class OnDevice:
    """Tensors of different length as one tensor on a device, from which batches are gathered there."""

    def __init__(self, held: Ragged, device: torch.device | None = None) -> None:
        """Takes the tensors; they are moved when the first batch is made, when the process has its device.

        Args:
            held: the tensors.
            device: where to; None: the GPU of this process.
        """
        self.lengths = held.lengths
        self.first = held.lengths.cumsum(0) - held.lengths
        self.device = device
        self._waiting = held.items
        self._flat: Tensor | None = None

    def _moved(self) -> Tensor:
        if self._flat is None:
            device = self.device or torch.device("cuda", torch.cuda.current_device())
            rows, item = int(self.lengths.sum()), self._waiting[0]
            try:
                flat = torch.empty((rows, *item.shape[1:]), dtype=item.dtype, device=device)
            except torch.OutOfMemoryError as error:
                size = rows * item[0].numel() * item.element_size() / 1e9
                raise VmrError(
                    f"The video features of a split take {size:.1f} GB, more than is free on {device}. Set "
                    "data.residency=memory, or data.storage=float16."
                ) from error
            for part, one in zip(flat.split(self.lengths.tolist()), self._waiting, strict=True):
                part.copy_(one)
            self._flat, self._waiting = flat, []
        return self._flat

    def pad(self, rows: Sequence[int], longest: int | None = None) -> tuple[Tensor, Tensor]:
        """Does what `Ragged.pad` does, but leaves the values on the device; the mask is on the CPU."""
        flat, lengths = self._moved(), self.lengths[rows]
        if longest is None:
            longest = max(1, int(lengths.max()))
        place = torch.arange(longest)
        mask = place < lengths[:, None]
        index = (self.first[rows][:, None] + place).masked_fill(~mask, 0)
        values = flat[index.to(flat.device)]
        there = mask.to(flat.device).reshape(*mask.shape, *[1] * (values.ndim - 2))
        return values.masked_fill(~there, 0), mask


def hold(
    source: VideoSource, ids: Sequence[str], dtype: torch.dtype, residency: str, split: str, watched: bool
) -> Ragged | OnDisk | OnDevice:
    """Decides where a split's videos lie while batches are made; batches do not depend on it.

    Args:
        source: where they come from, prepared.
        ids: the videos.
        dtype: what they are held as.
        residency: "memory": read once and held. "device": the same, and moved to the GPU. "disk": read anew
            for every batch. "auto": in memory if they take no more than half of what is free, else on disk.
        split: its name, for the progress bar.
        watched: whether there is one.
    """
    budget = _SHARE * free_memory() if residency == "auto" else math.inf

    def read() -> Iterator[NDArray[Any]]:
        left = budget
        for video_id in track(ids, f"Loading {split} videos", transient=True, disable=not watched):
            array = source.load(video_id)
            left -= array.size * dtype.itemsize
            if left < 0:
                return
            yield array

    if residency != "disk":
        held = Ragged(read(), dtype)
        if len(held) == len(ids):
            return OnDevice(held) if residency == "device" else held
        del held
    measured = track(ids, f"Measuring {split} videos", transient=True, disable=not watched)
    lengths = torch.tensor([source.length(video_id) for video_id in measured], dtype=torch.int64)
    return OnDisk(source.load, ids, lengths, dtype)


def free_memory() -> float:
    """Returns the bytes of memory that are available; all there are where the system does not tell."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class TrainingChoices:
    """What is chosen anew in every epoch of training.

    Attributes:
        seed: of all choices.
        max_moments: a row with more moments takes a random subset of this size.
        negatives: where negative queries come from; None unless the method needs them.
        shift: how moments are shifted; None unless the method needs it.
    """

    seed: int
    max_moments: int
    negatives: NegativePool | None
    shift: TemporalShift | None


class SplitData(Dataset[Batch]):
    """A split and its features; indexed with a `RowBatch`, it answers with a whole batch.

    Evaluation (`training=None`) draws nothing and keeps every moment.
    """

    def __init__(
        self,
        split: Split,
        features: FeatureSet,
        needs: frozenset[str],
        *,
        training: TrainingChoices | None = None,
        word_ranks: Mapping[int, int] | None = None,
        storage: torch.dtype = torch.float32,
        residency: str = "memory",
        rated_clip_seconds: float = 2.0,
    ) -> None:
        """Loads the split.

        Args:
            split: what to serve.
            features: where its features come from, prepared.
            needs: the optional fields to serve.
            training: what is random; None in evaluation.
            word_ranks: place of each token id in the training split, by `frequency_ranks`; for "query_words".
            storage: type in which features are held; float16 halves the memory, batches are float32 all the
                same.
            residency: where video features lie, see `hold`.
            rated_clip_seconds: length of the clips that the annotators rated (QVHighlights: 2 s).

        Raises:
            VmrError: if a training query has no moment, or a source contradicts another.
        """
        queries = split.queries
        self.needs = needs
        self.training = training
        self.features = features
        self.query_ids = [query.query_id for query in queries]
        self.video_ids = split.video_ids
        if training is not None:
            unlabelled = [query.query_id for query in queries if not query.moments]
            if unlabelled:
                raise VmrError(
                    f"Training needs a moment for every query; split '{split.name}' has none for "
                    f"{some(unlabelled)}."
                )

        number = {video_id: i for i, video_id in enumerate(self.video_ids)}
        self.video_index = torch.tensor([number[query.video_id] for query in queries], dtype=torch.int64)
        self.video = hold(
            features.video, self.video_ids, storage, residency, split.name, watched=len(self) >= _MANY
        )
        self.query = Ragged(
            (
                features.query.load(query)
                for query in track(
                    queries, f"Loading {split.name} sentences", transient=True, disable=len(self) < _MANY
                )
            ),
            storage,
        )
        self.clips = self.video.lengths[self.video_index]
        self.duration = torch.tensor([query.duration for query in queries], dtype=torch.float64)
        self.clip_seconds = torch.tensor(
            [
                features.clip_length(query.duration, clips)
                for query, clips in zip(queries, self.clips.tolist(), strict=True)
            ],
            dtype=torch.float64,
        )
        self.moments = Ragged(
            (np.array(query.moments, np.float64).reshape(-1, 2) for query in queries), torch.float64
        )
        if "narration" in self.needs:
            self._load_narrations(features, storage)
        if self.needs & {"query_tokens", "query_words"}:
            self._read_tokens(queries, word_ranks)
        if "noun_mask" in self.needs:
            self.nouns = Ragged((features.query.noun_mask(query) for query in queries), torch.bool)
        if "sibling_queries" in self.needs:
            self._find_siblings()
        if "saliency" in self.needs:
            self.ratings = self._read_ratings(queries, rated_clip_seconds)
        self._drawn: tuple[int, dict[int, Tensor]] = (-1, {})

    def __len__(self) -> int:
        """Counts the queries."""
        return len(self.query_ids)

    def __getitem__(self, batch: RowBatch) -> Batch:
        """Builds one batch.

        Args:
            batch: which rows, and the epoch that their random choices belong to.

        Returns:
            The fields that `vmr_zoo.types.Batch` lists.
        """
        if not isinstance(batch, RowBatch):
            raise VmrError(
                f"A split is indexed by whole batches of rows, not by {batch!r}. trainer.overfit_batches "
                "replaces the batch sampler and does that: use trainer.limit_train_batches instead."
            )
        rows = torch.from_numpy(batch.rows)
        order = batch.rows.tolist()
        videos = self.video_index[rows]
        duration, clip_seconds = self.duration[rows], self.clip_seconds[rows]
        per_video = videos.tolist()
        video, video_mask = self.video.pad(per_video)
        query, query_mask = self.query.pad(order)
        all_moments, all_moments_mask = self.moments.pad(order)
        moments, moment_mask = all_moments, all_moments_mask
        if self.training is not None and moments.shape[1] > self.training.max_moments:
            moments, moment_mask = self._some_moments(moments, moment_mask, batch)

        def fractions(seconds: Tensor) -> Tensor:
            return (seconds / duration[:, None, None]).clamp(0, 1).float()

        built = Batch(
            video=video.float(),
            video_mask=video_mask,
            query=query.float(),
            query_mask=query_mask,
            spans=fractions(moments),
            span_mask=moment_mask,
            duration=duration.float(),
            clip_seconds=clip_seconds.float(),
            video_index=videos,
            query_id=[self.query_ids[row] for row in order],
            video_id=[self.video_ids[number] for number in per_video],
        )
        if "narration" in self.needs:
            narration, built["narration_mask"] = self.narration.pad(per_video)
            built["narration"] = narration.float()
            built["narration_spans"] = fractions(self.narration_seconds.pad(per_video)[0])
        if "patches" in self.needs:
            built["patches"] = self._patches(per_video, video_mask.shape[1])
        if "query_tokens" in self.needs:
            built["query_tokens"] = self.tokens.pad(order)[0]
        if "query_words" in self.needs:
            built["query_words"] = self.words.pad(order)[0]
        if "noun_mask" in self.needs:
            built["noun_mask"] = self.nouns.pad(order)[0]
        if "sibling_queries" in self.needs:
            siblings, mask = self.siblings.pad(order)
            built["sibling_query"] = self.sentence[siblings] * mask[..., None]
            built["sibling_mask"] = mask
            built["sibling_spans"] = fractions(self.hull[siblings] * mask[..., None])
        if "saliency" in self.needs:
            if self.ratings is None:
                built["saliency"], built["saliency_mask"] = _inside(
                    all_moments, all_moments_mask, clip_seconds, video_mask
                )
            else:
                ratings = self.ratings.pad(order, video_mask.shape[1])[0]
                built["saliency"], built["saliency_mask"] = ratings[..., 0], ratings[..., 1] > 0
        if "negative_query" in self.needs:
            built["negative_query"], built["negative_query_mask"] = self._negatives(batch)
        if "shift" in self.needs:
            assert self.training is not None
            assert self.training.shift is not None
            built["shift_order"], shifted = self.training.shift.draw(
                moments,
                moment_mask,
                self.clips[rows],
                clip_seconds,
                duration,
                self._draws(batch, sampling.SHIFT, len(self))[rows],
            )
            built["shifted_spans"] = fractions(shifted)
        return built

    def _draws(self, batch: RowBatch, stream: int, count: int) -> Tensor:
        """Returns the epoch's random numbers of one stream, drawn for the whole split at once."""
        assert self.training is not None
        if batch.epoch is None:
            raise VmrError("A training split was indexed without an epoch; use the training loader.")
        if self._drawn[0] != batch.epoch:
            self._drawn = (batch.epoch, {})
        streams = self._drawn[1]
        if stream not in streams:
            streams[stream] = torch.from_numpy(
                sampling.uniform(self.training.seed, batch.epoch, stream, count)
            )
        return streams[stream]

    def _some_moments(self, moments: Tensor, mask: Tensor, batch: RowBatch) -> tuple[Tensor, Tensor]:
        """Keeps a random subset, in the order of the annotation, of the rows that have too many moments."""
        assert self.training is not None
        lengths = self.moments.lengths
        draws = self._draws(batch, sampling.MOMENTS, int(lengths.sum()))
        starts = (lengths.cumsum(0) - lengths)[batch.rows]
        flat = (starts[:, None] + torch.arange(mask.shape[1])).clamp(max=len(draws) - 1)
        keys = draws[flat].masked_fill(~mask, 2.0)
        kept = keys.argsort(1)[:, : self.training.max_moments].sort(1).values
        return moments.gather(1, kept[..., None].expand(-1, -1, 2)), mask.gather(1, kept)

    def _negatives(self, batch: RowBatch) -> tuple[Tensor, Tensor]:
        assert self.training is not None
        assert self.training.negatives is not None
        rows = batch.rows
        chosen = self.training.negatives.draw(
            rows,
            self._draws(batch, sampling.NEGATIVE, len(self)).numpy()[rows],
            self._draws(batch, sampling.OTHER_VIDEO, len(self)).numpy()[rows],
        )
        there = torch.from_numpy(chosen >= 0)
        negative, mask = self.query.pad(np.maximum(chosen, 0).tolist())
        longest = max(1, int((mask & there[:, None]).sum(1).max()))
        negative, mask = negative[:, :longest], mask[:, :longest] & there[:, None]
        return negative.float() * mask[..., None], mask

    def _patches(self, videos: list[int], clips: int) -> Tensor:
        """Reads the batch's patches; a whole split's would not fit into memory."""
        source = self.features.patches
        assert source is not None
        loaded = Ragged(
            (source.load(self.video_ids[number]) for number in dict.fromkeys(videos)), torch.float32
        )
        place = {number: i for i, number in enumerate(dict.fromkeys(videos))}
        odd = [
            self.video_ids[number]
            for number, i in place.items()
            if loaded.lengths[i] != self.video.lengths[number]
        ]
        if odd:
            raise VmrError(
                "Expected as many clips of patch features as of video features, but "
                f"features={self.features.name} has different numbers for {some(odd)}."
            )
        return loaded.pad([place[number] for number in videos], clips)[0]

    def _load_narrations(self, features: FeatureSet, storage: torch.dtype) -> None:
        assert features.narration is not None
        loaded = [features.narration.load(video_id) for video_id in self.video_ids]
        self.narration = Ragged((vectors for vectors, _ in loaded), storage)
        self.narration_seconds = Ragged((times for _, times in loaded), torch.float64)

    def _read_tokens(self, queries: Sequence[Query], word_ranks: Mapping[int, int] | None) -> None:
        ids = [self.features.query.token_ids(query) for query in queries]
        self.tokens = Ragged(ids, torch.int64)
        odd = torch.nonzero(self.tokens.lengths != self.query.lengths)[:, 0].tolist()
        if odd:
            raise VmrError(
                f"Expected one token id per token vector, but features={self.features.name} has different "
                f"numbers for {some(self.query_ids[row] for row in odd)}."
            )
        if "query_words" in self.needs:
            assert word_ranks is not None
            new = len(word_ranks) + 1
            self.words = Ragged(
                (np.array([word_ranks.get(token, new) for token in one.tolist()], np.int64) for one in ids),
                torch.int64,
            )

    def _find_siblings(self) -> None:
        left, right = same_video_pairs(self.video_index.numpy())
        edges = np.searchsorted(left, np.arange(1, len(self)))
        self.siblings = Ragged(np.split(right, edges), torch.int64)
        self.sentence = torch.stack([item.float().mean(0) for item in self.query.items])
        # A sibling with several moments counts from its first start to its last end (as in MESM's code).
        self.hull = torch.stack(
            [
                torch.stack((item[:, 0].min(), item[:, 1].max())) if len(item) else item.new_zeros(2)
                for item in self.moments.items
            ]
        )

    def _read_ratings(self, queries: Sequence[Query], rated_clip_seconds: float) -> Ragged | None:
        """Returns (clips, 2) per row, summed rating and whether there is one; None if nothing was rated."""
        if not any(query.saliency for query in queries):
            return None
        rows = []
        for query, clips, seconds in zip(
            queries, self.clips.tolist(), self.clip_seconds.tolist(), strict=True
        ):
            rated = {clip: sum(ratings) for clip, ratings in query.saliency}
            table = np.zeros((max(rated, default=0) + 1, 2), np.float32)
            for clip, total in rated.items():
                table[clip] = total, 1
            # The rated clip in which the middle of our clip lies; the two have equal length on QVHighlights.
            source = np.floor((np.arange(clips) + 0.5) * seconds / rated_clip_seconds).astype(np.int64)
            known = (source < len(table))[:, None]
            rows.append(np.where(known, table[np.minimum(source, len(table) - 1)], 0).astype(np.float32))
        return Ragged(rows, torch.float32)


def frequency_ranks(ids: Iterable[NDArray[np.int64]]) -> dict[int, int]:
    """Finds the place of every token id among all of them by frequency.

    Args:
        ids: (L_i,) each.

    Returns:
        The place by id; the most frequent id is 1, a tie goes to the smaller id.
    """
    counts = Counter(token for one in ids for token in one.tolist())
    ordered = sorted(counts, key=lambda token: (-counts[token], token))
    return {token: place for place, token in enumerate(ordered, 1)}


def _inside(
    moments: Tensor, moment_mask: Tensor, clip_seconds: Tensor, video_mask: Tensor
) -> tuple[Tensor, Tensor]:
    """Rates the clips inside a moment 1: those whose middle lies in it, and the one that holds its middle.

    Args:
        moments: (B, N, 2) seconds.
        moment_mask: (B, N).
        clip_seconds: (B,).
        video_mask: (B, Lv).

    Returns:
        saliency (B, Lv) float32 and saliency_mask (B, Lv).
    """
    place = torch.arange(video_mask.shape[1])
    clips = moments / clip_seconds[:, None, None]
    middle = clips.mean(-1, keepdim=True).floor()
    inside = (place + 0.5 >= clips[..., :1]) & (place + 0.5 < clips[..., 1:])
    rated = ((inside | (place == middle)) & moment_mask[..., None]).any(1) & video_mask
    return rated.float(), rated
