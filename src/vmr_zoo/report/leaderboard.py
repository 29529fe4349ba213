"""Leaderboards: which runs share a table, and how a table averages them over seeds.

`TABLE_KEYS` decides which runs share a table, `_split_repeated_seeds` which of them share a row.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from vmr_zoo.errors import unknown
from vmr_zoo.report.runs import Run

TABLE_KEYS = ("protocol", "features", "origin", "selection", "rounding")
"""Two runs share a table exactly if their headers agree in all of these."""

REFERENCE_SPLITS = ("iid", "trivial")
"""The in-distribution test split, if a protocol has one; the other test splits are out of distribution."""

DROP = "drop"
"""The column with the loss out of distribution: reference split minus the mean of the other test splits, in
points."""

BEST, WORSE = "*", "↓"
"""Marks of the best row, and of rows that are significantly worse."""

_COSTS = {
    "train_seconds": ("train s", 0),
    "step_ms": ("step ms", 1),
    "inference_ms": ("inference ms", 1),
    "peak_memory_mb": ("peak MB", 0),
}
"""Column title and decimals of each cost that a header may have."""


@dataclass
class LeaderboardRow:
    """One run name, averaged over seeds.

    Attributes:
        name: method, variant and whatever else distinguishes the runs.
        runs: one for each seed.
        values: percentages of each seed by (column, metric); a column is a split or `DROP`.
        marks: `BEST` or `WORSE` by (column, metric), once rows have been compared.
    """

    name: str
    runs: list[Run]
    values: dict[tuple[str, str], list[float]]
    marks: dict[tuple[str, str], str] = field(default_factory=dict)

    @property
    def method_and_variant(self) -> tuple[str, str]:
        """Method and variant."""
        header = self.runs[0].header
        return str(header["method"]), str(header["variant"])

    def cell(self, key: tuple[str, str]) -> str:
        """Formats a value as mean ± sample standard deviation over seeds, with its mark."""
        values = self.values.get(key)
        return f"{format_mean_std(values)}{self.marks.get(key, '')}" if values else ""

    def mean_cost(self, key: str, decimals: int) -> str:
        """Formats the mean of a header's number over the runs that have it; "" if none does."""
        values = [run.header[key] for run in self.runs if run.header.get(key) is not None]
        return f"{statistics.fmean(values):,.{decimals}f}" if values else ""


def format_mean_std(values: Sequence[float]) -> str:
    """Formats mean ± sample standard deviation; a single value has no deviation.

    >>> format_mean_std([40.0, 42.0]), format_mean_std([40.0])
    ('41.00 ± 1.41', '40.00')
    """
    deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.2f}{deviation}"


@dataclass(frozen=True)
class Leaderboard:
    """One table of comparable rows.

    Attributes:
        title: what the rows have in common; labels simulated features as such.
        columns: the splits, and `DROP` if there is a reference split.
        metrics: the metrics, shown for each column.
        rows: the rows.
    """

    title: str
    columns: list[str]
    metrics: list[str]
    rows: list[LeaderboardRow]

    @property
    def splits(self) -> list[str]:
        """The columns that are splits."""
        return [column for column in self.columns if column != DROP]

    def cost(self) -> tuple[list[str], list[list[str]]]:
        """Returns the titles of the cost columns and the cells of each row, without empty columns."""
        titles = {
            key: title for key, (title, _) in _COSTS.items() if any(r.mean_cost(key, 0) for r in self.rows)
        }
        cells = [
            [
                str(len(row.runs)),
                f"{row.runs[0].header['parameters']:,}",
                *(row.mean_cost(key, _COSTS[key][1]) for key in titles),
            ]
            for row in self.rows
        ]
        return ["seeds", "parameters", *titles.values()], cells

    def frame(self) -> pd.DataFrame:
        """Returns the table as text: a row per run name and a column per split and metric."""
        keys = [(column, metric) for column in self.columns for metric in self.metrics]
        titles, costs = self.cost()
        cells = [
            [row.name, *row.method_and_variant, *map(row.cell, keys), *cost]
            for row, cost in zip(self.rows, costs, strict=True)
        ]
        return pd.DataFrame(
            cells, columns=["run", "method", "variant", *(" ".join(key) for key in keys), *titles]
        )


