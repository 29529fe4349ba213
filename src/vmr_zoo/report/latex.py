"""Writes leaderboards and the papers' tables as LaTeX: tables of booktabs that compile as they are."""

from __future__ import annotations

from collections.abc import Sequence

from vmr_zoo.report import escape
from vmr_zoo.report.caveats import marked_label
from vmr_zoo.report.leaderboard import Leaderboard, LeaderboardRow
from vmr_zoo.report.notes import table_notes
from vmr_zoo.report.paper_tables import PaperTable

_PREAMBLE = r"""% Needs in the preamble: \usepackage{booktabs}
% To look at it:
%   \documentclass{article}\usepackage{booktabs}\usepackage[margin=1cm,landscape]{geometry}
%   \begin{document}\input{THIS FILE}\end{document}
"""

_OTHER_SCRIPTS = "% If pdfLaTeX refuses a letter of a name, compile with LuaLaTeX or XeLaTeX.\n"

_TIED = r"\rlap{$^{\approx}$}"
"""Without a width: digits stay below each other."""


def leaderboards_latex(boards: Sequence[Leaderboard], costs: bool) -> str:
    """Writes a table per leaderboard and metric; families are separated by a line with their name.

    Args:
        boards: the leaderboards.
        costs: whether to add a table of parameters, times and memory.
    """
    return _document([table for board in boards for table in _board_tables(board, costs)])


def paper_tables_latex(tables: Sequence[PaperTable]) -> str:
    """Writes the papers' tables beside our numbers."""
    written = []
    for one in tables:
        frame = one.frame()
        body = [[escape.latex(str(cell)) for cell in cells] for cells in frame.itertuples(index=False)]
        columns = [escape.latex(column) for column in frame.columns]
        align = "".join("l" if column in one.labels else "r" for column in frame.columns)
        written.append(_table(columns, [("", body)], one.title, align))
    return _document(written)


def _document(tables: Sequence[str]) -> str:
    text = "\n".join(tables)
    return f"{_PREAMBLE}{'' if text.isascii() else _OTHER_SCRIPTS}\n{text}"


def _board_tables(board: Leaderboard, costs: bool) -> list[str]:
    notes = " ".join([f"{board.conditions[:1].upper()}{board.conditions[1:]}.", *table_notes(board)])
    tables = []
    for metric in board.metrics:
        groups = [
            (family, [[_name(row), *(_cell(board, row, (c, metric)) for c in board.columns)] for row in rows])
            for family, rows in board.families.items()
        ]
        titles = [escape.latex(title) for title in (metric, *board.columns)]
        tables.append(_table(titles, groups, f"{board.heading}: {metric}. {notes}"))
    if costs:
        titles, cells = board.cost()
        by_row = {row.name: cost for row, cost in zip(board.rows, cells, strict=True)}
        groups = [
            (family, [[_name(row), *map(escape.latex, by_row[row.name])] for row in rows])
            for family, rows in board.families.items()
        ]
        titles = [escape.latex(title) for title in ("cost", *titles)]
        tables.append(_table(titles, groups, f"{board.heading}: cost, on the machine of each run."))
    return tables


def _name(row: LeaderboardRow) -> str:
    return escape.latex(marked_label(row))


def _cell(board: Leaderboard, row: LeaderboardRow, key: tuple[str, str]) -> str:
    """Formats a value with its sign, the best one in bold."""
    if not row.values.get(key):
        return ""
    text = escape.latex(row.cell(key).removesuffix(row.sign(key)))
    return rf"\textbf{{{text}}}" if board.best(key) is row else text + (_TIED if row.sign(key) else "")


def _table(
    columns: Sequence[str],
    groups: Sequence[tuple[str, Sequence[Sequence[str]]]],
    caption: str,
    align: str = "",
) -> str:
    """Writes one table.

    Args:
        columns: titles, escaped.
        groups: name and rows of escaped cells; a single group is written without its name.
        caption: not escaped.
        align: the columns' alignment; "": the first to the left, the others to the right.
    """
    lines = [
        r"\begin{table}[t]",
        r"\centering",
        rf"\caption{{{escape.latex(caption)}}}",
        rf"\begin{{tabular}}{{{align or 'l' + 'r' * (len(columns) - 1)}}}",
        r"\toprule",
        f"{' & '.join(columns)} \\\\",
        r"\midrule",
    ]
    for number, (name, rows) in enumerate(groups):
        if len(groups) > 1:
            lines += [r"\addlinespace"] * bool(number)
            lines.append(
                rf"\multicolumn{{{len(columns)}}}{{l}}{{\textit{{{escape.latex(name or 'Other')}}}}} \\"
            )
        lines += [f"{' & '.join(cells)} \\\\" for cells in rows]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""])
