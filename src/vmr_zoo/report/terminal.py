"""Prints leaderboards to the terminal: a table per metric that fits the width, in which nothing is cut."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from vmr_zoo.report.caveats import signs
from vmr_zoo.report.escape import one_line
from vmr_zoo.report.leaderboard import BEST, Leaderboard
from vmr_zoo.report.notes import table_notes
from vmr_zoo.utils.console import wide_console

LONGEST_NAME = 24
"""Characters of a name of a row in a table that would not fit otherwise; a legend has the whole name."""

_LEAST_TITLE = 6
"""Characters of a shortened title that are always possible."""

GAP = 3
"""Characters between columns: the padding, and one that the box draws."""

Lines = dict[str, list[list[str]]]
"""By column the cells of the rows, each with its lines."""

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
    """Prints the table of one metric."""
    names, long_names = shorten([row.label for row in board.rows], console.width)
    names = [name + signs(row) for name, row in zip(names, board.rows, strict=True)]
    best = {column: board.best((column, metric)) for column in board.columns}
    bold = {
        (column, number)
        for column, top in best.items()
        for number, row in enumerate(board.rows)
        if row is top
    }
    if metric != board.metrics[-1]:
        long_names = {}  # the last table has the legend of all
    print_columns(
        console, metric, names[:most], lambda below: _cell_lines(board, metric, below, most), long_names, bold
    )


def print_columns(
    console: Console,
    corner: str,
    names: Sequence[str],
    cells: Callable[[bool], Lines],
    long_names: Mapping[str, str],
    bold: Collection[tuple[str, int]] = (),
) -> None:
    """Prints columns beside the names of their rows, in the width of the terminal.

    A row has one line, else the deviations are below the means; if that is still too wide, the columns
    continue in further tables. A legend below explains what was shortened.

    Args:
        console: where to print.
        corner: the title of the names.
        names: of the rows.
        cells: returns the lines of the cells by column, and takes whether deviations are below the means.
        long_names: whole names by the shortened ones (`shorten`).
        bold: columns and numbers of the rows of bold cells.
    """
    first = max(len(corner), *map(len, names)) + GAP
    for below in (False, True):
        lines = cells(below)
        blocks = _blocks(lines, console.width - first)
        if len(blocks) == 1:
            break
    cut: dict[str, str] = {}
    full = first + sum(max(len(column), _cell_width(own)) + GAP for column, own in lines.items())
    for columns in blocks:
        table = plain_table()
        table.add_column(Text(corner, "bold"), no_wrap=True)
        # The last column needs no gap behind it.
        used = sum(max(_LEAST_TITLE, _cell_width(lines[c])) + GAP for c in columns) - GAP
        spare = (console.width - first - used) // len(columns)
        titles = _titles(columns, lines, None if full <= console.width else max(0, spare))
        whole = {short.replace("\n", ""): column for column, short in titles.items()}
        cut |= {short: column for short, column in whole.items() if short != column}
        for column in columns:
            table.add_column(Text(titles[column]), justify="right", no_wrap=True, vertical="bottom")
        for number, name in enumerate(names):
            row = (_cell(lines[column][number], (column, number) in bold) for column in columns)
            table.add_row(Text(name), *row)
        console.print()
        console.print(table)
    meanings = [one_line(f"{short}: {whole}") for short, whole in {**cut, **long_names}.items()]
    if meanings:
        console.print(Text("; ".join(meanings), "dim"))


def plain_table() -> Table:
    """Returns a table of the terminal: a line below the head, and `GAP` between columns."""
    return Table(box=SIMPLE_HEAD, padding=(0, GAP - 1, 0, 0), pad_edge=False, show_edge=False)


def _cell_lines(board: Leaderboard, metric: str, below: bool, most: int | None) -> Lines:
    """Formats the cells of one metric.

    Args:
        board: the table.
        metric: the metric.
        below: whether deviations stand below the means instead of behind them.
        most: number of rows; None: all.
    """
    lines: Lines = {}
    for column in board.columns:
        key = column, metric
        marks = [BEST_SIGN if row.marks.get(key) == BEST else row.sign(key) for row in board.rows]
        pad = any(marks)
        lines[column] = [
            mean_lines(row.cell(key).removesuffix(row.sign(key)), below, sign or " " * pad)
            for row, sign in list(zip(board.rows, marks, strict=True))[:most]
        ]
    return lines


def mean_lines(cell: str, below: bool, sign: str = "") -> list[str]:
    """Returns the lines of "mean ± deviation" with a sign behind the mean, or behind both on one line.

    >>> mean_lines("1.0 ± 0.5", True, "*"), mean_lines("1.0 ± 0.5", False, "*"), mean_lines("1.0", True)
    (['1.0*', '± 0.5 '], ['1.0 ± 0.5*'], ['1.0'])
    """
    mean, _, deviation = cell.partition(" ± ")
    if below and deviation:
        return [mean + sign, f"± {deviation}" + " " * len(sign)]
    return [cell + sign]


def _cell(lines: Sequence[str], best: bool) -> Text:
    first, *below = lines
    text = Text(first, "bold" if best else "")
    for line in below:
        text.append(f"\n{line}", "dim")
    return text


def shorten(labels: Sequence[str], width: int) -> tuple[list[str], dict[str, str]]:
    """Returns names of rows for a terminal of a width, and the whole names of those that were cut."""
    longest = max(LONGEST_NAME, width - 60)
    names: list[str] = []
    cut: dict[str, str] = {}
    for label in map(one_line, labels):
        name = label if len(label) <= longest else f"{label[: longest - 4]}…{len(cut) + 1}"
        if name != label:
            cut[name] = label
        names.append(name)
    return names, cut


def _cell_width(cells: Sequence[Sequence[str]]) -> int:
    return max(len(line) for lines in cells for line in lines)


def _blocks(lines: Lines, room: int) -> list[list[str]]:
    """Divides the columns among tables that are narrow enough."""
    blocks: list[list[str]] = [[]]
    used = 0
    for column, cells in lines.items():
        needed = max(_cell_width(cells), min(_LEAST_TITLE, len(column))) + GAP
        if blocks[-1] and used + needed > room:
            blocks.append([])
            used = 0
        blocks[-1].append(column)
        used += needed
    return blocks


def _titles(columns: Sequence[str], lines: Lines, spare: int | None) -> dict[str, str]:
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
    names, _ = shorten([row.label for row in board.rows], console.width)
    table = plain_table()
    table.add_column("cost", no_wrap=True)
    for title in titles:
        table.add_column(title, justify="right", no_wrap=True)
    for name, row, cost in zip(names[:most], board.rows, cells, strict=False):
        table.add_row(Text(name + signs(row)), *cost)
    console.print()
    console.print(table)
