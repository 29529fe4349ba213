"""The interfaces of feature sources: clips by video, tokens by query, narrations by video.

A source is lazy (it reads in `load`) and deterministic. It never replaces missing features by zeros: `load`
raises a `FeatureError`, and `missing` reports absent ids before training starts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vmr_zoo.data.annotations.records import Protocol, Query
from vmr_zoo.data.features.problems import Problem
from vmr_zoo.data.text.lost_words import LostWords
from vmr_zoo.errors import VmrError
from vmr_zoo.utils.arrays import Array


class FeatureSource(ABC):
    """Base of all feature sources."""

    dim: int
    """Size of one vector."""

    computed: bool = False
    """Whether `load` computes instead of reading files; a full check then tests a sample only."""

    def prepare(self, protocol: Protocol) -> None:  # noqa: B027, most sources have nothing to prepare
        """Generates, embeds or indexes what `load` needs; called once, before the first `load`."""

    @abstractmethod
    def manifest(self) -> dict[str, Any]:
        """Returns a JSON-able description; two sources with equal manifests are interchangeable."""


class VideoSource(FeatureSource):
    """Clip features by video id: (T, dim), or (T, P, dim) for patch features."""

    max_clips: int | None = None
    """Longest video in clips; None: no limit."""

    encodes: bool = False
    """Whether `encode` works."""

    content: str = ""
    """Which features these are, if the name of the configuration does not say it; joins that name."""

    def encode(self, path: Path) -> Array:
        """Computes for any video file the (T, dim) float32 that `load` would return for it."""
        raise VmrError(f"{type(self).__name__} reads features that were made elsewhere; it cannot make any.")

    def encoding(self) -> dict[str, Any]:
        """Returns a JSON-able description of everything that determines `encode`."""
        return self.manifest()

    @abstractmethod
    def load(self, video_id: str) -> Array:
        """Returns (T, dim) float32, or (T, P, dim) for patch features."""

    def length(self, video_id: str) -> int:
        """Returns T."""
        return len(self.load(video_id))

    def state(self, video_id: str) -> list[int]:
        """Returns what changes when a file of a video is replaced; empty without a file or if one is gone."""
        return []

    def missing(self, video_ids: Sequence[str]) -> list[Problem]:
        """Finds videos without features; opens no feature file."""
        return []

    def uneven(self, video_ids: Sequence[str]) -> list[Problem]:
        """Finds videos whose parts have different numbers of clips; reads their files."""
        return []


class QuerySource(FeatureSource):
    """Token features by query: (L, dim)."""

    encodes: bool = False
    """Whether `load` works for any sentence, not only for stored ones."""

    def encode(self, texts: Sequence[str]) -> None:
        """Computes in one batch what `load` would compute sentence by sentence."""

    has_token_ids: bool = False
    """Whether `token_ids` works; the source then serves the need "query_tokens"."""

    has_noun_masks: bool = False
    """Whether `noun_mask` works; the source then serves the need "noun_mask"."""

    @abstractmethod
    def load(self, query: Query) -> Array:
        """Returns (L, dim) float32."""

    def noun_mask(self, query: Query) -> Array:
        """Returns (L,) bool, which rows of `load` belong to a noun chunk."""
        raise VmrError(f"{type(self).__name__} has no noun chunks. Choose features/query=minilm.")

    def token_ids(self, query: Query) -> Array:
        """Returns (L,) int64 tokenizer ids, one per row of `load`."""
        raise VmrError(f"{type(self).__name__} has no token ids. Choose features/query=minilm or =glove.")

    sentence_dim: int | None = None
    """Size of `sentence`; None if there is none."""

    def sentence(self, query: Query) -> Array:
        """Returns (sentence_dim,) float32, one vector for the whole sentence, not normalised."""
        raise VmrError(f"{type(self).__name__} has no sentence vectors. Choose features/query=clip.")

    end_ids: tuple[int, ...] = ()
    """Ids of the start and the end token, if `load` has rows for them."""

    def token_text(self, query: Query) -> list[str]:
        """Returns L texts, the word or part of a word of each row of `load`; "" for start and end."""
        raise VmrError(f"{type(self).__name__} has no words. Choose features/query=minilm, =clip or =glove.")

    def listed_id(self, token: str) -> int | None:
        """Returns the id of a token as a file of counts writes it; None if the source has no such token."""
        raise VmrError(f"{type(self).__name__} has no token ids. Choose features/query=clip or =glove.")

    def lost_words(self, sentences: Sequence[str]) -> LostWords | None:
        """Counts the words of sentences that `load` leaves out; None if that is unknown (stored files)."""
        return None

    def missing(self, queries: Sequence[Query]) -> list[Problem]:
        """Finds queries without features; opens no feature file."""
        return []


class NarrationSource(FeatureSource):
    """Narrations by video id: one vector per sentence, and its time span."""

    @abstractmethod
    def load(self, video_id: str) -> tuple[Array, Array]:
        """Returns (Ln, dim) float32 vectors and (Ln, 2) float32 start and end in seconds."""

    def texts(self, video_id: str) -> list[str]:
        """Returns Ln sentences, one per row of `load`; empty if they are unknown (stored vectors)."""
        return []

    def lost_words(self, video_ids: Sequence[str]) -> LostWords | None:
        """Counts the words of the videos' narrations that `load` leaves out; None where that is not known."""
        return None

    def missing(self, video_ids: Sequence[str]) -> list[Problem]:
        """Finds videos without narrations; fast."""
        return []
