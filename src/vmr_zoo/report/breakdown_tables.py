"""Writes breakdowns by kind of query: to the terminal, as Markdown or CSV, or for the page."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
from rich.console import Console
from rich.text import Text

from vmr_zoo.report.breakdown import FEW, RESAMPLES, Breakdown, Cell
from vmr_zoo.report.caveats import legend, marked_label, signs
from vmr_zoo.report.data_tables import DECIMALS, caveat_cells
from vmr_zoo.report.escape import markdown, markdown_table, one_line
from vmr_zoo.report.terminal import GAP, LONGEST_NAME, plain_table
from vmr_zoo.report.writers import csv_text
from vmr_zoo.utils.console import wide_console
from vmr_zoo.utils.text import cut

_FEW_SIGN = "(few)"

NOTE = (
    "Per cent, mean over seeds and queries, with the 95 % interval of a bootstrap of videos, each with "
    f"its queries of the group ({RESAMPLES:,} resamples). n: queries of the group; {_FEW_SIGN}: they "
    f"are about fewer than {FEW} videos, too few to compare."
)


def print_breakdowns(tables: Sequence[Breakdown]) -> None:
    """Prints the tables to the terminal: one block per split, kind and metric, in which no number is cut."""
    console = wide_console(fitted=True)
    heading = ""
    for table in tables:
        if table.board.heading != heading:
            heading = table.board.heading
            console.print(Text(one_line(heading), "bold"))
            console.print(Text(one_line(f"{table.board.conditions}."), "dim"))
        console.print()
        console.print(Text(one_line(table.title), "bold"))
        _print_blocks(console, table)
    console.print()
    console.print(Text(_note(tables), "dim"))
    print("Next: format=csv for data with all intervals, html=true for the page.")


def _note(tables: Sequence[Breakdown]) -> str:
    """Explains the cells and marks of tables."""
    marks = {legend(table.board) for table in tables} - {""}
    return " ".join([NOTE, *(f"{text}." for text in sorted(marks))])


def _print_blocks(console: Console, table: Breakdown) -> None:
    """Prints one table; groups for which there is no room continue below."""
    names = [_name(table, number) for number in range(len(table.cells))]
    first = max(map(len, names)) + GAP
    texts = {group: [_lines(table, number, group) for number in range(len(names))] for group in table.groups}
    blocks: list[list[str]] = [[]]
    room = console.width - first
    for group, cells in texts.items():
        needed = (
            max(len(line) for lines in [_title(table, group).split("\n"), *cells] for line in lines) + GAP
        )
        if blocks[-1] and needed > room:
            blocks.append([])
            room = console.width - first
        blocks[-1].append(group)
        room -= needed
    for block in blocks:
        shown = plain_table()
        shown.add_column("", no_wrap=True)
        for group in block:
            shown.add_column(Text(_title(table, group)), justify="right", no_wrap=True)
        for number, name in enumerate(names):
            cells = [texts[group][number] for group in block]
            shown.add_row(
                Text(name),
                *(Text.assemble(mean, *((f"\n{line}", "dim") for line in rest)) for mean, *rest in cells),
            )
        console.print(shown)


def _name(table: Breakdown, number: int) -> str:
    row = table.board.rows[number]
    return cut(one_line(row.label), LONGEST_NAME) + signs(row)


def _title(table: Breakdown, group: str) -> str:
    few = f" {_FEW_SIGN}" if group in table.few else ""
    return f"{group}\nn={table.groups[group]:,}{few}"


def _lines(table: Breakdown, number: int, group: str) -> list[str]:
    """Returns the mean and the interval of a cell; the number of queries if the row lacks some."""
    cell = table.cells[number].get(group)
    if cell is None:
        return ["", ""]
    lines = [f"{cell.mean:.2f}", _interval(cell)]
    return lines if cell.queries == table.groups[group] else [*lines, f"n={cell.queries:,}"]


def _interval(cell: Cell) -> str:
    return "" if math.isnan(cell.low) else f"{cell.low:.1f} to {cell.high:.1f}"


def _inline(table: Breakdown, number: int, group: str) -> str:
    cell = table.cells[number].get(group)
    if cell is None:
        return ""
    interval = f" [{cell.low:.1f}, {cell.high:.1f}]" if not math.isnan(cell.low) else ""
    count = f" (n={cell.queries:,})" if cell.queries != table.groups[group] else ""
    return f"{cell.mean:.2f}{interval}{count}"


def _breakdowns_markdown(tables: Sequence[Breakdown]) -> str:
    parts = []
    for table, shown in zip(tables, page_tables(tables), strict=True):
        text = markdown_table(shown["columns"], shown["rows"])
        parts.append(f"### {markdown(f'{table.title}; {table.board.title}')}\n\n{text}\n")
    return "\n".join([*parts, f"{markdown(_note(tables))}\n"])


def breakdown_frame(tables: Sequence[Breakdown]) -> pd.DataFrame:
    """Returns a row per cell: its table, run, split and group, then metric, mean, interval and queries.

    `few`: the queries that the run has a score of are about fewer than `FEW` videos; then the caveats.
    """
    records = [
        {
            "table": table.board.title,
            "run": row.name,
            "split": table.split,
            "by": table.kind,
            "group": group,
            "metric": table.metric,
            "mean": round(cell.mean, DECIMALS),
            "low": None if math.isnan(cell.low) else round(cell.low, DECIMALS),
            "high": None if math.isnan(cell.high) else round(cell.high, DECIMALS),
            "queries": cell.queries,
            "few": "yes" if cell.videos < FEW else "no",
            **caveat_cells(row.caveats),
        }
        for table in tables
        for row, cells in zip(table.board.rows, table.cells, strict=True)
        for group, cell in cells.items()
    ]
    return pd.DataFrame(records)


def page_tables(tables: Sequence[Breakdown]) -> list[dict[str, Any]]:
    """Returns what the page shows of tables: title, note, columns, and rows as text."""
    return [
        {
            "title": table.title,
            "note": _note([table]),
            "columns": ["run", *(_title(table, group).replace("\n", ", ") for group in table.groups)],
            "rows": [
                [marked_label(row), *(_inline(table, number, group) for group in table.groups)]
                for number, row in enumerate(table.board.rows)
            ],
        }
        for table in tables
    ]


BREAKDOWN_WRITERS: dict[str, Callable[[Sequence[Breakdown]], str]] = {
    "table": _breakdowns_markdown,
    "markdown": _breakdowns_markdown,
    "csv": lambda tables: csv_text(breakdown_frame(tables)),
}
"""Text of breakdowns by format; "table" applies to files."""
