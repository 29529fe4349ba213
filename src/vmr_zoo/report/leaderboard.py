"""Leaderboards: which runs share a table, and how a table averages them over seeds.

`TABLE_KEYS` decides which runs share a table, `split_repeated_seeds` which of them share a row.
"""

from __future__ import annotations

import functools
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from vmr_zoo.data.annotations.records import SELECTION, selecting_split
from vmr_zoo.engine.moment_sets import SET_SOURCES, rule_from_header
from vmr_zoo.errors import VmrError, unknown
from vmr_zoo.metrics.calibration import BINS, CALIBRATION_METRICS, ECE, ECE_ISOTONIC, RIGHT_FROM
from vmr_zoo.metrics.sets import SET_METRICS
from vmr_zoo.report.elsewhere import external_label, group_runs, is_external
from vmr_zoo.report.families import family_order, find_family
from vmr_zoo.report.runs import REFERENCE_SPLITS, Run, metric_names
from vmr_zoo.runs.directory import EXTERNAL, SIMULATED

TABLE_KEYS = ("protocol", "features", "origin", "selection", "rounding")
"""Two runs share a table exactly if their headers agree in all of these. Rows from elsewhere have no features
and no selection: `elsewhere.group_runs`."""

DROP = "drop"
"""The column with the loss out of distribution: reference split minus the mean of the other test splits, in
points."""

BEST, TIED, WORSE = "best", "tied", "worse"
"""Verdicts of a comparison: the best row, rows to which no row is significantly superior, which with it are
the best group, and rows to which one is."""

TIED_SIGN = "≈"
"""Follows the numbers of `TIED` rows; the best number is bold."""

LEADING_METRIC = "R1@0.5"
"""The metric that ranks rows and that charts and conclusions show, if a table has it; else its first."""

DERIVED_METRICS = (*SET_METRICS, *CALIBRATION_METRICS)
"""Metrics that `report.derived` computes for runs that lack them."""

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
        marks: `BEST`, `TIED` or `WORSE` by (column, metric), once rows have been compared.
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

    @functools.cached_property
    def family(self) -> str:
        """The family of its method; "" if the method declares none."""
        return find_family(self.runs[0])

    def sign(self, key: tuple[str, str]) -> str:
        """Returns `TIED_SIGN` if no row is significantly superior, else ""."""
        return TIED_SIGN if self.marks.get(key) == TIED else ""

    def cell(self, key: tuple[str, str]) -> str:
        """Formats a value as mean ± sample standard deviation over seeds, with its sign."""
        values = self.values.get(key)
        return f"{format_mean_std(values)}{self.sign(key)}" if values else ""

    def mean(self, key: tuple[str, str]) -> float | None:
        """Returns the mean over seeds; None without values."""
        values = self.values.get(key)
        return statistics.fmean(values) if values else None

    def deviation(self, key: tuple[str, str]) -> float | None:
        """Returns the sample standard deviation over seeds; None with fewer than two values."""
        values = self.values.get(key, [])
        return statistics.stdev(values) if len(values) > 1 else None

    def mean_cost(self, key: str) -> float | None:
        """Returns the mean of a header's number over the runs that have it; None if none does."""
        values = [run.header[key] for run in self.runs if run.header.get(key) is not None]
        return statistics.fmean(values) if values else None


