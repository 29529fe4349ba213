"""`vmr score`: a file of predictions against the ground truth of one split, without a model.

Reads the submissions of QVHighlights' benchmark (`qid`, `query`, `vid`, `pred_relevant_windows`,
`pred_saliency_scores`) and the project's own predictions.jsonl (the same with `query_id`, `video_id` and
`split`). Windows are scored as they stand in the file: rounding happens before they are written.

Imports no torch, to start fast.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from vmr_zoo.data.annotations.protocols import find_split
from vmr_zoo.data.annotations.records import LONGEST, Protocol, Query, Split
from vmr_zoo.errors import VmrError, some
from vmr_zoo.metrics import official
from vmr_zoo.metrics.highlight import CLIP_SECONDS, highlight_scores
from vmr_zoo.metrics.per_query import PART, Floats, MomentScores, mean, moment_scores, name_scores, packed
from vmr_zoo.metrics.settings import MetricSettings
from vmr_zoo.utils.files import atomic_write

Row = Mapping[str, Any]

_NUMBERS = {int, float}


@dataclass(frozen=True, slots=True)
class Place:
    """Where a row stands, for errors: the file, the line from 1, and the query id once it is known."""

    source: str
    line: int
    query_id: str | None = None

    def wrong(self, expected: str, found: str, remedy: str) -> NoReturn:
        """Raises the error that reports this place."""
        query = f" (query {self.query_id})" if self.query_id is not None else ""
        raise VmrError(
            f"{self.source}, line {self.line}{query}: expected {expected}, found {found}. {remedy}"
        )


Placed = tuple[Row, Place]


@dataclass(frozen=True, slots=True)
class Scored:
    """A scored submission. Per-query arrays follow the order of its rows.

    Attributes:
        query_ids, video_ids: of each query.
        queries: (B,) score in [0, 1] by metric name; NaN where a metric does not apply to a query.
        moments: by length bucket, what the moment metrics were read from.
        highlights: the highlight part of `queries`; None if none were scored.
        rounding: the data set's rounding if the windows obey it, else a statement that they do not.
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
        return official.report(self.moments, self.highlights)


def read_rows(path: Path) -> Iterator[Placed]:
    """Reads a JSON Lines file, line by line as the rows are asked for.

    Args:
        path: one JSON object per line; blank lines are passed over.

    Returns:
        The objects, each with its place.

    Raises:
        VmrError: if there is no such file; while reading: if it is empty, or a line is not a JSON object.
    """
    if not path.is_file():
        raise VmrError(f"No predictions file at '{path}'. Name one with predictions=FILE.jsonl.")
    return _read(path)


def _read(path: Path) -> Iterator[Placed]:
    empty = True
    try:
        with path.open("rb") as file:
            for line, text in enumerate(file, start=1):
                if text.strip():
                    empty = False
                    place = Place(str(path), line)
                    yield _row(text, place), place
    except OSError as error:
        raise VmrError(f"Cannot read '{path}': {error.strerror}. Check its permissions.") from error
    if empty:
        raise VmrError(f"'{path}' is empty: expected one JSON object per query. Write the predictions again.")


def placed(rows: Iterable[Row], source: str = "predictions") -> Iterator[Placed]:
    """Counts rows as lines of `source`, from 1."""
    return ((row, Place(source, line)) for line, row in enumerate(rows, start=1))


def _row(text: bytes, place: Place) -> Row:
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        place.wrong("one JSON object", f"invalid JSON ({error})", "Write one object per line.")
    if not isinstance(row, dict):
        place.wrong("one JSON object", f"a JSON {type(row).__name__}", "Write one object per line.")
    return row


def score_rows(rows: Iterable[Row], split: Split, settings: MetricSettings) -> dict[str, float]:
    """Scores the rows of a predictions file; see `score_queries` for the scores of single queries.

    Args:
        rows: exactly one per query of `split`; rows that name another split are left out.
        split: the ground truth.
        settings: what is measured.

    Returns:
        Percentages by metric name, unrounded; a metric that applies to no query is absent.

    Raises:
        VmrError: for a bad row, with its line and query id.
    """
    return score_queries(placed(rows), split, settings).metrics


