"""`vmr parity`: recompute a golden case of the authors' code and compare every number that it stores."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import hydra
import torch
from omegaconf import DictConfig, OmegaConf, open_dict
from rich.console import Console
from rich.table import Table

from vmr_zoo.errors import VmrError
from vmr_zoo.methods.base import Method
from vmr_zoo.parity.case import Case, Number, Released

GIVEN = ("param/", "input/", "target/")
"""Groups whose arrays may be read instead of recomputed."""


class Verdict(NamedTuple):
    """The comparison of one array.

    Attributes:
        key: its name in the case.
        difference: the largest absolute difference; NaN if it could not be compared.
        tolerance: the largest that is allowed anywhere in it.
        passed: whether every entry is within its tolerance.
        note: why it could not be compared, else "".
    """

    key: str
    difference: float
    tolerance: float
    passed: bool
    note: str = ""


def compare(case: Case, key: str, number: Number | None) -> Verdict:
    """Compares one array of a case.

    Args:
        case: the case.
        key: its name.
        number: what was recomputed; None if nothing was.

    Returns:
        The verdict. NaN has to meet NaN.
    """
    if number is None:
        return Verdict(key, math.nan, math.nan, False, "not recomputed")
    stored = case.stored(key).double()
    value = number.value.detach().double()
    if value.shape != stored.shape:
        return Verdict(key, math.nan, math.nan, False, f"{tuple(value.shape)}, stored {tuple(stored.shape)}")
    difference = (value - stored).abs()
    difference = torch.where(value.isnan() & stored.isnan(), torch.zeros_like(difference), difference)
    tolerance = torch.as_tensor(number.atol, dtype=torch.float64) + number.rtol * stored.nan_to_num().abs()
    tolerance = tolerance.expand_as(difference)
    if number.where is not None:
        where = number.where.expand_as(difference)
        difference, tolerance = difference[where], tolerance[where]
    if difference.numel() == 0:
        return Verdict(key, 0.0, 0.0, True, "empty")
    passed = bool((difference <= tolerance).all())  # NaN is not
    return Verdict(key, float(difference.max()), float(tolerance.max()), passed)


def check(released: Released, method: Method, case: Case) -> list[Verdict]:
    """Recomputes a case and compares every array in it.

    Args:
        released: the authors' names and arithmetic.
        method: with the case's weights.
        case: the case.

    Returns:
        One verdict per array, in the order of the file; arrays that are given (weights, inputs, random draws)
        are left out unless they can be recomputed from others. What was neither recomputed nor given fails.
    """
    numbers = released.recompute(method, case)
    given = {key for key in case.read if key.startswith(GIVEN) and key not in numbers} | {"config"}
    return [compare(case, key, numbers.get(key)) for key in case.keys if key not in given]


def build(cfg: DictConfig, released: Released, options: dict[str, Any], weights: Any) -> Method:
    """Builds a method with the authors' settings and weights.

    Args:
        cfg: a composed configuration with a `method` node; changed in place.
        released: the authors' names.
        options: the authors' options.
        weights: the authors' weights by their names.

    Returns:
        The method, in `variant: released`.
    """
    with open_dict(cfg):
        cfg.variant = "released"
        for key, value in released.settings(options, weights).items():
            OmegaConf.update(cfg.method, key, value, merge=False)
    method: Method = hydra.utils.instantiate(cfg.method)
    released.names.load(method, weights)
    return method


def table(verdicts: list[Verdict], title: str) -> Table:
    """Lays the verdicts out."""
    built = Table(title=title)
    built.add_column("key", overflow="fold")
    for column in ("max abs difference", "tolerance", "verdict"):
        built.add_column(column, justify="right")
    for v in verdicts:
        word = "[green]pass" if v.passed else "[red]FAIL"
        built.add_row(v.key, f"{v.difference:.2e}", f"{v.tolerance:.2e}", f"{word} {v.note}".strip())
    return built


def main(cfg: DictConfig) -> int:
    """Runs `vmr parity method=… case=FILE.npz`.

    Args:
        cfg: composed from conf/parity.yaml; `case` is the file, `out` a JSON file for the table or None.

    Returns:
        0 if every number is within its tolerance, else 1.

    Raises:
        VmrError: if the method has no golden cases, or the file is not a case of it.
    """
    if cfg.get("released") is None:
        raise VmrError("This method has no released code to compare with; those that have: conf/released/.")
    released: Released = hydra.utils.instantiate(cfg.released)
    case = Case(Path(cfg.case))
    method = build(cfg, released, case.options, case.group("param"))
    verdicts = check(released, method, case)
    console = Console()
    console.print(table(verdicts, f"{case.path.name}: {type(method).__name__}, variant released"))
    failed = [v.key for v in verdicts if not v.passed]
    console.print(f"{len(verdicts) - len(failed)} of {len(verdicts)} arrays within tolerance.")
    if cfg.get("out"):
        from vmr_zoo.runs.directory import write_json

        write_json(Path(cfg.out), [v._asdict() for v in verdicts])
    return 1 if failed else 0
