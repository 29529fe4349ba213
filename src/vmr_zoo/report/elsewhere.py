"""Rows from elsewhere: predictions of other programs that `vmr score run=DIR` scored.

They have no features and no selection of our own. A row from elsewhere joins every table of its protocol and
its annotations whose features come from videos; simulated features describe no video that another program
can have seen.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vmr_zoo.engine.elsewhere import SCORED
from vmr_zoo.report.runs import Run
from vmr_zoo.runs.directory import ANNOTATIONS, EXTERNAL, SIMULATED, read_json

_FACTS = ("model", "revision", "prompt", "fps", "pixels", "scores")
_LONGEST_FACT = 120


def is_external(run: Run) -> bool:
    """Returns whether a run is a row from elsewhere."""
    return bool(run.header["method"] == EXTERNAL)


def has_scores(run: Run) -> bool:
    """Returns whether the windows have scores of the model; answers from elsewhere may have only an order."""
    external = run.header.get(EXTERNAL) or {}
    return bool(external.get("scores", SCORED) == SCORED)


def group_runs(runs: Iterable[Run], keys: Sequence[str]) -> dict[tuple[str, ...], list[Run]]:
    """Groups runs into tables.

    Args:
        runs: finished runs.
        keys: keys of headers; runs of our own share a table if they agree in all of them.

    Returns:
        The runs of each table by the values of `keys`. A row from elsewhere may be in several tables; without
        any that it fits, it is in one of its own.
    """
    tables: dict[tuple[str, ...], list[Run]] = defaultdict(list)
    external: list[Run] = []
    for run in runs:
        if is_external(run):
            external.append(run)
        else:
            tables[_values(run, keys)].append(run)
    own = list(tables.items())
    for run in external:
        joined = [key for key, group in own if _fits(run, group[0])]
        for key in joined or [_values(run, keys)]:
            tables[key].append(run)
    return dict(tables)


def _values(run: Run, keys: Sequence[str]) -> tuple[str, ...]:
    return tuple(str(run.header[key]) for key in keys)


def _fits(row: Run, other: Run) -> bool:
    """Whether a row from elsewhere may share a table with a run: same sentences and moments, real pixels."""
    if other.header["origin"] == SIMULATED:
        return False
    if any(row.header.get(key) != other.header.get(key) for key in ("protocol", "settings")):
        return False
    ours, theirs = recorded_annotations(row), recorded_annotations(other)
    return all(ours[split] == theirs[split] for split in ours.keys() & theirs.keys())


def recorded_annotations(run: Run) -> Mapping[str, Any]:
    """Returns the digests of the annotations that a run was scored with; {} if it records none."""
    file = None if run.path is None else run.path / ANNOTATIONS
    found = read_json(file) if file is not None and file.is_file() else {}
    return found if isinstance(found, dict) else {}


def external_label(name: str, runs: Sequence[Run]) -> str:
    """Returns the name of a row from elsewhere with the shares of its answers that could not be scored."""
    shares = {key: share for key, share in _shares(runs).items() if share or key == "unparsed"}
    if has_scores(runs[0]) and not any(shares.values()):
        return name
    return f"{name} ({', '.join(f'{share:.1f} % {key}' for key, share in shares.items())})"


def _shares(runs: Sequence[Run]) -> dict[str, float]:
    """Returns the per cent of queries whose answer states no moment, and of those without an answer."""
    counts = [split for run in runs for split in run.header[EXTERNAL]["splits"].values()]
    queries = sum(split["queries"] for split in counts)
    return {
        key: 100 * sum(split[key] for split in counts) / max(1, queries) for key in ("unparsed", "missing")
    }


def external_notes(rows: Iterable[tuple[str, Sequence[Run]]]) -> list[str]:
    """Returns a sentence about each row from elsewhere: who answered, to what prompt, and what was read.

    Args:
        rows: label and runs of each row of a table.
    """
    notes = []
    for label, runs in rows:
        if is_external(runs[0]):
            known = runs[0].header[EXTERNAL]
            facts = "; ".join(f"{key} {known.get(key, 'unknown')!s:.{_LONGEST_FACT}}" for key in _FACTS)
            notes.append(f"{label}: predictions from elsewhere, scored as submitted; {facts}.")
    return notes


def external_columns(runs: Sequence[Run]) -> dict[str, Any]:
    """Returns the columns of CSV that only rows from elsewhere fill: facts, and shares in per cent."""
    if is_external(runs[0]):
        found = {**{key: runs[0].header[EXTERNAL].get(key) for key in _FACTS}, **_shares(runs)}
    else:
        found = dict.fromkeys((*_FACTS, "unparsed", "missing"))
    return {f"{EXTERNAL}_{key}": value for key, value in found.items()}