def leaderboards(runs: Sequence[Run], metrics: Sequence[str], sort: str | None = None) -> list[Leaderboard]:
    """Groups runs into tables by `TABLE_KEYS`, and in each table into rows by name.

    Args:
        runs: finished runs.
        metrics: the metrics to show.
        sort: "SPLIT METRIC", best first; None: by name.

    Raises:
        VmrError: if no run has one of the metrics, or no table the column to sort by.
    """
    known = {name for run in runs for values in run.metrics.values() for name in values}
    for name in metrics:
        if name not in known:
            raise unknown("metric", name, known)
    tables: dict[tuple[str, ...], dict[str, list[Run]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        tables[tuple(str(run.header[key]) for key in TABLE_KEYS)][run.header["name"]].append(run)
    boards = [
        _leaderboard(dict(zip(TABLE_KEYS, key, strict=True)), _split_repeated_seeds(rows), metrics)
        for key, rows in sorted(tables.items())
    ]
    if sort is not None:
        keys = {" ".join(key): key for board in boards for row in board.rows for key in row.values}
        if sort not in keys:
            raise unknown("column to sort by", sort, keys)
        for board in boards:
            board.rows.sort(key=lambda row: -statistics.fmean(row.values.get(keys[sort]) or [-1.0]))
    return boards


def _split_repeated_seeds(rows: Mapping[str, list[Run]]) -> dict[str, list[Run]]:
    """Splits a row that has the same seed twice, as from two studies, by the directory of its runs."""
    found = {}
    for name, runs in rows.items():
        if len({run.header["seed"] for run in runs}) == len(runs):
            found[name] = runs
            continue
        by_parent: dict[Path | None, list[Run]] = defaultdict(list)
        for run in runs:
            by_parent[run.path and run.path.parent].append(run)
        for parent, siblings in by_parent.items():
            if len({run.header["seed"] for run in siblings}) == len(siblings):
                found[f"{name} ({parent})"] = siblings
            else:
                found |= {f"{name} ({run.path})": [run] for run in siblings}
    return found


def _leaderboard(shared: dict[str, str], rows: dict[str, list[Run]], metrics: Sequence[str]) -> Leaderboard:
    """Builds one table from the header values that its runs share and its runs by row."""
    columns = list(dict.fromkeys(split for runs in rows.values() for run in runs for split in run.metrics))
    columns.sort(key=lambda split: split == "selection")
    reference = next((split for split in REFERENCE_SPLITS if split in columns), None)
    others = [split for split in columns if split not in (reference, "selection")]
    averaged = []
    for name, runs in sorted(rows.items()):
        values: dict[tuple[str, str], list[float]] = {}
        for metric in metrics:
            for split in columns:
                found = [run.metrics.get(split, {}).get(metric) for run in runs]
                values[split, metric] = [value for value in found if value is not None]
            if reference is not None and others:
                values[DROP, metric] = [
                    run.metrics[reference][metric] - statistics.fmean(run.metrics[s][metric] for s in others)
                    for run in runs
                    if all(run.metrics.get(s, {}).get(metric) is not None for s in (reference, *others))
                ]
        averaged.append(LeaderboardRow(name, runs, {key: found for key, found in values.items() if found}))
    title = (
        f"{shared['protocol']}, {features_title(shared)}; selected on: {shared['selection']}; "
        f"rounding: {shared['rounding']}"
    )
    if reference is not None and others:
        columns.append(DROP)
    return Leaderboard(title, columns, list(metrics), averaged)


def features_title(header: Mapping[str, Any]) -> str:
    """Names the features of a run, and their origin unless they come from real videos."""
    title = f"features {header['features']}"
    if header["origin"] == "simulated":
        return f"{title} (SIMULATED: no number here comes from pixels)"
    return title if header["origin"] == "real" else f"{title} ({header['origin']})"
