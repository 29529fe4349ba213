"""Claims of papers as data: what is compared, and which finished runs answer it.

A claim is one YAML file (`experiments/claims/README.md` describes it). Its `kind` turns it into signed cells,
each a row of runs on a split; the effect of the claim is the sum of their scores:

    rows         a - b on one split
    drop         (a on `to` - a on `from`) - (b on `to` - b on `from`): positive if a loses less
    interaction  (a - b with the settings `to`) - (a - b with the settings `from`)

A claim about some queries of its splits lists their ids in a file (`queries`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from vmr_zoo.errors import VmrError, unknown
from vmr_zoo.report.run_settings import matches, setting
from vmr_zoo.report.runs import Run

KINDS = ("rows", "drop", "interaction")
DIRECTIONS = ("higher", "lower")
DEFAULTS = "defaults.yaml"
ANY = "any"
"""The value of a setting that may have any value."""

_REQUIRED = ("paper", "section", "claim", "kind", "a", "b")
_BY_KIND: dict[str, dict[str, Any]] = {
    "rows": {"split": str},
    "drop": {"from": str, "to": str},
    "interaction": {"split": str, "from": Mapping, "to": Mapping},
}
_OPTIONAL: dict[str, Any] = {
    "where": Mapping,
    "metric": str,
    "direction": str,
    "margin": (int, float),
    "seeds": int,
    "queries": str,
}

Where = Mapping[str, Any]
"""Value or list of values by dotted key of a run's header or config.yaml."""


class Cell(NamedTuple):
    """One signed term of an effect.

    Attributes:
        sign: 1 or -1.
        row: "a" or "b", with the setting in an interaction.
        where: which runs it consists of.
        split: the split they are scored on.
    """

    sign: int
    row: str
    where: Where
    split: str


@dataclass(frozen=True)
class Claim:
    """One claim.

    Attributes:
        name: the name of its file.
        paper: the paper that makes it.
        section: where in the paper.
        text: the claim in our own words.
        kind: "rows", "drop" or "interaction".
        metric: the metric, one with scores of single queries.
        sign: 1 if the claim says that the effect is positive, -1 if negative.
        margin: smallest effect that matters, in points.
        seeds: fewest seeds that all rows share.
        cells: the terms of the effect.
        queries: ids of the queries that it is about; None: all of its splits.
    """

    name: str
    paper: str
    section: str
    text: str
    kind: str
    metric: str
    sign: int
    margin: float
    seeds: int
    cells: tuple[Cell, ...]
    queries: frozenset[str] | None = None

    @property
    def setting(self) -> str:
        """The split, or the two splits of a drop."""
        return " to ".join(dict.fromkeys(cell.split for cell in self.cells))


def read_claims(folder: Path) -> list[Claim]:
    """Reads the claims of a folder, sorted by paper and name.

    Args:
        folder: one YAML file per claim; `defaults.yaml` holds what they share.

    Raises:
        VmrError: if there are none, or a file is broken.
    """
    files = sorted(folder.glob("*.yaml"))
    shared = _read(folder / DEFAULTS) if folder / DEFAULTS in files else {}
    for key in shared:
        if key not in _OPTIONAL:
            raise unknown(f"key of {folder / DEFAULTS}", key, _OPTIONAL)
    claims = [_claim(path, shared) for path in files if path.name != DEFAULTS]
    if not claims:
        raise VmrError(
            f"Found no claim in '{folder}'. Expected a folder with one YAML file per claim, such as "
            "claims=experiments/claims."
        )
    return sorted(claims, key=lambda claim: (claim.paper.lower(), claim.name))


