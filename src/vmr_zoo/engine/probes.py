"""What a trained method is asked instead of the question, to see how much of its score is bias.

A probe replaces what the method is served and leaves the ground truth alone: `vmr eval probe=blank_video`
scores answers that cannot have come from the video. It stands between the features and the data module, so
that everything made of them follows, whatever a method reads: clips, patches, narrations, token features,
token ids, noun chunks, and the other sentences about the video.

"Blank" is not zeros, which no method has ever read, but one typical thing for all: the clip, sentence or
narration of the split that is nearest to the mean. It is real, so whatever a method makes of it is not due
to numbers out of range, and it is the same everywhere, so it says nothing. A row's input depends on its split
and its ids alone, not on the batch.
"""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

import numpy as np

from vmr_zoo.data.annotations.records import Query, Split
from vmr_zoo.data.features.store import FeatureSet, NarrationSource, QuerySource, VideoSource
from vmr_zoo.data.text.cache import Array
from vmr_zoo.errors import VmrError

Item = TypeVar("Item")


class Probed(NamedTuple):
    """What a split is served as.

    Attributes:
        features: in place of the run's.
        asked: the sentence by query id, where it is not the query's own.
    """

    features: FeatureSet
    asked: Mapping[str, str]


class Probe(ABC):
    """A way to ask something else.

    Attributes:
        name: as in `probe=<name>`, with what else sets its results apart.
    """

    name: str

    @abstractmethod
    def __call__(self, features: FeatureSet, split: Split) -> Probed:
        """Replaces the features of one split.

        Args:
            features: the run's, prepared.
            split: what will be served; the ground truth stays that of its queries.
        """


class BlankVideo(Probe):
    """Every clip of every video is the split's most typical clip, and every narration its most typical one.

    A video keeps its length. Narrations come at the split's mean rate, one after the other: when the narrator
    spoke tells where something happens, too.
    """

    name = "blank_video"

    def __call__(self, features: FeatureSet, split: Split) -> Probed:
        """Replaces clips, patches and narrations."""
        durations = _durations(split)
        video_id, row = _typical(features.video.load, durations)

        def blank(_: str, clips: int) -> tuple[str, Array]:
            return video_id, np.full(clips, row)

        narration = features.narration
        if narration is not None:
            narration = _blank_narrations(narration, durations)
        return Probed(_with_clips(features, blank, narration), {})


