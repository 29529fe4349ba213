"""Bias probes: the inputs of a trained method are replaced to measure how much of its score is bias.

A probe replaces inputs and keeps the ground truth: predictions under `vmr eval probe=blank_video` cannot
come from the video. It replaces the features before the data module reads them, and thereby everything
derived from them: clips, patches, narrations, token features, token ids, noun chunks, and the other sentences
about the video.

A blank input is not zero, which no method has been trained on, but typical: the clip, sentence or narration
of the split that is nearest to the mean. It is real, so its values are in range; it is the same for every
row, so it carries no information. The input of a row depends on its split and ids only, not on the batch.
"""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple, TypeVar

import numpy as np

from vmr_zoo.data.annotations.records import Query, Split
from vmr_zoo.data.features.feature_set import FeatureSet
from vmr_zoo.data.features.source import NarrationSource, QuerySource, VideoSource
from vmr_zoo.data.features.wrapped import WrappedNarrations, WrappedQueries, WrappedVideos
from vmr_zoo.errors import VmrError
from vmr_zoo.utils.arrays import Array

Item = TypeVar("Item")


class ProbedFeatures(NamedTuple):
    """The replaced inputs of a split.

    Attributes:
        features: replace the run's.
        sentences: the replacing sentence by query id, where sentences are replaced.
    """

    features: FeatureSet
    sentences: Mapping[str, str]


class Probe(ABC):
    """A replacement of inputs.

    Attributes:
        kind: as in `probe=<kind>`.
        needs: the inputs that it replaces and that not every method reads (`Method.needs`).
    """

    kind: ClassVar[str]
    needs: ClassVar[frozenset[str]] = frozenset()

    @property
    def name(self) -> str:
        """Names the results; with the seed where there are several."""
        return self.kind

    def header_entry(self, name: str) -> dict[str, str]:
        """Returns what the header of the results says about the probe, given the name of the run."""
        return {"probe": self.name, "name": f"{name} asked with {self.name.replace('_', ' ')}"}

    def check(self, needs: Collection[str]) -> None:
        """Checks that a method reads what the probe replaces, given the needs of the method.

        Raises:
            VmrError: if it does not: its score could not change.
        """
        if unread := self.needs - set(needs):
            raise VmrError(
                f"probe={self.kind} replaces input that this method does not read "
                f"({', '.join(sorted(unread))}), so its score cannot change. Choose another probe, or a run "
                "that reads it, such as one of TEA or LMR."
            )

    @abstractmethod
    def __call__(self, features: FeatureSet, split: Split) -> ProbedFeatures:
        """Replaces the features of one split.

        Args:
            features: the run's, prepared.
            split: the split to predict; keeps its ground truth.
        """


@dataclass(frozen=True)
class SeededProbe(Probe):
    """A replacement that is drawn.

    Attributes:
        seed: of the draw.
    """

    seed: int = 0

    @property
    def name(self) -> str:
        """Includes the seed unless it is 0."""
        return f"{self.kind}_{self.seed}" if self.seed else self.kind


class BlankVideo(Probe):
    """Every clip of every video is the split's most typical clip, and every narration its most typical one.

    A video keeps its length. Narrations follow each other at the split's mean rate, because the times of
    narrations also reveal where something happens.
    """

    kind = "blank_video"

    def __call__(self, features: FeatureSet, split: Split) -> ProbedFeatures:
        """Replaces clips, patches and narrations."""
        durations = _video_durations(split)
        video_id, row = _typical(features.video.load, durations)

        def blank(_: str, clips: int) -> tuple[str, Array]:
            return video_id, np.full(clips, row)

        narration = features.narration
        if narration is not None:
            narration = _blank_narrations(narration, durations)
        return ProbedFeatures(_with_clips(features, blank, narration), {})


