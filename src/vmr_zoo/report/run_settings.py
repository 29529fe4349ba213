"""Settings of runs: read from their headers, overrides and configurations, compared, and filtered by."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from omegaconf import ListConfig, OmegaConf

from vmr_zoo.errors import VmrError, unknown
from vmr_zoo.report.runs import Run
from vmr_zoo.runs.config_sections import config_section
from vmr_zoo.runs.directory import parse_config
from vmr_zoo.utils.trees import leaves

_OF_THE_MACHINE = ("trainer.accelerator", "trainer.devices", "data.residency", "data.num_workers")
"""Settings that change no result."""


def setting(run: Run, key: str, missing: Any = None) -> Any:
    """Returns a setting of a run.

    Args:
        run: the run.
        key: a key of its header, one of its overrides, or a dotted key of its config.yaml.
        missing: what to return if it has none.
    """
    overrides = run.header.get("overrides") or {}
    if key in run.header or key in overrides:
        return run.header[key] if key in run.header else yaml_value(overrides[key])
    node: Any = {} if run.path is None else _section(run.path, key.split(".")[0])
    for part in key.split("."):
        if not isinstance(node, Mapping) or part not in node:
            return missing
        node = node[part]
    return node


def differing_settings(runs: Sequence[Run]) -> list[str]:
    """Returns the settings besides the seed in which the runs of one row differ, as "KEY (VALUE, VALUE)".

    What only some of the runs have, as those of another revision, is not compared, nor is a broken file, nor
    are narrations of which the method has no setting: it does not read them.
    """
    found = [(run.header["seed"], run.path, _deciding(run.path)) for run in runs if run.path is not None]
    kept = found[:1] + [one for one in found[1:] if not _alike(found[0][0], found[0][2], one[0], one[2])]
    if len(kept) < 2:  # parsing takes a hundred times as long
        return []
    try:
        trees: list[Any] = [OmegaConf.to_container(parse_config(text, path)) for _, path, text in kept]
    except (VmrError, UnicodeDecodeError):
        return []
    values = [(seed, leaves(tree)) for (seed, _, _), tree in zip(kept, trees, strict=True)]
    narrated = any(key.startswith("method.") and "narration" in key for key in values[0][1])
    ignored = () if narrated else ("data.features.narration",)
    differing = []
    for key in values[0][1]:
        if key.startswith(ignored):
            continue
        own = [(seed, tree[key]) for seed, tree in values if key in tree]
        of_run = key.endswith("seed") and all(value == seed for seed, value in own)
        if key not in _OF_THE_MACHINE and not of_run and any(value != own[0][1] for _, value in own):
            differing.append(f"{key} ({', '.join(dict.fromkeys(str(value) for _, value in own))})")
    return differing


def _deciding(run: Path) -> str:
    """Returns the lines of config.yaml that decide a result."""
    sections = "".join(config_section(run, name) for name in ("variant", "data", "method", "trainer"))
    plateau = re.search(r"^  plateau:\n(?:    .*\n)*", config_section(run, "callbacks"), re.MULTILINE)
    return sections + (f"callbacks:\n{plateau.group()}" if plateau else "")


def _alike(seed: int, text: str, other_seed: int, other: str) -> bool:
    """Whether two configurations differ in nothing but the seeds of their runs; others are fixed."""
    pattern = re.compile(r"^ *seed: (\d+)$", re.MULTILINE)
    if pattern.sub("", text) != pattern.sub("", other):
        return False
    pairs = zip(map(int, pattern.findall(text)), map(int, pattern.findall(other)), strict=True)
    return all(a == b or (a, b) == (seed, other_seed) for a, b in pairs)


def has_setting(runs: Sequence[Run], key: str) -> bool:
    """Returns whether one of the runs has a setting, be it null."""
    absent = object()
    return any(setting(run, key, absent) is not absent for run in runs)


def _equal(found: Any, value: Any) -> bool:
    """Compares values as YAML reads them: 0 equals 0.0, 1e-3 equals 0.001, names are compared as text."""
    found, value = yaml_value(found), yaml_value(value)
    if isinstance(found, int | float) and isinstance(value, int | float):
        return float(found) == float(value) and isinstance(found, bool) == isinstance(value, bool)
    return (found is None) == (value is None) and str(found) == str(value)


def yaml_value(value: Any) -> Any:
    """Returns the number, truth value or null that a text stands for, else the text itself.

    >>> [yaml_value(text) for text in ("1e-3", "64", "true", "null", "a: b", [1])]
    [0.001, 64, True, None, 'a: b', [1]]
    """
    if not isinstance(value, str):
        return value
    if value in ("true", "false", "null"):
        return {"true": True, "false": False, "null": None}[value]
    for number in (int, float):
        with contextlib.suppress(ValueError):
            return number(value)
    return value


@lru_cache(maxsize=4096)
def _section(run: Path, name: str) -> Mapping[str, Any]:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        content = yaml.load(config_section(run, name), Loader=loader)
    except (UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise VmrError(f"{run} has a broken config.yaml: {error}.") from error
    return content if isinstance(content, Mapping) else {}


def filter_runs(runs: Sequence[Run], where: Mapping[str, Any]) -> list[Run]:
    """Keeps the runs whose headers, overrides or configurations match.

    Args:
        runs: the runs.
        where: allowed value or values by key, such as {"method": ["tea", "mesm"]}; the keys of `setting`.

    Raises:
        VmrError: if no run has one of the keys, or no run matches.
    """
    for key in where:
        if not has_setting(runs, str(key)):
            known = {key for run in runs for key in (*run.header, *(run.header.get("overrides") or {}))}
            raise unknown("key of where", str(key), known)
    kept = [
        run for run in runs if all(matches(setting(run, str(key)), value) for key, value in where.items())
    ]
    if not kept:
        available = "; ".join(
            f"{key}: {', '.join(sorted({str(setting(run, str(key))) for run in runs}))}" for key in where
        )
        raise VmrError(f"No run matches where={dict(where)}. Available: {available}.")
    return kept


def matches(found: Any, allowed: Any) -> bool:
    """Returns whether a setting equals an allowed value, or one of them."""
    values = allowed if isinstance(allowed, list | ListConfig) else [allowed]
    return any(_equal(found, value) for value in values)
