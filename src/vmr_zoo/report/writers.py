"""Writes leaderboards and the papers' tables as Markdown or CSV, and prints the papers' tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pandas as pd
from rich.table import Table
from rich.text import Text

from vmr_zoo.report import escape
from vmr_zoo.report.caveats import marked_label
from vmr_zoo.report.data_tables import rows_of_means, rows_of_runs
from vmr_zoo.report.latex import leaderboards_latex, paper_tables_latex
from vmr_zoo.report.leaderboard import Leaderboard, LeaderboardRow
from vmr_zoo.report.notes import table_notes
from vmr_zoo.report.paper_tables import PaperTable
from vmr_zoo.utils.console import wide_console


def print_paper_tables(tables: Sequence[PaperTable]) -> None:
    """Prints the papers' tables to the terminal."""
    console = wide_console()
    for one in tables:
        frame = one.frame()
        table = Table(show_lines=False)
        for column in frame.columns:
            table.add_column(
                Text(column), justify="left" if column in one.labels else "right", overflow="fold"
            )
        for cells in frame.itertuples(index=False):
            table.add_row(*map(Text, cells))
        console.print(Text(one.title), soft_wrap=True)
        console.print(table)
        console.print(Text("\n".join(one.notes), "dim"), "\n", soft_wrap=True, sep="")


def _metric_tables(board: Leaderboard, costs: bool) -> list[str]:
    """Returns a table of Markdown per metric, with a column per split, and that of costs if wanted."""
    names = [escape.markdown(marked_label(row)) for row in board.rows]
    tables = []
    for metric in board.metrics:
        best = {column: board.best((column, metric)) for column in board.columns}
        cells = [
            [_markdown_cell(row, (column, metric), row is best[column]) for column in board.columns]
            for row in board.rows
        ]
        tables.append(([metric, *board.columns], cells))
    if costs:
        titles, cells = board.cost()
        tables.append((["cost", *titles], cells))
    return [
        escape.markdown_table(
            [*map(escape.markdown, titles)],
            [[name, *own] for name, own in zip(names, cells, strict=True)],
            right=1,
            escaped=True,
        )
        for titles, cells in tables
    ]


def _markdown_cell(row: LeaderboardRow, key: tuple[str, str], best: bool) -> str:
    return f"**{row.cell(key)}**" if best else row.cell(key)


def _leaderboards_markdown(boards: Sequence[Leaderboard], costs: bool) -> str:
    return "\n".join(_board_markdown(board, costs) for board in boards)


def _board_markdown(board: Leaderboard, costs: bool) -> str:
    parts = [f"### {escape.markdown(board.title)}", *_metric_tables(board, costs)]
    notes = "\n".join(f"- {escape.markdown(note)}" for note in table_notes(board))
    return "\n\n".join([*parts, notes]) + "\n"


def _paper_tables_markdown(tables: Sequence[PaperTable]) -> str:
    return "\n".join(map(_paper_table_markdown, tables))


def _paper_table_markdown(one: PaperTable) -> str:
    frame = one.frame()
    table = escape.markdown_table(list(map(str, frame)), frame.to_numpy(), right=1)
    notes = "".join(f"- {escape.markdown(note)}\n" for note in one.notes)
    return f"### {escape.markdown(one.title)}\n\n{table}\n\n{notes}"


def csv_text(frame: pd.DataFrame) -> str:
    """Writes a table as CSV in which no spreadsheet finds a formula."""
    frame = frame.map(escape.csv_cell).rename(columns=lambda name: str(escape.csv_cell(name)))
    return str(frame.to_csv(index=False, lineterminator="\n"))


def _paper_tables_csv(tables: Sequence[PaperTable]) -> str:
    frames = []
    for one in tables:
        frame = one.frame(full_names=True)
        frame.insert(0, "table", one.title)
        frames.append(csv_text(frame))
    return "".join(frames)


LEADERBOARD_WRITERS: dict[str, Callable[[Sequence[Leaderboard], bool], str]] = {
    "table": _leaderboards_markdown,
    "markdown": _leaderboards_markdown,
    "csv": lambda boards, _: csv_text(rows_of_means(boards)),
    "long": lambda boards, _: csv_text(rows_of_runs(boards)),
    "latex": leaderboards_latex,
}
"""Text of leaderboards by format, given whether costs are wanted; "table" applies to files, where there is no
terminal. CSV always has them."""

PAPER_TABLE_WRITERS: dict[str, Callable[[Sequence[PaperTable]], str]] = {
    "table": _paper_tables_markdown,
    "markdown": _paper_tables_markdown,
    "csv": _paper_tables_csv,
    "latex": paper_tables_latex,
}
"""Text of the papers' tables by format."""