def score_queries(
    rows: Iterable[Placed], split: Split, settings: MetricSettings, source: str = "predictions"
) -> Scored:
    """Scores the rows of a predictions file, query by query.

    Of each row only the numbers that are scored are kept: rows may come from a file of any size.

    Args:
        rows: exactly one per query of `split`, in any order; rows that name another split are left out.
        split: the ground truth.
        settings: what is measured.
        source: the file's name, for errors.

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
    for row, place, query in _match(rows, split, source):
        given = _windows(row, place)[:kept]
        windows[len(queries), : len(given)] = given
        window_mask[len(queries), : len(given)] = True
        queries.append(query)
        if settings.highlights:
            saliency.add(row, query, place)
    most = int(window_mask.sum(1).max())
    windows, window_mask = windows[:, :most], window_mask[:, :most]
    targets, target_mask = packed([query.moments for query in queries], 2)
    moments = moment_scores(
        windows[..., :2],
        targets,
        target_mask,
        np.where(window_mask, windows[..., 2], -np.inf),
        settings.windows,
    )
    highlights = saliency.scores(queries, split)
    rounded = settings.rounding.apply(windows[..., :2])
    obeys = np.array_equal(rounded[window_mask], windows[window_mask][:, :2])
    return Scored(
        query_ids=tuple(query.query_id for query in queries),
        video_ids=tuple(query.video_id for query in queries),
        queries=name_scores(moments, settings) | (highlights or {}),
        moments=moments,
        highlights=highlights,
        rounding=settings.rounding.description
        if obeys
        else f"as submitted, not: {settings.rounding.description}",
    )


def _match(rows: Iterable[Placed], split: Split, source: str) -> Iterator[tuple[Row, Place, Query]]:
    """Pairs the rows of the split with its queries, one to one."""
    if not split.queries:
        raise VmrError(f"Split '{split.name}' has no queries ({split.source}), so there is nothing to score.")
    queries = {query.query_id: query for query in split.queries}
    withheld = [query.query_id for query in split.queries if not query.moments]
    if withheld:
        raise VmrError(
            f"The ground truth of split '{split.name}' is withheld (queries {some(withheld)}), so it "
            "cannot be scored here. Send the predictions to the benchmark's server."
        )
    other: Counter[str] = Counter()
    lines: dict[str, int] = {}
    for row, place in rows:
        if row.get("split", split.name) != split.name:
            other[str(row["split"])] += 1
            continue
        found = row.get("query_id", row.get("qid"))
        if type(found) not in (int, str):
            place.wrong("a query id under 'query_id' or 'qid'", repr(found), "Give each row its query's id.")
        query_id = str(found)
        place = Place(place.source, place.line, query_id)
        if query_id not in queries:
            place.wrong(
                f"a query id of split '{split.name}'",
                "one that it does not have",
                "Check data= and split=: the file may belong to another split or data set.",
            )
        if query_id in lines:
            place.wrong(
                "one row per query", f"this query on line {lines[query_id]} already", "Remove one of the two."
            )
        query = queries[query_id]
        video_id = row.get("video_id", row.get("vid", query.video_id))
        if video_id != query.video_id:
            place.wrong(
                f"video {query.video_id}",
                f"video {video_id!r}",
                "Check data= and split=: the ids may be another data set's.",
            )
        lines[query_id] = place.line
        yield row, place, query
    missing = [query_id for query_id in queries if query_id not in lines]
    if missing:
        hint = f" Rows of other splits were left out: {dict(other)}." if other else ""
        raise VmrError(
            f"{source} has no row for {len(missing):,} of the {len(queries):,} queries of split "
            f"'{split.name}': {some(missing)}. Every query needs a row: a score over a part "
            f"would not compare.{hint}"
        )


def _shorten(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _windows(row: Row, place: Place) -> Floats:
    """Checks the windows of a row: (K, 3) start and end in seconds and score."""
    windows = row.get("pred_relevant_windows")
    if not isinstance(windows, Sequence) or isinstance(windows, str) or not windows:
        place.wrong(
            "a list of at least one [start, end, score] under 'pred_relevant_windows'",
            _shorten(windows),
            "Predict at least one window for every query.",
        )
    for rank, window in enumerate(windows, start=1):
        if not isinstance(window, list | tuple) or len(window) != 3 or not set(map(type, window)) <= _NUMBERS:
            place.wrong(
                f"[start, end, score], three numbers, as window {rank}",
                _shorten(window),
                "Mend or remove it.",
            )
    array = _array(windows, "windows", place)
    far = np.flatnonzero((np.abs(array[:, :2]) > LONGEST).any(1))
    if len(far):
        rank = int(far[0])
        place.wrong(
            f"seconds within {LONGEST:g} as window {rank + 1}", _shorten(windows[rank]), "Mend or remove it."
        )
    reversed_ = np.flatnonzero(array[:, 0] > array[:, 1])
    if len(reversed_):
        rank = int(reversed_[0])
        place.wrong(f"start <= end in window {rank + 1}", _shorten(windows[rank]), "Swap start and end.")
    return array


def _array(values: Sequence[Any], what: str, place: Place) -> Floats:
    """Converts checked numbers, refusing NaN, infinity and integers beyond any float."""
    remedy = "Check the model that predicted it: training may have diverged."
    try:
        array = np.array(values, dtype=np.float64)
    except OverflowError:
        place.wrong(f"finite {what}", "an integer too large for a float", remedy)
    bad = np.argwhere(~np.isfinite(array))
    if len(bad):
        place.wrong(f"finite {what}", f"{array[tuple(bad[0])]} in number {bad[0][0] + 1}", remedy)
    return array


class _Saliency:
    """The saliency of rows, one after the other."""

    def __init__(self) -> None:
        self._predicted: list[Floats] = []
        self._without: Place | None = None

    def add(self, row: Row, query: Query, place: Place) -> None:
        """Checks and keeps a row's numbers."""
        if "pred_saliency_scores" in row:
            self._predicted.append(_saliency(row, _clips(query), place))
        elif self._without is None:
            self._without = place

    def scores(self, queries: Sequence[Query], split: Split) -> dict[str, Floats] | None:
        """Scores the rows that were added, those of `queries`; None if none has any saliency."""
        if not self._predicted:
            return None
        if self._without is not None:
            self._without.wrong(
                "'pred_saliency_scores', which other rows have", "none", "Give it in every row or in none."
            )
        annotators = next((len(rating) for query in queries for _, rating in query.saliency), 0)
        if not annotators:
            raise VmrError(
                f"Split '{split.name}' has no clip ratings, so highlights cannot be scored on it. "
                "Use metrics=moments."
            )
        parts = [
            _highlights(queries[at : at + PART], self._predicted[at : at + PART], annotators)
            for at in range(0, len(queries), PART)
        ]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _clips(query: Query) -> int:
    return math.ceil(query.duration / CLIP_SECONDS)


