"""Matches runs with the rows of the papers' tables.

A run is comparable with a printed row if method, data set, split, metric, ablation and the video backbones of
the features agree. Runs of the same method and ablation on other features or other data get a column of their
own, which says so.
"""

from __future__ import annotations

import functools
import itertools
import re
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pandas as pd
from omegaconf import OmegaConf

from vmr_zoo.config.compose import config_dir
from vmr_zoo.data.annotations.records import PUBLISHED, SELECTION
from vmr_zoo.report.leaderboard import features_title, split_repeated_seeds
from vmr_zoo.report.paper_tables import OurCell, OurColumn, PaperRow, PaperTable, printed_numbers
from vmr_zoo.report.runs import REFERENCE_SPLITS, Run
from vmr_zoo.runs.config_sections import config_section
from vmr_zoo.runs.directory import CONFIG, MANIFEST, SIMULATED, parse_config, read_json

_ALIASES = {
    "c": "clip",
    "sf": "slowfast",
    "clip_vit_b32": "clip",
    "slowfast_r50": "slowfast",
    "slowfast_r50 slowfast_8x8_r50.pkl": "slowfast",  # extracted here
    "i3d_bm_detr": "i3d",
    "i3d_mesm": "i3d",
    "i3d_vslnet": "i3d",
    "image-text": "clip",  # VDI's tables 1 and 2 print the kind of pre-training
    "image-text joint": "clip",
    "open_clip vit-b-32-quickgelu openai": "clip",  # extracted here
}
"""Names that papers and feature manifests use for the same backbone."""

_BACKBONES = {"clip", "slowfast", "vgg", "c3d", "i3d"}
"""The backbones that papers name; other entries under `features` are none, such as VDI's "Video"."""

_WEAK = "data.protocol.weak"
"""The setting that makes training moments of shapes worse."""

_SIMILAR_SPLITS = {"ood": "ood_time"}
"""The corresponding split of another data set, where its name differs."""

_COSTS = {
    "Iteration (s)": ("step_ms", 1000.0),
    "Total Inference (s)": ("inference_seconds", 1.0),
    "Total Training (h)": ("train_seconds", 3600.0),
}
"""Printed costs: the header key that holds ours, and the divisor that converts its unit."""

_FRAME_PROBABILITY = {"GT": "p_inside", "Non-GT": "p_outside", "delta": "p_difference"}
"""Printed means of BM-DETR's p (Table 9), which name no split; ours are of the first split in the results of
`vmr eval frame_probability=true`."""

_AVERAGE = "Avg"
"""A printed split that is the mean over the test splits (LMR, Table IV)."""


@dataclass(frozen=True)
class _Candidate:
    """A run, with what decides which rows it matches."""

    run: Run
    experiment: str | None
    ablations: tuple[str, ...]
    backbones: frozenset[str]

    @property
    def other_overrides(self) -> str:
        """The overrides besides experiment and ablations: as in its name, or if a user named the run, all."""
        header = self.run.header
        first, *parts = str(header["name"]).split("+")
        if first != f"{header['method']}-{header['variant']}":
            overrides = header.get("overrides") or {}
            parts = [
                f"{key}={text}" for key, text in overrides.items() if key not in ("experiment", "ablation")
            ]
        named = {(self.experiment or "").split("/")[-1], *(one.split("/")[-1] for one in self.ablations)}
        return ", ".join(part for part in parts if part not in named)


class _Target(NamedTuple):
    """What a run must be to match a printed row."""

    data: str
    features: str
    method: str
    experiment: str
    ablation: str | None

    def matches(self, one: _Candidate) -> bool:
        """Whether a run has the method and exactly the ablation of the row."""
        expected = (self.ablation,) if self.ablation else ()
        return one.run.header.get("method") == self.method and one.ablations == expected

    def same_setting(self, one: _Candidate) -> bool:
        """Whether a run, of any method, has the data and the features of the row."""
        return bool(one.run.header["protocol"] == self.data) and self.same_features(one)

    def same_features(self, one: _Candidate) -> bool:
        """Whether a run has the features of the row: its backbones, or those of its experiment file."""
        if one.run.header["origin"] != "real":
            return False
        named = _named_backbones(self.features)
        if named:
            return one.backbones == named
        return bool(one.run.header["features"] == _configured_features(self.experiment, self.data))


def compare_with_papers(runs: Iterable[Run]) -> list[PaperTable]:
    """Puts our numbers beside those of every table of the papers.

    Args:
        runs: finished runs of any method and data; those on weak training moments are left out.

    Returns:
        The tables in the order of papers and tables.

    Raises:
        VmrError: if the printed numbers are missing or broken.
    """
    candidates = [_candidate(run) for run in runs if not _trained_on_weak_moments(run)]
    return [
        _paper_table(paper, lines[lines["table"] == name], candidates)
        for paper, lines in printed_numbers().items()
        for name in lines["table"].unique()
    ]


