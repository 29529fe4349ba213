"""`vmr report`: collect run directories into leaderboards, mean and standard deviation over seeds."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from omegaconf import DictConfig, ListConfig

from vmr_zoo.errors import VmrError, unknown
from vmr_zoo.files import atomic_write
from vmr_zoo.run_dir import HEADER, METRICS, read_json
from vmr_zoo.significance import average, paired_bootstrap, query_scores

if TYPE_CHECKING:
    from rich.console import Console

FORMATS = ("table", "markdown", "csv", "latex")

_SAME_TABLE = ("protocol", "features", "origin", "selection", "rounding")
"""What two rows must share to stand in one table."""

_REFERENCES = ("iid", "trivial")
"""The test split that resembles training, where a protocol has one; the others are out of distribution."""

DROP = "drop"
"""The column that says how much worse a row is out of distribution: the reference split less the mean of the
other test splits, in points."""

BEST, WORSE = "*", "↓"
"""Marks of the best row, and of rows that are worse by more than chance explains."""

_REST = ("seeds", "parameters", "train s")


@dataclass(frozen=True)
class Run:
    """One finished run.

    Attributes:
        path: its directory.
        header: what was run.
        metrics: percentages by split and metric.
    """

    path: Path
    header: dict[str, Any]
    metrics: dict[str, dict[str, float]]


@dataclass
class Row:
    """One run name, averaged over seeds.

    Attributes:
        name: method, variant and what else sets the runs apart.
        runs: one for each seed.
        values: percentages of each seed by (column, metric), a column being a split or `DROP`.
        marks: `BEST` or `WORSE` by (column, metric), where rows were compared.
    """

    name: str
    runs: list[Run]
    values: dict[tuple[str, str], list[float]]
    marks: dict[tuple[str, str], str] = field(default_factory=dict)

    def cell(self, key: tuple[str, str]) -> str:
        """Formats mean ± sample standard deviation over seeds, which one seed does not have."""
        values = self.values.get(key)
        if not values:
            return ""
        spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
        return f"{statistics.fmean(values):.2f}{spread}{self.marks.get(key, '')}"

    def rest(self) -> list[str]:
        """Returns number of seeds, parameters, mean seconds of training."""
        seconds = statistics.fmean(run.header["train_seconds"] for run in self.runs)
        return [str(len(self.runs)), f"{self.runs[0].header['parameters']:,}", f"{seconds:,.0f}"]


@dataclass(frozen=True)
class Leaderboard:
    """One table: rows that may be compared.

    Attributes:
        title: what the rows share; says so when the features are simulated.
        columns: the splits, and `DROP` where there is a reference split.
        metrics: what was measured.
        rows: the runs.
    """

    title: str
    columns: list[str]
    metrics: list[str]
    rows: list[Row]

    def frame(self) -> pd.DataFrame:
        """Returns a row per run and a column for each split and metric, as text."""
        keys = [(column, metric) for column in self.columns for metric in self.metrics]
        heads = ["run", *(" ".join(key) for key in keys), *_REST]
        cells = [[row.name, *map(row.cell, keys), *row.rest()] for row in self.rows]
        return pd.DataFrame(cells, columns=heads)


def main(cfg: DictConfig) -> int:
    """Prints or writes the tables.

    Args:
        cfg: what `conf/report.yaml` composes.

    Returns:
        0.

    Raises:
        VmrError: if there is nothing to report, or an argument names nothing that there is.
    """
    if cfg.format not in FORMATS:
        raise unknown("format", cfg.format, FORMATS)
    runs = chosen(collect(Path(cfg.runs)), cfg.where or {})
    boards = leaderboards(runs, list(cfg.columns), cfg.sort)
    if cfg.significance:
        for board in boards:
            compare(board)
    if cfg.html:
        from vmr_zoo.page import write_page

        page = Path(cfg.out or Path(cfg.runs) / "report.html")
        write_page(boards, page, None if cfg.videos is None else Path(cfg.videos), cfg.browse)
        _print(boards, compared=cfg.significance)
        print(f"The report as a page: {page}")
        return 0
    if cfg.format == "table" and cfg.out is None:
        _print(boards, compared=cfg.significance)
        return 0
    text = _WRITERS[cfg.format](boards)
    if cfg.out is None:
        print(text, end="")
    else:
        atomic_write(cfg.out, text)
        print(f"{len(boards)} table(s) written to {cfg.out}")
    return 0


def collect(root: Path) -> list[Run]:
    """Reads every run below a directory.

    Args:
        root: a directory of run directories, at any depth. What `vmr eval` added to a run is left out.

    Returns:
        The finished runs, in order of path.

    Raises:
        VmrError: if there is none.
    """
    files = sorted(path for path in root.rglob(METRICS) if path.parent.parent.name != "eval")
    runs = []
    for path in files:
        content = read_json(path)
        if isinstance(content, dict) and HEADER in content:
            splits = {split: values for split, values in content.items() if split != HEADER}
            runs.append(Run(path.parent, content[HEADER], splits))
    if not runs:
        raise VmrError(
            f"No finished run below '{root}'. Expected {METRICS} files that `vmr train` wrote; say runs=DIR."
        )
    return runs


def chosen(runs: Sequence[Run], where: Mapping[str, Any]) -> list[Run]:
    """Keeps the runs whose headers hold what is asked for.

    Args:
        runs: what `collect` returned.
        where: one allowed value or several, by key of the header, such as {"method": ["tea", "mesm"]}.

    Raises:
        VmrError: if there is no such key, or nothing is left.
    """
    known = {key for run in runs for key in run.header}
    for key in where:
        if key not in known:
            raise unknown("key of where", str(key), known)
    allowed = {
        key: {str(one) for one in (value if isinstance(value, list | ListConfig) else [value])}
        for key, value in where.items()
    }
    kept = [run for run in runs if all(str(run.header.get(key)) in values for key, values in allowed.items())]
    if not kept:
        there = "; ".join(
            f"{key}: {', '.join(sorted({str(run.header.get(key)) for run in runs}))}" for key in where
        )
        raise VmrError(f"No run is left by where={dict(where)}. There is {there}.")
    return kept


def leaderboards(runs: Sequence[Run], metrics: Sequence[str], sort: str | None = None) -> list[Leaderboard]:
    """Groups runs into tables and averages over seeds.

    Args:
        runs: what `collect` returned.
        metrics: which metrics become columns.
        sort: "SPLIT METRIC", best first; None: by name.

    Returns:
        One table per protocol, features, origin, selection rule and rounding; in it one row per run name.

    Raises:
        VmrError: if no run has one of the metrics, or no table the column to sort by.
    """
    known = {name for run in runs for values in run.metrics.values() for name in values}
    for name in metrics:
        if name not in known:
            raise unknown("metric", name, known)
    tables: dict[tuple[str, ...], dict[str, list[Run]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        tables[tuple(str(run.header[key]) for key in _SAME_TABLE)][run.header["name"]].append(run)
    boards = [
        _leaderboard(dict(zip(_SAME_TABLE, key, strict=True)), rows, metrics)
        for key, rows in sorted(tables.items())
    ]
    if sort is not None:
        keys = {" ".join(key): key for board in boards for row in board.rows for key in row.values}
        if sort not in keys:
            raise unknown("column to sort by", sort, keys)
        for board in boards:
            board.rows.sort(key=lambda row: -statistics.fmean(row.values.get(keys[sort]) or [-1.0]))
    return boards


def _leaderboard(shared: dict[str, str], rows: dict[str, list[Run]], metrics: Sequence[str]) -> Leaderboard:
    columns = list(dict.fromkeys(split for runs in rows.values() for run in runs for split in run.metrics))
    columns.sort(key=lambda split: split == "selection")
    reference = next((split for split in _REFERENCES if split in columns), None)
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
        averaged.append(Row(name, runs, {key: found for key, found in values.items() if found}))
    title = f"{shared['protocol']}, features {shared['features']}"
    if shared["origin"] == "simulated":
        title += " (SIMULATED: no number here comes from pixels)"
    elif shared["origin"] != "real":
        title += f" ({shared['origin']})"
    title += f"; selected on: {shared['selection']}; rounding: {shared['rounding']}"
    if reference is not None and others:
        columns.append(DROP)
    return Leaderboard(title, columns, list(metrics), averaged)


def compare(board: Leaderboard) -> None:
    """Marks, for each split and metric, the best row and those that are worse by more than chance explains.

    Query by query, scores are averaged over seeds, and the differences to the best row are bootstrapped.

    Args:
        board: its rows get marks.

    Raises:
        VmrError: if a run has no predictions.
    """
    splits = [column for column in board.columns if column != DROP]
    scores = [[query_scores(run.path, splits) for run in row.runs] for row in board.rows]
    for key in [(split, metric) for split in splits for metric in board.metrics]:
        split, metric = key
        by_row = {
            number: average([seed.get(split, {}).get(metric, {}) for seed in seeds])
            for number, seeds in enumerate(scores)
            if key in board.rows[number].values
        }
        if len(by_row) < 2:
            continue
        best = max(by_row, key=lambda number: statistics.fmean(board.rows[number].values[key]))
        board.rows[best].marks[key] = BEST
        for number, row_scores in by_row.items():
            both = [query for query in by_row[best] if query in row_scores]
            if number == best or not both:
                continue
            difference = paired_bootstrap(
                np.array([by_row[best][query] for query in both]),
                np.array([row_scores[query] for query in both]),
            )
            if difference.significant:
                board.rows[number].marks[key] = WORSE


def wide_console() -> Console:
    """Returns a console that cuts nothing off where there is no terminal with an edge."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=1000)