def ascending(key: tuple[str, str]) -> int:
    """Returns what turns the values of a column and metric into an ascending order, best first: 1 or -1."""
    return 1 if key[0] == DROP or key[1] in CALIBRATION_METRICS else -1


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
        sorted_by: the column and metric that order the rows; None: their names.
        shared: the settings that all rows share and their labels omit, such as "max_epochs-2"; "" if none.
    """

    title: str
    columns: list[str]
    metrics: list[str]
    rows: list[LeaderboardRow]
    shared: str = ""
    sorted_by: tuple[str, str] | None = None

    @property
    def splits(self) -> list[str]:
        """The columns that are splits."""
        return [column for column in self.columns if column != DROP]

    @property
    def test_splits(self) -> list[str]:
        """The splits without the selection split, the reference split first."""
        return [split for split in self.splits if split != SELECTION]

    @property
    def heading(self) -> str:
        """The title without the conditions."""
        return self.title.partition("; ")[0]

    @property
    def conditions(self) -> str:
        """The rest of the title: how checkpoints were chosen and times rounded."""
        return self.title.partition("; ")[2]

    @property
    def leading_metric(self) -> str:
        """The metric that ranks the rows: `LEADING_METRIC`, or the first if the table lacks that."""
        return LEADING_METRIC if LEADING_METRIC in self.metrics else self.metrics[0]

    @property
    def metric_notes(self) -> list[str]:
        """Explains metrics that depend on a choice: sets of moments and calibration."""
        notes = []
        if sets := [name for name in self.metrics if name in SET_METRICS]:
            rules = [rule_from_header(run.header) for row in self.rows for run in row.runs]
            sources = {rule.source for rule in rules if rule is not None}
            meant = [text for source, text in SET_SOURCES.items() if source in sources]
            notes.append(f"{', '.join(sets)}: the set holds {'; or '.join(meant)}.")
        if ECE in self.metrics:
            notes.append(
                f"{ECE}: expected calibration error of the best score as the probability of IoU >= "
                f"{RIGHT_FROM:g}, {BINS} bins of equal width; lower is better; empty if scores leave [0, 1]."
            )
        if ECE_ISOTONIC in self.metrics:
            notes.append(f"{ECE_ISOTONIC}: the same after isotonic regression on the {SELECTION} split.")
        return notes

    @property
    def families(self) -> dict[str, list[LeaderboardRow]]:
        """The rows by family, in the order of the rows; baselines and rows from elsewhere come last."""
        found: dict[str, list[LeaderboardRow]] = {}
        for row in self.rows:
            found.setdefault(row.family, []).append(row)
        return dict(sorted(found.items(), key=lambda item: family_order(item[0])))

    @property
    def compared(self) -> bool:
        """Whether significance was tested."""
        return any(row.marks for row in self.rows)

    @property
    def not_compared(self) -> list[str]:
        """Metrics, splits, and labels of rows with values that were not compared with the best."""
        marks = {
            (metric, split, row.label): row.marks.get((split, metric))
            for row in self.rows
            for split, metric in row.values
            if self.best((split, metric)) is not None
        }
        found: list[str] = []
        for place in range(3):  # a metric or split is named if none of its cells was compared, else the row
            tested = {cell[place] for cell, mark in marks.items() if mark in (TIED, WORSE) and place < 2}
            names = dict.fromkeys(cell[place] for cell, mark in marks.items() if mark is None)
            own = [name for name in names if name not in tested]
            marks = {cell: mark for cell, mark in marks.items() if cell[place] not in own}
            found += own
        return found

    @property
    def seeds(self) -> str:
        """How many seeds the rows have: "3 seeds", "1 to 3 seeds"."""
        counts = {len(row.runs) for row in self.rows}
        few, many = min(counts), max(counts)
        return f"{few} seed{'s' * (few != 1)}" if few == many else f"{few} to {many} seeds"

    def best(self, key: tuple[str, str]) -> LeaderboardRow | None:
        """Returns the row with the best mean; None for `DROP`, and without two rows to compare."""
        rows = [row for row in self.rows if row.values.get(key)]
        if len(rows) < 2 or key[0] == DROP:
            return None
        return min(rows, key=lambda row: ascending(key) * statistics.fmean(row.values[key]))

    def cost_values(self) -> tuple[list[str], list[list[tuple[float, str] | None]]]:
        """Returns the titles of the cost columns, and of each row the numbers with their text.

        Costs that no row has are left out; None stands for one that this row lacks.
        """
        found: dict[str, list[tuple[float, str] | None]] = {}
        found["seeds"] = [(len(row.runs), str(len(row.runs))) for row in self.rows]
        found["parameters"] = [_number(row.runs[0].header["parameters"], 0) for row in self.rows]
        for key, (title, decimals) in COSTS.items():
            found[title] = [_number(row.mean_cost(key), decimals) for row in self.rows]
        found = {title: numbers for title, numbers in found.items() if any(numbers)}
        return list(found), [list(row) for row in zip(*found.values(), strict=True)]

    def cost(self) -> tuple[list[str], list[list[str]]]:
        """Returns the titles of the cost columns and the cells of each row, without empty columns."""
        titles, rows = self.cost_values()
        return titles, [["" if cell is None else cell[1] for cell in row] for row in rows]


def _number(value: float | None, decimals: int) -> tuple[float, str] | None:
    return None if value is None else (value, f"{value:,.{decimals}f}")


def leaderboards(runs: Sequence[Run], metrics: Sequence[str], sort: str | None = None) -> list[Leaderboard]:
    """Groups runs into tables by `TABLE_KEYS`, and in each table into rows by name.

    Args:
        runs: finished runs.
        metrics: the metrics to show.
        sort: "SPLIT METRIC", best first; None: the in-distribution split, else the first, and the leading
            metric; `BY_NAME`: by name.

    Raises:
        VmrError: if no run has one of the metrics, or no table the column to sort by.
    """
    known = metric_names(runs)
    for name in metrics:
        if name in DERIVED_METRICS and name not in known:
            raise VmrError(
                f"No run can be scored by {name}: it needs predictions in the run directory, those of the "
                f"{SELECTION} split included, and for {ECE} scores in [0, 1]. Leave it out of columns=…."
            )
        if name not in known:
            raise unknown("metric", name, known | set(DERIVED_METRICS))
    boards = []
    for key, group in sorted(group_runs(runs, TABLE_KEYS).items()):
        named: dict[str, list[Run]] = defaultdict(list)
        for run in group:
            named[run.header["name"]].append(run)
        rows = split_repeated_seeds(named)
        boards.append(_leaderboard(dict(zip(TABLE_KEYS, key, strict=True)), rows, metrics))
    keys = {" ".join(key): key for board in boards for row in board.rows for key in row.values}
    if sort is not None and sort != BY_NAME and sort not in keys:
        raise unknown("column to sort by", sort, [*keys, BY_NAME])
    if sort == BY_NAME:
        return boards
    return [
        _sort_best_first(board, (board.columns[0], board.leading_metric) if sort is None else keys[sort])
        for board in boards
    ]


def _sort_best_first(board: Leaderboard, key: tuple[str, str]) -> Leaderboard:
    """Sorts the rows by one column, drops and errors in rising order; rows without a value come last."""
    board.rows.sort(key=lambda row: best_first(row, key))
    return replace(board, sorted_by=key)


def best_first(row: LeaderboardRow, key: tuple[str, str]) -> tuple[bool, float]:
    """Returns what sorts rows by a column, the best first and those without a value last."""
    mean = row.mean(key)
    return mean is None, ascending(key) * (mean or 0.0)


def split_repeated_seeds(rows: Mapping[str, list[Run]]) -> dict[str, list[Run]]:
    """Splits a row that has the same seed twice, as from two studies, by the directory of its runs.

    Of the directories, the names have the part in which they differ.
    """
    found = {}
    for name, runs in rows.items():
        if len({run.header["seed"] for run in runs}) == len(runs):
            found[name] = runs
            continue
        by_folder: dict[tuple[str, ...], list[Run]] = defaultdict(list)
        for run in runs:
            by_folder[run.path.parent.parts if run.path else ()].append(run)
        for folder, siblings in list(by_folder.items()):
            if len({run.header["seed"] for run in siblings}) < len(siblings):
                del by_folder[folder]
                by_folder |= {run.path.parts if run.path else (): [run] for run in siblings}
        for folder, part in zip(by_folder, _differing_parts(list(by_folder)), strict=True):
            found[f"{name} ({part})"] = by_folder[folder]
    return found


def _differing_parts(paths: Sequence[tuple[str, ...]]) -> list[str]:
    """Returns paths without the folders that all begin with, and if something is left of each, end with.

    >>> _differing_parts([("x", "one", "runs"), ("x", "two", "runs")]), _differing_parts([("x",), ("y", "x")])
    (['one', 'two'], ['x', 'y/x'])
    """
    start = _count_common(paths)
    kept = [path[start:] for path in paths]
    end = _count_common([path[::-1] for path in kept])
    shorter = [path[: len(path) - end] for path in kept]
    return ["/".join(path) for path in (shorter if all(shorter) else kept)]


def _count_common(paths: Sequence[tuple[str, ...]]) -> int:
    """Returns how many folders all paths begin with."""
    steps = zip(*paths, strict=False)
    return next((n for n, step in enumerate(steps) if len(set(step)) > 1), min(map(len, paths)))


def _leaderboard(shared: dict[str, str], rows: dict[str, list[Run]], metrics: Sequence[str]) -> Leaderboard:
    """Builds one table from the header values that its runs share and its runs by row."""
    columns = list(dict.fromkeys(split for runs in rows.values() for run in runs for split in run.metrics))
    reference = next((split for split in REFERENCE_SPLITS if split in columns), None)
    columns.sort(key=lambda split: (split != reference, split == "selection"))
    others = [split for split in columns if split not in (reference, "selection")]
    labels, in_common = _short_labels(rows)
    metrics = _shown_metrics([run for runs in rows.values() for run in runs], metrics)
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
        if shared["selection"] != EXTERNAL
        else f"{shared['protocol']}, predictions from elsewhere{warned}; scored as submitted"
    )
    if reference is not None and others:
        columns.append(DROP)
    return Leaderboard(title, columns, list(metrics), averaged, in_common)


def _shown_metrics(runs: Sequence[Run], metrics: Sequence[str]) -> list[str]:
    """Returns the wanted metrics that a table has, else those that the headers of its runs name for it."""
    present = metric_names(runs)
    own = runs[0].header.get("columns") or metrics
    return [name for name in metrics if name in present] or list(own)


def _short_labels(rows: Mapping[str, list[Run]]) -> tuple[dict[str, str], str]:
    """Shortens the names of rows: the method alone, and the settings in which the rows differ.

    Returns:
        The label of each name, and the settings that all rows share. Names that do not begin with method and
        variant stay as they are.
    """
    if external := {name: external_label(name, runs) for name, runs in rows.items() if is_external(runs[0])}:
        labels, shared_settings = _short_labels({k: runs for k, runs in rows.items() if k not in external})
        return labels | external, shared_settings
    if not rows:
        return {}, ""
    headers = {name: runs[0].header for name, runs in rows.items()}
    prefixes = {name: f"{header['method']}-{header['variant']}" for name, header in headers.items()}
    if not all(name.startswith(prefixes[name]) for name in rows):
        return {name: name for name in rows}, ""
    one_variant = len({header["variant"] for header in headers.values()}) == 1
    parts = {name: name.removeprefix(prefixes[name]).split("+") for name in rows}
    common = {
        name: [_without_method(part, headers[name]["method"]) for part in own] for name, own in parts.items()
    }
    first = next(iter(common.values()))
    shared = [part for part in first[1:] if all(part in own for own in common.values())]
    labels = {
        name: "+".join(
            [
                (str(headers[name]["method"]) if one_variant else prefixes[name]) + own[0],
                *(part for part, same in zip(own[1:], common[name][1:], strict=True) if same not in shared),
            ]
        )
        for name, own in parts.items()
    }
    if len(set(labels.values())) < len(labels):
        return {name: name for name in rows}, ""
    variant = next(iter(headers.values()))["variant"]
    other = [f"variant {variant}"] if one_variant and variant != "paper" else []
    return labels, ", ".join([*other, *shared])


def _without_method(part: str, method: str) -> str:
    """Returns a setting that names the method of its run, so that rows of several methods share it.

    >>> _without_method("recipe-shapes_emb", "emb")
    'recipe-shapes_METHOD'
    """
    return f"{part.removesuffix(method)}METHOD" if part.endswith(f"_{method}") else part


def _selection_title(selection: str) -> str:
    """Says which split chose the weights."""
    split = selecting_split(selection)
    return f"weights chosen on {split}" if split else "weights of the last epoch, chosen by no validation"


def features_title(header: Mapping[str, Any]) -> str:
    """Names the features of a run, and their origin unless they come from real videos."""
    title = f"features {header['features']}"
    if header["origin"] == SIMULATED:
        return f"{title} (SIMULATED: no number here comes from pixels)"
    return title if header["origin"] == "real" else f"{title} ({header['origin']})"