def _saliency(row: Row, clips: int, place: Place) -> Floats:
    """Checks the saliency of a row: one finite number per clip, give or take the last clip."""
    scores = row["pred_saliency_scores"]
    if not isinstance(scores, list | tuple) or not scores or not set(map(type, scores)) <= _NUMBERS:
        place.wrong("a list of numbers under 'pred_saliency_scores'", _shorten(scores), "Write one per clip.")
    # Features may end a clip before or after the annotation does (13 rows of the published Moment-DETR
    # predictions do); as in the official evaluator a missing clip then counts as score 0.
    if abs(len(scores) - clips) > 1:
        place.wrong(
            f"{clips} numbers under 'pred_saliency_scores', one per {CLIP_SECONDS:g} s",
            f"{len(scores)}",
            "Write one per clip, without padding.",
        )
    return _array(scores, "saliency", place)


def _highlights(queries: Sequence[Query], predicted: Sequence[Floats], annotators: int) -> dict[str, Floats]:
    """Scores the saliency of some queries."""
    clips = np.array([_clips(query) for query in queries])
    length = int(clips.max())
    scores = np.zeros((len(queries), length + 1))
    ratings = np.zeros((len(queries), length, annotators), dtype=np.int64)
    for number, (query, values) in enumerate(zip(queries, predicted, strict=True)):
        scores[number, : len(values)] = values
        for clip, rating in query.saliency:
            ratings[number, clip] = rating
    top = np.array([values.argmax() for values in predicted])
    return highlight_scores(scores[:, :length], top, ratings, clips)


def _print(scored: Scored, title: str) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table()
    table.add_column("metric")
    table.add_column("%", justify="right")
    table.add_column("queries", justify="right")
    for name, value in scored.metrics.items():
        table.add_row(name, f"{value:.2f}", f"{np.isfinite(scored.queries[name]).sum():,}")
    Console().print(Text(title, "bold"), table, Text(f"rounding of windows: {scored.rounding}"))


def main(cfg: Any) -> int:
    """Scores `predictions` on `split` of `data`, prints a table, and writes `out` if given.

    Args:
        cfg: the composed configuration: `predictions`, `data.protocol`, `metrics`, `split`, `out`.

    Returns:
        0.

    Raises:
        VmrError: for a missing or bad predictions file, or an unknown split.
    """
    from hydra.utils import instantiate

    if not cfg.get("predictions"):
        raise VmrError(
            "Nothing to score. Name a file of predictions: vmr score predictions=FILE.jsonl data=… split=…"
        )
    path = Path(str(cfg.predictions))
    rows = read_rows(path)
    protocol: Protocol = instantiate(cfg.data.protocol)
    split = find_split(protocol, cfg.split)
    # The torchmetrics class that conf/metrics/*.yaml names has the same fields, but imports torch.
    node = {**cfg.metrics, "_target_": "vmr_zoo.metrics.settings.MetricSettings"}
    settings: MetricSettings = instantiate(node, _convert_="all")
    scored = score_queries(rows, split, settings, str(path))
    _print(scored, f"{path.name} on {protocol.name}, split {split.name}")
    if cfg.get("out"):
        own = {**scored.metrics, "rounding": scored.rounding}
        atomic_write(cfg.out, json.dumps(scored.official if settings.highlights else own, indent=4))
    return 0
