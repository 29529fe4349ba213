"""What stands below a leaderboard in every output: units, seeds, and what its signs mean."""

from __future__ import annotations

from vmr_zoo.report.caveats import legend
from vmr_zoo.report.elsewhere import external_notes
from vmr_zoo.report.leaderboard import DROP, TIED_SIGN, Leaderboard
from vmr_zoo.report.no_answer import rejection_notes
from vmr_zoo.report.significance import TEST, seeds_left_out


def table_notes(board: Leaderboard, best: str = "Bold") -> list[str]:
    """Returns the sentences that explain a table.

    Args:
        board: the table.
        best: how the output marks the best number of a column.
    """
    several = any(len(row.runs) > 1 for row in board.rows)
    spread = "; mean ± sample standard deviation" if several else ""
    notes = [f"Per cent{spread}; {board.seeds}."]
    if board.shared:
        notes.append(f"All rows: {board.shared}.")
    if DROP in board.columns:
        notes.append(f"{DROP}: {board.columns[0]} minus the mean of the other test splits, in points.")
    if board.compared:
        alone = seeds_left_out(board.rows)
        test = f"{TEST}; {alone}" if alone else TEST
        notes.append(f"{best}: best; {TIED_SIGN}: not significantly worse than the best ({test}).")
        if names := board.not_compared:
            notes.append(f"Not compared, for lack of scores of single queries: {', '.join(names)}.")
    elif len(board.rows) > 1:
        notes.append(f"{best}: best.")
    notes += external_notes((row.label, row.runs) for row in board.rows)
    notes += board.metric_notes + rejection_notes(board)
    marks = legend(board)
    return [*notes, f"{marks}."] if marks else notes
