"""Scores a file of predictions against the ground truth of one split, without a model.

Reads submissions to QVHighlights' benchmark (`qid`, `query`, `vid`, `pred_relevant_windows`,
`pred_saliency_scores`) and the project's own predictions.jsonl (the same with `query_id`, `video_id` and
`split`). Windows are scored as they are in the file: they were rounded before they were written.

Imports no torch, for a fast start.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vmr_zoo.data.annotations.records import MAX_TIME, Query, Split
from vmr_zoo.engine.submission import SALIENCY, WINDOWS, LocatedRow, PredictionRow, RowLocation, locate_rows
from vmr_zoo.engine.units import refuse_other_unit
from vmr_zoo.errors import VmrError, abbreviate
from vmr_zoo.metrics import official
from vmr_zoo.metrics.highlight import CLIP_SECONDS, highlight_scores
from vmr_zoo.metrics.per_query import (
    QUERIES_PER_CHUNK,
    Floats,
    MomentScores,
    mean,
    moment_scores,
    name_scores,
    pad_lists,
)
from vmr_zoo.metrics.settings import MetricSettings

_NUMBERS = {int, float}


@dataclass(frozen=True, slots=True)
class SubmissionScores:
    """A scored submission. Per-query arrays follow the order of its rows.

    Attributes:
        query_ids, video_ids: of each query.
        queries: (B,) score in [0, 1] by metric name; NaN where a metric does not apply to a query.
        moments: the values behind the moment metrics, by length bucket.
        highlights: the highlight metrics in `queries`; None if no highlights were scored.
        rounding: the data set's rounding if the windows follow it, else a statement that they do not.
    """

    query_ids: tuple[str, ...]
    video_ids: tuple[str, ...]
    queries: dict[str, Floats]
    moments: dict[str, MomentScores]
    highlights: dict[str, Floats] | None
    rounding: str

    @property
    def metrics(self) -> dict[str, float]:
        """Percentages by metric name, unrounded; a metric that applies to no query is absent."""
        return mean(self.queries)

    @property
    def official(self) -> dict[str, Any]:
        """The report of QVHighlights' own evaluator."""
        return official.benchmark_report(self.moments, self.highlights)


def score_rows(rows: Iterable[PredictionRow], split: Split, settings: MetricSettings) -> dict[str, float]:
    """Scores the rows of a predictions file.

    Args:
        rows: exactly one per query of `split`; rows of other splits are skipped.
        split: the ground truth.
        settings: what is measured.

    Returns:
        Percentages by metric name, unrounded; a metric that applies to no query is absent.

    Raises:
        VmrError: for a bad row, with its line and query id.
    """
    return score_queries(locate_rows(rows), split, settings).metrics


def score_queries(
    rows: Iterable[LocatedRow],
    split: Split,
    settings: MetricSettings,
    source: str = "predictions",
    check_unit: bool = False,
) -> SubmissionScores:
    """Scores the rows of a predictions file, query by query.

    Keeps only the scored numbers of each row: the file may have any size.

    Args:
        rows: exactly one per query of `split`, in any order; rows of other splits are skipped.
        split: the ground truth.
        settings: what is measured.
        source: the file's name, for errors.
        check_unit: whether to refuse windows that look like another unit than seconds.

    Returns:
        The scores, in the order of the rows.

    Raises:
        VmrError: for a bad row, with its line and query id.
    """
    kept = settings.windows_read
    windows = np.zeros((len(split.queries), kept, 3))
    window_mask = np.zeros(windows.shape[:2], dtype=bool)
    queries: list[Query] = []
    saliency = _Saliency()
    for row, location, query in _match_queries(rows, split, source):
        given = _checked_windows(row, location)[:kept]
        windows[len(queries), : len(given)] = given
        window_mask[len(queries), : len(given)] = True
        queries.append(query)
        if settings.highlights:
            saliency.add(row, query, location)
    if check_unit:
        answered = np.flatnonzero(windows[: len(queries), 0].any(1))  # an empty window stands for no answer
        refuse_other_unit(windows[answered, 0, :2], [queries[number] for number in answered], source)
    longest = int(window_mask.sum(1).max())
    windows, window_mask = windows[:, :longest], window_mask[:, :longest]
    targets, target_mask = pad_lists([query.moments for query in queries], 2)
    moments = moment_scores(
        windows[..., :2],
        targets,
        target_mask,
        np.where(window_mask, windows[..., 2], -np.inf),
        settings.windows,
    )
    highlights = saliency.scores(queries, split)
    return SubmissionScores(
        query_ids=tuple(query.query_id for query in queries),
        video_ids=tuple(query.video_id for query in queries),
        queries=name_scores(moments, settings) | (highlights or {}),
        moments=moments,
        highlights=highlights,
        rounding=_rounding_found(windows[window_mask][:, :2], settings),
    )