class ShuffledVideo(SeededProbe):
    """Shuffles the clips of each video; a narration moves with the clip at its middle."""

    kind = "shuffled_video"

    def __call__(self, features: FeatureSet, split: Split) -> ProbedFeatures:
        """Replaces clips, patches and narrations."""
        durations = _video_durations(split)

        def shuffled(video_id: str, clips: int) -> tuple[str, Array]:
            rng = np.random.default_rng((self.seed, zlib.crc32(video_id.encode())))
            return video_id, rng.permutation(clips)

        def moved(video_id: str) -> tuple[Array, Array]:
            assert features.narration is not None
            vectors, times = features.narration.load(video_id)
            duration, clips = durations[video_id], len(features.video.load(video_id))
            seconds = features.clip_length(duration, clips)
            place = np.clip(times.mean(1) // seconds, 0, clips - 1).astype(int)
            target = np.argsort(shuffled(video_id, clips)[1])[place]
            times = np.clip(times + ((target - place) * seconds)[:, None], 0, duration).astype(np.float32)
            order = np.lexsort((times[:, 1], times[:, 0]))
            return vectors[order], times[order]

        narration = None if features.narration is None else _ReplacedNarrations(features.narration, moved)
        return ProbedFeatures(_with_clips(features, shuffled, narration), {})


class OtherNarration(SeededProbe):
    """The narrations of each video become those of another video of the split, stretched to its length."""

    kind = "other_narration"
    needs = frozenset({"narration"})

    def __call__(self, features: FeatureSet, split: Split) -> ProbedFeatures:
        """Replaces the narrations.

        Raises:
            VmrError: if the features have no narrations, or the split has one video only.
        """
        narration = features.narration
        if narration is None:
            raise VmrError(
                "probe=other_narration replaces narrations, but these features have none. Choose another "
                "probe, or features with narrations."
            )
        durations = _video_durations(split)
        _check_several(durations, split, "probe=other_narration takes the narrations of another video")
        videos = sorted(durations)

        def of_another(video_id: str) -> tuple[Array, Array]:
            others = [other for other in videos if other != video_id]
            rng = np.random.default_rng((self.seed, zlib.crc32(video_id.encode())))
            other = others[int(rng.integers(len(others)))]
            vectors, times = narration.load(other)
            return vectors, times * np.float32(durations[video_id] / durations[other])

        return ProbedFeatures(replace(features, narration=_ReplacedNarrations(narration, of_another)), {})


class BlankQuery(Probe):
    """Every sentence is the split's most typical one, by the mean of its token features."""

    kind = "blank_query"

    def __call__(self, features: FeatureSet, split: Split) -> ProbedFeatures:
        """Replaces the sentences.

        Raises:
            VmrError: if sentences have no vectors, which would be compared.
        """
        if not features.query.dim:
            raise VmrError(
                "probe=blank_query takes the sentence nearest to the mean, but these features hold token ids "
                "alone (features/query=clip_tokens). Choose probe=other_query."
            )
        load = features.query.load
        typical, _ = _typical(lambda query: load(query).mean(0, keepdims=True), split.queries)
        return with_sentences(features, dict.fromkeys(split.queries, typical))


class OtherQuery(SeededProbe):
    """Each sentence becomes one about another video of the split, which may happen to fit this one too."""

    kind = "other_query"

    def __call__(self, features: FeatureSet, split: Split) -> ProbedFeatures:
        """Replaces the sentences.

        Raises:
            VmrError: if the split has one video only.
        """
        rng = np.random.default_rng(self.seed)
        video = np.unique([query.video_id for query in split.queries], return_inverse=True)[1]
        _check_several(
            set(video),
            split,
            "probe=other_query takes a sentence about another video",
            " or probe=blank_query",
        )
        chosen = {}
        for row, query in enumerate(split.queries):
            others = np.flatnonzero(video != video[row])
            chosen[query] = split.queries[int(rng.choice(others))]
        return with_sentences(features, chosen)


def _check_several(videos: Collection[object], split: Split, does: str, instead: str = "") -> None:
    if len(videos) < 2:
        raise VmrError(
            f"{does} of the split, but {split.name} has one video only. Choose another split{instead}."
        )


def _video_durations(split: Split) -> dict[str, float]:
    """Returns the seconds of each video."""
    return {query.video_id: query.duration for query in split.queries}


def _typical(load: Callable[[Item], Array], items: Iterable[Item]) -> tuple[Item, int]:
    """Finds the row nearest to the mean of the rows of all arrays; the first of equals.

    Args:
        load: returns the array (n, D) of an item.
        items: loaded twice, one array at a time.

    Returns:
        The item, and the number of the row in its array.
    """
    items = list(items)
    total: Any = 0.0
    rows = 0
    for item in items:
        array = load(item)
        total, rows = total + array.sum(0, dtype=np.float64), rows + len(array)
    mean = total / rows
    nearest, best = (items[0], 0), np.inf
    for item in items:
        distances = np.square(load(item) - mean).sum(1)
        row = int(distances.argmin())
        if distances[row] < best:
            nearest, best = (item, row), distances[row]
    return nearest


ClipSource = Callable[[str, int], tuple[str, Array]]
"""Maps a video id and its number of clips to the video and the rows that replace its clips."""


def _with_clips(
    features: FeatureSet, clip_source: ClipSource, narration: NarrationSource | None
) -> FeatureSet:
    patches = None if features.patches is None else _ReplacedClips(features.patches, clip_source)
    return replace(
        features, video=_ReplacedClips(features.video, clip_source), patches=patches, narration=narration
    )


class _ReplacedClips(WrappedVideos):
    """Replaced clips or patches of a source."""

    def __init__(self, source: VideoSource, clip_source: ClipSource) -> None:
        super().__init__(source)
        self.clip_source = clip_source

    def load(self, video_id: str) -> Array:
        own = self.source.load(video_id)
        taken_from, rows = self.clip_source(video_id, len(own))
        return (own if taken_from == video_id else self.source.load(taken_from))[rows]


class _ReplacedNarrations(WrappedNarrations):
    """Replaced narrations of a source."""

    def __init__(self, source: NarrationSource, replacement: Callable[[str], tuple[Array, Array]]) -> None:
        super().__init__(source)
        self.replacement = replacement

    def load(self, video_id: str) -> tuple[Array, Array]:
        return self.replacement(video_id)

    def texts(self, video_id: str) -> list[str]:
        return []  # the source knows the sentences that were replaced


def _blank_narrations(source: NarrationSource, durations: Mapping[str, float]) -> NarrationSource:
    """Repeats the most typical sentence at the mean rate."""
    video_id, row = _typical(lambda video: source.load(video)[0], durations)
    sentence = source.load(video_id)[0][row]
    rate = sum(len(source.load(video)[0]) for video in durations) / sum(durations.values())

    def repeated(video_id: str) -> tuple[Array, Array]:
        count = max(1, round(durations[video_id] * rate))
        edges = np.linspace(0, durations[video_id], count + 1, dtype=np.float32)
        return np.tile(sentence, (count, 1)), np.stack((edges[:-1], edges[1:]), 1)

    return _ReplacedNarrations(source, repeated)


def with_sentences(
    features: FeatureSet, chosen: Mapping[Query, Query], source: QuerySource | None = None
) -> ProbedFeatures:
    """Replaces the sentences of queries by those of other queries.

    Args:
        features: the features of a run.
        chosen: the other query of each.
        source: serves the other queries; None: the source of the run.
    """
    sentences = {query.query_id: other.text for query, other in chosen.items()}
    words = features.narration_query
    replaced = replace(
        features,
        query=_ReplacedQueries(source or features.query, chosen),
        narration_query=None if words is None else _ReplacedQueries(words, chosen),
    )
    return ProbedFeatures(replaced, sentences)


class _ReplacedQueries(WrappedQueries):
    """Replaced sentences of a source; those of other splits stay."""

    def __init__(self, source: QuerySource, chosen: Mapping[Query, Query]) -> None:
        super().__init__(source)
        self.chosen = chosen

    def _of(self, query: Query) -> Query:
        return self.chosen.get(query, query)
