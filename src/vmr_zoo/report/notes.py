"""What stands below a leaderboard in every output: units, seeds, and what its signs mean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vmr_zoo.errors import VmrError, abbreviate
from vmr_zoo.report.caveats import legend
from vmr_zoo.report.elsewhere import external_notes, recorded_annotations
from vmr_zoo.report.leaderboard import DROP, TIED_SIGN, Leaderboard
from vmr_zoo.report.no_answer import rejection_notes
from vmr_zoo.report.run_settings import differing_settings
from vmr_zoo.report.runs import Run
from vmr_zoo.report.significance import TEST, seeds_left_out

_LISTED = 3
"""Settings that a warning names."""


def table_notes(board: Leaderboard, best: str = "Bold") -> list[str]:
    """Returns the sentences that explain a table.

    Args:
        board: the table.
        best: how the output marks the best number of a column.
    """
    several = any(len(row.runs) > 1 for row in board.rows)
    spread = "; mean ± sample standard deviation" if several else ""
    notes = [f"Per cent{spread}; {board.seeds}."]
    notes += table_warnings(board)
    notes += _fewer_seeds(board)
    if board.shared:
        notes.append(f"All rows: {board.shared}.")
    if DROP in board.columns:
        notes.append(f"{DROP}: {board.columns[0]} minus the mean of the other test splits, in points.")
    if board.compared:
        alone = seeds_left_out(board.rows)
        test = f"{TEST}; {alone}" if alone else TEST
        notes.append(f"{best}: best; {TIED_SIGN}: no row is significantly better ({test}).")
        if names := board.not_compared:
            notes.append(f"Not compared, for lack of scores of single queries: {', '.join(names)}.")
    elif len(board.rows) > 1:
        notes.append(f"{best}: best.")
    notes += external_notes((row.label, row.runs) for row in board.rows)
    notes += board.metric_notes + rejection_notes(board)
    marks = legend(board)
    return [*notes, f"{marks}."] if marks else notes


def _fewer_seeds(board: Leaderboard) -> list[str]:
    """Names the cells that are means over fewer seeds than their row has."""
    found = []
    for row in board.rows:
        counts = {column: len(row.values.get((column, board.leading_metric), ())) for column in board.columns}
        lacking = [f"{column} ({n})" for column, n in counts.items() if 0 < n < len(row.runs)]
        if lacking:
            found.append(f"{row.label} has {len(row.runs)} seeds, but fewer on {', '.join(lacking)}.")
    return found


def table_warnings(board: Leaderboard) -> list[str]:
    """Returns a sentence on each difference that makes a number of a table wrong."""
    rows = [(row.label, row.runs) for row in board.rows]
    return [f"WARNING: {text}." for text in (*unlike_seeds(rows), *unlike_annotations(rows, board.splits))]


def unlike_seeds(rows: Sequence[tuple[str, Sequence[Run]]]) -> list[str]:
    """Names the runs of one row that differ in their settings.

    Args:
        rows: the name of each row, and its run for each seed.
    """
    found = []
    for label, runs in rows:
        if keys := differing_settings(runs):
            more = f" and {len(keys) - _LISTED} more" if len(keys) > _LISTED else ""
            found.append(f"the runs of {label} differ in {', '.join(keys[:_LISTED])}{more}")
    return found


def unlike_annotations(rows: Sequence[tuple[str, Sequence[Run]]], splits: Sequence[str]) -> list[str]:
    """Names the splits in which rows were scored with other annotations, and rows whose record is broken.

    Args:
        rows: the name of each row, and its run for each seed.
        splits: that the rows are compared on.
    """
    recorded = []
    broken: dict[str, None] = {}
    for label, runs in rows:
        for run in runs:
            try:
                recorded.append((label, recorded_annotations(run)))
            except VmrError:  # resuming and evaluating name the file
                broken[label] = None
    found = [f"the annotations of {label} cannot be read" for label in broken]
    for split in splits:
        groups: dict[str, dict[str, None]] = {}
        for label, digests in recorded:
            if split in digests:
                groups.setdefault(str(digests[split]), {})[f"{label} ({_sentences(digests[split])})"] = None
        if len(groups) > 1:
            listed = " | ".join(abbreviate(labels, _LISTED) for labels in groups.values())
            found.append(f"the annotations of {split} differ: {listed}")
    return found


def _sentences(split: Any) -> str:
    return f"{split.get('sentences')} sentences" if isinstance(split, dict) else "unreadable"