def _rounding_found(windows: np.ndarray, settings: MetricSettings) -> str:
    """Returns the protocol's rounding if all windows (N, 2) obey it, else that they do not."""
    described = settings.rounding.description
    obeys = np.array_equal(settings.rounding.apply(windows), windows)
    return described if obeys else f"as submitted, not: {described}"


def _match_queries(
    rows: Iterable[LocatedRow], split: Split, source: str
) -> Iterator[tuple[PredictionRow, RowLocation, Query]]:
    """Pairs the rows of the split with its queries, one to one."""
    if not split.queries:
        raise VmrError(f"Split '{split.name}' has no queries ({split.source}), so there is nothing to score.")
    queries = {query.query_id: query for query in split.queries}
    withheld = [query.query_id for query in split.queries if not query.moments]
    if withheld:
        raise VmrError(
            f"The ground truth of split '{split.name}' is withheld (queries {abbreviate(withheld)}), so it "
            "cannot be scored here. Submit the predictions to the benchmark's server."
        )
    other: Counter[str] = Counter()
    lines: dict[str, int] = {}
    for row, location in rows:
        if row.get("split", split.name) != split.name:
            other[str(row["split"])] += 1
            continue
        found = row.get("query_id", row.get("qid"))
        if type(found) not in (int, str):
            location.refuse(
                "a query id under 'query_id' or 'qid'", repr(found), "Add the query id to each row."
            )
        query_id = str(found)
        location = RowLocation(location.source, location.line, query_id)
        if query_id not in queries:
            location.refuse(
                f"a query id of split '{split.name}'",
                "another id",
                "Check data= and split=: the file may belong to another split or data set.",
            )
        if query_id in lines:
            location.refuse(
                "one row per query", f"this query on line {lines[query_id]} already", "Remove one of the two."
            )
        query = queries[query_id]
        video_id = row.get("video_id", row.get("vid", query.video_id))
        if video_id != query.video_id:
            location.refuse(
                f"video {query.video_id}",
                f"video {video_id!r}",
                "Check data= and split=: the ids may be another data set's.",
            )
        lines[query_id] = location.line
        yield row, location, query
    missing = [query_id for query_id in queries if query_id not in lines]
    if missing:
        hint = f" Rows of other splits were skipped: {dict(other)}." if other else ""
        raise VmrError(
            f"{source} has no row for {len(missing):,} of the {len(queries):,} queries of split "
            f"'{split.name}': {abbreviate(missing)}. Every query needs a row: a score over a subset "
            f"is not comparable.{hint}"
        )


