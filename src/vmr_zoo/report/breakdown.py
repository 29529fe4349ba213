"""Breaks scores down by kind of query: its words, clauses, verbs, moments, and their length and place.

Works on predictions alone: a row holds the sentence, the moments and the duration of the video.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pandas as pd

from vmr_zoo.data.text.parsing import ClauseCounts, count_words
from vmr_zoo.engine.submission import PredictionRow
from vmr_zoo.errors import VmrError, unknown
from vmr_zoo.metrics.per_query import Floats
from vmr_zoo.report.leaderboard import Leaderboard
from vmr_zoo.report.query_scores import RowsBySplit, leaderboard_scores, query_index, split_means
from vmr_zoo.report.runs import Run
from vmr_zoo.report.significance import percentile_interval, resampled_means, video_codes
from vmr_zoo.report.stored_scores import VIDEO
from vmr_zoo.utils.console import progress

FEW = 30
"""Videos below which a group is marked: its interval says little."""

RESAMPLES = 2_000

ALL = "all"


class Kind(NamedTuple):
    """One way to group queries.

    Attributes:
        title: what the groups differ in.
        upper: the highest value of each group but the last, which is open.
        groups: the name of each group.
    """

    title: str
    upper: tuple[float, ...]
    groups: tuple[str, ...]


KINDS = {
    "words": Kind("words of the sentence", (4, 7, 11, 16), ("1-4", "5-7", "8-11", "12-16", "17+")),
    "clauses": Kind("clauses of the sentence", (1, 2), ("1", "2", "3+")),
    "verbs": Kind("verbs of the sentence", (0, 1, 2), ("0", "1", "2", "3+")),
    "moments": Kind("moments of the query", (1, 2), ("1", "2", "3+")),
    "length": Kind("seconds of the longest moment", (5, 10, 30), ("0-5 s", "5-10 s", "10-30 s", "over 30 s")),
    "place": Kind(
        "place of the longest moment's centre in the video",
        (1 / 3, 2 / 3),
        ("first third", "middle third", "last third"),
    ),
}
"""The groups of each value of `by`. A boundary belongs to the lower group."""


class Cell(NamedTuple):
    """The score of one row on one group, in per cent.

    Attributes:
        mean: over the queries, each averaged over seeds.
        low: lower end of the interval that contains 95 % of the resampled means; NaN for a single video.
        high: its upper end.
        queries: the queries that the row has a score of.
        videos: the videos of these queries.
    """

    mean: float
    low: float
    high: float
    queries: int
    videos: int


@dataclass(frozen=True)
class Breakdown:
    """One table: rows of a leaderboard by groups of queries.

    Attributes:
        board: the leaderboard.
        split: the split.
        kind: key of `KINDS`.
        metric: the metric.
        groups: number of queries by group, `ALL` first; without empty groups.
        few: the groups with queries of fewer than `FEW` videos.
        cells: for each row of the leaderboard, its cells by group.
    """

    board: Leaderboard
    split: str
    kind: str
    metric: str
    groups: Mapping[str, int]
    few: Collection[str]
    cells: Sequence[Mapping[str, Cell]]

    @property
    def title(self) -> str:
        """Names metric, split and groups."""
        return f"{self.metric} on {self.split} by {KINDS[self.kind].title}"


def read_kinds(by: str | Sequence[str]) -> list[str]:
    """Returns the requested keys of `KINDS`, in the given order.

    Args:
        by: one or several of them, or `ALL`.

    Raises:
        VmrError: for an unknown one.
    """
    wanted = [by] if isinstance(by, str) else list(by)
    if wanted == [ALL]:
        return list(KINDS)
    for one in wanted:
        if one not in KINDS:
            raise unknown("by", str(one), [*KINDS, ALL])
    return list(dict.fromkeys(wanted))


@dataclass
class _Collector:
    """Groups the queries of a table; the first run that has a split decides.

    Attributes:
        kinds: keys of `KINDS`.
        groups: group of each query by split, then kind.
    """

    kinds: Sequence[str]
    parser: ClauseCounts
    groups: dict[str, pd.DataFrame] = field(default_factory=dict)

    def visit(self, _: int, run: Run, rows: RowsBySplit) -> None:
        if not rows:
            raise VmrError(
                f"{run.directory} is stored without predictions, and so without its queries' sentences. "
                "by=… needs the run directory that `vmr train` wrote."
            )
        for split, given in rows.items():
            own = [row for row in given if row["moments"]]
            if own and split not in self.groups:
                self.groups[split] = group_queries(own, self.kinds, self.parser)


def group_queries(
    rows: Sequence[PredictionRow], kinds: Sequence[str], parser: ClauseCounts | None = None
) -> pd.DataFrame:
    """Returns the group of each query.

    Args:
        rows: rows of predictions with a moment.
        kinds: keys of `KINDS`.
        parser: counts clauses and verbs; None: HanTa, which needs no download.

    Returns:
        One row per query and one column per kind.
    """
    parser = ClauseCounts() if parser is None else parser
    measured: dict[str, Callable[[PredictionRow], float]] = {
        "words": lambda row: count_words(row["query"]),
        "clauses": lambda row: 1 + parser.count(row["query"]),
        "verbs": lambda row: parser.verbs(row["query"]),
        "moments": lambda row: len(row["moments"]),
        "length": lambda row: longest_moment(row)[1] - longest_moment(row)[0],
        "place": lambda row: sum(longest_moment(row)) / 2 / row["duration"],
    }
    parsed = "clauses" in kinds or "verbs" in kinds
    found: dict[str, list[str]] = defaultdict(list)
    for row in progress(rows, "Parsing sentences", 200) if parsed else rows:
        for kind in kinds:
            value = round(measured[kind](row), 9)  # a boundary is a boundary, whatever the rounding
            found[kind].append(KINDS[kind].groups[bisect_left(KINDS[kind].upper, value)])
    return pd.DataFrame(found, index=query_index(rows))


def longest_moment(row: PredictionRow) -> tuple[float, float]:
    """Returns start and end in seconds of a query's longest moment."""
    start, end = max(row["moments"], key=lambda moment: moment[1] - moment[0])
    return start, end