def _trained_on_weak_moments(run: Run) -> bool:
    """Whether the moments of a run's training data were made worse, which no paper did."""
    return any(_WEAK in key for key in run.header.get("overrides") or {})


def _candidate(run: Run) -> _Candidate:
    header = dict(run.header)
    if not {"experiment", "ablation"} <= set(header) and run.path is not None:
        # Headers of older runs lack these keys; config.yaml has them.
        text = config_section(run.path, "choices")
        choices: Any = OmegaConf.to_container(parse_config(text, run.path / CONFIG)) if text else {}
        header |= choices["choices"] if isinstance(choices.get("choices"), dict) else {}
    manifest = read_json(run.path / MANIFEST) if run.path and (run.path / MANIFEST).is_file() else {}
    return _Candidate(
        run,
        header.get("experiment"),
        tuple(re.findall(r"[\w./-]+", str(header.get("ablation") or ""))),
        frozenset(_canonical(name) for name in _backbones(manifest.get("video"))),
    )


def _backbones(node: Any) -> list[str]:
    """Lists the backbones in a manifest at any depth, with the weights of those extracted by open_clip."""
    if isinstance(node, dict):
        own = [f"{node['backbone']} {node.get('pretrained') or ''}"] if "backbone" in node else []
        return own + [name for item in node.values() for name in _backbones(item)]
    return [name for item in node for name in _backbones(item)] if isinstance(node, list) else []


def _canonical(backbone: str) -> str:
    return _ALIASES.get(backbone.strip().lower(), backbone.strip().lower())


def _named_backbones(features: str) -> frozenset[str]:
    """Returns the video backbones that a printed row names; empty if it names something else."""
    names = frozenset(_canonical(name) for name in features.split(",")[0].split("+"))
    return names if names <= _BACKBONES else frozenset()


@functools.cache
def _configured_features(experiment: str, data: str) -> str | None:
    """Returns the features that an experiment file selects, else those that its data set selects."""
    file = config_dir() / "experiment" / f"{experiment}.yaml"
    own = re.search(r"override /features: (\S+)", file.read_text()) if file.is_file() else None
    if own is None:
        file = config_dir() / "data" / f"{data}.yaml"
        own = re.search(r"override /features@\S+: (\S+)", file.read_text()) if file.is_file() else None
    return own.group(1) if own else None


def _target(line: Mapping[str, str], full_experiment: str | None) -> _Target | None:
    """Reads what a printed row requires; None for a method that the package does not implement."""
    if not line["method"]:
        return None
    kind, _, name = line["config"].partition("=")
    if kind == "ablation":
        method = name.split("/")[0]
        experiment = full_experiment or f"{method}/{line['data']}"
        return _Target(line["data"], line["features"], method, experiment, name)
    experiment = name or f"{line['method']}/{line['data']}"
    return _Target(line["data"], line["features"], line["method"], experiment, None)


class _RowKey(NamedTuple):
    """What the numbers of one row on one split have in common."""

    data: str
    split: str
    features: str
    row: str
    method: str
    config: str


def _paper_table(paper: str, lines: pd.DataFrame, candidates: Sequence[_Candidate]) -> PaperTable:
    entries: list[dict[str, str]] = lines.to_dict("records")  # type: ignore[assignment]
    # In an ablation table, the row of the full method names the experiment of all rows.
    full = {
        line["data"]: line["config"].removeprefix("experiment=")
        for line in entries
        if line["config"].startswith("experiment=")
    }
    order = list(dict.fromkeys((line["data"], line["split"]) for line in entries))
    grouped: dict[_RowKey, list[dict[str, str]]] = defaultdict(list)
    for line in sorted(entries, key=lambda line: order.index((line["data"], line["split"]))):
        grouped[_RowKey(*(line[key] for key in _RowKey._fields))].append(line)
    targets = {key: _target(group[0], full.get(key.data)) for key, group in grouped.items()}
    # A run that is comparable with one row is not repeated beside others.
    placed = {
        id(one) for t in targets.values() if t for one in candidates if t.matches(one) and t.same_setting(one)
    }
    rows, relevant = [], False
    for key, group in grouped.items():
        target = targets[key]
        if target is None:
            ours, why = {}, "method not in this package"
        else:
            matching = [
                one
                for one in candidates
                if target.matches(one) and (target.same_setting(one) or id(one) not in placed)
            ]
            relevant |= any(one.run.header["protocol"] == target.data or target.ablation for one in matching)
            ours = _our_cells(key, group, target, matching)
            why = _why_not_comparable(key, target, candidates, matching, ours)
        paper_values = {line["metric"]: line["value"] for line in group}
        rows.append(PaperRow([key.data, key.split, key.features, key.row], paper_values, ours, why))
    columns = dict.fromkeys(column for row in rows for column, _ in row.ours)
    return PaperTable(
        paper,
        entries[0]["table"],
        "/".join(dict.fromkeys(line["page"] for line in entries)),
        list(dict.fromkeys(line["metric"] for line in entries)),
        rows,
        sorted(columns, key=lambda column: bool(column.kind)),
        relevant and bool(columns),
    )


