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

from vmr_zoo.errors import unknown
from vmr_zoo.report.runs import REFERENCE_SPLITS, Run

TABLE_KEYS = ("protocol", "features", "origin", "selection", "rounding")
"""Two runs share a table exactly if their headers agree in all of these."""

DROP = "drop"
"""The column with the loss out of distribution: reference split minus the mean of the other test splits, in
points."""

BEST, WORSE = "*", "↓"
"""Marks of the best row, and of rows that are significantly worse."""

BY_NAME = "name"
"""The value of `sort` for alphabetical rows."""

COSTS = {
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
        label: the name without what all rows of the table share.
        caveats: see `caveats.find_caveats`, which sets them.
    """

    name: str
    runs: list[Run]
    values: dict[tuple[str, str], list[float]]
    marks: dict[tuple[str, str], str] = field(default_factory=dict)
    label: str = ""
    caveats: dict[str, bool] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Takes the name as label unless there is one."""
        self.label = self.label or self.name

    @property
    def method_and_variant(self) -> tuple[str, str]:
        """Method and variant."""
        header = self.runs[0].header
        return str(header["method"]), str(header["variant"])

    def cell(self, key: tuple[str, str]) -> str:
        """Formats a value as mean ± sample standard deviation over seeds, with its mark."""
        values = self.values.get(key)
        return f"{format_mean_std(values)}{self.marks.get(key, '')}" if values else ""

    def mean(self, key: tuple[str, str]) -> float | None:
        """Returns the mean over seeds; None without values."""
        values = self.values.get(key)
        return statistics.fmean(values) if values else None

    def mean_cost(self, key: str) -> float | None:
        """Returns the mean of a header's number over the runs that have it; None if none does."""
        values = [run.header[key] for run in self.runs if run.header.get(key) is not None]
        return statistics.fmean(values) if values else None


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
        shared: the settings that all rows share and their labels omit, such as "max_epochs-2"; "" if none.
    """

    title: str
    columns: list[str]
    metrics: list[str]
    rows: list[LeaderboardRow]
    shared: str = ""

    @property
    def splits(self) -> list[str]:
        """The columns that are splits."""
        return [column for column in self.columns if column != DROP]

    @property
    def heading(self) -> str:
        """The title without the conditions."""
        return self.title.partition("; ")[0]

    @property
    def conditions(self) -> str:
        """The rest of the title: how checkpoints were chosen and times rounded."""
        return self.title.partition("; ")[2]

    @property
    def seeds(self) -> str:
        """How many seeds the rows have: "3 seeds", "1 to 3 seeds"."""
        counts = {len(row.runs) for row in self.rows}
        few, many = min(counts), max(counts)
        return f"{few} seed{'s' * (few != 1)}" if few == many else f"{few} to {many} seeds"

    def best(self, key: tuple[str, str]) -> LeaderboardRow | None:
        """Returns the row with the highest mean; None for `DROP`, and without two rows to compare."""
        rows = [row for row in self.rows if row.values.get(key)]
        if len(rows) < 2 or key[0] == DROP:
            return None
        return max(rows, key=lambda row: statistics.fmean(row.values[key]))

    def cost(self) -> tuple[list[str], list[list[str]]]:
        """Returns the titles of the cost columns and the cells of each row, without empty columns."""
        costs = {key: [row.mean_cost(key) for row in self.rows] for key in COSTS}
        costs = {key: found for key, found in costs.items() if any(one is not None for one in found)}
        cells = [
            [
                str(len(row.runs)),
                f"{row.runs[0].header['parameters']:,}",
                *("" if one[n] is None else f"{one[n]:,.{COSTS[key][1]}f}" for key, one in costs.items()),
            ]
            for n, row in enumerate(self.rows)
        ]
        return ["seeds", "parameters", *(COSTS[key][0] for key in costs)], cells


def leaderboards(runs: Sequence[Run], metrics: Sequence[str], sort: str | None = None) -> list[Leaderboard]:
    """Groups runs into tables by `TABLE_KEYS`, and in each table into rows by name.

    Args:
        runs: finished runs.
        metrics: the metrics to show.
        sort: "SPLIT METRIC", best first; None: the in-distribution split, else the first, and the first
            metric; `BY_NAME`: by name.

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
    keys = {" ".join(key): key for board in boards for row in board.rows for key in row.values}
    if sort is not None and sort != BY_NAME and sort not in keys:
        raise unknown("column to sort by", sort, [*keys, BY_NAME])
    for board in boards:
        if sort != BY_NAME:
            _sort_best_first(board, (board.columns[0], board.metrics[0]) if sort is None else keys[sort])
    return boards


def _sort_best_first(board: Leaderboard, key: tuple[str, str]) -> None:
    """Sorts the rows by one column, for `DROP` the smallest first; rows without a value come last."""
    sign = 1 if key[0] == DROP else -1
    means = {row.name: row.mean(key) for row in board.rows}
    board.rows.sort(
        key=lambda row: (
            means[row.name] is None,
            sign * (means[row.name] or 0.0),
        )
    )


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
    reference = next((split for split in REFERENCE_SPLITS if split in columns), None)
    columns.sort(key=lambda split: (split != reference, split == "selection"))
    others = [split for split in columns if split not in (reference, "selection")]
    labels, in_common = _short_labels(rows)
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
        present = {key: found for key, found in values.items() if found}
        averaged.append(LeaderboardRow(name, runs, present, label=labels[name]))
    warnings = {text for runs in rows.values() for run in runs for text in run.header.get("warnings", ())}
    warned = "".join(f" (WARNING: {text})" for text in sorted(warnings))
    title = (
        f"{shared['protocol']}, {features_title(shared)}{warned}; {_selection_title(shared['selection'])}; "
        f"predicted times rounded to {shared['rounding']}"
    )
    if reference is not None and others:
        columns.append(DROP)
    return Leaderboard(title, columns, list(metrics), averaged, in_common)


def _short_labels(rows: Mapping[str, list[Run]]) -> tuple[dict[str, str], str]:
    """Shortens the names of rows: the method alone, and the settings in which the rows differ.

    Returns:
        The label of each name, and the settings that all rows share. Names that do not begin with method and
        variant stay as they are.
    """
    headers = {name: runs[0].header for name, runs in rows.items()}
    prefixes = {name: f"{header['method']}-{header['variant']}" for name, header in headers.items()}
    if not all(name.startswith(prefixes[name]) for name in rows):
        return {name: name for name in rows}, ""
    one_variant = len({header["variant"] for header in headers.values()}) == 1
    parts = {name: name.removeprefix(prefixes[name]).split("+") for name in rows}
    first = next(iter(parts.values()))
    shared = [part for part in first[1:] if all(part in own for own in parts.values())]
    labels = {
        name: "+".join(
            [
                (str(headers[name]["method"]) if one_variant else prefixes[name]) + own[0],
                *(part for part in own[1:] if part not in shared),
            ]
        )
        for name, own in parts.items()
    }
    if len(set(labels.values())) < len(labels):
        return {name: name for name in rows}, ""
    variant = next(iter(headers.values()))["variant"]
    other = [f"variant {variant}"] if one_variant and variant != "paper" else []
    return labels, ", ".join([*other, *shared])


def _selection_title(selection: str) -> str:
    """Says which split chose the weights."""
    if selection.startswith("none"):
        return "weights of the last epoch, chosen by no validation"
    split = f"the {selection} validation split" if selection in ("published", "generated") else selection
    return f"weights chosen on {split}"


def features_title(header: Mapping[str, Any]) -> str:
    """Names the features of a run, and their origin unless they come from real videos."""
    title = f"features {header['features']}"
    if header["origin"] == "simulated":
        return f"{title} (SIMULATED: no number here comes from pixels)"
    return title if header["origin"] == "real" else f"{title} ({header['origin']})"
