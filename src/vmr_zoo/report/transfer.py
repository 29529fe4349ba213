"""The tables "trained on -> tested on": runs tested on other data than they were trained on.

There is a table for each data set that runs were moved to. A row is a method with the data that it was
trained on, a column a split of the data that it was tested on. Results on other data are in no other table.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from vmr_zoo.report.leaderboard import Leaderboard, leaderboards
from vmr_zoo.report.runs import Run, merge_evaluations
from vmr_zoo.runs.directory import TRANSFER

TITLE = "Trained on -> tested on"


def transfer_boards(runs: Sequence[Run], metrics: Sequence[str], evals: bool = False) -> list[Leaderboard]:
    """Builds the tables, one for each data set and set of features.

    Args:
        runs: finished runs. Those that were tested on other data become rows, and for comparison so do runs
            of their methods that were trained on that data.
        metrics: the metrics to show; one that no result has is left out.
        evals: whether evaluations on other data with a probe or changed arguments are rows, too.

    Returns:
        The tables; none if no run was tested on other data.
    """
    tables: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        found = _by_name_and_data(run, evals)
        for (name, tested, _), row in zip(found, merge_evaluations(run.path, found), strict=True):
            tables[tested].append(_named(row, name, _label(run), tested))
    for tested, rows in tables.items():
        methods, splits = {_method(row) for row in rows}, {split for row in rows for split in row.metrics}
        for run in runs:
            if _label(run) == tested and _method(run) in methods:
                own = {split: values for split, values in run.metrics.items() if split in splits}
                rows.append(_named(replace(run, metrics=own), str(run.header["name"]), tested, tested))
    rows = [row for own in tables.values() for row in _comparable(own)]
    shown = [name for name in metrics if any(name in own for row in rows for own in row.metrics.values())]
    return leaderboards(rows, shown) if shown else []


def _by_name_and_data(run: Run, evals: bool) -> dict[tuple[str, str, str], dict[str, Run]]:
    """Returns the results of a run on other data by name, data and features, then by split, in its order.

    Of several results on a split the latest counts.
    """
    order = {split: place for place, split in enumerate(run.metrics)}
    found: dict[tuple[str, str, str], dict[str, Run]] = defaultdict(dict)
    for one in sorted(run.transfers, key=lambda one: min(order.get(x, len(order)) for x in one.metrics)):
        if evals or one.header["name"] == run.header["name"]:
            tested, features = str(one.header[TRANSFER]["tested_on"]), str(one.header["features"])
            found[str(one.header["name"]), tested, features] |= dict.fromkeys(one.metrics, one)
    return found


def _label(run: Run) -> str:
    """Returns the data that a run was trained on, as `Protocol.label`."""
    if run.transfers:
        return str(run.transfers[0].header[TRANSFER]["trained_on"])
    return f"{run.header['protocol']} {run.header.get('settings', '')}".strip()


def _method(run: Run) -> tuple[Any, Any]:
    return run.header["method"], run.header["variant"]


def _named(row: Run, name: str, trained: str, tested: str) -> Run:
    """Names a row after its method and training data, and its table after the data that it was tested on."""
    named = {"name": f"{name}, trained on {trained}", "protocol": f"{TITLE} {tested}"}
    return replace(row, header=row.header | named, transfers=())


def _comparable(rows: Sequence[Run]) -> list[Run]:
    """Lets rows share a table whose training data differ in how checkpoints are selected."""
    if len({str(row.header["selection"]) for row in rows}) == 1:
        return list(rows)
    text = "the selection split of each row's own data"
    return [replace(row, header=row.header | {"selection": text}) for row in rows]
