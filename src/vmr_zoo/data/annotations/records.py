"""Queries with moments in seconds, in named splits: what annotation readers return.

Readers normalise: times in seconds, text stripped, moments clipped to the video (and counted) unless
`vmr_zoo.data.annotations.rows.MomentRules` leave them as written, stable query ids. Other code relies on this
and does not check again.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from vmr_zoo.errors import VmrError, abbreviate

SELECTION = "selection"
TRAIN = "train"

_RESERVED = (TRAIN, SELECTION, "val", "all", "header")
"""Names that a test split cannot have: of other splits, of all splits, of a part of metrics.json."""

PUBLISHED = "published"
GENERATED = "generated"
HELD_OUT = "held out of train by video"
NO_TRAINING = "none: no training data"
NOT_SELECTED = "none (weights of the last epoch)"
"""Selection of a run whose checkpoint callback was removed: such runs have tables of their own."""

MAX_TIME = 1e9
"""Largest valid time in seconds or frames; results computed from valid times stay finite."""


@dataclass(frozen=True, slots=True)
class Query:
    """One sentence about one video.

    Attributes:
        query_id: stable across runs and machines, unique within its protocol.
        video_id: as published, safe to use as a file stem.
        text: the sentence, stripped.
        moments: ground truth as (start, end) in seconds, 0 <= start < end <= duration; empty only in a split
            whose ground truth is withheld. As written they satisfy 0 <= start <= end alone.
        duration: length of the video in seconds.
        saliency: (clip index, the annotators' ratings) of each rated clip; QVHighlights only.
        negatives: ids of the queries that the file lists as negatives of this one; no published file does.
    """

    query_id: str
    video_id: str
    text: str
    moments: tuple[tuple[float, float], ...]
    duration: float
    saliency: tuple[tuple[int, tuple[int, ...]], ...] = ()
    negatives: tuple[str, ...] = field(default=(), repr=False)  # keeps the digests of runs without them


class Dropped(NamedTuple):
    """A published sentence that is left out, and why."""

    query_id: str
    video_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Split:
    """A named list of queries, and the fixes made on reading.

    Attributes:
        name: "train", "selection", or a test split's name such as "test", "iid", "ood".
        queries: in the order of the published file.
        counts: number of fixes by name, such as "clipped" (`vmr_zoo.data.annotations.rows`).
        dropped: published sentences that `queries` lacks; by default only a train file drops any.
        source: the files that it was read from, as text.
    """

    name: str
    queries: tuple[Query, ...]
    counts: Counter[str] = field(default_factory=Counter)
    dropped: tuple[Dropped, ...] = ()
    source: str = ""

    @property
    def video_ids(self) -> tuple[str, ...]:
        """The distinct videos in order of first appearance, those of dropped sentences last."""
        kept = [query.video_id for query in self.queries]
        return tuple(dict.fromkeys(kept + [row.video_id for row in self.dropped]))

    @property
    def videos(self) -> int:
        """Number of videos as published."""
        return len(self.video_ids)

    @property
    def sentences(self) -> int:
        """Number of sentences as published: kept and dropped."""
        return len(self.queries) + len(self.dropped)


@dataclass(frozen=True, slots=True)
class Protocol:
    """A train split, a selection split and test splits that belong together.

    A checkpoint is scored only under the protocol that it was trained for.

    Attributes:
        name: name such as "charades_cd".
        train: training queries, without the videos held out for selection.
        selection: queries that select checkpoints; part of the test data only if `selected_on_test`.
        tests: test splits by name.
        selection_origin: `PUBLISHED`, `GENERATED`, `HELD_OUT`, `NO_TRAINING`, or a text that starts with
            "test".
        published_train: the train split as published, if videos were held out of `train`.
        doubts: sentences about times that may not be in seconds; every run repeats them.
        pool: the set of videos that the video ids belong to, such as "charades": an id of one pool names
            another video than the same id of another pool. "": not known, so equal ids count as one video.
        settings: settings of a generated world that change its tests, such as "seed=1"; "" by default.
        answers: returns whether a video holds a moment of a sentence about another video of the protocol;
            None where that is not known, as in published data.
        train_with: for a protocol without training data, one on the same videos that has some, if it is
            known; else "".

    Raises:
        VmrError: if a query id means one sentence in one split and another in another. Text features and
            predictions are named by query ids: one sentence would be read as another. Also if a test split
            has a reserved name, or one that is not a plain file name: results are stored in its name.
    """

    name: str
    train: Split
    selection: Split
    tests: dict[str, Split]
    selection_origin: str
    published_train: Split | None = None
    doubts: tuple[str, ...] = ()
    pool: str = ""
    settings: str = ""
    train_with: str = ""
    answers: Callable[[str, Query], bool] | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        for test in self.tests:
            if test in _RESERVED or not re.fullmatch(r"\w[\w.-]{0,99}", test):
                raise VmrError(
                    f"Expected a name of letters, digits and . _ - for each test split, but not "
                    f"{', '.join(_RESERVED)}; found {test!r:.80}. Choose another name: test={{NAME:FILE}}."
                )
        seen: dict[str, tuple[str, Query]] = {}
        for name, split in self.splits.items():
            repeated = [
                query.query_id
                for query in split.queries
                if (known := seen.setdefault(query.query_id, (name, query))[1]) is not query
                and (known.video_id, known.text) != (query.video_id, query.text)
            ]
            if repeated:
                raise VmrError(
                    f"{len(repeated):,} query ids (qid) of split '{name}' already mean other sentences in "
                    f"split '{seen[repeated[0]][0]}': {abbreviate(repeated, 5)}. Ids name text features and "
                    "predictions, and must be unique over all splits. Number the sentences of all files in "
                    "one sequence and rename the text features; with data=jsonl, "
                    "data.protocol.ids=by_split puts the split before each id."
                )

    @property
    def label(self) -> str:
        """The name, with the settings of a generated world: two protocols of one label have equal tests."""
        return f"{self.name} {self.settings}".strip()

    @property
    def only_tests(self) -> bool:
        """Whether the protocol has no training data."""
        return self.selection_origin == NO_TRAINING

    @property
    def splits(self) -> dict[str, Split]:
        """All splits by name, train first."""
        return {TRAIN: self.train, SELECTION: self.selection, **self.tests}

    @property
    def queries(self) -> list[Query]:
        """The queries of all splits, train first."""
        return [query for split in self.splits.values() for query in split.queries]

    @property
    def published(self) -> dict[str, Split]:
        """As `splits`, with the sizes that papers report: nothing is held out of train."""
        return self.splits | {TRAIN: self.published_train or self.train}

    @property
    def video_ids(self) -> list[str]:
        """The distinct videos of all splits as published, sorted."""
        return sorted({video_id for split in self.published.values() for video_id in split.video_ids})

    def without(self, videos: Collection[str]) -> Protocol:
        """Returns the protocol without the sentences about some videos, which count as dropped."""

        def reduced(split: Split) -> Split:
            kept = tuple(query for query in split.queries if query.video_id not in videos)
            left_out = [query for query in split.queries if query.video_id in videos]
            dropped = (Dropped(q.query_id, q.video_id, "dropped_missing_video") for q in left_out)
            counts = split.counts + Counter(dropped_missing_video=len(left_out))
            return replace(split, queries=kept, counts=counts, dropped=(*split.dropped, *dropped))

        published = self.published_train
        return replace(
            self,
            train=reduced(self.train),
            selection=reduced(self.selection),
            tests={name: reduced(split) for name, split in self.tests.items()},
            published_train=None if published is None else reduced(published),
        )

    def only(self, names: Collection[str]) -> Protocol:
        """Returns the protocol with these selection and test splits alone; the others are empty or absent."""
        return replace(
            self,
            train=Split(TRAIN, ()),
            selection=self.selection if SELECTION in names else Split(SELECTION, ()),
            tests={name: split for name, split in self.tests.items() if name in names},
            published_train=None,
        )

    @property
    def selected_on_test(self) -> bool:
        """Whether checkpoints are selected on test data; this marks every number of the run."""
        return self.selection_origin.startswith("test")


def selecting_split(origin: str) -> str:
    """Names the split that chose the weights of a run, given where it comes from; "" if none did."""
    if origin.startswith("none"):
        return ""
    return f"the {origin} validation split" if origin in (PUBLISHED, GENERATED) else origin


def shared_videos(a: Iterable[Split], b: Iterable[Split]) -> set[str]:
    """Returns the videos that occur both in a split of `a` and in a split of `b`."""
    return {v for split in a for v in split.video_ids} & {v for split in b for v in split.video_ids}
