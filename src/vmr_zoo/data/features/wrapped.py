"""Sources that serve what another source serves; a subclass overrides what it changes."""

# ruff: noqa: D102, the bases document the methods
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vmr_zoo.data.annotations.records import Protocol, Query
from vmr_zoo.data.features.problems import Problem
from vmr_zoo.data.features.source import NarrationSource, QuerySource, VideoSource
from vmr_zoo.data.text.lost_words import LostWords
from vmr_zoo.utils.arrays import Array


class WrappedVideos(VideoSource):
    """Clip features that are those of another source, except where a subclass changes them."""

    def __init__(self, source: VideoSource) -> None:
        """Stores the other source."""
        self.source = source
        self.dim, self.computed = source.dim, source.computed
        self.max_clips, self.encodes = source.max_clips, source.encodes
        self.content = source.content

    def prepare(self, protocol: Protocol) -> None:
        self.source.prepare(protocol)

    def manifest(self) -> dict[str, Any]:
        return self.source.manifest()

    def encode(self, path: Path) -> Array:
        return self.source.encode(path)

    def encoding(self) -> dict[str, Any]:
        return self.source.encoding()

    def load(self, video_id: str) -> Array:
        return self.source.load(video_id)

    def length(self, video_id: str) -> int:
        return self.source.length(video_id)

    def state(self, video_id: str) -> list[int]:
        return self.source.state(video_id)

    def missing(self, video_ids: Sequence[str]) -> list[Problem]:
        return self.source.missing(video_ids)

    def uneven(self, video_ids: Sequence[str]) -> list[Problem]:
        return self.source.uneven(video_ids)


class WrappedQueries(QuerySource):
    """Token features that are those of another source, except where a subclass changes them.

    A subclass that asks for other sentences overrides `_of` alone.
    """

    def __init__(self, source: QuerySource) -> None:
        """Stores the other source."""
        self.source = source
        self.dim, self.computed, self.encodes = source.dim, source.computed, source.encodes
        self.has_token_ids, self.has_noun_masks = source.has_token_ids, source.has_noun_masks
        self.sentence_dim = source.sentence_dim

    def _of(self, query: Query) -> Query:
        """Returns the query that the other source gets."""
        return query

    @property
    def end_ids(self) -> tuple[int, ...]:  # type: ignore[override]
        return self.source.end_ids

    def prepare(self, protocol: Protocol) -> None:
        self.source.prepare(protocol)

    def manifest(self) -> dict[str, Any]:
        return self.source.manifest()

    def encode(self, texts: Sequence[str]) -> None:
        self.source.encode(texts)

    def load(self, query: Query) -> Array:
        return self.source.load(self._of(query))

    def noun_mask(self, query: Query) -> Array:
        return self.source.noun_mask(self._of(query))

    def token_ids(self, query: Query) -> Array:
        return self.source.token_ids(self._of(query))

    def sentence(self, query: Query) -> Array:
        return self.source.sentence(self._of(query))

    def token_text(self, query: Query) -> list[str]:
        return self.source.token_text(self._of(query))

    def listed_id(self, token: str) -> int | None:
        return self.source.listed_id(token)

    def lost_words(self, sentences: Sequence[str]) -> LostWords | None:
        return self.source.lost_words(sentences)

    def missing(self, queries: Sequence[Query]) -> list[Problem]:
        return self.source.missing([self._of(query) for query in queries])


class WrappedNarrations(NarrationSource):
    """Narrations that are those of another source, except where a subclass changes them."""

    def __init__(self, source: NarrationSource) -> None:
        """Stores the other source."""
        self.source = source
        self.dim, self.computed = source.dim, source.computed

    def prepare(self, protocol: Protocol) -> None:
        self.source.prepare(protocol)

    def manifest(self) -> dict[str, Any]:
        return self.source.manifest()

    def load(self, video_id: str) -> tuple[Array, Array]:
        return self.source.load(video_id)

    def texts(self, video_id: str) -> list[str]:
        return self.source.texts(video_id)

    def lost_words(self, video_ids: Sequence[str]) -> LostWords | None:
        return self.source.lost_words(video_ids)

    def missing(self, video_ids: Sequence[str]) -> list[Problem]:
        return self.source.missing(video_ids)
