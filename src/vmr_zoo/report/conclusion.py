"""What a leaderboard shows, in a few sentences: the first thing on the page."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from vmr_zoo.report.caveats import CAVEATS
from vmr_zoo.report.leaderboard import DROP, TIED, Leaderboard, LeaderboardRow, ascending, format_mean_std
from vmr_zoo.report.significance import seeds_left_out

Sentence = list[tuple[str, bool]]
"""Pieces of text, and whether each is emphasised."""


def conclusion(board: Leaderboard, compared: bool) -> list[Sentence]:
    """Says which row is best, in and out of distribution, how sure that is, and what to be careful about.

    Args:
        board: the table, with its marks.
        compared: whether significance was tested.
    """
    metric, split = board.leading_metric, board.columns[0]
    best = board.best((split, metric))
    if best is None:
        row = board.rows[0]
        values = row.values.get((split, metric))
        score = f": {format_mean_std(values)} per cent {metric} on {split}" if values else ""
        return [[(row.label, True), (f"{score}. There is no other row to compare it with.", False)]]
    sentences = [_best(board, split, metric, compared)]
    if DROP in board.columns and len(board.test_splits) > 1:
        sentences.append(_out_of_distribution(board, metric))
    for caveat in CAVEATS:
        marked = [row.label for row in board.rows if row.caveats.get(caveat.key)]
        if marked:
            text = f"{caveat.text[:1].upper()}{caveat.text[1:]}: {', '.join(marked)}."
            sentences.append([(text, False)])
    return sentences


def _best(board: Leaderboard, split: str, metric: str, compared: bool) -> Sentence:
    key = split, metric
    rows = [row for row in board.rows if row.values.get(key)]
    ranked = sorted(rows, key=lambda row: ascending(key) * statistics.fmean(row.values[key]))
    first, second = ranked[:2]
    sentence = [
        (first.label, True),
        (f" is best on {split}: ", False),
        (f"{format_mean_std(first.values[key])} per cent {metric}", True),
        (f", before {second.label} with {format_mean_std(second.values[key])}. ", False),
    ]
    if not compared:
        return [*sentence, ("Whether they differ significantly was not tested (significance=true).", False)]
    equal = [row.label for row in ranked[1:] if row.marks.get(key) == TIED]
    untested = [row.label for row in ranked[1:] if key not in row.marks]
    if equal:
        sentence.append((f"No row is significantly better than: {', '.join(equal)}.", False))
    elif not untested:
        sentence.append(("Every other row is significantly worse than at least one row.", False))
    if untested:
        gap = " " if equal else ""
        text = f"{gap}Not compared, for lack of scores of single queries: {', '.join(untested)}."
        sentence.append((text, False))
    tested = [row for row in ranked if key in row.marks]
    if len(tested) > 1 and (alone := seeds_left_out([first] if len(first.runs) == 1 else tested)):
        sentence.append((f" ({alone[:1].upper()}{alone[1:]}.)", False))
    return sentence


def _out_of_distribution(board: Leaderboard, metric: str) -> Sentence:
    """Names the row with the best mean over the other test splits, and its drop."""
    others = board.test_splits[1:]
    found = {row.label: (row, _means(row, others, metric)) for row in board.rows}
    found = {label: (row, means) for label, (row, means) in found.items() if means}
    if not found:
        return [("No row has results on all other test splits.", False)]
    sign = ascending((others[0], metric))
    label, (best, means) = min(found.items(), key=lambda item: sign * statistics.fmean(item[1][1]))
    drop = best.values.get((DROP, metric))
    change = f", a drop of {format_mean_std(drop)} points" if drop else ""
    return [
        ("Out of distribution, on average over the other test splits, ", False),
        (label, True),
        (" is best: ", False),
        (f"{format_mean_std(means)} per cent", True),
        (f"{change} (the average was not tested).", False),
    ]


def _means(row: LeaderboardRow, splits: Sequence[str], metric: str) -> list[float]:
    """Returns the mean over splits of each run that has all of them."""
    return [
        statistics.fmean(run.metrics[split][metric] for split in splits)
        for run in row.runs
        if all(run.metrics.get(split, {}).get(metric) is not None for split in splits)
    ]
