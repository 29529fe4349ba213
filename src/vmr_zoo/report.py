"""`vmr report`: collect run directories into tables, mean and standard deviation over seeds."""

from __future__ import annotations

import csv
import io
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from vmr_zoo.errors import VmrError, unknown
from vmr_zoo.files import atomic_write
from vmr_zoo.run_dir import HEADER, METRICS, read_json

if TYPE_CHECKING:
    from rich.console import Console

FORMATS = ("table", "markdown", "csv")

_SAME_TABLE = ("protocol", "features", "origin", "selection", "rounding")
"""What two rows must share to stand in one table."""

_REST = ("seeds", "parameters", "train s")


@dataclass(frozen=True)
class Row:
    """One run name, averaged over seeds.

    Attributes:
        name: method, variant and what else sets the runs apart.
        cells: "mean ± deviation" by (split, metric); absent where no run has it.
        rest: number of seeds, parameters, seconds of training.
    """

    name: str
    cells: dict[tuple[str, str], str]
    rest: list[str]


@dataclass(frozen=True)
class Leaderboard:
    """One table: rows that may be compared.

    Attributes:
        title: what the rows share; says so when the features are simulated.
        splits, metrics: what was measured.
        rows: the runs.
    """

    title: str
    splits: list[str]
    metrics: list[str]
    rows: list[Row]

    def flat(self) -> list[list[str]]:
        """Returns heads and rows with a column for each split and metric."""
        keys = [(split, metric) for split in self.splits for metric in self.metrics]
        heads = ["run", *(" ".join(key) for key in keys), *_REST]
        return [
            heads,
            *([row.name, *(row.cells.get(key, "") for key in keys), *row.rest] for row in self.rows),
        ]


def main(cfg: DictConfig) -> int:
    """Prints or writes the tables.

    Args:
        cfg: what `conf/report.yaml` composes.

    Returns:
        0.

    Raises:
        VmrError: if there is nothing to report, or the format is unknown.
    """
    if cfg.format not in FORMATS:
        raise unknown("format", cfg.format, FORMATS)
    boards = leaderboards(collect(Path(cfg.runs)), list(cfg.columns))
    if cfg.format == "table" and cfg.out is None:
        _print(boards)
        return 0
    text = _csv(boards) if cfg.format == "csv" else _markdown(boards)
    if cfg.out is None:
        print(text, end="")
    else:
        atomic_write(cfg.out, text)
        print(f"{len(boards)} table(s) written to {cfg.out}")
    return 0


def collect(root: Path) -> list[dict[str, Any]]:
    """Reads every run below a directory.

    Args:
        root: a directory of run directories, at any depth. What `vmr eval` added to a run is left out.

    Returns:
        The content of each metrics.json, in order of path.

    Raises:
        VmrError: if there is none.
    """
    files = sorted(path for path in root.rglob(METRICS) if path.parent.parent.name != "eval")
    runs = [content for content in map(read_json, files) if isinstance(content, dict) and HEADER in content]
    if not runs:
        raise VmrError(
            f"No finished run below '{root}'. Expected {METRICS} files that `vmr train` wrote; say runs=DIR."
        )
    return runs


def leaderboards(runs: Sequence[dict[str, Any]], metrics: Sequence[str]) -> list[Leaderboard]:
    """Groups runs into tables and averages over seeds.

    Args:
        runs: what `collect` returned.
        metrics: which metrics become columns.

    Returns:
        One table per protocol, features, origin, selection rule and rounding; in it one row per run name.

    Raises:
        VmrError: if no run has one of the metrics.
    """
    known = {name for run in runs for split, values in run.items() if split != HEADER for name in values}
    for name in metrics:
        if name not in known:
            raise unknown("metric", name, known)
    tables: dict[tuple[str, ...], dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        header = run[HEADER]
        tables[tuple(str(header[key]) for key in _SAME_TABLE)][header["name"]].append(run)
    return [
        _leaderboard(dict(zip(_SAME_TABLE, key, strict=True)), rows, metrics)
        for key, rows in sorted(tables.items())
    ]


def _leaderboard(
    shared: dict[str, str], rows: dict[str, list[dict[str, Any]]], metrics: Sequence[str]
) -> Leaderboard:
    splits = list(
        dict.fromkeys(split for runs in rows.values() for run in runs for split in run if split != HEADER)
    )
    splits.sort(key=lambda split: split == "selection")
    averaged = []
    for name, runs in sorted(rows.items()):
        cells = {}
        for split in splits:
            for metric in metrics:
                values = [run[split][metric] for run in runs if run.get(split, {}).get(metric) is not None]
                if values:
                    cells[split, metric] = _mean_std(values)
        seconds = statistics.fmean(run[HEADER]["train_seconds"] for run in runs)
        rest = [str(len(runs)), f"{runs[0][HEADER]['parameters']:,}", f"{seconds:,.0f}"]
        averaged.append(Row(name, cells, rest))
    title = f"{shared['protocol']}, features {shared['features']}"
    if shared["origin"] == "simulated":
        title += " (SIMULATED: no number here comes from pixels)"
    elif shared["origin"] != "real":
        title += f" ({shared['origin']})"
    title += f"; selected on: {shared['selection']}; rounding: {shared['rounding']}"
    return Leaderboard(title, splits, list(metrics), averaged)


def _mean_std(values: Sequence[float]) -> str:
    """Formats a mean over seeds with the sample standard deviation, which one seed does not have."""
    if len(values) == 1:
        return f"{values[0]:.2f}"
    return f"{statistics.fmean(values):.2f} ± {statistics.stdev(values):.2f}"


def wide_console() -> Console:
    """Returns a console that cuts nothing off where there is no terminal with an edge."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=1000)


def _print(boards: Sequence[Leaderboard]) -> None:
    """Prints each table, its metrics one below the other, so that many splits fit a terminal."""
    from rich.table import Table

    console = wide_console()
    for board in boards:
        table = Table()
        table.add_column("metric")
        table.add_column("run", overflow="fold")
        for column in (*board.splits, *_REST):
            table.add_column(column, justify="right")
        for metric in board.metrics:
            for row in board.rows:
                cells = (row.cells.get((split, metric), "") for split in board.splits)
                table.add_row(metric, row.name, *cells, *row.rest)
            table.add_section()
        console.print(board.title, highlight=False, soft_wrap=True)
        console.print(table)
        console.print("per cent; mean ± sample standard deviation over seeds\n", style="dim")


def _markdown(boards: Sequence[Leaderboard]) -> str:
    parts = []
    for board in boards:
        heads, *rows = board.flat()
        lines = [heads, ["---"] * len(heads), *rows]
        parts.append(f"### {board.title}\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines))
    return "\n".join(parts)


def _csv(boards: Sequence[Leaderboard]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    for board in boards:
        heads, *rows = board.flat()
        writer.writerow(["table", *heads])
        writer.writerows([board.title, *row] for row in rows)
    return out.getvalue()
