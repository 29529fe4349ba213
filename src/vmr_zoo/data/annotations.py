"""What every annotation reader returns: queries with moments in seconds, in named splits.

A reader normalises once, on reading: seconds, text stripped, spans clipped to the video (counted), stable query
ids. Everything downstream relies on that and checks nothing again.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

SELECTION = "selection"
TRAIN = "train"


@dataclass(frozen=True, slots=True)
class Query:
    """One sentence about one video.

    Attributes:
        query_id: stable across runs and machines, unique within its protocol.
        video_id: as published, safe to use as a file stem.
        text: the sentence, stripped.
        moments: ground truth as (start, end) in seconds, 0 <= start < end <= duration; never empty, except in a
            split whose ground truth is withheld.
        duration: length of the video in seconds.
        saliency: per rated clip (clip index, the annotators' ratings), QVHighlights only.
    """

    query_id: str
    video_id: str
    text: str
    moments: tuple[tuple[float, float], ...]
    duration: float
    saliency: tuple[tuple[int, tuple[int, ...]], ...] = ()


@dataclass(frozen=True, slots=True)
class Split:
    """A named list of queries, and what reading them had to mend.

    Attributes:
        name: "train", "selection", or a test split's name such as "test", "iid", "ood".
        queries: in the order of the published file.
        counts: how often something was mended or dropped, by name ("clipped", "dropped_zero_length", …).
    """

    name: str
    queries: tuple[Query, ...]
    counts: Counter[str] = field(default_factory=Counter)

    @property
    def video_ids(self) -> tuple[str, ...]:
        """The distinct videos, in order of first appearance."""
        return tuple(dict.fromkeys(query.video_id for query in self.queries))


@dataclass(frozen=True, slots=True)
class Protocol:
    """A train split, a selection split and test splits that belong together.

    A checkpoint is scored only under the protocol that it was trained for.

    Attributes:
        name: such as "charades_cd".
        train: what is trained on.
        selection: what checkpoints are selected on, never a test split.
        tests: test splits by name.
        selection_origin: "published" or "held out of train by video".
    """

    name: str
    train: Split
    selection: Split
    tests: dict[str, Split]
    selection_origin: str

    @property
    def splits(self) -> dict[str, Split]:
        """Every split by name, train first."""
        return {TRAIN: self.train, SELECTION: self.selection, **self.tests}
