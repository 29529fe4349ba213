"""Benchmarks a method as `vmr train` runs it, or several settings of it in turns."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.table import Table

from vmr_zoo.config.compose import recompose
from vmr_zoo.config.run_names import run_name
from vmr_zoo.engine.bench_turns import Subject, quartiles
from vmr_zoo.errors import VmrError, unknown
from vmr_zoo.runs.directory import read_json
from vmr_zoo.utils.console import wide_console
from vmr_zoo.utils.files import lock_folder, write_json
from vmr_zoo.utils.parallel import torch_threads

FILE = "bench.json"
SCHEMA = 1
KEY = ("name", "data", "recipe", "features", "device", "hardware", "threads", "precision")
"""Identifies a row of the file; a new measurement replaces the row with the same values."""

_NOT_IN_NAME = ("out", "steps", "warmup", "settings", "rounds")


def benchmark(cfg: DictConfig) -> Path:
    """Measures one method, or several settings of it in turns, and stores a row each; prints a table.

    Args:
        cfg: composed from `conf/bench.yaml`.

    Returns:
        The file, bench.json.

    Raises:
        VmrError: for a method without parameters, settings that measure nothing, or unknown settings.
    """
    with torch_threads(cfg.threads):
        if cfg.settings:
            settings = _settings(cfg)
            found = compare({name: recompose(overrides) for name, overrides in settings.items()}, cfg.rounds)
            names = [_row_name(cfg, overrides) for overrides in settings.values()]
            new = [{"name": name, **row} for name, row in zip(names, found, strict=True)]
        else:
            new = [{"name": _row_name(cfg), **measure(cfg)}]
    path = Path(cfg.out) / FILE
    keys = [[row[key] for key in KEY] for row in new]
    with lock_folder(path.parent):
        kept = [other for other in stored_rows(path) if [other.get(key) for key in KEY] not in keys]
        rows = [*kept, *new]
        write_json(path, {"schema": SCHEMA, "rows": rows})
    if cfg.settings:
        print_comparison(new)
    else:
        print_rows(rows)
    return path


def _settings(cfg: DictConfig) -> dict[str, list[str]]:
    """Returns the overrides of each of the settings to compare.

    Raises:
        VmrError: for an unknown name, or a setting that occurs twice.
    """
    found: dict[str, list[str]] = {}
    for setting in map(str, cfg.settings):
        if setting in found:
            raise VmrError(f"Expected different settings; found '{setting}' twice.")
        if setting not in cfg.known_settings and "=" not in setting:
            raise unknown("setting", setting, cfg.known_settings)
        found[setting] = list(cfg.known_settings.get(setting, setting.split()))
    return found


def _row_name(cfg: DictConfig, further: Sequence[str] = ()) -> str:
    """Names a row after the overrides that affect a step."""
    from hydra.core.hydra_config import HydraConfig

    overrides = [*HydraConfig.get().overrides.task, *further]
    changes = [text for text in overrides if text.partition("=")[0] not in _NOT_IN_NAME]
    return run_name(str(cfg.choices.method), cfg.variant, changes)


def read_table(path: Path, schema: int, refusal: str) -> list[dict[str, Any]]:
    """Returns the rows of a JSON file of measurements; none if there is no file.

    Args:
        path: the file, an object with "schema" and "rows".
        schema: the version that the caller reads.
        refusal: what the error says about another file, after its path.

    Raises:
        VmrError: if it is another file.
    """
    if not path.is_file():
        return []
    found = read_json(path)
    if not isinstance(found, dict) or found.get("schema") != schema:
        raise VmrError(f"{path} {refusal}")
    return list(found["rows"])


def stored_rows(path: Path) -> list[dict[str, Any]]:
    """Returns the rows of a bench.json; none if there is no file.

    Raises:
        VmrError: if it is another file.
    """
    return read_table(
        path, SCHEMA, "was not written by this vmr bench. Choose another directory with out=DIR."
    )


def measure(cfg: DictConfig) -> dict[str, Any]:
    """Measures a configuration.

    Args:
        cfg: as for `Subject`.

    Returns:
        A JSON-able row. Times are seconds; docs/performance.md describes the columns.

    Raises:
        VmrError: for a method without parameters, or settings that measure nothing.
    """
    subject = Subject(cfg)
    subject.turn()
    return _with_ratio(subject.row())


def compare(settings: Mapping[str, DictConfig], rounds: int) -> list[dict[str, Any]]:
    """Measures configurations in turns, in this process.

    Args:
        settings: the configurations by name; the first is the one that the others are compared with.
        rounds: turns of each. Every other round goes through them backwards, against a trend of the machine.

    Returns:
        A row per configuration, as `measure` returns it, with a column "comparison".

    Raises:
        VmrError: as for `measure`.
    """
    subjects = [Subject(cfg) for cfg in settings.values()]
    for number in range(rounds):
        for subject in subjects[:: -1 if number % 2 else 1]:
            subject.turn()
    rows = [_with_ratio(subject.row()) for subject in subjects]
    for name, subject, row in zip(settings, subjects, rows, strict=True):
        row["comparison"] = {
            "setting": name,
            "with": next(iter(settings)),
            **_speedups_in_rounds(subjects[0], subject),
            "pays_after": _pays_after(rows[0], row),
        }
    return rows


def _speedups_in_rounds(first: Subject, other: Subject) -> dict[str, dict[str, float]]:
    """Divides the first's median time by the other's within each round; over 1 where the other is faster."""
    pairs = [*zip(first.turns(), other.turns(), strict=True)]
    return {part: quartiles([a[part] / b[part] for a, b in pairs]) for part in ("step", "inference")}


def _pays_after(first: Mapping[str, Any], row: Mapping[str, Any]) -> int | None:
    """Returns how many training steps save the time of compilation; None: no number does, or not compiled."""
    saved = first["step"]["median"] - row["step"]["median"]
    if row["compilation"] is None or saved <= 0:
        return None
    return math.ceil(row["compilation"]["training"] / saved)


def _with_ratio(row: dict[str, Any]) -> dict[str, Any]:
    return row | {"ratio": speedups(row)}


def speedups(row: Mapping[str, Any]) -> dict[str, float] | None:
    """Divides the time of the released code by that of the row, for each query or video.

    Returns:
        "step" and "inference", loader included, over 1 where the row is faster; None without a reference.
    """
    reference = row["reference"]
    if not reference:
        return None
    per = reference["per"]
    return {
        "step": reference["step"] / reference["size"] / row[f"step_per_{per}"]["median"],
        "inference": reference["inference"]
        / reference["inference_size"]
        / row[f"inference_per_{per}"]["median"],
    }


def print_rows(rows: Sequence[Mapping[str, Any]]) -> None:
    """Prints the rows as a table."""
    table = Table(title="Seconds, medians with quartiles; efficiency is against plain matrix products")
    for name in ("run", "batch", "step", "forward", "backward", "optimizer", "loader", "per 100 queries"):
        table.add_column(name, justify="left" if name == "run" else "right")
    for name in ("peak GB", "parameters", "GFLOP", "efficiency", "CPU", "x released", "x inference"):
        table.add_column(name, justify="right")
    for row in rows:
        step, ratio = row["step"], row["ratio"]
        where = f"{row['threads']} threads" if row["device"] == "cpu" else row["device"]
        table.add_row(
            f"{row['name']} {row['data']} ({where}, {row['precision']})",
            f"{row['batch']['query']:.0f} x {row['batch']['clips']:.0f}",
            f"{step['median']:.3f} [{step['low']:.3f}, {step['high']:.3f}]",
            *(f"{row[name]['median']:.3f}" for name in ("forward", "backward", "optimizer")),
            f"{row['loader']['median']:.4f}",
            f"{100 * row['inference_per_query']['median']:.3f}",
            f"{row['peak_training_gb']:.2f} / {row['peak_inference_gb']:.2f}",
            _parameters(row),
            f"{row['flops'] / 1e9:.1f}",
            f"{row['efficiency']:.0%}",
            f"{row['cpu_share_training']:.0%}",
            f"{ratio['step']:.2f}" if ratio else "",
            f"{ratio['inference']:.2f}" if ratio else "",
        )
    wide_console().print(table)


def _parameters(row: Mapping[str, Any]) -> str:
    """Formats the number of parameters, and of the trained ones where some are frozen throughout."""
    trained = row.get("parameters_trained", row["parameters"])
    return f"{row['parameters']:,}" + (f" ({trained:,} trained)" if trained != row["parameters"] else "")


def print_comparison(rows: Sequence[Mapping[str, Any]]) -> None:
    """Prints settings that were measured in turns."""
    first = rows[0]
    where = f"{first['threads']} threads" if first["device"] == "cpu" else first["device"]
    table = Table(
        title=f"{first['method']}, {first['variant']}, {first['data']}, {where}: ms; x as fast as "
        f"{first['comparison']['setting']} [quartiles of {first['turns']} rounds]",
        box=None,
    )
    table.add_column("setting")
    for name in ("step", "x", "inference", "x", "compiling", "pays after"):
        table.add_column(name, justify="right")
    for row in rows:
        comparison, compilation = row["comparison"], row["compilation"]
        pays = f"{comparison['pays_after']} steps" if comparison["pays_after"] is not None else "never"
        table.add_row(
            comparison["setting"],
            f"{1000 * row['step']['median']:.1f}",
            _spread(comparison["step"]),
            f"{1000 * row['inference']['median']:.1f}",
            _spread(comparison["inference"]),
            f"{sum(compilation.values()):.0f} s" if compilation else "",
            pays if compilation else "",
        )
    wide_console().print(table)


def _spread(found: Mapping[str, float]) -> str:
    return f"{found['median']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"
