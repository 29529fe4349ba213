"""Writes leaderboards and the papers' tables: to the terminal, or as Markdown, CSV or LaTeX."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pandas as pd
from rich.table import Table
from rich.text import Text

from vmr_zoo.report.leaderboard import BEST, DROP, WORSE, Leaderboard
from vmr_zoo.report.paper_tables import PaperTable
from vmr_zoo.report.runs import Run
from vmr_zoo.runs.directory import ENVIRONMENT, read_json
from vmr_zoo.utils.console import wide_console


def print_leaderboards(boards: Sequence[Leaderboard], compared: bool) -> None:
    """Prints tables to the terminal, with one block of rows per metric to keep them narrow.

    Args:
        boards: the tables.
        compared: whether significance was tested; explains the marks.
    """
    console = wide_console()
    for board in boards:
        table = Table()
        table.add_column("metric")
        table.add_column("run", overflow="fold")
        titles, costs = board.cost()
        for column in (*board.columns, *titles):
            table.add_column(column, justify="right")
        for metric in board.metrics:
            for row, cost in zip(board.rows, costs, strict=True):
                cells = [row.cell((column, metric)) for column in board.columns]
                table.add_row(metric, Text(row.name), *cells, *cost)
            table.add_section()
        console.print(Text(board.title), soft_wrap=True)
        console.print(table)
        notes = ["per cent; mean ± sample standard deviation over seeds"]
        if DROP in board.columns:
            notes.append(f"{DROP}: first split minus the mean of the other test splits, in points")
        if compared:
            test = "paired bootstrap over queries, 95 %"
            notes.append(f"{BEST} best; {WORSE} significantly worse than the best ({test})")
        console.print("\n".join(notes) + "\n", style="dim")


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


def _leaderboards_markdown(boards: Sequence[Leaderboard]) -> str:
    return "\n".join(_markdown(board.title, board.frame()) for board in boards)


def _paper_tables_markdown(tables: Sequence[PaperTable]) -> str:
    return "\n".join(
        _markdown(one.title, one.frame()) + "\n" + "".join(f"- {note}\n" for note in one.notes)
        for one in tables
    )


def _markdown(title: str, frame: pd.DataFrame) -> str:
    return f"### {title}\n\n{frame.to_markdown(index=False, disable_numparse=True)}\n"


def _leaderboards_csv(boards: Sequence[Leaderboard]) -> str:
    frames = []
    for board in boards:
        frame = board.frame()
        frame.insert(0, "table", board.title)
        frame["revision"] = [" ".join(sorted({_revision(run) for run in row.runs})) for row in board.rows]
        frames.append(frame)
    return pd.concat(frames).to_csv(index=False, lineterminator="\n")


def _revision(run: Run) -> str:
    """Returns the git revision that produced a run, marked if the checkout had changes; "?" if unknown."""
    file = None if run.path is None else run.path / ENVIRONMENT
    git = read_json(file).get("git") if file is not None and file.is_file() else None
    if not git or not git.get("revision"):
        return "?"
    return f"{git['revision'][:10]}{'+changes' if git.get('dirty') else ''}"


def _paper_tables_csv(tables: Sequence[PaperTable]) -> str:
    frames = []
    for one in tables:
        frame = one.frame(full_names=True)
        frame.insert(0, "table", one.title)
        frames.append(frame.to_csv(index=False, lineterminator="\n"))
    return "".join(frames)


def _latex(tables: Sequence[Leaderboard] | Sequence[PaperTable]) -> str:
    return "\n".join(_latex_table(table.frame(), table.title) for table in tables)


def _latex_table(frame: pd.DataFrame, title: str) -> str:
    frame = frame.apply(lambda column: column.str.replace(WORSE, "@down@"))
    style = frame.style.hide(axis="index").format(escape="latex").format_index(escape="latex", axis=1)
    text = style.to_latex(caption=_escape_latex(title), hrules=True, position="t")
    return text.replace("@down@", r"$\downarrow$").replace("±", r"$\pm$")


def _escape_latex(text: str) -> str:
    for sign in "_%&#":
        text = text.replace(sign, "\\" + sign)
    return text


LEADERBOARD_WRITERS: dict[str, Callable[[Sequence[Leaderboard]], str]] = {
    "table": _leaderboards_markdown,
    "markdown": _leaderboards_markdown,
    "csv": _leaderboards_csv,
    "latex": _latex,
}
"""Text of leaderboards by format; "table" applies to files, where there is no terminal."""

PAPER_TABLE_WRITERS: dict[str, Callable[[Sequence[PaperTable]], str]] = {
    "table": _paper_tables_markdown,
    "markdown": _paper_tables_markdown,
    "csv": _paper_tables_csv,
    "latex": _latex,
}
"""Text of the papers' tables by format."""