def _read(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise VmrError(f"{path} is not a readable YAML file: {error}.") from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise VmrError(f"Expected keys and values in {path}, found {type(content).__name__}.")
    where = content.get("where")
    if not (where is None or _is(where, Mapping)):
        raise VmrError(f"Expected {path} to have where: settings by key, found {where!r}.")
    return {**content, "where": where or {}}


def _claim(path: Path, shared: Mapping[str, Any]) -> Claim:
    """Reads and checks one claim."""
    own = _read(path)
    kind = own.get("kind")
    if kind not in KINDS:
        raise unknown(f"kind in {path}", str(kind), KINDS)
    content = {**shared, **own, "where": {**shared.get("where", {}), **own["where"]}}
    expected: dict[str, Any] = dict.fromkeys(("paper", "section", "claim"), str)
    expected.update({"a": Mapping, "b": Mapping}, **_BY_KIND[kind])
    for key in (key for key in content if key not in {*_REQUIRED, *expected, *_OPTIONAL}):
        raise unknown(f"key in {path}", key, {*_REQUIRED, *expected, *_OPTIONAL})
    expected_now = expected | {key: type_ for key, type_ in _OPTIONAL.items() if key in content}
    for key, type_ in expected_now.items():
        if not _is(content.get(key), type_):
            raise VmrError(
                f"Expected {path} to have {key}: {_describe(type_)}, found {content.get(key)!r}. "
                f"A claim of kind {kind} needs {', '.join(expected)}."
            )
    direction = content.get("direction", "higher")
    if direction not in DIRECTIONS:
        raise unknown(f"direction in {path}", direction, DIRECTIONS)
    claim = Claim(
        path.stem,
        content["paper"],
        content["section"],
        " ".join(content["claim"].split()),
        kind,
        content.get("metric", "R1@0.5"),
        1 if direction == "higher" else -1,
        float(content.get("margin", 0.0)),
        content.get("seeds", 2),
        _cells(kind, content),
        _query_ids(path.parent / content["queries"]) if "queries" in content else None,
    )
    if not 0 <= claim.margin < math.inf or claim.seeds < 1:
        raise VmrError(
            f"Expected margin >= 0 and seeds >= 1 in {path}, found {claim.margin} and {claim.seeds}."
        )
    return claim


def _query_ids(path: Path) -> frozenset[str]:
    """Reads ids of queries, one per line."""
    try:
        ids = frozenset(path.read_text(encoding="utf-8").split())
    except (OSError, UnicodeDecodeError) as error:
        raise VmrError(
            f"{path} is not a readable text file with one query id per line, which a claim names: {error}."
        ) from error
    if not ids:
        raise VmrError(f"Expected one query id per line in {path}, found none.")
    return ids


def _is(value: Any, type_: Any) -> bool:
    """Returns whether a value has a type: no truth value is a number, and all keys of settings are texts."""
    if type_ is Mapping:
        return isinstance(value, Mapping) and all(isinstance(key, str) for key in value)
    return isinstance(value, type_) and not isinstance(value, bool)


def _describe(type_: Any) -> str:
    names = {str: "a text", int: "a whole number", Mapping: "settings by key"}
    return names.get(type_, "a number")


def _cells(kind: str, content: Mapping[str, Any]) -> tuple[Cell, ...]:
    """Returns the terms of the effect."""
    signs = {"a": 1, "b": -1}
    base = {row: {**content["where"], **content[row]} for row in signs}
    if kind == "rows":
        return tuple(Cell(sign, row, base[row], content["split"]) for row, sign in signs.items())
    if kind == "drop":
        return tuple(
            Cell(sign * side, row, base[row], content[end])
            for end, side in (("from", -1), ("to", 1))
            for row, sign in signs.items()
        )
    return tuple(
        Cell(
            sign * side,
            f"{row}, {_format(content[end])}",
            # A row's own setting wins: a method that reads no narrations has runs with one narrator only.
            {**content["where"], **content[end], **content[row]},
            content["split"],
        )
        for end, side in (("from", -1), ("to", 1))
        for row, sign in signs.items()
    )


def describe(where: Where, hidden: Where) -> str:
    """Formats the settings of a row, without those that it shares with `hidden`."""
    own = {key: value for key, value in where.items() if key not in hidden or hidden[key] != value}
    return _format(own)


def _format(where: Where) -> str:
    return ", ".join(f"{key}={'null' if value is None else value}" for key, value in where.items())


def select_runs(runs: Sequence[Run], where: Where) -> list[Run]:
    """Returns the runs whose header or configuration has all values.

    Args:
        runs: finished runs with directories; evaluations under changed conditions are never selected.
        where: allowed value or values by key: a key of the header, else a dotted key of config.yaml. A key
            that a run lacks counts as null.
    """
    return [run for run in runs if not run.evals and all(_has(run, *item) for item in where.items())]


def _has(run: Run, key: str, allowed: Any) -> bool:
    if allowed == ANY:
        return True
    return matches(setting(run, key), allowed)