@dataclass(frozen=True)
class ShuffledVideo(Probe):
    """The clips of each video in another order; a narration goes along with the clip in its middle.

    Attributes:
        seed: of the order.
    """

    seed: int = 0

    @property
    def name(self) -> str:  # type: ignore[override]
        """Names the seed unless it is the usual one."""
        return _name("shuffled_video", self.seed)

    def __call__(self, features: FeatureSet, split: Split) -> Probed:
        """Replaces clips, patches and narrations."""
        durations = _durations(split)

        def shuffled(video_id: str, clips: int) -> tuple[str, Array]:
            rng = np.random.default_rng((self.seed, zlib.crc32(video_id.encode())))
            return video_id, rng.permutation(clips)

        def told(video_id: str) -> tuple[Array, Array]:
            assert features.narration is not None
            vectors, times = features.narration.load(video_id)
            duration, clips = durations[video_id], len(features.video.load(video_id))
            seconds = features.clip_length(duration, clips)
            place = np.clip(times.mean(1) // seconds, 0, clips - 1).astype(int)
            moved = np.argsort(shuffled(video_id, clips)[1])[place]
            times = np.clip(times + ((moved - place) * seconds)[:, None], 0, duration).astype(np.float32)
            order = np.lexsort((times[:, 1], times[:, 0]))
            return vectors[order], times[order]

        narration = None if features.narration is None else _Narrations(features.narration, told)
        return Probed(_with_clips(features, shuffled, narration), {})


class BlankQuery(Probe):
    """Every sentence is the split's most typical one, by the mean of its token features."""

    name = "blank_query"

    def __call__(self, features: FeatureSet, split: Split) -> Probed:
        """Replaces the sentences."""
        load = features.query.load
        typical, _ = _typical(lambda query: load(query).mean(0, keepdims=True), split.queries)
        return _asked(features, dict.fromkeys(split.queries, typical))


@dataclass(frozen=True)
class OtherQuery(Probe):
    """Each sentence is one about another video of the split; now and then it may fit this one, too.

    Attributes:
        seed: of the draw.
    """

    seed: int = 0

    @property
    def name(self) -> str:  # type: ignore[override]
        """Names the seed unless it is the usual one."""
        return _name("other_query", self.seed)

    def __call__(self, features: FeatureSet, split: Split) -> Probed:
        """Replaces the sentences.

        Raises:
            VmrError: if the split has one video only.
        """
        rng = np.random.default_rng(self.seed)
        video = np.unique([query.video_id for query in split.queries], return_inverse=True)[1]
        if not video.any():
            raise VmrError(
                f"probe=other_query asks about another video of the split, but {split.name} has one only. "
                "Choose another split or probe=blank_query."
            )
        chosen = {}
        for row, query in enumerate(split.queries):
            others = np.flatnonzero(video != video[row])
            chosen[query] = split.queries[int(rng.choice(others))]
        return _asked(features, chosen)


def _name(name: str, seed: int) -> str:
    return f"{name}_{seed}" if seed else name


def _durations(split: Split) -> dict[str, float]:
    """Returns the seconds of each video."""
    return {query.video_id: query.duration for query in split.queries}


def _typical(load: Callable[[Item], Array], items: Iterable[Item]) -> tuple[Item, int]:
    """Finds the row of all arrays that is nearest to the mean of all rows; a tie goes to the first.

    Args:
        load: the array (n, D) of an item.
        items: read twice, so that one array at a time is held.

    Returns:
        The item, and the row's number in its array.
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


Place = Callable[[str, int], tuple[str, Array]]
"""From a video id and its number of clips: the video and the rows that are served in its place."""


def _with_clips(features: FeatureSet, place: Place, narration: NarrationSource | None) -> FeatureSet:
    patches = None if features.patches is None else _Clips(features.patches, place)
    return replace(features, video=_Clips(features.video, place), patches=patches, narration=narration)


class _Clips(VideoSource):
    """Clips or patches of a source at other places."""

    def __init__(self, source: VideoSource, place: Place) -> None:
        self.source, self.place = source, place
        self.dim = source.dim

    def load(self, video_id: str) -> Array:
        own = self.source.load(video_id)
        taken_from, rows = self.place(video_id, len(own))
        return (own if taken_from == video_id else self.source.load(taken_from))[rows]

    def manifest(self) -> dict[str, Any]:
        return self.source.manifest()


class _Narrations(NarrationSource):
    """Narrations of a source, replaced."""

    def __init__(self, source: NarrationSource, told: Callable[[str], tuple[Array, Array]]) -> None:
        self.source, self.told = source, told
        self.dim = source.dim

    def load(self, video_id: str) -> tuple[Array, Array]:
        return self.told(video_id)

    def manifest(self) -> dict[str, Any]:
        return self.source.manifest()


def _blank_narrations(source: NarrationSource, durations: Mapping[str, float]) -> NarrationSource:
    """Repeats the most typical sentence at the mean rate."""
    video_id, row = _typical(lambda video: source.load(video)[0], durations)
    sentence = source.load(video_id)[0][row]
    rate = sum(len(source.load(video)[0]) for video in durations) / sum(durations.values())

    def told(video_id: str) -> tuple[Array, Array]:
        count = max(1, round(durations[video_id] * rate))
        edges = np.linspace(0, durations[video_id], count + 1, dtype=np.float32)
        return np.tile(sentence, (count, 1)), np.stack((edges[:-1], edges[1:]), 1)

    return _Narrations(source, told)


def _asked(features: FeatureSet, chosen: Mapping[Query, Query]) -> Probed:
    sentences = {query.query_id: other.text for query, other in chosen.items()}
    return Probed(replace(features, query=_Queries(features.query, chosen)), sentences)


class _Queries(QuerySource):
    """Sentences of a source, exchanged; those of other splits are served as they are."""

    def __init__(self, source: QuerySource, chosen: Mapping[Query, Query]) -> None:
        self.source, self.chosen = source, chosen
        self.dim = source.dim
        self.has_token_ids, self.has_noun_masks = source.has_token_ids, source.has_noun_masks

    def _of(self, query: Query) -> Query:
        return self.chosen.get(query, query)

    def load(self, query: Query) -> Array:
        return self.source.load(self._of(query))

    def noun_mask(self, query: Query) -> Array:
        return self.source.noun_mask(self._of(query))

    def token_ids(self, query: Query) -> Array:
        return self.source.token_ids(self._of(query))

    def manifest(self) -> dict[str, Any]:
        return self.source.manifest()
