"""Tables of runs that were also asked sentences without an answer (`vmr eval no_answer=…`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vmr_zoo.report.leaderboard import Leaderboard, leaderboards
from vmr_zoo.report.runs import Run, metric_names
from vmr_zoo.runs.directory import NO_ANSWER

_MEANINGS = {
    "AUROC": "of the score, queries with against queries without an answer",
    "Rejection-Acc": "rejected among the queries without an answer",
    "No-Answer-Acc": "right decisions among all queries",
    "/rejection": "hits and right rejections among all queries",
    "/kept": "hits among the queries with an answer, a rejected one is a miss",
}
"""What the metrics are, by the end of their names."""


def rejection_boards(runs: Sequence[Run], metrics: Sequence[str], evals: bool = False) -> list[Leaderboard]:
    """Builds the tables, one for each protocol and kind of sentences.

    Args:
        runs: finished runs.
        metrics: the metrics to show; if there is none of these, the usual ones of such a table.
        evals: whether evaluations with changed arguments are rows, too.
    """
    found = [
        one for run in runs for one in run.rejections if evals or one.header["name"] == run.header["name"]
    ]
    if not found:
        return []
    known = metric_names(found)
    return leaderboards(found, [name for name in metrics if name in known] or found[0].header["columns"])


def without_rejection(runs: Sequence[Run], metrics: Sequence[str]) -> list[str]:
    """Returns the metrics of the other tables: not those that only results of rejection have."""
    known = metric_names([one for run in runs for one in run.rejections]) - metric_names(runs)
    return [name for name in metrics if name not in known]


def rejection_notes(board: Leaderboard) -> list[str]:
    """Says how the sentences of a table were chosen and rejected; empty for another table."""
    facts = {
        row.label: run.header[NO_ANSWER] for row in board.rows for run in row.runs if NO_ANSWER in run.header
    }
    if not facts:
        return []
    rows: dict[str, list[str]] = {}
    for label, one in facts.items():
        rows.setdefault(str(one["score"]), []).append(label)
    scores = "; ".join(f"{score} ({', '.join(labels)})" for score, labels in rows.items())
    meanings = "; ".join(
        f"{end}: {text}"
        for end, text in _MEANINGS.items()
        if any(name.endswith(end) for name in board.metrics)
    )
    return [
        f"That there is no answer is {_listed(facts, 'no_answer')}.",
        f"Queries are rejected by the {scores}, below a threshold from {_listed(facts, 'threshold_from')}.",
        f"{meanings}.",
    ]


def _listed(facts: dict[str, dict[str, Any]], key: str) -> str:
    return " or ".join(dict.fromkeys(str(one[key]) for one in facts.values()))
