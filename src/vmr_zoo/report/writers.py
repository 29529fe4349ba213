"""Writes leaderboards and the papers' tables as Markdown, CSV or LaTeX, and prints the papers' tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pandas as pd
from rich.table import Table
from rich.text import Text

from vmr_zoo.report import escape
from vmr_zoo.report.caveats import legend, signs
from vmr_zoo.report.data_tables import rows_of_means, rows_of_runs
from vmr_zoo.report.leaderboard import BEST, WORSE, Leaderboard
from vmr_zoo.report.paper_tables import PaperTable
from vmr_zoo.report.terminal import TEST
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


def leaderboard_frame(board: Leaderboard, costs: bool = False) -> pd.DataFrame:
    """Returns a table as text: a row per label and a column per split and metric.

    Args:
        board: the table.
        costs: whether to add parameters, times and memory.
    """
    keys = [(column, metric) for column in board.columns for metric in board.metrics]
    titles, cost = board.cost() if costs else ([], [[] for _ in board.rows])
    cells = [
        [f"{row.label}{signs(row)}", *map(row.cell, keys), *own]
        for row, own in zip(board.rows, cost, strict=True)
    ]
    return pd.DataFrame(cells, columns=["run", *(" ".join(key) for key in keys), *titles])


def _notes(board: Leaderboard) -> list[str]:
    """Explains the marks of a table, one line each."""
    shared = [f"All rows: {board.shared}."] if board.shared else []
    marked = {mark for row in board.rows for mark in row.marks.values()}
    test = [f"{BEST} best; {WORSE} significantly worse ({TEST})."] if marked else []
    caveats = [f"{legend(board)}."] if legend(board) else []
    spread = "Per cent; mean ± sample standard deviation over seeds"
    return [f"{spread} ({board.seeds}).", *shared, *test, *caveats]


def _leaderboards_markdown(boards: Sequence[Leaderboard], costs: bool) -> str:
    return "\n".join(
        _markdown(board.title, leaderboard_frame(board, costs), "run")
        + "\n"
        + "".join(f"- {escape.markdown(note)}\n" for note in _notes(board))
        for board in boards
    )


def _paper_tables_markdown(tables: Sequence[PaperTable]) -> str:
    return "\n".join(
        _markdown(one.title, one.frame(), *one.labels)
        + "\n"
        + "".join(f"- {escape.markdown(note)}\n" for note in one.notes)
        for one in tables
    )


def _markdown(title: str, frame: pd.DataFrame, *texts: str) -> str:
    """Writes a table; columns other than `texts` hold numbers that were formatted here."""
    for column in texts:
        frame[column] = frame[column].map(escape.markdown)
    frame = frame.rename(columns=escape.markdown)
    return f"### {escape.markdown(title)}\n\n{frame.to_markdown(index=False, disable_numparse=True)}\n"


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


def _leaderboards_latex(boards: Sequence[Leaderboard], costs: bool) -> str:
    return "\n".join(
        _latex_table(leaderboard_frame(board, costs), " ".join([f"{board.title}.", *_notes(board)]))
        for board in boards
    )


def _latex_table(frame: pd.DataFrame, caption: str) -> str:
    frame = frame.map(escape.latex).rename(columns=escape.latex)
    return str(
        frame.style.hide(axis="index").to_latex(caption=escape.latex(caption), hrules=True, position="t")
    )


LEADERBOARD_WRITERS: dict[str, Callable[[Sequence[Leaderboard], bool], str]] = {
    "table": _leaderboards_markdown,
    "markdown": _leaderboards_markdown,
    "csv": lambda boards, _: csv_text(rows_of_means(boards)),
    "long": lambda boards, _: csv_text(rows_of_runs(boards)),
    "latex": _leaderboards_latex,
}
"""Text of leaderboards by format, given whether costs are wanted; "table" applies to files, where there is no
terminal. CSV always has them."""

PAPER_TABLE_WRITERS: dict[str, Callable[[Sequence[PaperTable]], str]] = {
    "table": _paper_tables_markdown,
    "markdown": _paper_tables_markdown,
    "csv": _paper_tables_csv,
    "latex": lambda tables: "\n".join(_latex_table(one.frame(), one.title) for one in tables),
}
"""Text of the papers' tables by format."""
