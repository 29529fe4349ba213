"""Random numbers in the sizes of a real data set, for `vmr bench`: nothing is read or can be learnt.

What a step costs depends on how many clips, words and queries a batch holds, not on their values. So lengths
are drawn from the quantiles of a real data set, and features from a normal distribution.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from vmr_zoo.data.annotations.records import HELD_OUT, Protocol, Query, Split
from vmr_zoo.data.features.store import Array, NarrationSource, QuerySource, VideoSource

_VOCABULARY = 1000
_FIRST_ID = 1000
"""Token ids lie from here on, below MiniLM's 30,522, above its special ones."""


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
        train_videos: videos of the training split.
        test_videos: videos of the selection split and of the test split, each.
        durations: seconds, evenly spaced quantiles; a single number is the length of every video.
        words: tokens of a query, likewise.
        queries_per_video: relative frequency of videos with 1, 2, … queries; a number: each has so many.
        moments_per_query: relative frequency of queries with 1, 2, … moments.
        moment_shares: length of a moment as a share of the video, quantiles.
        seed: of the draw.

    Returns:
        A protocol named "synthetic" with one test split.
    """
    rng = np.random.default_rng(seed)
    # As arrays, once: lists of a configuration are slow to read.
    lengths, tokens, shares = (np.asarray(values, np.float64) for values in (durations, words, moment_shares))
    siblings = (
        queries_per_video if isinstance(queries_per_video, int) else np.asarray(queries_per_video, np.float64)
    )
    windows = np.asarray(moments_per_query, np.float64)

    def from_quantiles(values: Array) -> float:
        return float(np.interp(rng.random(), np.linspace(0, 1, len(values)), values))

    def count(frequencies: Array | int) -> int:
        if isinstance(frequencies, int):
            return frequencies
        return int(rng.choice(len(frequencies), p=frequencies / frequencies.sum())) + 1

    def moment(duration: float) -> tuple[float, float]:
        length = duration * from_quantiles(shares)
        start = rng.random() * (duration - length)
        return start, start + length

    def split(name: str, videos: int) -> Split:
        queries = []
        for number in range(videos):
            duration = from_quantiles(lengths)
            for place in range(count(siblings)):
                queries.append(
                    Query(
                        query_id=f"{name}_{number}_{place}",
                        video_id=f"{name}_{number}",
                        text=" ".join(["word"] * max(1, round(from_quantiles(tokens)))),
                        moments=tuple(sorted(moment(duration) for _ in range(count(windows)))),
                        duration=duration,
                    )
                )
        return Split(name, tuple(queries), source="random numbers")

    return Protocol(
        "synthetic",
        split("train", train_videos),
        split("selection", test_videos),
        {"test": split("test", test_videos)},
        HELD_OUT,
    )


def _generator(identifier: str) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(identifier.encode()))


def _durations(protocol: Protocol) -> dict[str, float]:
    return {query.video_id: query.duration for split in protocol.splits.values() for query in split.queries}


class RandomVideos(VideoSource):
    """Clips of normal numbers."""

    computed = True

    def __init__(self, dim: int, clip_seconds: float, patches: int | None = None) -> None:
        """Stores the sizes.

        Args:
            dim: of a clip's vector.
            clip_seconds: seconds that a clip covers.
            patches: vectors in a clip; None: a clip is one vector.
        """
        self.dim = dim
        self.clip_seconds = clip_seconds
        self.patches = patches
        self._durations: dict[str, float] = {}

    def prepare(self, protocol: Protocol) -> None:
        """Notes how long the videos are."""
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
    """Words of normal numbers, with ids and noun chunks drawn likewise."""

    computed = True
    has_token_ids = True
    has_noun_masks = True

    def __init__(self, dim: int) -> None:
        """Stores the size of a token's vector."""
        self.dim = dim

    def load(self, query: Query) -> Array:
        """Returns (L, dim) float32, a row per word."""
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
    """A sentence of normal numbers every few seconds."""

    computed = True

    def __init__(self, dim: int, every_seconds: float) -> None:
        """Stores the size of a sentence's vector, and how often one comes."""
        self.dim = dim
        self.every_seconds = every_seconds
        self._durations: dict[str, float] = {}

    def prepare(self, protocol: Protocol) -> None:
        """Notes how long the videos are."""
        self._durations = _durations(protocol)

    def load(self, video_id: str) -> tuple[Array, Array]:
        """Returns (Ln, dim) float32 and (Ln, 2) float32 seconds, start equal to end."""
        times = np.arange(0, self._durations[video_id], self.every_seconds, dtype=np.float32)
        return (
            _generator(video_id).standard_normal((len(times), self.dim), np.float32),
            np.stack((times, times), 1),
        )

    def manifest(self) -> dict[str, Any]:
        """Returns the size and the distance."""
        return {"backbone": "random", "dim": self.dim, "every_seconds": self.every_seconds}
