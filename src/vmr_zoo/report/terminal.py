"""Prints leaderboards to the terminal: a table per metric that fits the width, in which nothing is cut."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from vmr_zoo.report.caveats import signs
from vmr_zoo.report.escape import one_line
from vmr_zoo.report.leaderboard import BEST, Leaderboard
from vmr_zoo.report.notes import table_notes
from vmr_zoo.utils.console import wide_console

_LONGEST_NAME = 24
"""Characters of a name of a row in a table that would not fit otherwise; a legend has the whole name."""

_LEAST_TITLE = 6
"""Characters of a shortened title that are always possible."""

_GAP = 3
"""Characters between columns: the padding, and one that the box draws."""

BEST_SIGN = "*"
"""Follows the best number of a column beside `TIED_SIGN`: a pipe or a file has no bold."""


def print_leaderboards(boards: Sequence[Leaderboard], costs: bool = False, most: int | None = None) -> None:
    """Prints the tables.

    Args:
        boards: the tables.
        costs: whether to add a table of parameters, times and memory.
        most: rows to print of each table; None: all.
    """
    console = wide_console(fitted=True)
    for board in boards:
        console.print(Text(one_line(board.heading), "bold"))
        console.print(Text(one_line(f"{board.conditions}."), "dim"))
        for metric in board.metrics:
            _print_metric(console, board, metric, most)
        if costs:
            _print_costs(console, board, most)
        if most is not None and len(board.rows) > most:
            console.print(Text(f"{most} of {len(board.rows)} rows.", "dim"))
        notes = table_notes(board, BEST_SIGN if board.compared else "Bold")
        console.print(Text(one_line(" ".join(notes)), "dim"))
        console.print()


def _print_metric(console: Console, board: Leaderboard, metric: str, most: int | None) -> None:
    """Prints the table of one metric: on one line per row, else with deviations below the means.

    If that is still too wide, the splits continue in further tables.
    """
    names, long_names = _row_names(board, console.width)
    for below in (False, True):
        lines = _cell_lines(board, metric, below)
        blocks = _blocks(board, metric, names, lines, console.width)
        if len(blocks) == 1:
            break
    explained: dict[str, str] = {}
    best = {column: board.best((column, metric)) for column in board.columns}
    full = _full_titles_fit(board, metric, names, lines, console.width)
    for columns in blocks:
        table = Table(box=SIMPLE_HEAD, padding=(0, _GAP - 1, 0, 0), pad_edge=False, show_edge=False)
        table.add_column(Text(metric, "bold"), no_wrap=True)
        # The last column needs no gap behind it.
        used = sum(max(_LEAST_TITLE, _cell_width(lines[c])) + _GAP for c in columns) - _GAP
        spare = (console.width - _first_width(metric, names) - used) // len(columns)
        titles = _titles(columns, lines, None if full else max(0, spare))
        whole = {short.replace("\n", ""): column for column, short in titles.items()}
        explained |= {short: column for short, column in whole.items() if short != column}
        for column in columns:
            table.add_column(Text(titles[column]), justify="right", no_wrap=True, vertical="bottom")
        for number, row in enumerate(board.rows[:most]):
            cells = (_cell(lines[column][number], row is best[column]) for column in columns)
            table.add_row(Text(names[row.name]), *cells)
        console.print()
        console.print(table)
    meanings = [one_line(f"{short}: {whole}") for short, whole in {**explained, **long_names}.items()]
    if meanings:
        console.print(Text("; ".join(meanings), "dim"))


_Lines = dict[str, list[list[str]]]
"""By column the cells of the rows, each with its lines."""


def _cell_lines(board: Leaderboard, metric: str, below: bool) -> _Lines:
    """Formats the cells of one metric.

    Args:
        board: the table.
        metric: the metric.
        below: whether deviations stand below the means instead of behind them.
    """
    lines: _Lines = {}
    for column in board.columns:
        key = column, metric
        marks = [BEST_SIGN if row.marks.get(key) == BEST else row.sign(key) for row in board.rows]
        pad = any(marks)
        lines[column] = []
        for row, sign in zip(board.rows, marks, strict=True):
            mean, _, deviation = row.cell(key).removesuffix(row.sign(key)).partition(" ± ")
            sign = sign or " " * pad
            deviation = f"± {deviation}" if deviation else ""
            if below and deviation:
                lines[column].append([mean + sign, deviation + " " * pad])
            else:
                lines[column].append([f"{mean} {deviation}".strip() + sign])
    return lines


def _cell(lines: Sequence[str], best: bool) -> Text:
    first, *below = lines
    text = Text(first, "bold" if best else "")
    for line in below:
        text.append(f"\n{line}", "dim")
    return text


def _row_names(board: Leaderboard, width: int) -> tuple[dict[str, str], dict[str, str]]:
    """Returns the name of each row as printed, and the whole names of those that were cut."""
    longest = max(_LONGEST_NAME, width - 60)
    names: dict[str, str] = {}
    cut: dict[str, str] = {}
    for row in board.rows:
        label = one_line(row.label)
        if len(label) > longest:
            short = f"{label[: longest - 4]}…{len(cut) + 1}"
            cut[short] = label
            label = short
        names[row.name] = label + signs(row)
    return names, cut


def _cell_width(cells: Sequence[Sequence[str]]) -> int:
    return max(len(line) for lines in cells for line in lines)


def _full_titles_fit(
    board: Leaderboard, metric: str, names: dict[str, str], lines: _Lines, width: int
) -> bool:
    widths = [max(len(column), _cell_width(lines[column])) + _GAP for column in board.columns]
    return _first_width(metric, names) + sum(widths) <= width


def _first_width(metric: str, names: dict[str, str]) -> int:
    return max(len(metric), *map(len, names.values())) + _GAP


def _blocks(
    board: Leaderboard, metric: str, names: dict[str, str], lines: _Lines, width: int
) -> list[list[str]]:
    """Divides the columns among tables that are narrow enough."""
    room = width - _first_width(metric, names)
    blocks: list[list[str]] = [[]]
    used = 0
    for column in board.columns:
        needed = max(_cell_width(lines[column]), min(_LEAST_TITLE, len(column))) + _GAP
        if blocks[-1] and used + needed > room:
            blocks.append([])
            used = 0
        blocks[-1].append(column)
        used += needed
    return blocks


def _titles(columns: Sequence[str], lines: _Lines, spare: int | None) -> dict[str, str]:
    """Returns the title of each column, distinct, and at most `spare` wider than its cells; None: whole."""
    if spare is None:
        return {column: column for column in columns}
    titles: dict[str, str] = {}
    for column in columns:
        short = short_title(column, max(_LEAST_TITLE, _cell_width(lines[column])) + spare)
        if short in titles.values():
            short = f"{short[:-1]}{len(titles) + 1}"
        titles[column] = short
    return titles


def short_title(name: str, width: int) -> str:
    r"""Breaks a name after its underscores, and cuts words that are longer than a line.

    >>> short_title("novel_composition", 7), short_title("ood_time", 6), short_title("selection", 7)
    ('novel_\ncompos.', 'ood_\ntime', 'select.')
    """
    lines = [""]
    for word in re.findall("[^_]*_|[^_]+", one_line(name)):
        part = word if len(word) <= width else f"{word[: width - 1]}."
        if lines[-1] and len(lines[-1]) + len(part) > width:
            lines.append(part)
        else:
            lines[-1] += part
    return "\n".join(lines)


def _print_costs(console: Console, board: Leaderboard, most: int | None) -> None:
    titles, cells = board.cost()
    names, _ = _row_names(board, console.width)
    table = Table(box=SIMPLE_HEAD, padding=(0, _GAP - 1, 0, 0), pad_edge=False, show_edge=False)
    table.add_column("cost", no_wrap=True)
    for title in titles:
        table.add_column(title, justify="right", no_wrap=True)
    for row, cost in zip(board.rows[:most], cells[:most], strict=True):
        table.add_row(Text(names[row.name]), *cost)
    console.print()
    console.print(table)
