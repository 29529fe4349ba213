"""The papers' printed numbers, each beside ours where a run in hand measured the same.

What "the same" means: method, data set, split and metric, the overlay that the row names, and features of
the same video backbones. A run on other features or data is shown too, in a column of its own that says so.
"""

from __future__ import annotations

import functools
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from omegaconf import ListConfig, OmegaConf

from vmr_zoo.config.compose import config_dir, shipped
from vmr_zoo.errors import VmrError, unknown
from vmr_zoo.report.leaderboard import REFERENCES, Run, features_title, spread
from vmr_zoo.report.significance import block
from vmr_zoo.runs.directory import MANIFEST, read_json

COLUMNS = ("table", "page", "data", "split", "features", "row", "method", "config", "metric", "value")

_BACKBONES = {"c": "clip", "sf": "slowfast", "clip_vit_b32": "clip"}
"""What papers and features call the same backbone."""

_KNOWN = {"clip", "slowfast", "vgg", "c3d", "i3d"}
"""Backbones that papers name; other words in `features` are no backbones, such as VDI's "Image-Text"."""

_LIKE = {"ood": "ood_time"}
"""The split of another data set that asks the same; else that of the same name, else the reference."""

_COST = {"Iteration (s)": ("step_ms", 1000.0), "Total Training (h)": ("train_seconds", 3600.0)}
"""Printed costs that headers hold, and the divisor of the unit."""

_ROMAN = {"i": 1, "ii": 2, "iii": 3, "iv": 4, "v": 5, "vi": 6, "vii": 7, "viii": 8, "ix": 9, "x": 10}


class Column(NamedTuple):
    """One column of ours.

    Attributes:
        kind: "" if features and data are those of the rows, so that numbers may be compared; else a word that
            says why not: "SIMULATED", "rendered", "other features", "other data".
        title: names features, data and whatever else differs from what the rows ask for.
    """

    kind: str
    title: str


class Cell(NamedTuple):
    """What runs measured: percentages of each seed, and the split, where it is not that of the row."""

    values: list[float]
    split: str

    def __str__(self) -> str:
        return spread(self.values) + (f" [{self.split}]" if self.split else "")


@dataclass(frozen=True)
class PrintedRow:
    """One row of a paper's table on one split.

    Attributes:
        labels: data set, split, features and name, as listed.
        paper: the printed digits by metric.
        ours: by column and metric.
        why: why nothing of ours may be compared; "" if something may.
    """

    labels: list[str]
    paper: dict[str, str]
    ours: dict[tuple[Column, str], Cell]
    why: str


@dataclass(frozen=True)
class PrintedTable:
    """One table of a paper.

    Attributes:
        paper: our name of the method that the paper introduces.
        table: its number, as printed.
        page: of the PDF.
        metrics: in the order of the paper.
        rows: by data set and split, else in the order of the paper.
        columns: ours, those that may be compared first.
        close: whether a run has one of its data sets or overlays.
    """

    paper: str
    table: str
    page: str
    metrics: list[str]
    rows: list[PrintedRow]
    columns: list[Column]
    close: bool

    labels = ("data", "split", "features", "row", "no comparable number: why")

    @property
    def title(self) -> str:
        """The heading."""
        return f"{self.paper}, {self.table} (page {self.page})"

    @property
    def notes(self) -> list[str]:
        """What the columns are."""
        return [
            "paper: as printed. Ours: mean ± sample standard deviation over seeds.",
            *(f"{self.head(column)}: {column.title}" for column in self.columns),
        ]

    def head(self, column: Column) -> str:
        """Returns the short name of a column; what may not be compared says so in it."""
        number = self.columns.index(column) + 1
        return f"ours {number}" + (f" ({column.kind})" if column.kind else "")

    def heads(self) -> list[tuple[str, list[Column]]]:
        """Returns each metric, and those of our columns that have something of it."""
        return [
            (metric, [c for c in self.columns if any((c, metric) in row.ours for row in self.rows)])
            for metric in self.metrics
        ]

    def cells(self, row: PrintedRow) -> list[str]:
        """Returns the cells of a row: for each metric the paper's, then ours."""
        return [
            text
            for metric, columns in self.heads()
            for text in (row.paper.get(metric, ""), *(str(row.ours.get((c, metric), "")) for c in columns))
        ]

    def frame(self, in_full: bool = False) -> pd.DataFrame:
        """Returns the table as text; `in_full` says what our columns are, for a format without notes."""
        heads = [
            f"{metric} {text}"
            for metric, columns in self.heads()
            for text in ("paper", *(f"ours: {c.title}" if in_full else self.head(c) for c in columns))
        ]
        return pd.DataFrame(
            [[*row.labels, *self.cells(row), row.why] for row in self.rows],
            columns=[*self.labels[:-1], *heads, self.labels[-1]],
        )


