"""What every annotation reader returns: queries with moments in seconds, in named splits.

A reader normalises once, on reading: seconds, text stripped, spans clipped to the video (counted), stable
query ids. Everything downstream relies on that and checks nothing again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

SELECTION = "selection"
TRAIN = "train"

PUBLISHED = "published"
HELD_OUT = "held out of train by video"

LONGEST = 1e9
"""Seconds or frames beyond which a time is none: what is computed from it stays finite."""


@dataclass(frozen=True, slots=True)
class Query:
    """One sentence about one video.

    Attributes:
        query_id: stable across runs and machines, unique within its protocol.
        video_id: as published, safe to use as a file stem.
        text: the sentence, stripped.
        moments: ground truth as (start, end) in seconds, 0 <= start < end <= duration; never empty, except in
            a split whose ground truth is withheld.
        duration: length of the video in seconds.
        saliency: per rated clip (clip index, the annotators' ratings), QVHighlights only.
    """

    query_id: str
    video_id: str
    text: str
    moments: tuple[tuple[float, float], ...]
    duration: float
    saliency: tuple[tuple[int, tuple[int, ...]], ...] = ()


class Dropped(NamedTuple):
    """A published sentence that cannot be trained on, and why."""

    query_id: str
    video_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Split:
    """A named list of queries, and what reading them had to mend.

    Attributes:
        name: "train", "selection", or a test split's name such as "test", "iid", "ood".
        queries: in the order of the published file.
        counts: how often something was mended or dropped, by name ("clipped", "dropped_zero_length", …).
        dropped: the published sentences that `queries` lacks; only a train file ever drops any.
        source: the file or files that it was read from, for people to read.
    """

    name: str
    queries: tuple[Query, ...]
    counts: Counter[str] = field(default_factory=Counter)
    dropped: tuple[Dropped, ...] = ()
    source: str = ""

    @property
    def video_ids(self) -> tuple[str, ...]:
        """The distinct videos, in order of first appearance, those of dropped sentences last."""
        kept = [query.video_id for query in self.queries]
        return tuple(dict.fromkeys(kept + [row.video_id for row in self.dropped]))

    @property
    def videos(self) -> int:
        """How many videos the split has as published."""
        return len(self.video_ids)

    @property
    def sentences(self) -> int:
        """How many sentences the split has as published: those kept and those dropped."""
        return len(self.queries) + len(self.dropped)


@dataclass(frozen=True, slots=True)
class Protocol:
    """A train split, a selection split and test splits that belong together.

    A checkpoint is scored only under the protocol that it was trained for.

    Attributes:
        name: such as "charades_cd".
        train: what is trained on, without the videos held out for selection.
        selection: what checkpoints are selected on, never a test split unless `selected_on_test` says so.
        tests: test splits by name.
        selection_origin: `PUBLISHED`, `HELD_OUT`, or "test split 'NAME'".
        published_train: the train split as published, where `train` is only the part that was not held out.
    """

    name: str
    train: Split
    selection: Split
    tests: dict[str, Split]
    selection_origin: str
    published_train: Split | None = None

    @property
    def splits(self) -> dict[str, Split]:
        """Every split that is trained on, selected on or tested on, by name, train first."""
        return {TRAIN: self.train, SELECTION: self.selection, **self.tests}

    @property
    def published(self) -> dict[str, Split]:
        """The splits with the sizes that papers quote: as `splits`, but nothing held out of train."""
        return self.splits | {TRAIN: self.published_train or self.train}

    @property
    def video_ids(self) -> list[str]:
        """The distinct videos of all splits as published, sorted."""
        return sorted({video_id for split in self.published.values() for video_id in split.video_ids})

    @property
    def selected_on_test(self) -> bool:
        """Whether checkpoints are selected on test data, which marks every number of the run."""
        return self.selection_origin.startswith("test")


def shared_videos(a: Iterable[Split], b: Iterable[Split]) -> set[str]:
    """Returns the videos that some split of `a` and some split of `b` both hold."""
    return {v for split in a for v in split.video_ids} & {v for split in b for v in split.video_ids}