def _print(boards: Sequence[Leaderboard], compared: bool) -> None:
    """Prints each table, its metrics one below the other, so that many splits fit a terminal."""
    from rich.table import Table

    console = wide_console()
    for board in boards:
        table = Table()
        table.add_column("metric")
        table.add_column("run", overflow="fold")
        for column in (*board.columns, *_REST):
            table.add_column(column, justify="right")
        for metric in board.metrics:
            for row in board.rows:
                table.add_row(
                    metric, row.name, *(row.cell((column, metric)) for column in board.columns), *row.rest()
                )
            table.add_section()
        console.print(board.title, highlight=False, soft_wrap=True)
        console.print(table)
        notes = ["per cent; mean ± sample standard deviation over seeds"]
        if DROP in board.columns:
            notes.append(f"{DROP}: the first split less the mean of the other test splits, points")
        if compared:
            notes.append(f"{BEST} best; {WORSE} worse than it (paired bootstrap over queries, 95 %)")
        console.print("\n".join(notes) + "\n", style="dim")


def _markdown(boards: Sequence[Leaderboard]) -> str:
    return "\n".join(
        f"### {board.title}\n\n{board.frame().to_markdown(index=False, disable_numparse=True)}\n"
        for board in boards
    )


def _csv(boards: Sequence[Leaderboard]) -> str:
    parts = []
    for board in boards:
        frame = board.frame()
        frame.insert(0, "table", board.title)
        parts.append(frame.to_csv(index=False, lineterminator="\n"))
    return "".join(parts)


def _latex(boards: Sequence[Leaderboard]) -> str:
    tables = []
    for board in boards:
        frame = board.frame().apply(lambda column: column.str.replace(WORSE, "@down@"))
        style = frame.style.hide(axis="index").format(escape="latex").format_index(escape="latex", axis=1)
        text = style.to_latex(caption=_escaped(board.title), hrules=True, position="t")
        tables.append(text.replace("@down@", r"$\downarrow$").replace("±", r"$\pm$"))
    return "\n".join(tables)


def _escaped(text: str) -> str:
    for sign in "_%&#":
        text = text.replace(sign, "\\" + sign)
    return text


_WRITERS = {"table": _markdown, "markdown": _markdown, "csv": _csv, "latex": _latex}