def printed_dir() -> Path:
    """Finds the numbers: `experiments/printed` of the checkout, or the copy inside the package.

    Raises:
        VmrError: if neither exists.
    """
    candidates = shipped("experiments/printed")
    for candidate in candidates:
        if candidate.is_dir():
            return candidate
    raise VmrError(
        f"The papers' printed numbers are not there; looked in {' and '.join(map(str, candidates))}. They "
        "come with the repository: work in a checkout of it."
    )


def asked(table: PrintedTable, names: str | Sequence[str]) -> bool:
    """Says whether `printed=…` names a table.

    Args:
        table: the table.
        names: papers, or papers and tables ("tea/table2", "lmr/tableIV", "lmr/table4"), or "all".

    Raises:
        VmrError: if a name is neither.
    """
    listed = (
        [str(name) for name in names]
        if isinstance(names, list | tuple | ListConfig)
        else str(names).split(",")
    )
    return any(_is_named(table, name.strip()) for name in listed)


def _is_named(table: PrintedTable, name: str) -> bool:
    paper, _, number = name.partition("/")
    if paper == "all":
        return True
    known = _numbers()
    if paper not in known:
        raise unknown("paper", paper, [*known, "all"])
    if number and _number(number) not in known[paper]:
        raise unknown(f"table of {paper}", number, known[paper].values())
    return table.paper == paper and (not number or _number(number) == _number(table.table))


def _numbers() -> dict[str, dict[str, str]]:
    """Returns by paper what each table is called, by its number."""
    return {
        paper: {_number(table): table.lower().replace(" ", "") for table in lines["table"].unique()}
        for paper, lines in _lines().items()
    }


def _number(table: str) -> str:
    """Returns "4" for "Table IV", "table4" and "4"."""
    number = re.sub(r"^table", "", table.lower().replace(" ", ""))
    return str(_ROMAN.get(number, number))


def touched(table: PrintedTable) -> bool:
    """Says whether a table belongs beside the runs: one of them has its data set or one of its overlays."""
    return table.close and bool(table.columns)


@functools.cache
def _lines() -> dict[str, pd.DataFrame]:
    """Reads the numbers, by paper."""
    lines = {}
    for file in sorted(printed_dir().glob("*.csv")):
        lines[file.stem] = pd.read_csv(file, dtype=str, keep_default_na=False)
        if tuple(lines[file.stem].columns) != COLUMNS:
            raise VmrError(f"{file}: expected the columns {', '.join(COLUMNS)}. Restore the file.")
    return lines


# ------------------------------------------------------------------------------------------------ matching


@dataclass(frozen=True)
class _Known:
    """What decides where a run belongs."""

    run: Run
    experiment: str | None
    ablations: tuple[str, ...]
    backbones: frozenset[str]

    @property
    def rest(self) -> str:
        """What was overridden besides."""
        named = {(self.experiment or "").split("/")[-1], *(one.split("/")[-1] for one in self.ablations)}
        return ", ".join(part for part in str(self.run.header["name"]).split("+")[1:] if part not in named)


