"""Builds batches from row numbers: one split, its features, and every field of the batch contract."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from vmr_zoo.data.annotations.records import Query, Split
from vmr_zoo.data.batches import sampling
from vmr_zoo.data.batches.negatives import NegativePool, same_video_pairs
from vmr_zoo.data.batches.residency import MANY, Ragged, load_videos
from vmr_zoo.data.batches.sampling import RowBatch
from vmr_zoo.data.batches.shifting import TemporalShift
from vmr_zoo.data.features.feature_set import FeatureSet
from vmr_zoo.data.text.tagging import ContentWords
from vmr_zoo.errors import VmrError, abbreviate
from vmr_zoo.types import Batch
from vmr_zoo.utils.console import progress

UNSEEN = 2**31 - 1
"""Rank of a token that the training split lacks: outside every vocabulary."""


@dataclass(frozen=True)
class Choices:
    """What a split draws at random.

    Attributes:
        seed: seed of all draws.
        negatives: where negative queries come from; None unless they are served.
        shift: how moments are shifted; None unless the method needs it.
        max_moments: a row with more moments keeps a random subset of this size; None: all.
        every_epoch: whether every training epoch draws again; False: the same draws always, for evaluation.
    """

    seed: int
    negatives: NegativePool | None = None
    shift: TemporalShift | None = None
    max_moments: int | None = None
    every_epoch: bool = True


class _Rows(NamedTuple):
    """The rows of one batch, and what several fields are computed from.

    Attributes:
        batch: rows and epoch.
        order: the rows as a list.
        videos: index of each row's video.
        video_mask: (B, Lv).
        clips: (B,) number of clips.
        duration: (B,) float64 seconds.
        clip_seconds: (B,) float64.
        all_moments: (B, N, 2) float64 seconds.
        all_moments_mask: (B, N).
        moments: (B, N', 2) float64 seconds, at most `max_moments` per row in training.
        moment_mask: (B, N').
    """

    batch: RowBatch
    order: list[int]
    videos: list[int]
    video_mask: Tensor
    clips: Tensor
    duration: Tensor
    clip_seconds: Tensor
    all_moments: Tensor
    all_moments_mask: Tensor
    moments: Tensor
    moment_mask: Tensor

    def fractions(self, seconds: Tensor) -> Tensor:
        """Converts seconds (B, …, …) to float32 fractions of the duration."""
        return (seconds / self.duration[:, None, None]).float()


class SplitDataset(Dataset[Batch]):
    """A split and its features; indexing it with a `RowBatch` returns a whole batch.

    Evaluation (`choices=None`) draws nothing and keeps every moment.
    """

    def __init__(
        self,
        split: Split,
        features: FeatureSet,
        needs: frozenset[str],
        *,
        choices: Choices | None = None,
        word_ranks: Mapping[int, int] | None = None,
        content_words: ContentWords | None = None,
        storage: torch.dtype = torch.float32,
        residency: str = "memory",
        rated_clip_seconds: float = 2.0,
        rated_past_end: str = "dropped",
    ) -> None:
        """Loads the split.

        Args:
            split: the queries.
            features: their features, prepared.
            needs: optional fields to serve.
            choices: what is random; None: nothing.
            word_ranks: frequency rank of each token id in the training split, for "query_words".
            content_words: finds the words that carry content, for "word_weights".
            storage: type in which features are held; batches are float32.
            residency: where video features reside, "disk", "memory", "device" or "auto".
            rated_clip_seconds: length of the clips that the annotators rated.
            rated_past_end: what is done with ratings of clips that a video lacks, "dropped" or "kept".

        Raises:
            VmrError: if a training query has no moment, or two sources contradict each other.
        """
        self.needs = needs
        self.choices = choices
        self.features = features
        self.query_ids = [query.query_id for query in split.queries]
        self.video_ids = tuple(dict.fromkeys(query.video_id for query in split.queries))
        if choices is not None and choices.every_epoch:
            _check_labelled(split)
        self._load_required(split, storage, residency)
        if "narration" in needs:
            self._load_narrations(storage)
        if "narration_query" in needs:
            assert features.narration_query is not None
            self.narration_query = Ragged(map(features.narration_query.load, split.queries), storage)
        if needs & {"query_tokens", "query_words"}:
            self._load_tokens(split.queries, word_ranks)
        if "word_weights" in needs:
            assert content_words is not None
            self.weights = Ragged(self._word_weights(split.queries, content_words), torch.float32)
        if "noun_mask" in needs:
            self.nouns = Ragged((features.query.noun_mask(query) for query in split.queries), torch.bool)
        if "sentence" in needs:
            self.sentences = torch.stack(
                [torch.from_numpy(features.query.sentence(query)) for query in split.queries]
            )
        if "sibling_queries" in needs:
            self._find_siblings()
        if "saliency" in needs:
            self.ratings = self._load_ratings(split.queries, rated_clip_seconds, rated_past_end == "kept")
        self._drawn: tuple[int, dict[int, Tensor]] = (-1, {})

    def __len__(self) -> int:
        """Returns the number of queries."""
        return len(self.query_ids)

    def __getitem__(self, batch: RowBatch) -> Batch:
        """Builds one batch.

        Args:
            batch: the rows, and the epoch of their random choices.

        Returns:
            The fields documented in `vmr_zoo.types.Batch`.
        """
        if not isinstance(batch, RowBatch):
            raise VmrError(
                f"Expected a whole batch of rows as the index of a split, found {batch!r}. "
                "trainer.overfit_batches replaces the batch sampler and causes this: use debug=overfit."
            )
        index = torch.from_numpy(batch.rows)
        order = batch.rows.tolist()
        video_index = self.video_index[index]
        videos = video_index.tolist()
        video, video_mask = self.video.pad(videos)
        query, query_mask = self.query.pad(order)
        all_moments, all_mask = self.moments.pad(order)
        moments, moment_mask = all_moments, all_mask
        most = None if self.choices is None else self.choices.max_moments
        if most is not None and moments.shape[1] > most:
            moments, moment_mask = self._subset_of_moments(moments, moment_mask, batch, most)
        duration, clip_seconds = self.duration[index], self.clip_seconds[index]
        rows = _Rows(
            batch,
            order,
            videos,
            video_mask,
            self.clips[index],
            duration,
            clip_seconds,
            all_moments,
            all_mask,
            moments,
            moment_mask,
        )
        built = Batch(
            video=video.float(),
            video_mask=video_mask,
            query=query.float(),
            query_mask=query_mask,
            spans=rows.fractions(moments),
            span_mask=moment_mask,
            duration=duration.float(),
            clip_seconds=clip_seconds.float(),
            video_index=video_index,
            query_id=[self.query_ids[row] for row in order],
            video_id=[self.video_ids[number] for number in videos],
        )
        self._add_optional_fields(built, rows)
        return built

    # --- loading

    def _load_required(self, split: Split, storage: torch.dtype, residency: str) -> None:
        """Loads what every batch holds."""
        queries, features = split.queries, self.features
        number = {video_id: i for i, video_id in enumerate(self.video_ids)}
        self.video_index = torch.tensor([number[query.video_id] for query in queries], dtype=torch.int64)
        self.video = load_videos(features.video, self.video_ids, storage, residency, split.name)
        sentences = progress(queries, f"Loading {split.name} sentences", MANY)
        self.query = Ragged((features.query.load(query) for query in sentences), storage)
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

    def _load_narrations(self, storage: torch.dtype) -> None:
        source = self.features.narration
        assert source is not None
        loaded = [source.load(video_id) for video_id in self.video_ids]
        self.narration = Ragged((vectors for vectors, _ in loaded), storage)
        self.narration_seconds = Ragged((times for _, times in loaded), torch.float64)

    def _load_tokens(self, queries: Sequence[Query], word_ranks: Mapping[int, int] | None) -> None:
        ids = [self.features.query.token_ids(query) for query in queries]
        self.tokens = Ragged(ids, torch.int64)
        differing = torch.nonzero(self.tokens.lengths != self.query.lengths)[:, 0].tolist()
        if differing:
            raise VmrError(
                f"Expected one token id per token vector, but features={self.features.name} has different "
                f"numbers for {abbreviate(self.query_ids[row] for row in differing)}."
            )
        if "query_words" in self.needs:
            assert word_ranks is not None
            ranks = {**word_ranks, **dict(zip(self.features.query.end_ids, (-1, -2), strict=False))}
            self.words = Ragged(
                (np.array([ranks.get(token, UNSEEN) for token in one.tolist()], np.int64) for one in ids),
                torch.int64,
            )

    def _word_weights(
        self, queries: Sequence[Query], content_words: ContentWords
    ) -> Iterator[NDArray[np.float32]]:
        """Yields (L,) weights of the words of each sentence, 0 for its start and its end."""
        for query in queries:
            words = self.features.query.token_text(query)
            marks = iter(content_words.marks([word for word in words if word]))
            yield np.array([1 + next(marks) if word else 0 for word in words], np.float32)

    def _find_siblings(self) -> None:
        left, right = same_video_pairs(self.video_index.numpy())
        edges = np.searchsorted(left, np.arange(1, len(self)))
        self.siblings = Ragged(np.split(right, edges), torch.int64)
        self.mean_query = torch.stack([item.float().mean(0) for item in self.query.items])

    def _load_ratings(
        self, queries: Sequence[Query], rated_clip_seconds: float, past_end: bool
    ) -> Ragged | None:
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
            if past_end:
                clips = max(clips, int(len(table) * rated_clip_seconds / seconds))
            # The rated clip that contains the midpoint of ours; on QVHighlights both have equal lengths.
            source = np.floor((np.arange(clips) + 0.5) * seconds / rated_clip_seconds).astype(np.int64)
            known = (source < len(table))[:, None]
            rows.append(np.where(known, table[np.minimum(source, len(table) - 1)], 0).astype(np.float32))
        return Ragged(rows, torch.float32)

    # --- optional fields of a batch

    def _add_optional_fields(self, built: Batch, rows: _Rows) -> None:
        """Adds the fields of `needs`."""
        serve: dict[str, Callable[[_Rows], Batch]] = {
            "narration": self._narration_fields,
            "narration_query": self._narration_query_fields,
            "patches": self._patch_fields,
            "query_tokens": lambda rows: Batch(query_tokens=self.tokens.pad(rows.order)[0]),
            "query_words": lambda rows: Batch(query_words=self.words.pad(rows.order)[0]),
            "word_weights": lambda rows: Batch(word_weights=self.weights.pad(rows.order)[0]),
            "noun_mask": lambda rows: Batch(noun_mask=self.nouns.pad(rows.order)[0]),
            "sentence": lambda rows: Batch(sentence=self.sentences[rows.order]),
            "sibling_queries": self._sibling_fields,
            "saliency": self._saliency_fields,
            "moment_clips": self._moment_clip_fields,
            "all_spans": self._all_span_fields,
            "negative_query": self._negative_fields,
            "shift": self._shift_fields,
        }
        for need, fields in serve.items():
            if need in self.needs:
                built.update(fields(rows))

    def _narration_fields(self, rows: _Rows) -> Batch:
        narration, mask = self.narration.pad(rows.videos)
        seconds = self.narration_seconds.pad(rows.videos)[0]
        spans = rows.fractions(seconds).clamp(0, 1)
        return Batch(narration=narration.float(), narration_mask=mask, narration_spans=spans)

    def _narration_query_fields(self, rows: _Rows) -> Batch:
        words, mask = self.narration_query.pad(rows.order)
        return Batch(narration_query=words.float(), narration_query_mask=mask)

    def _patch_fields(self, rows: _Rows) -> Batch:
        """Reads the patches of the batch; those of a whole split would not fit into memory."""
        load = self.features.load_patches
        position = {number: i for i, number in enumerate(dict.fromkeys(rows.videos))}
        loaded = Ragged((load(self.video_ids[number]) for number in position), torch.float32)
        differing = [
            self.video_ids[number]
            for number, i in position.items()
            if loaded.lengths[i] != self.video.lengths[number]
        ]
        if differing:
            raise VmrError(
                "Expected as many clips of patch features as of video features, but "
                f"features={self.features.name} has different numbers for {abbreviate(differing)}."
            )
        clips = rows.video_mask.shape[1]
        return Batch(patches=loaded.pad([position[number] for number in rows.videos], clips)[0])

    def _sibling_fields(self, rows: _Rows) -> Batch:
        siblings, mask = self.siblings.pad(rows.order)
        return Batch(sibling_query=self.mean_query[siblings] * mask[..., None], sibling_mask=mask)

    def _saliency_fields(self, rows: _Rows) -> Batch:
        if self.ratings is None:
            rated = clips_by_midpoint(
                rows.all_moments, rows.all_moments_mask, rows.clip_seconds, rows.video_mask
            )
            return Batch(saliency=rated.float(), saliency_mask=rated)
        ratings = self.ratings.pad(rows.order, rows.video_mask.shape[1])[0]
        return Batch(saliency=ratings[..., 0], saliency_mask=ratings[..., 1] > 0)

    def _moment_clip_fields(self, rows: _Rows) -> Batch:
        if self.features.clip_seconds is None:
            # Which of two clips a boundary between them is in depends on the order of the operations.
            edges = rows.all_moments / rows.duration[:, None, None] * rows.clips[:, None, None]
        else:
            edges = rows.all_moments / rows.clip_seconds[:, None, None]
        last = torch.minimum(edges[..., 1:].floor(), rows.clips[:, None, None] - 1)
        first = torch.minimum(edges[..., :1].floor(), last)
        place = torch.arange(rows.video_mask.shape[1])
        inside = (place >= first) & (place <= last) & rows.all_moments_mask[..., None]
        return Batch(moment_clips=inside.any(1))

    def _all_span_fields(self, rows: _Rows) -> Batch:
        return Batch(all_spans=rows.fractions(rows.all_moments), all_span_mask=rows.all_moments_mask)

    def _negative_fields(self, rows: _Rows) -> Batch:
        assert self.choices is not None
        assert self.choices.negatives is not None
        batch = rows.batch
        chosen = self.choices.negatives.draw(
            batch.rows,
            self._draws(batch, sampling.NEGATIVE, len(self)).numpy()[batch.rows],
            self._draws(batch, sampling.OTHER_VIDEO, len(self)).numpy()[batch.rows],
        )
        found = torch.from_numpy(chosen >= 0)
        negative, mask = self.query.pad(np.maximum(chosen, 0).tolist())
        longest = max(1, int((mask & found[:, None]).sum(1).max()))
        negative, mask = negative[:, :longest], mask[:, :longest] & found[:, None]
        return Batch(negative_query=negative.float() * mask[..., None], negative_query_mask=mask)

    def _shift_fields(self, rows: _Rows) -> Batch:
        assert self.choices is not None
        assert self.choices.shift is not None
        index = rows.batch.rows
        order, shifted = self.choices.shift.draw(
            rows.moments,
            rows.moment_mask,
            self.clips[index],
            rows.clip_seconds,
            rows.duration,
            self._draws(rows.batch, sampling.SHIFT, len(self))[index],
        )
        return Batch(shift_order=order, shifted_spans=rows.fractions(shifted))

    # --- random choices

    def fix_draws(self, epoch: int, numbers: Mapping[int, Tensor]) -> None:
        """Replaces random numbers of an epoch, to repeat choices that are on record.

        Args:
            epoch: the epoch; holds until a batch of another one is built.
            numbers: (rows,) float64 in [0, 1) by stream, `sampling.NEGATIVE` and so on.
        """
        self._drawn = (epoch, dict(numbers))

    def _draws(self, batch: RowBatch, stream: int, count: int) -> Tensor:
        """Returns the epoch's random numbers of one stream, drawn for the whole split at once."""
        assert self.choices is not None
        epoch = batch.epoch if self.choices.every_epoch else 0
        if epoch is None:
            raise VmrError("A training split was indexed without an epoch. Use the training loader.")
        if self._drawn[0] != epoch:
            self._drawn = (epoch, {})
        streams = self._drawn[1]
        if stream not in streams:
            streams[stream] = torch.from_numpy(sampling.uniform(self.choices.seed, epoch, stream, count))
        return streams[stream]

    def _subset_of_moments(
        self, moments: Tensor, mask: Tensor, batch: RowBatch, most: int
    ) -> tuple[Tensor, Tensor]:
        """Keeps at most `most` random moments per row, in the order of the annotation."""
        lengths = self.moments.lengths
        draws = self._draws(batch, sampling.MOMENTS, int(lengths.sum()))
        starts = (lengths.cumsum(0) - lengths)[batch.rows]
        flat = (starts[:, None] + torch.arange(mask.shape[1])).clamp(max=len(draws) - 1)
        keys = draws[flat].masked_fill(~mask, 2.0)
        kept = keys.argsort(1)[:, :most].sort(1).values
        return moments.gather(1, kept[..., None].expand(-1, -1, 2)), mask.gather(1, kept)


def clips_by_midpoint(
    moments: Tensor, moment_mask: Tensor, clip_seconds: Tensor, video_mask: Tensor
) -> Tensor:
    """Marks the clips whose midpoint is inside a moment, and the clip that contains a moment's midpoint.

    These clips count as rated 1 in data without ratings. Methods mark clips by another rule (`clips_inside`,
    from released code), which rounds the ends of a moment to whole clips.

    Args:
        moments: (B, N, 2) seconds.
        moment_mask: (B, N).
        clip_seconds: (B,).
        video_mask: (B, Lv).

    Returns:
        (B, Lv) bool, False on padding.
    """
    place = torch.arange(video_mask.shape[1])
    clips = moments / clip_seconds[:, None, None]
    middle = clips.mean(-1, keepdim=True).floor()
    inside = (place + 0.5 >= clips[..., :1]) & (place + 0.5 < clips[..., 1:])
    return ((inside | (place == middle)) & moment_mask[..., None]).any(1) & video_mask


def _check_labelled(split: Split) -> None:
    unlabelled = [query.query_id for query in split.queries if not query.moments]
    if unlabelled:
        raise VmrError(
            f"Training needs a moment for every query; split '{split.name}' has none for "
            f"{abbreviate(unlabelled)}."
        )
