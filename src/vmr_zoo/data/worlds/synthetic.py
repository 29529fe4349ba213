"""Random data with the sizes of a real data set, for `vmr bench`: no files to read, nothing to learn.

The time of a step depends on the numbers of clips, words and queries in a batch, not on their values: lengths
are drawn from quantiles of a real data set, features from a normal distribution.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vmr_zoo.data.annotations.records import HELD_OUT, Protocol, Query, Split
from vmr_zoo.data.features.source import NarrationSource, QuerySource, VideoSource
from vmr_zoo.utils.arrays import Array

_VOCABULARY = 1000
_FIRST_ID = 1000
"""Smallest token id; all are below MiniLM's 30,522 and above its special tokens."""


def protocol(
    train_videos: int,
    test_videos: int,
    durations: Sequence[float],
    words: Sequence[float],
    queries_per_video: Sequence[float] | int,
    moments_per_query: Sequence[float],
    moment_shares: Sequence[float],
    seed: int = 0,
) -> Protocol:
    """Draws videos, queries and moments.

    Args:
        train_videos: number of videos of the training split.
        test_videos: number of videos of the selection split, and of the test split.
        durations: evenly spaced quantiles in seconds; a single number is the length of every video.
        words: evenly spaced quantiles of the number of tokens of a query.
        queries_per_video: relative frequency of videos with 1, 2, … queries; or the number of each video.
        moments_per_query: relative frequency of queries with 1, 2, … moments.
        moment_shares: evenly spaced quantiles of moment length / video length.
        seed: seed of the draws.

    Returns:
        A protocol named "synthetic" with one test split.
    """
    draws = _Draws(
        np.random.default_rng(seed),
        # Converted once: lists of a configuration are slow to read.
        durations=np.asarray(durations, np.float64),
        words=np.asarray(words, np.float64),
        queries_per_video=(
            queries_per_video
            if isinstance(queries_per_video, int)
            else np.asarray(queries_per_video, np.float64)
        ),
        moments_per_query=np.asarray(moments_per_query, np.float64),
        moment_shares=np.asarray(moment_shares, np.float64),
    )
    return Protocol(
        "synthetic",
        draws.split("train", train_videos),
        draws.split("selection", test_videos),
        {"test": draws.split("test", test_videos)},
        HELD_OUT,
    )


@dataclass(frozen=True)
class _Draws:
    """Draws splits from the distributions that `protocol` takes."""

    rng: np.random.Generator
    durations: Array
    words: Array
    queries_per_video: Array | int
    moments_per_query: Array
    moment_shares: Array

    def split(self, name: str, videos: int) -> Split:
        """Draws a split with a number of videos."""
        queries = []
        for number in range(videos):
            duration = self._quantile(self.durations)
            for place in range(self._count(self.queries_per_video)):
                queries.append(
                    Query(
                        query_id=f"{name}_{number}_{place}",
                        video_id=f"{name}_{number}",
                        text=" ".join(["word"] * max(1, round(self._quantile(self.words)))),
                        moments=tuple(
                            sorted(self._moment(duration) for _ in range(self._count(self.moments_per_query)))
                        ),
                        duration=duration,
                    )
                )
        return Split(name, tuple(queries), source="random numbers")

    def _quantile(self, values: Array) -> float:
        return float(np.interp(self.rng.random(), np.linspace(0, 1, len(values)), values))

    def _count(self, frequencies: Array | int) -> int:
        if isinstance(frequencies, int):
            return frequencies
        return int(self.rng.choice(len(frequencies), p=frequencies / frequencies.sum())) + 1

    def _moment(self, duration: float) -> tuple[float, float]:
        length = duration * self._quantile(self.moment_shares)
        start = self.rng.random() * (duration - length)
        return start, start + length


def _generator(identifier: str) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(identifier.encode()))


def _durations(protocol: Protocol) -> dict[str, float]:
    return {query.video_id: query.duration for query in protocol.queries}


class RandomVideos(VideoSource):
    """Normally distributed clip features."""

    computed = True

    def __init__(self, dim: int, clip_seconds: float, patches: int | None = None) -> None:
        """Stores the sizes.

        Args:
            dim: size of a vector.
            clip_seconds: length of a clip.
            patches: vectors per clip; None: a clip is one vector.
        """
        self.dim = dim
        self.clip_seconds = clip_seconds
        self.patches = patches
        self._durations: dict[str, float] = {}

    def prepare(self, protocol: Protocol) -> None:
        """Stores the durations of the videos."""
        self._durations = _durations(protocol)

    def load(self, video_id: str) -> Array:
        """Returns (T, dim) or (T, patches, dim) float32."""
        clips = max(1, round(self._durations[video_id] / self.clip_seconds))
        shape = (clips, self.dim) if self.patches is None else (clips, self.patches, self.dim)
        return _generator(video_id).standard_normal(shape, np.float32)

    def manifest(self) -> dict[str, Any]:
        """Returns the sizes."""
        return {"backbone": "random", "dim": self.dim, "patches": self.patches}


class RandomQueries(QuerySource):
    """Normally distributed token features, random token ids, and every other word as noun chunk."""

    computed = True
    has_token_ids = True
    has_noun_masks = True

    def __init__(self, dim: int) -> None:
        """Stores the size of a token vector."""
        self.dim = dim

    def load(self, query: Query) -> Array:
        """Returns (L, dim) float32, one row per word."""
        return _generator(query.query_id).standard_normal((len(query.text.split()), self.dim), np.float32)

    def token_ids(self, query: Query) -> Array:
        """Returns (L,) int64."""
        count = len(query.text.split())
        return _FIRST_ID + _generator(query.query_id).integers(0, _VOCABULARY, count)

    def noun_mask(self, query: Query) -> Array:
        """Returns (L,) bool, every other word."""
        return np.arange(len(query.text.split())) % 2 == 0

    def manifest(self) -> dict[str, Any]:
        """Returns the size."""
        return {"backbone": "random", "dim": self.dim}


class RandomNarrations(NarrationSource):
    """A normally distributed sentence vector every few seconds."""

    computed = True

    def __init__(self, dim: int, every_seconds: float) -> None:
        """Stores the size of a sentence vector and the interval in seconds."""
        self.dim = dim
        self.every_seconds = every_seconds
        self._durations: dict[str, float] = {}

    def prepare(self, protocol: Protocol) -> None:
        """Stores the durations of the videos."""
        self._durations = _durations(protocol)

    def load(self, video_id: str) -> tuple[Array, Array]:
        """Returns (Ln, dim) float32 and (Ln, 2) float32 seconds, start equal to end."""
        times = np.arange(0, self._durations[video_id], self.every_seconds, dtype=np.float32)
        return (
            _generator(video_id).standard_normal((len(times), self.dim), np.float32),
            np.stack((times, times), 1),
        )

    def manifest(self) -> dict[str, Any]:
        """Returns the size and the interval."""
        return {"backbone": "random", "dim": self.dim, "every_seconds": self.every_seconds}