def _known(run: Run) -> _Known:
    header = dict(run.header)
    if not {"experiment", "ablation"} <= set(header) and run.path is not None:
        # Runs made before headers said so: config.yaml does.
        text = block(run.path, "choices")
        header |= dict(OmegaConf.to_container(OmegaConf.create(text)).get("choices", {})) if text else {}  # type: ignore[union-attr]
    manifest = read_json(run.path / MANIFEST) if run.path and (run.path / MANIFEST).is_file() else {}
    return _Known(
        run,
        header.get("experiment"),
        tuple(re.findall(r"[\w./-]+", str(header.get("ablation") or ""))),
        frozenset(_spelt(name) for name in _values(manifest.get("video"), "backbone")),
    )


def _values(node: Any, key: str) -> list[str]:
    """Lists what stands under a key, at any depth."""
    if isinstance(node, dict):
        own = [str(node[key])] if key in node else []
        return own + [value for item in node.values() for value in _values(item, key)]
    return [value for item in node for value in _values(item, key)] if isinstance(node, list) else []


def _spelt(name: str) -> str:
    return _BACKBONES.get(name.strip().lower(), name.strip().lower())


def _named(features: str) -> frozenset[str]:
    """Returns the video backbones that a paper names, none if it names something else."""
    names = frozenset(_spelt(name) for name in features.split(",")[0].split("+"))
    return names if names <= _KNOWN else frozenset()


@functools.cache
def _features_of(experiment: str, data: str) -> str | None:
    """Returns the features that a file of `conf/experiment` asks for, its own or those of its data set."""
    file = config_dir() / "experiment" / f"{experiment}.yaml"
    own = re.search(r"override /features: (\S+)", file.read_text()) if file.is_file() else None
    if own is None:
        file = config_dir() / "data" / f"{data}.yaml"
        own = re.search(r"override /features@\S+: (\S+)", file.read_text()) if file.is_file() else None
    return own.group(1) if own else None


class _Asked(NamedTuple):
    """What a printed row asks for."""

    data: str
    features: str
    method: str
    experiment: str
    ablation: str | None

    def matches(self, known: _Known) -> bool:
        """Whether a run is of this method and has this overlay or none."""
        header = known.run.header
        return header.get("method") == self.method and known.ablations == (
            (self.ablation,) if self.ablation else ()
        )

    def same(self, known: _Known) -> bool:
        """Whether a run, of whatever method, has the data and the features of the row."""
        return bool(known.run.header["protocol"] == self.data) and self.same_features(known)

    def same_features(self, known: _Known) -> bool:
        """Whether a run has the features that the row was printed for."""
        if known.run.header["origin"] != "real":
            return False
        named = _named(self.features)
        return (
            known.backbones == named
            if named
            else known.run.header["features"] == _features_of(self.experiment, self.data)
        )


def _ask(line: dict[str, str], full: str | None) -> _Asked | None:
    """Reads what a row asks for; None for a method that is not ours."""
    if not line["method"]:
        return None
    kind, _, name = line["config"].partition("=")
    if kind == "ablation":
        method = name.split("/")[0]
        return _Asked(line["data"], line["features"], method, full or f"{method}/{line['data']}", name)
    experiment = name or f"{line['method']}/{line['data']}"
    return _Asked(line["data"], line["features"], line["method"], experiment, None)


def _column(asked_for: _Asked, known: _Known) -> Column:
    """Names the column of a run: all in which it departs from what the row asks for."""
    header = known.run.header
    origin = {"simulated": "SIMULATED", "real": ""}.get(header["origin"], header["origin"])
    parts, kind = [features_title(header)], ""
    if header["protocol"] != asked_for.data:
        kind = origin or "other data"
        parts = [f"other data, {header['protocol']}", *parts]
    else:
        if not asked_for.same_features(known):
            kind = origin or "other features"
        if known.experiment != asked_for.experiment:
            parts.append(f"experiment: {known.experiment or 'none'}")
    if header.get("variant") == "released":
        parts.append("released")
    if known.rest:
        parts.append(known.rest)
    if str(header["selection"]).startswith("test split"):
        parts.append(f"selected on {header['selection']}")
    return Column(kind, ", ".join(parts))


def _split(data: str, split: str, run: Run) -> str | None:
    """Returns the split of a run that answers for one of a paper's, None if it has none."""
    same_data = run.header["protocol"] == data
    candidates = (split,) if same_data else (split, _LIKE.get(split), *REFERENCES)
    return next((one for one in candidates if one in run.metrics), None)


