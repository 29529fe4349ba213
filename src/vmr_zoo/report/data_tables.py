"""Leaderboards as data: a row per mean over seeds, or per run, with numbers as numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from vmr_zoo.report.caveats import CAVEATS, find_caveats
from vmr_zoo.report.elsewhere import external_columns, is_external
from vmr_zoo.report.leaderboard import COSTS, DROP, Leaderboard, LeaderboardRow
from vmr_zoo.report.run_settings import setting
from vmr_zoo.report.runs import Run
from vmr_zoo.runs.directory import ENVIRONMENT, read_json

DECIMALS = 6


def rows_of_means(boards: Sequence[Leaderboard]) -> pd.DataFrame:
    """Returns a row per row of the leaderboards.

    Columns are the table, run, method, variant and further choices; one for each override; `seeds`; for every
    column and metric the mean, `std` (sample standard deviation), `n` (seeds that have it) and, if rows were
    compared, `significance` ("best", "tied" with the best, "worse", or empty); caveats; costs; git revisions.
    """
    overrides = _override_keys(boards)
    compared = any(board.compared for board in boards)
    records = []
    for board in boards:
        for row in board.rows:
            records.append(
                {
                    **_identity(board, row),
                    **{key: _joined(row.runs, key) for key in overrides},
                    "seeds": len(row.runs),
                    **_measured(board, row, compared),
                    **caveat_cells(row.caveats),
                    **_external(boards, row.runs),
                    "parameters": row.runs[0].header["parameters"],
                    **{key: _rounded(row.mean_cost(key)) for key in COSTS},
                    "revision": " ".join(sorted({_revision(run) for run in row.runs})),
                }
            )
    return _frame(records)


def rows_of_runs(boards: Sequence[Leaderboard]) -> pd.DataFrame:
    """Returns a row per run, with its directory, seed, settings, and every column and metric."""
    overrides = _override_keys(boards)
    records = []
    for board in boards:
        for row in board.rows:
            for run in row.runs:
                records.append(
                    {
                        **_identity(board, row),
                        "seed": run.header["seed"],
                        **{key: setting(run, key) for key in overrides},
                        **_scores(board, run),
                        **caveat_cells(find_caveats([run])),
                        **_external(boards, [run]),
                        "parameters": run.header["parameters"],
                        **{key: run.header.get(key) for key in ("epochs", "best_epoch", *COSTS)},
                        "revision": _revision(run),
                        "directory": "" if run.path is None else str(run.path),
                    }
                )
    return _frame(records)


def caveat_cells(found: Mapping[str, bool]) -> dict[str, str]:
    """Returns a column per caveat: "yes", "no", or "" where nobody measured it."""
    return {one.key: _yes_no(found.get(one.key)) for one in CAVEATS}


def _identity(board: Leaderboard, row: LeaderboardRow) -> dict[str, Any]:
    header = row.runs[0].header
    keys = ("protocol", "features", "origin", "selection", "method", "variant", "experiment", "ablation")
    return {"table": board.title, "run": row.name, **{key: header.get(key) for key in keys}}


def _external(boards: Sequence[Leaderboard], runs: Sequence[Run]) -> dict[str, Any]:
    """Returns the columns of rows from elsewhere, if there is any such row."""
    every = (row.runs[0] for board in boards for row in board.rows)
    return external_columns(runs) if any(map(is_external, every)) else {}


def _override_keys(boards: Sequence[Leaderboard]) -> list[str]:
    """Returns the overrides of any run, without those that have a column of their own."""
    runs = [run for board in boards for row in board.rows for run in row.runs]
    keys = {key for run in runs for key in run.header.get("overrides") or {}}
    return sorted(keys - {"experiment", "ablation"})


def _joined(runs: Sequence[Run], key: str) -> Any:
    """Returns the setting of the runs of a row; several values, as under one name=…, become one text."""
    values = list({str(value): value for value in (setting(run, key) for run in runs)}.values())
    return values[0] if len(values) == 1 else " ".join(map(str, values))


def _measured(board: Leaderboard, row: LeaderboardRow, compared: bool) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for column in board.columns:
        for metric in board.metrics:
            name, values = f"{column} {metric}", row.values.get((column, metric), [])
            found[name] = _rounded(row.mean((column, metric)))
            found[f"{name} std"] = _rounded(row.deviation((column, metric)))
            found[f"{name} n"] = len(values)
            if compared and column != DROP:
                found[f"{name} significance"] = row.marks.get((column, metric), "")
    return found


def _scores(board: Leaderboard, run: Run) -> Mapping[str, float | None]:
    return {
        f"{split} {metric}": _rounded(run.metrics.get(split, {}).get(metric))
        for split in board.splits
        for metric in board.metrics
    }


def _frame(records: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Returns a frame in which whole numbers stay whole beside missing ones, without empty settings."""
    frame = pd.DataFrame(records, dtype=object)
    settings = [name for name in ("experiment", "ablation") if name in frame and frame[name].isna().all()]
    return frame.drop(columns=settings)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, DECIMALS)


def _yes_no(value: bool | None) -> str:
    return "" if value is None else "yes" if value else "no"


def _revision(run: Run) -> str:
    """Returns the git revision that produced a run, marked if the checkout had changes; "?" if unknown."""
    file = None if run.path is None else run.path / ENVIRONMENT
    git = read_json(file).get("git") if file is not None and file.is_file() else None
    if not git or not git.get("revision"):
        return "?"
    return f"{git['revision'][:10]}{'+changes' if git.get('dirty') else ''}"
