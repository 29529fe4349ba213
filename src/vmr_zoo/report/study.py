"""The table of a study from its results.csv, which holds one row per run (`experiments/collect.py`)."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from statistics import mean, stdev

from rich.text import Text

from vmr_zoo.data.annotations.records import SELECTION
from vmr_zoo.errors import VmrError
from vmr_zoo.report.caveats import BLIND, RISING
from vmr_zoo.report.escape import markdown_table, one_line
from vmr_zoo.report.leaderboard import LEADING_METRIC, Leaderboard, features_title
from vmr_zoo.report.runs import REFERENCE_SPLITS
from vmr_zoo.report.sentence_probe import LEAST_LOSS
from vmr_zoo.report.terminal import Lines, mean_lines, print_columns, shorten
from vmr_zoo.utils.console import wide_console

_PROBE = "other "
"""Begins the name of a column with scores of `probe=other_query`."""

_REQUIRED = ("name", "seed", "steps", "best_epoch", "plateau", "revision")


@dataclass(frozen=True)
class StudyTable:
    """Mean and sample standard deviation over seeds, as text.

    Attributes:
        title: where the rows come from.
        columns: titles; the first one belongs to the names.
        rows: cells, best first.
        notes: what the numbers and marks mean.
    """

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    notes: tuple[str, ...]

    def print(self) -> None:
        """Prints the table to the terminal."""
        console = wide_console(fitted=True)
        console.print(Text(one_line(self.title), "bold"))
        corner, *columns = self.columns
        names, long_names = shorten([row[0] for row in self.rows], console.width)

        def lines(below: bool) -> Lines:
            found: Lines = {column: [] for column in columns}
            for row in self.rows:
                cells = [mean_lines(cell, below) for cell in row[1:]]
                height = max(map(len, cells))  # numbers without a deviation stand beside the means
                for own, cell in zip(found.values(), cells, strict=True):
                    own.append(cell + [""] * (height - len(cell)))
            return found

        print_columns(console, corner, names, lines, long_names)
        for note in self.notes:
            console.print(Text(note, "dim"))
        console.print()

    def markdown(self) -> str:
        """Returns the table as Markdown."""
        return markdown_table(self.columns, self.rows)


def read_study(file: Path) -> list[StudyTable]:
    """Reads the stored results of a study, a table for each protocol and features.

    Raises:
        VmrError: if the file is empty or of another kind, or has a cell that is no number where one belongs,
            a line of another length, or a seed of a row twice.
    """
    try:
        with file.open(newline="", encoding="utf-8-sig") as lines:  # spreadsheets begin a file with a mark
            rows = list(csv.DictReader(lines))
    except (UnicodeDecodeError, csv.Error) as error:
        raise VmrError(f"'{file}' is not a readable CSV file: {error}.") from error
    missing = [key for key in _REQUIRED if not rows or key not in rows[0]]
    if missing or not any(str(column).endswith(f" {LEADING_METRIC}") for column in rows[0]):
        raise VmrError(
            f"'{file}' is not the results.csv of a study: expected rows with the columns "
            f"{', '.join(_REQUIRED)} and '<split> {LEADING_METRIC}', as experiments/collect.py writes them."
        )
    tables = by_data(rows)
    numbers = {id(row): line for line, row in enumerate(rows, 2)}
    for own in tables.values():
        _check_numbers(own, [numbers[id(row)] for row in own], file)
    title = f"Stored results of {file}, not computed here"
    return [study_table(own, f"{title}: {name}" if name else title) for name, own in tables.items()]


def with_comparison(table: StudyTable, boards: Sequence[Leaderboard]) -> StudyTable:
    """Adds a note that compares a stored table with a leaderboard on the same data, if there is one.

    A row of the leaderboard is compared with the stored row of its method; rows of ablations are not.
    """
    board = next((one for one in boards if table.title.endswith(f": {one.heading}")), None)
    if board is None:
        return table
    split = table.columns[2]
    stored = {row[0].rstrip(RISING.sign + BLIND.sign): row[2] for row in table.rows}
    both, seen = [], set()
    for row in board.rows:
        header, values = row.runs[0].header, row.values.get((split, LEADING_METRIC))
        if values and not header.get("ablation") and header["method"] in stored:
            seen.add(header["method"])
            both.append(f"{row.label} {_cell(values, len(row.runs))} and {stored[header['method']]}")
    if not both:
        return table
    others = [name for name in stored if name not in seen]
    note = f"{LEADING_METRIC} on {split}, here and in the study: {'; '.join(both)}"
    left_out = (f"Only in the study: {', '.join(others)}",) if others else ()
    return replace(table, notes=(note, *left_out, *table.notes))


def by_data(rows: Sequence[dict[str, str]]) -> dict[str, list[dict[str, str]]]:
    """Groups the rows of a results.csv by protocol and features, which never share a table.

    Returns:
        The rows by a title, which says if features are simulated or rendered.
    """
    tables = defaultdict(list)
    for row in rows:
        names = [row.get("protocol", "")]
        if row.get("features"):
            names.append(features_title({"origin": "real", **row}))
        tables[", ".join(filter(None, names))].append(row)
    return dict(tables)


def _check_numbers(rows: Sequence[dict[str, str]], lines: Sequence[int], file: Path) -> None:
    filled = ("steps", _scores(rows)[0])  # a score of another split may be missing
    seen: dict[tuple[str, str], int] = {}
    for line, row in zip(lines, rows, strict=True):
        same = seen.setdefault((row["name"], row["seed"]), line)
        if None in row or None in row.values():
            found = f"{'more' if None in row else 'fewer'} cells than columns"
        elif same != line:
            found = f"seed {row['seed']} of {row['name']} again, after line {same}"
        else:
            numbers = [*filled, *(key for key in row if key.endswith(f" {LEADING_METRIC}")), "best_epoch"]
            wrong = [name for name in numbers if not _is_number(row[name], name in filled)]
            found = f"'{row[wrong[0]]}' as {wrong[0]}" if wrong else ""
        if found:
            raise VmrError(
                f"Expected a number per column in line {line} of '{file}', each seed once; found {found}. "
                "`python experiments/collect.py STUDY` writes the file again."
            )


def _is_number(cell: str, filled: bool) -> bool:
    try:
        return isfinite(float(cell)) if cell else not filled
    except ValueError:
        return False


def study_table(rows: Sequence[dict[str, str]], title: str = "") -> StudyTable:
    """Averages the rows of a results.csv over seeds: R1@0.5 of each split.

    Args:
        rows: one for each run, as text by column.
        title: where they come from.
    """
    splits = [column.removesuffix(f" {LEADING_METRIC}") for column in _scores(rows)]
    probe = f"{_PROBE}{splits[0]} {LEADING_METRIC}"
    groups = defaultdict(list)
    for row in rows:
        groups[row["name"]].append(row)
    first = f"{splits[0]} {LEADING_METRIC}"
    labels = _labels(list(groups))
    cells = [
        _cells(labels[name], seeds, [f"{split} {LEADING_METRIC}" for split in splits], probe)
        for name, seeds in sorted(groups.items(), key=lambda item: -_mean(item[1], first))
    ]
    used = [one for one in (RISING, BLIND) if any(one.sign in row[0] for row in cells)]
    notes = (
        f"{LEADING_METRIC} in per cent; mean ± sample standard deviation over n seeds; best first",
        f"other: {splits[0]} with sentences about other videos; epoch: the best one",
        *(f"{one.sign} {one.text}" for one in used),
    )
    return StudyTable(title, ("run", "n", *splits, "other", "epoch"), cells, notes)


def _scores(rows: Sequence[dict[str, str]]) -> list[str]:
    """Returns the filled columns with scores of test splits, that of the reference split first."""
    columns = dict.fromkeys(column for row in rows for column, cell in row.items() if cell)
    scores = [
        column
        for column in columns
        if str(column).endswith(f" {LEADING_METRIC}") and not column.startswith((f"{SELECTION} ", _PROBE))
    ]
    references = [f"{split} {LEADING_METRIC}" for split in REFERENCE_SPLITS]
    return sorted(scores, key=lambda column: column not in references)


def _labels(names: Sequence[str]) -> dict[str, str]:
    """Returns short names: the method, its ablation, and the values in which rows of the same method differ.

    >>> list(_labels(["emb-paper+no_gate+dim-1", "vdi-paper+size-2+dim-1", "vdi-paper+dim-1"]).values())
    ['emb+no_gate', 'vdi+size-2', 'vdi']
    """
    parts = {name: name.split("+") for name in names}
    common: dict[str, set[str]] = {}
    for method, *own in parts.values():
        common[method] = common.get(method, set(own)).intersection(own)
    return {
        name: "+".join(
            (
                method.removesuffix("-paper"),
                *(one for one in own if "-" not in one or one not in common[method]),
            )
        )
        for name, (method, *own) in parts.items()
    }


def _cells(name: str, seeds: list[dict[str, str]], columns: list[str], probe: str) -> tuple[str, ...]:
    other = [float(row[probe]) for row in seeds if row.get(probe)]
    marks = RISING.sign * any(row["plateau"] == "False" for row in seeds)
    if any(float(row[columns[0]]) - float(row[probe]) < LEAST_LOSS for row in seeds if row.get(probe)):
        marks += BLIND.sign
    best = f"{_mean(seeds, 'best_epoch'):.0f}" if _mean(seeds, "steps") else ""
    scores = (_cell([float(row[column]) for row in seeds if row[column]], len(seeds)) for column in columns)
    return f"{name}{marks}", str(len(seeds)), *scores, _cell(other, len(seeds)), best


def _mean(rows: Sequence[dict[str, str]], column: str) -> float:
    return mean(float(row[column]) for row in rows)


def _cell(values: list[float], seeds: int) -> str:
    """Returns mean and deviation, and the number of values if it is not that of the row's seeds."""
    if not values:
        return ""
    spread = f" ± {stdev(values):.1f}" if len(values) > 1 else ""
    return f"{mean(values):.1f}{spread}{f' (n={len(values)})' if len(values) < seeds else ''}"