def _our_cells(
    key: _RowKey, group: Sequence[Mapping[str, str]], target: _Target, matching: Sequence[_Candidate]
) -> dict[tuple[OurColumn, str], OurCell]:
    """Collects our numbers for the printed numbers of one row, by column and metric."""
    columns: dict[OurColumn, list[Run]] = defaultdict(list)
    for one in matching:
        columns[_our_column(target, one)].append(one.run)
    cells: dict[tuple[OurColumn, str], OurCell] = {}
    for column, runs in columns.items():
        for title, row in split_repeated_seeds({column.title: runs}).items():
            for run, line in itertools.product(row, group):
                split = _scored_split(target.data, key.split, run)
                value = _value(run, split, line["metric"])
                if value is not None:
                    same = run.header["protocol"] == target.data or not key.split or split == key.split
                    place = column._replace(title=title), line["metric"]
                    cell = cells.setdefault(place, OurCell([], "" if same else split or "", []))
                    cell.values.append(value)
                    cell.runs.append(run)
    return cells


def _our_column(target: _Target, one: _Candidate) -> OurColumn:
    """Names the column of a run by everything in which the run differs from the printed row."""
    header = one.run.header
    origin = {SIMULATED: "SIMULATED", "real": ""}.get(header["origin"], header["origin"])
    parts, kind = [features_title(header)], ""
    if header["protocol"] != target.data:
        kind = origin or "other data"
        parts = [f"other data, {header['protocol']}", *parts]
    else:
        if not target.same_features(one):
            kind = origin or "other features"
        if one.experiment != target.experiment:
            parts.append(f"experiment: {one.experiment or 'none'}")
    if header.get("variant") == "released":
        parts.append("released")
    if one.other_overrides:
        parts.append(one.other_overrides)
    if str(header["selection"]).startswith("test split"):
        parts.append(f"selected on {header['selection']}")
    return OurColumn(kind, ", ".join(parts))


def _scored_split(data: str, split: str, run: Run) -> str | None:
    """Returns the split of a run that corresponds to a printed one: on other data the most similar.

    A printed "val" is the selection split of a run that selects on the published validation split.
    """
    same_data = run.header["protocol"] == data
    if split == "val" and same_data and run.header["selection"] == PUBLISHED:
        split = SELECTION
    if split == _AVERAGE and same_data:
        return _AVERAGE
    candidates = (split,) if same_data else (split, _SIMILAR_SPLITS.get(split), *REFERENCE_SPLITS)
    return next((one for one in candidates if one in run.metrics), None)


def _value(run: Run, split: str | None, metric: str) -> float | None:
    if metric in _COSTS:
        key, unit = _COSTS[metric]
        value = run.header.get(key)
        return None if value is None else float(value) / unit
    if metric in _FRAME_PROBABILITY:
        key = _FRAME_PROBABILITY[metric]
        return next((values[key] for values in run.metrics.values() if key in values), None)
    if split == _AVERAGE:
        tests = [values for name, values in run.metrics.items() if name != SELECTION]
        complete = tests and all(metric in values for values in tests)
        return statistics.fmean(values[metric] for values in tests) if complete else None
    return None if split is None else run.metrics[split].get(metric)


def _why_not_comparable(
    key: _RowKey,
    target: _Target,
    candidates: Sequence[_Candidate],
    matching: Sequence[_Candidate],
    ours: Mapping[tuple[OurColumn, str], OurCell],
) -> str:
    """Explains why a row has none of our numbers that is comparable; "" if it has one."""
    if any(not column.kind for column, _ in ours):
        return ""
    if any(target.same_setting(one) for one in matching):
        return (
            f"run, but not scored on {key.split} in these metrics"
            if key.split
            else "run, but this was not measured"
        )
    if any(target.same_setting(one) for one in candidates):
        return "not run" if key.config else "not run (no configuration file)"
    named = _named_backbones(target.features)
    features = target.features if named else _configured_features(target.experiment, target.data)
    return f"no run on the features {features} of {target.data}"
