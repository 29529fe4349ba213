"""Assigns answers of other programs to the queries of a split: by query id, else by video and sentence.

Imports no torch, for a fast start of `vmr score`.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any

from vmr_zoo.data.annotations.records import Query, Split
from vmr_zoo.engine.answer_files import ForeignAnswer
from vmr_zoo.engine.answers import Span, read_spans
from vmr_zoo.engine.submission import WINDOWS, LocatedRow, PredictionRow, RowLocation
from vmr_zoo.engine.units import in_seconds
from vmr_zoo.errors import nearest

REFUSE, MISSES, SKIP = "refuse", "misses", "skip"

UNPARSED = "unparsed"
"""Key of a row of predictions.jsonl whose answer states no moment."""

NO_WINDOW = [[0.0, 0.0, 0.0]]
"""The prediction of a query without a moment: an empty window of score 0, which overlaps nothing."""

RANKED, SCORED = "order of the answer", "in the file"
"""Where the scores of windows come from."""

FAMILY = "Elsewhere"
"""The family of rows from other programs."""

EXCERPT = 500
"""Characters of an answer that predictions.jsonl keeps."""

_SUFFIXES = (".mp4", ".mkv", ".avi", ".webm", ".mov", ".m4v")
_OTHER_TRUTH = 1.0
"""Seconds by which a moment that a file states as the truth may differ from ours."""


@dataclass(slots=True)
class Tally:
    """What was found in the answers to one split.

    Attributes:
        queries: queries of the split.
        unparsed: queries whose answer states no moment.
        missing: queries without an answer.
        outside: queries whose best window begins after the end of the video.
        unscored: queries whose windows have no scores.
        skipped: answers that belong to no query of the requested splits.
        other_truth: answers that state another annotated moment than ours.
    """

    queries: int = 0
    unparsed: int = 0
    missing: int = 0
    outside: int = 0
    unscored: int = 0
    skipped: int = 0
    other_truth: int = 0

    @property
    def header(self) -> dict[str, int]:
        """What metrics.json stores."""
        return {
            "queries": self.queries,
            UNPARSED: self.unparsed,
            "missing": self.missing,
            "outside": self.outside,
        }


@dataclass(slots=True)
class AnswerMatcher:
    """Turns answers into rows as `vmr train` writes them.

    Attributes:
        split: the ground truth.
        others: other requested splits: answers to their queries are skipped without being counted.
        missing: `REFUSE`: every query must have an answer; `MISSES`: one without counts as a miss.
        extra: `REFUSE`: every answer must belong to a requested split; `SKIP`: others are skipped.
        unit: unit of the windows, as in `units.in_seconds`; None: seconds.
        tally: what was found, complete once all rows were read.
    """

    split: Split
    others: Mapping[str, Split] = field(default_factory=dict)
    missing: str = REFUSE
    extra: str = REFUSE
    unit: str | None = None
    tally: Tally = field(default_factory=Tally)
    _by_id: dict[str, Query] = field(init=False)
    _by_sentence: dict[tuple[str, str], list[Query]] = field(init=False)
    _elsewhere: set[Any] = field(init=False)
    _videos: set[str] = field(init=False)

    def __post_init__(self) -> None:
        self._by_id = {query.query_id: query for query in self.split.queries}
        self._by_sentence = defaultdict(list)
        for query in self.split.queries:
            self._by_sentence[query.video_id, _normal(query.text)].append(query)
        outside = [query for split in self.others.values() for query in split.queries]
        self._elsewhere = {key for q in outside for key in (q.query_id, (q.video_id, _normal(q.text)))}
        self._videos = {query.video_id for query in (*self.split.queries, *outside)}

    def rows(self, answers: Iterable[ForeignAnswer]) -> Iterator[LocatedRow]:
        """Yields a row per query of the split, in the order of the answers, for `scoring.score_queries`.

        Rows of Moment-DETR's form pass through: `score_queries` checks them. Of other answers, one about a
        sentence that several queries ask of the same video counts for each of them, unless it states the
        annotated moment of one.

        Raises:
            VmrError: for an answer to no query, two different answers to one query, or an answer of another
                type than expected.
        """
        answered: dict[str, Any] = {}
        self.tally.queries = len(self.split.queries)
        for answer in answers:
            if answer.own and (answer.query_id is not None or answer.sentence is None):
                if (own := self._own_row(answer)) is not None:
                    answered[str(answer.query_id)] = None
                    self._note_end(own.get(WINDOWS), self._by_id.get(answer.query_id or ""))
                    yield own, answer.location
                continue
            if answer.split not in (None, self.split.name):
                continue
            for query in self._find(answer):
                location = replace(answer.location, query_id=query.query_id)
                row, unscored = self._row(answer, query)
                if query.query_id not in answered:
                    answered[query.query_id] = row[WINDOWS]
                    self.tally.unparsed += UNPARSED in row
                    self.tally.unscored += unscored
                    self._note_end(row[WINDOWS], query)
                    yield row, location
                elif answered[query.query_id] != row[WINDOWS]:
                    location.refuse(
                        "one answer per query",
                        f"a second, different one for {query.text!r:.80} on video {query.video_id}",
                        "Remove one of the two, or add the query ids of the annotations as 'query_id'.",
                    )
        if self.missing == MISSES:
            for query_id in (one for one in self._by_id if one not in answered):
                self.tally.missing += 1
                yield (
                    {"query_id": query_id, WINDOWS: NO_WINDOW, "missing": True},
                    RowLocation("", 0, query_id),
                )

    def _note_end(self, windows: Any, query: Query | None) -> None:
        """Counts a best window that begins after its video; the checks refuse what is no window."""
        with contextlib.suppress(TypeError, IndexError, KeyError):
            self.tally.outside += query is not None and bool(windows[0][0] > query.duration)

    def _own_row(self, answer: ForeignAnswer) -> PredictionRow | None:
        """Returns a row of Moment-DETR's form as it is, with scores if it has none; None: it is skipped."""
        row, windows = answer.row, answer.windows
        if answer.split not in (None, self.split.name):
            return row  # `score_queries` counts it for its messages
        query = self._by_id.get(answer.query_id or "")
        if query is None:
            if answer.query_id in self._elsewhere:
                return None
            self.tally.skipped += self.extra == SKIP and answer.query_id is not None
            return None if self.extra == SKIP and answer.query_id is not None else row
        if isinstance(windows, list) and windows:
            if all(isinstance(one, list) and len(one) == 2 for one in windows):
                self.tally.unscored += 1
                windows = _ranked(windows)
            if self.unit is not None:
                windows = in_seconds(windows, self.unit, query.duration)
        return row if windows is answer.windows else {**row, WINDOWS: windows}

    def _find(self, answer: ForeignAnswer) -> list[Query]:
        """Returns the queries that an answer belongs to; [] if it is skipped."""
        if answer.query_id is not None:
            if answer.query_id in self._by_id:
                return [self._by_id[answer.query_id]]
            known = answer.query_id in self._elsewhere
            found = f"another id, {answer.query_id!r:.80}"
        else:
            video, sentence = self._video(answer.video or ""), _normal(answer.sentence or "")
            if asked := self._by_sentence.get((video, sentence)):
                return self._with_truth(asked, answer.truth)
            known = (video, sentence) in self._elsewhere
            found = self._nearest(video, answer.sentence or "")
        if known:
            return []
        if self.extra == SKIP:
            self.tally.skipped += 1
            return []
        names = " or ".join([f"'{self.split.name}'", *(f"'{name}'" for name in self.others)])
        answer.location.refuse(
            f"a query of split {names}",
            found,
            "Check data= and split=; extra=skip leaves out answers to other queries.",
        )

    def _nearest(self, video: str, sentence: str) -> str:
        """Describes a sentence that no query asks, with the most similar one of its video."""
        if video not in self._videos:
            close = nearest(video, self._videos, 1)
            return f"video {video!r:.80}" + (f" (the most similar is {close[0]!r})" if close else "")
        own = [query.text for query in self.split.queries if query.video_id == video]
        close = nearest(sentence, own, 1)
        return f"{sentence!r:.80} on video {video}" + (
            f" (the most similar is {close[0]!r})" if close else ""
        )

    def _video(self, name: str) -> str:
        """Returns the id of a video that a file names by id, file name or path."""
        base = PurePosixPath(name.replace("\\", "/")).name
        for candidate in (name, base):
            if candidate in self._videos:
                return candidate
        stem = next((base[: -len(end)] for end in _SUFFIXES if base.lower().endswith(end)), base)
        return stem if stem in self._videos else name

    def _with_truth(self, asked: list[Query], truth: Span | None) -> list[Query]:
        """Returns the queries whose annotated moment is nearest to the one that an answer states."""
        if truth is None:
            return asked
        distances = [
            min((abs(truth[0] - start) + abs(truth[1] - end) for start, end in query.moments), default=0.0)
            for query in asked
        ]
        closest = min(distances)
        self.tally.other_truth += closest > _OTHER_TRUTH
        return [query for query, distance in zip(asked, distances, strict=True) if distance == closest]

    def _row(self, answer: ForeignAnswer, query: Query) -> tuple[dict[str, Any], bool]:
        """Returns an answer as a row of predictions.jsonl, and whether its windows had no scores."""
        row: dict[str, Any] = {**answer.row, "query_id": query.query_id, "video_id": query.video_id}
        if answer.text is not None:
            row["answer"] = answer.text[:EXCERPT]
        windows = answer.windows
        if windows is None:
            windows = [list(span) for span in read_spans(answer.text or "")]
        unscored = not all(isinstance(one, list) and len(one) == 3 for one in windows)
        if unscored:
            windows = _ranked([one for one in windows if not _is_reversed(one)])
        if self.unit is not None:
            windows = in_seconds(windows, self.unit, query.duration)
        if not windows:
            return row | {WINDOWS: NO_WINDOW, UNPARSED: True}, False
        return row | {WINDOWS: windows}, unscored


def _ranked(windows: Sequence[Any]) -> list[Any]:
    """Adds scores that fall with the rank to windows without any; the checks refuse other forms."""
    return [
        [*window, (len(windows) - rank) / len(windows)]
        if isinstance(window, list | tuple) and len(window) == 2
        else window
        for rank, window in enumerate(windows)
    ]


def _is_reversed(window: Any) -> bool:
    """Whether a window ends before it starts."""
    numbers = isinstance(window, list | tuple) and len(window) == 2
    return numbers and all(isinstance(x, int | float) for x in window) and bool(window[0] > window[1])


def _normal(sentence: str) -> str:
    """Returns a sentence without what programs change: case, spaces, and the sign at its end."""
    return " ".join(sentence.casefold().split()).rstrip(".!?;, ")
