"""Prints leaderboards to the terminal: a table per metric that fits the width, in which nothing is cut."""

from __future__ import annotations

import os
import re
import statistics
from collections.abc import Callable, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from vmr_zoo.report.caveats import legend, signs
from vmr_zoo.report.escape import one_line
from vmr_zoo.report.leaderboard import BEST, DROP, WORSE, Leaderboard, LeaderboardRow

TEST = "paired bootstrap over queries, 95 %"

_NARROWEST = 60
"""Columns of a terminal below which rows wrap rather than lose digits."""

_LONGEST_NAME = 24
"""Characters of a name of a row in a table that would not fit otherwise; a legend has the whole name."""

_LEAST_TITLE = 6
"""Characters of a shortened title that are always possible."""

_GAP = 3
"""Characters between columns: the padding, and one that the box draws."""


def print_leaderboards(boards: Sequence[Leaderboard], compared: bool, costs: bool = False) -> None:
    """Prints the tables.

    Args:
        boards: the tables.
        compared: whether significance was tested; explains the marks.
        costs: whether to add a table of parameters, times and memory.
    """
    console = report_console()
    for board in boards:
        console.print(Text(one_line(board.heading), "bold"))
        console.print(Text(one_line(f"{board.conditions}.{_shared(board)}"), "dim"))
        for metric in board.metrics:
            _print_metric(console, board, metric)
        if costs:
            _print_costs(console, board)
        for note in _notes(board, compared):
            console.print(Text(note, "dim"))
        console.print()


def report_console() -> Console:
    """Returns a console as wide as the terminal, or as COLUMNS says; a pipe or a file has any width."""
    console = Console(highlight=False)
    known = console.is_terminal or os.environ.get("COLUMNS", "").isdigit()
    return Console(width=max(console.width, _NARROWEST) if known else 1000, highlight=False)


def _shared(board: Leaderboard) -> str:
    return f" All rows: {board.shared}." if board.shared else ""


def _notes(board: Leaderboard, compared: bool) -> list[str]:
    several = any(len(row.runs) > 1 for row in board.rows)
    spread = "; mean ± sample standard deviation" if several else ""
    notes = [f"per cent{spread}; {board.seeds}; best first"]
    if DROP in board.columns:
        notes.append(f"{DROP}: {board.columns[0]} minus the mean of the other test splits, in points")
    if compared:
        notes.append(f"{BEST} best; {WORSE} significantly worse ({TEST})")
    marks = legend(board)
    return [*notes, marks] if marks else notes


def _print_metric(console: Console, board: Leaderboard, metric: str) -> None:
    """Prints the table of one metric: on one line per row, else with deviations below the means.

    If that is still too wide, the splits continue in further tables.
    """
    names, long_names = _row_names(board, console.width)
    for lines in (_one_line, _two_lines):
        blocks = _blocks(board, metric, names, lines, console.width)
        if len(blocks) == 1:
            break
    explained: dict[str, str] = {}
    full = _full_titles_fit(board, metric, names, lines, console.width)
    for columns in blocks:
        table = Table(box=SIMPLE_HEAD, padding=(0, _GAP - 1, 0, 0), pad_edge=False, show_edge=False)
        table.add_column(Text(metric, "bold"), no_wrap=True)
        # The last column needs no gap behind it.
        used = sum(max(_LEAST_TITLE, _cell_width(board, metric, c, lines)) + _GAP for c in columns) - _GAP
        spare = (console.width - _first_width(metric, names) - used) // len(columns)
        titles = _titles(board, metric, columns, lines, None if full else max(0, spare))
        whole = {short.replace("\n", ""): column for column, short in titles.items()}
        explained |= {short: column for short, column in whole.items() if short != column}
        for column in columns:
            table.add_column(Text(titles[column]), justify="right", no_wrap=True, vertical="bottom")
        for row in board.rows:
            cells = [_cell(board, row, (column, metric), lines) for column in columns]
            table.add_row(Text(names[row.name]), *cells)
        console.print()
        console.print(table)
    meanings = [one_line(f"{short}: {whole}") for short, whole in {**explained, **long_names}.items()]
    if meanings:
        console.print(Text("; ".join(meanings), "dim"))


_Lines = Callable[[LeaderboardRow, tuple[str, str]], list[str]]


def _one_line(row: LeaderboardRow, key: tuple[str, str]) -> list[str]:
    return [row.cell(key)]


def _two_lines(row: LeaderboardRow, key: tuple[str, str]) -> list[str]:
    """Returns the mean with its mark, and the deviation for the line below."""
    values = row.values.get(key)
    if not values:
        return [""]
    mean = f"{statistics.fmean(values):.2f}{row.marks.get(key, '')}"
    return [mean, f"± {statistics.stdev(values):.2f}"] if len(values) > 1 else [mean]


def _cell(board: Leaderboard, row: LeaderboardRow, key: tuple[str, str], lines: _Lines) -> Text:
    first, *below = lines(row, key)
    best = board.best(key)
    text = Text(first, "bold" if best is row else "")
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


def _cell_width(board: Leaderboard, metric: str, column: str, lines: _Lines) -> int:
    return max(len(line) for row in board.rows for line in lines(row, (column, metric)))


def _full_titles_fit(
    board: Leaderboard, metric: str, names: dict[str, str], lines: _Lines, width: int
) -> bool:
    widths = [max(len(c), _cell_width(board, metric, c, lines)) + _GAP for c in board.columns]
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
        needed = max(_cell_width(board, metric, column, lines), min(_LEAST_TITLE, len(column))) + _GAP
        if blocks[-1] and used + needed > room:
            blocks.append([])
            used = 0
        blocks[-1].append(column)
        used += needed
    return blocks


def _titles(
    board: Leaderboard, metric: str, columns: Sequence[str], lines: _Lines, spare: int | None
) -> dict[str, str]:
    """Returns the title of each column, distinct, and at most `spare` wider than its cells; None: whole."""
    if spare is None:
        return {column: column for column in columns}
    titles: dict[str, str] = {}
    for column in columns:
        short = short_title(column, max(_LEAST_TITLE, _cell_width(board, metric, column, lines)) + spare)
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


def _print_costs(console: Console, board: Leaderboard) -> None:
    titles, cells = board.cost()
    names, _ = _row_names(board, console.width)
    table = Table(box=SIMPLE_HEAD, padding=(0, _GAP - 1, 0, 0), pad_edge=False, show_edge=False)
    table.add_column("cost", no_wrap=True)
    for title in titles:
        table.add_column(title, justify="right", no_wrap=True)
    for row, cost in zip(board.rows, cells, strict=True):
        table.add_row(Text(names[row.name]), *cost)
    console.print()
    console.print(table)
