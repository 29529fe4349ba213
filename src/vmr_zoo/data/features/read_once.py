"""Sources that read each file once: the check before training keeps what it reads for the splits.

`FeatureSet.prepare` loads every array to check it, and a split that is held in memory needs the same arrays.
In between they are kept here, in the type in which the splits hold them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Generic, TypeVar

import torch

from vmr_zoo.data.annotations.records import Query, Split
from vmr_zoo.data.features.feature_set import FeatureSet
from vmr_zoo.data.features.source import QuerySource, VideoSource
from vmr_zoo.data.features.wrapped import WrappedQueries, WrappedVideos
from vmr_zoo.utils.arrays import Array

Key = TypeVar("Key")


def read_once(features: FeatureSet, splits: Iterable[Split], dtype: torch.dtype, budget: float) -> FeatureSet:
    """Wraps the video and the query sources of a feature set.

    A source that computes is left as it is: the check loads only a sample of it.

    Args:
        features: the features.
        splits: the splits that will be loaded after the check, each once.
        dtype: the type in which the splits hold features.
        budget: bytes that the clip features may take. If they take more, none is kept.

    Returns:
        The same features; each array is read once, and a kept array has the type `dtype`.
    """
    splits = list(splits)
    video, query = features.video, features.query
    if not video.computed:
        video_ids = Counter(video_id for split in splits for video_id in split.video_ids)
        video = _VideosReadOnce(video, _Kept(video_ids, dtype, budget))
    words = features.narration_query
    if not query.computed:
        query = _queries_read_once(query, splits, dtype)
    if words is not None and not words.computed:
        words = _queries_read_once(words, splits, dtype)
    return replace(features, video=video, query=query, narration_query=words)


def _queries_read_once(source: QuerySource, splits: Iterable[Split], dtype: torch.dtype) -> _QueriesReadOnce:
    queries = Counter(query for split in splits for query in split.queries)
    return _QueriesReadOnce(source, _Kept(queries, dtype, float("inf")))


class _Kept(Generic[Key]):
    """Arrays by key, dropped after the last use.

    Attributes:
        uses: the number of times that each array will be taken.
    """

    def __init__(self, uses: Counter[Key], dtype: torch.dtype, budget: float) -> None:
        self.uses = uses
        self._dtype = dtype
        self._budget = budget
        self._arrays: dict[Key, Array] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_arrays": {}}  # worker processes read what they need

    def take(self, key: Key) -> Array | None:
        """Returns an array if it was kept; the last use drops it."""
        array = self._arrays.get(key)
        if array is not None:
            self.uses[key] -= 1
            if not self.uses[key]:
                del self._arrays[key]
        return array

    def keep(self, key: Key, array: Array) -> None:
        """Keeps an array that will be used; drops all arrays if they exceed the budget."""
        if self._budget < 0 or not self.uses[key]:
            return
        self._budget -= array.size * self._dtype.itemsize
        if self._budget < 0:
            self._arrays.clear()
            return
        writeable = array if array.flags.writeable else array.copy()
        self._arrays[key] = torch.from_numpy(writeable).to(self._dtype).numpy()


class _VideosReadOnce(WrappedVideos):
    """Clip features, kept between the first load and the last split that needs them."""

    def __init__(self, source: VideoSource, kept: _Kept[str]) -> None:
        super().__init__(source)
        self._kept = kept
        self._lengths: dict[str, int] = {}

    def load(self, video_id: str) -> Array:
        kept = self._kept.take(video_id)
        if kept is not None:
            return kept
        clips = self.source.load(video_id)
        self._lengths[video_id] = len(clips)
        self._kept.keep(video_id, clips)
        return clips

    def length(self, video_id: str) -> int:
        known = self._lengths.get(video_id)
        return self.source.length(video_id) if known is None else known


class _QueriesReadOnce(WrappedQueries):
    """Token features, kept between the first load and the last split that needs them."""

    def __init__(self, source: QuerySource, kept: _Kept[Query]) -> None:
        super().__init__(source)
        self._kept = kept

    def load(self, query: Query) -> Array:
        kept = self._kept.take(query)
        if kept is not None:
            return kept
        tokens = self.source.load(query)
        self._kept.keep(query, tokens)
        return tokens