def _shorten(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _checked_windows(row: PredictionRow, location: RowLocation) -> Floats:
    """Checks the windows of a row: (K, 3) start and end in seconds and score."""
    windows = row.get(WINDOWS)
    if not isinstance(windows, Sequence) or isinstance(windows, str) or not windows:
        location.refuse(
            f"a list of at least one [start, end, score] under '{WINDOWS}'",
            _shorten(windows),
            "Predict at least one window for every query.",
        )
    for rank, window in enumerate(windows, start=1):
        if not isinstance(window, list | tuple) or len(window) != 3 or not set(map(type, window)) <= _NUMBERS:
            location.refuse(
                f"[start, end, score], three numbers, as window {rank}",
                _shorten(window),
                "Fix or remove it.",
            )
    array = _finite_array(windows, "windows", location)
    far = np.flatnonzero((np.abs(array[:, :2]) > MAX_TIME).any(1))
    if len(far):
        rank = int(far[0])
        location.refuse(
            f"seconds within {MAX_TIME:g} as window {rank + 1}", _shorten(windows[rank]), "Fix or remove it."
        )
    reversed_ = np.flatnonzero(array[:, 0] > array[:, 1])
    if len(reversed_):
        rank = int(reversed_[0])
        location.refuse(
            f"start <= end in window {rank + 1}",
            _shorten(windows[rank]),
            "Swap them, or turn centre and length into start and end.",
        )
    return array


def _finite_array(values: Sequence[Any], what: str, location: RowLocation) -> Floats:
    """Converts checked numbers, refusing NaN, infinity and integers beyond any float."""
    remedy = "Check the model that predicted it: training may have diverged."
    try:
        array = np.array(values, dtype=np.float64)
    except OverflowError:
        location.refuse(f"finite {what}", "an integer too large for a float", remedy)
    bad = np.argwhere(~np.isfinite(array))
    if len(bad):
        location.refuse(f"finite {what}", f"{array[tuple(bad[0])]} in number {bad[0][0] + 1}", remedy)
    return array


class _Saliency:
    """Collects the saliency scores of rows, one after the other."""

    def __init__(self) -> None:
        self._predicted: list[Floats] = []
        self._without: RowLocation | None = None

    def add(self, row: PredictionRow, query: Query, location: RowLocation) -> None:
        """Checks and stores the scores of a row."""
        if SALIENCY in row:
            self._predicted.append(_checked_saliency(row, _clip_count(query), location))
        elif self._without is None:
            self._without = location

    def scores(self, queries: Sequence[Query], split: Split) -> dict[str, Floats] | None:
        """Scores the added rows, those of `queries`; None if no row has saliency scores."""
        if not self._predicted:
            return None
        if self._without is not None:
            self._without.refuse(
                f"'{SALIENCY}', which other rows have", "none", "Write them in every row or in none."
            )
        annotators = next((len(rating) for query in queries for _, rating in query.saliency), 0)
        if not annotators:
            raise VmrError(
                f"Split '{split.name}' has no clip ratings, so highlights cannot be scored on it. "
                "Use metrics=moments."
            )
        parts = [
            _score_highlights(
                queries[at : at + QUERIES_PER_CHUNK], self._predicted[at : at + QUERIES_PER_CHUNK], annotators
            )
            for at in range(0, len(queries), QUERIES_PER_CHUNK)
        ]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _clip_count(query: Query) -> int:
    return math.ceil(query.duration / CLIP_SECONDS)


def _checked_saliency(row: PredictionRow, clips: int, location: RowLocation) -> Floats:
    """Checks the saliency of a row: one finite number per clip; one clip more or less is accepted."""
    scores = row[SALIENCY]
    if not isinstance(scores, list | tuple) or not scores or not set(map(type, scores)) <= _NUMBERS:
        location.refuse(f"a list of numbers under '{SALIENCY}'", _shorten(scores), "Write one per clip.")
    # Features may end a clip before or after the annotation (as in 13 rows of Moment-DETR's published
    # predictions). A missing clip then has score 0, as in the official evaluator.
    if abs(len(scores) - clips) > 1:
        location.refuse(
            f"{clips} numbers under '{SALIENCY}', one per {CLIP_SECONDS:g} s",
            f"{len(scores)}",
            "Write one per clip, without padding.",
        )
    return _finite_array(scores, "saliency", location)


def _score_highlights(
    queries: Sequence[Query], predicted: Sequence[Floats], annotators: int
) -> dict[str, Floats]:
    """Scores the saliency of some queries."""
    clips = np.array([_clip_count(query) for query in queries])
    length = int(clips.max())
    scores = np.zeros((len(queries), length + 1))
    ratings = np.zeros((len(queries), length, annotators), dtype=np.int64)
    for number, (query, values) in enumerate(zip(queries, predicted, strict=True)):
        scores[number, : len(values)] = values
        for clip, rating in query.saliency:
            ratings[number, clip] = rating
    top = np.array([values.argmax() for values in predicted])
    return highlight_scores(scores[:, :length], top, ratings, clips)