def break_down(boards: Sequence[Leaderboard], kinds: Sequence[str]) -> list[Breakdown]:
    """Computes the tables of all splits, kinds and metrics of leaderboards.

    Args:
        boards: the leaderboards; their metrics must have scores of single queries.
        kinds: keys of `KINDS`.

    Raises:
        VmrError: if a run has no predictions, its predictions lack the ground truth, or no metric has scores
            of single queries.
    """
    parser = ClauseCounts()
    tables = []
    for board in boards:
        collector = _Collector(kinds, parser)
        scores = leaderboard_scores(board, collector.visit)
        for split in board.splits:
            groups = collector.groups.get(split)
            if groups is None:
                continue
            rows = split_means(scores, split)
            for metric in board.metrics:
                columns = [None if row is None or metric not in row else row[metric] for row in rows]
                if any(column is not None for column in columns):
                    tables += _tables(board, split, metric, groups, columns)
    if not tables:
        metrics = ", ".join(dict.fromkeys(metric for board in boards for metric in board.metrics))
        raise VmrError(
            f"by=… needs a metric with scores of single queries, such as columns=[mIoU]; found {metrics}."
        )
    return tables


def _tables(
    board: Leaderboard, split: str, metric: str, groups: pd.DataFrame, columns: Sequence[pd.Series | None]
) -> list[Breakdown]:
    """Returns the tables of one split and metric, one per kind."""
    whole = _cells(columns, groups.index)
    tables = []
    for kind in map(str, groups):
        found = {ALL: whole}
        members = {ALL: groups.index}
        for group in KINDS[kind].groups:
            ids = groups.index[groups[kind] == group]
            if len(ids):
                found[group], members[group] = _cells(columns, ids), ids
        cells = [
            {group: own[number] for group, own in found.items() if number in own}
            for number in range(len(columns))
        ]
        sizes = {group: len(ids) for group, ids in members.items()}
        few = {group for group, ids in members.items() if ids.get_level_values(VIDEO).nunique() < FEW}
        tables.append(Breakdown(board, split, kind, metric, sizes, few, cells))
    return tables


def _cells(columns: Sequence[pd.Series | None], ids: pd.Index) -> dict[int, Cell]:
    """Returns the cells of some queries by number of row; rows with the same queries share resamples."""
    alike: dict[bytes, list[tuple[int, Floats]]] = defaultdict(list)
    for number, column in enumerate(columns):
        if column is not None:
            values = 100.0 * column.reindex(ids).to_numpy(np.float64)
            known = ~np.isnan(values)
            if known.any():
                alike[known.tobytes()].append((number, values[known]))
    cells = {}
    for mask, members in alike.items():
        values = np.stack([own for _, own in members])
        count = values.shape[1]
        (videos,) = video_codes(ids[np.frombuffer(mask, bool)])
        low, high = percentile_interval(resampled_means(values, videos, RESAMPLES))
        for place, (number, own) in enumerate(members):
            ends = (float(low[place]), float(high[place])) if videos.any() else (float("nan"), float("nan"))
            cells[number] = Cell(float(own.mean()), *ends, count, 1 + int(videos.max()))
    return cells