def _value(run: Run, split: str | None, metric: str) -> float | None:
    if metric in _COST:
        key, unit = _COST[metric]
        value = run.header.get(key)
        return None if value is None else float(value) / unit
    return None if split is None else run.metrics[split].get(metric)


def printed_tables(runs: Iterable[Run]) -> list[PrintedTable]:
    """Puts what runs measured beside every table of the papers.

    Args:
        runs: finished runs, of any method and data.

    Returns:
        The tables in the order of papers and tables.

    Raises:
        VmrError: if the numbers are not installed or broken.
    """
    known = [_known(run) for run in runs]
    return [
        _table(paper, lines[lines["table"] == name], known)
        for paper, lines in _lines().items()
        for name in lines["table"].unique()
    ]


def _table(paper: str, lines: pd.DataFrame, known: Sequence[_Known]) -> PrintedTable:
    entries: list[dict[str, str]] = lines.to_dict("records")  # type: ignore[assignment]
    # The row of an ablation table that is the whole method names the experiment of all.
    full = {
        line["data"]: line["config"].removeprefix("experiment=")
        for line in entries
        if line["config"].startswith("experiment=")
    }
    order = list(dict.fromkeys((line["data"], line["split"]) for line in entries))
    grouped: dict[tuple[str, ...], list[dict[str, str]]] = defaultdict(list)
    for line in sorted(entries, key=lambda line: order.index((line["data"], line["split"]))):
        grouped[tuple(line[key] for key in ("data", "split", "features", "row", "method", "config"))].append(
            line
        )
    asks = {key: _ask(group[0], full.get(key[0])) for key, group in grouped.items()}
    # A run that has a row of its own does not stand in others beside it.
    taken = {id(one) for ask in asks.values() if ask for one in known if ask.matches(one) and ask.same(one)}
    rows, close = [], False
    for key, group in grouped.items():
        ask = asks[key]
        if ask is None:
            rows.append(_row(key, group, {}, "no method of this package"))
            continue
        ours: dict[tuple[Column, str], Cell] = {}
        here = [one for one in known if ask.matches(one) and (ask.same(one) or id(one) not in taken)]
        close |= any(one.run.header["protocol"] == ask.data or ask.ablation for one in here)
        for one in here:
            split = _split(ask.data, key[1], one.run)
            for line in group:
                value = _value(one.run, split, line["metric"])
                if value is not None:
                    place = _column(ask, one), line["metric"]
                    other = split if split and key[1] and split != key[1] else ""
                    cell = ours.setdefault(place, Cell([], other))
                    cell.values.append(value)
        rows.append(_row(key, group, ours, _why(ask, known, here, ours, key)))
    columns = dict.fromkeys(column for row in rows for column, _ in row.ours)
    return PrintedTable(
        paper,
        entries[0]["table"],
        "/".join(dict.fromkeys(line["page"] for line in entries)),
        list(dict.fromkeys(line["metric"] for line in entries)),
        rows,
        sorted(columns, key=lambda column: bool(column.kind)),
        close,
    )


def _row(
    key: tuple[str, ...], group: Sequence[dict[str, str]], ours: dict[tuple[Column, str], Cell], why: str
) -> PrintedRow:
    return PrintedRow(list(key[:4]), {line["metric"]: line["value"] for line in group}, ours, why)


def _why(
    ask: _Asked,
    known: Sequence[_Known],
    here: Sequence[_Known],
    ours: dict[tuple[Column, str], Cell],
    key: tuple[str, ...],
) -> str:
    """Says why a row has no number of ours that may be compared."""
    if any(not column.kind for column, _ in ours):
        return ""
    if any(ask.same(one) for one in here):
        return (
            f"run, but not scored on {key[1]} in these metrics" if key[1] else "run, but this is not measured"
        )
    if any(ask.same(one) for one in known):
        return "not run" if key[5] else "not run (and no settings file)"
    named = ask.features if _named(ask.features) else _features_of(ask.experiment, ask.data)
    return f"needs features {named} of {ask.data} that no run used"
