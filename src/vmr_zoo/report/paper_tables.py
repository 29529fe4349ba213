"""The tables of the papers: the numbers as printed, with a place for ours beside each."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from omegaconf import ListConfig

from vmr_zoo.config.compose import shipped_folders
from vmr_zoo.errors import VmrError, unknown
from vmr_zoo.report.caveats import CAVEATS, caveats_of, signs_of
from vmr_zoo.report.leaderboard import format_mean_std
from vmr_zoo.report.notes import unlike_seeds
from vmr_zoo.report.runs import Run

FILE_COLUMNS = ("table", "page", "data", "split", "features", "row", "method", "config", "metric", "value")

_ROMAN = {"i": 1, "ii": 2, "iii": 3, "iv": 4, "v": 5, "vi": 6, "vii": 7, "viii": 8, "ix": 9, "x": 10}


class OurColumn(NamedTuple):
    """A column with our numbers.

    Attributes:
        kind: "" if the runs have the features and the data of the printed rows, so that numbers are
            comparable; else the reason why not: "SIMULATED", "rendered", "other features", "other data".
        title: the features, and everything else in which the runs differ from the printed rows.
    """

    kind: str
    title: str


class OurCell(NamedTuple):
    """Our numbers for one printed number.

    Attributes:
        values: one per seed.
        split: the split that was scored, if it is not that of the printed row, else "".
        runs: the run of each value.
    """

    values: list[float]
    split: str
    runs: list[Run]

    def __str__(self) -> str:
        return format_mean_std(self.values) + signs_of(self.runs) + (f" [{self.split}]" if self.split else "")


@dataclass(frozen=True)
class PaperRow:
    """One row of a paper's table on one split.

    Attributes:
        labels: data set, split, features and name, as printed.
        paper: the printed digits by metric.
        ours: our numbers by column and metric.
        why: why none of our numbers is comparable; "" if one is.
    """

    labels: list[str]
    paper: dict[str, str]
    ours: dict[tuple[OurColumn, str], OurCell]
    why: str


@dataclass(frozen=True)
class PaperTable:
    """One table of a paper.

    Attributes:
        paper: our name of the method that the paper introduces.
        table: its number, as printed.
        page: page of the PDF.
        metrics: in the order of the paper.
        rows: by data set and split, then in the order of the paper.
        columns: our columns, comparable ones first.
        relevant: whether our numbers include a run with one of its data sets or ablations.
    """

    paper: str
    table: str
    page: str
    metrics: list[str]
    rows: list[PaperRow]
    columns: list[OurColumn]
    relevant: bool

    labels = ("data", "split", "features", "row", "no comparable number: why")

    @property
    def title(self) -> str:
        """The heading."""
        return f"{self.paper}, {self.table} (page {self.page})"

    @property
    def notes(self) -> list[str]:
        """Footnotes that explain the columns."""
        unlike = [
            (self.column_name(column), cell.runs)
            for row in self.rows
            for (column, _), cell in row.ours.items()
        ]
        used = {caveat for row in self.rows for cell in row.ours.values() for caveat in caveats_of(cell.runs)}
        return [
            "paper: as printed. Ours: mean ± sample standard deviation over seeds.",
            *(f"{self.column_name(column)}: {column.title}" for column in self.columns),
            *(f"{caveat.sign} {caveat.text}" for caveat in CAVEATS if caveat in used),
            *(f"WARNING: {text}." for text in dict.fromkeys(unlike_seeds(unlike))),
        ]

    def column_name(self, column: OurColumn) -> str:
        """Returns the short name of one of our columns, with its kind if its numbers are not comparable."""
        number = self.columns.index(column) + 1
        return f"ours {number}" + (f" ({column.kind})" if column.kind else "")

    def columns_by_metric(self) -> list[tuple[str, list[OurColumn]]]:
        """Returns each metric with those of our columns that have a number for it."""
        return [
            (metric, [c for c in self.columns if any((c, metric) in row.ours for row in self.rows)])
            for metric in self.metrics
        ]

    def frame(self, full_names: bool = False) -> pd.DataFrame:
        """Returns the table as text.

        Args:
            full_names: whether the titles of our columns stand in the header, for formats without footnotes.
        """
        by_metric = self.columns_by_metric()
        names = [
            f"{metric} {text}"
            for metric, columns in by_metric
            for text in (
                "paper",
                *(f"ours: {c.title}" if full_names else self.column_name(c) for c in columns),
            )
        ]
        cells = [
            [
                text
                for metric, columns in by_metric
                for text in (
                    row.paper.get(metric, ""),
                    *(str(row.ours.get((c, metric), "")) for c in columns),
                )
            ]
            for row in self.rows
        ]
        return pd.DataFrame(
            [[*row.labels, *texts, row.why] for row, texts in zip(self.rows, cells, strict=True)],
            columns=[*self.labels[:-1], *names, self.labels[-1]],
        )


@functools.cache
def printed_numbers() -> dict[str, pd.DataFrame]:
    """Reads the printed numbers by paper, one line per number.

    Raises:
        VmrError: if they are missing or broken.
    """
    lines = {}
    for file in sorted(printed_dir().glob("*.csv")):
        lines[file.stem] = pd.read_csv(file, dtype=str, keep_default_na=False)
        if tuple(lines[file.stem].columns) != FILE_COLUMNS:
            raise VmrError(f"{file}: expected the columns {', '.join(FILE_COLUMNS)}. Restore the file.")
    return lines


def printed_dir() -> Path:
    """Finds the printed numbers: `experiments/printed` of the checkout, or the copy inside the package.

    Raises:
        VmrError: if neither exists.
    """
    candidates = shipped_folders("experiments/printed")
    for candidate in candidates:
        if candidate.is_dir():
            return candidate
    raise VmrError(
        f"The papers' printed numbers were not found in {' or '.join(map(str, candidates))}. They come with "
        "the repository: work in a checkout of it."
    )


def is_requested(table: PaperTable, names: str | Sequence[str]) -> bool:
    """Returns whether `printed=…` names a table.

    Args:
        table: the table.
        names: papers, or papers and tables ("tea/table2", "lmr/tableIV", "lmr/table4"), or "all".

    Raises:
        VmrError: if a paper or a table is unknown.
    """
    listed = (
        [str(name) for name in names]
        if isinstance(names, list | tuple | ListConfig)
        else str(names).split(",")
    )
    return any(_is_named(table, name.strip()) for name in listed)


def _is_named(table: PaperTable, name: str) -> bool:
    paper, _, number = name.partition("/")
    if paper == "all":
        return True
    known = _table_names()
    if paper not in known:
        raise unknown("paper", paper, [*known, "all"])
    if number and _table_number(number) not in known[paper]:
        raise unknown(f"table of {paper}", number, known[paper].values())
    return table.paper == paper and (not number or _table_number(number) == _table_number(table.table))


def _table_names() -> dict[str, dict[str, str]]:
    """Returns the names of the tables by paper and number."""
    return {
        paper: {_table_number(table): table.lower().replace(" ", "") for table in lines["table"].unique()}
        for paper, lines in printed_numbers().items()
    }


def _table_number(table: str) -> str:
    """Returns "4" for "Table IV", "table4" and "4"."""
    number = re.sub(r"^table", "", table.lower().replace(" ", ""))
    return str(_ROMAN.get(number, number))
