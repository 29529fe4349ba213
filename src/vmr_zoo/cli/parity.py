"""`vmr parity`: recomputes a golden case of the authors' code and compares every number in it."""

from __future__ import annotations

from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from vmr_zoo.config.arguments import search_paths
from vmr_zoo.errors import VmrError
from vmr_zoo.parity.case import Case, Released
from vmr_zoo.parity.check import Verdict, build_released, check_case
from vmr_zoo.utils.files import write_json

_OWN_KEYS = ("case=", "out=", "method=", "released=", "variant=")


def main(cfg: DictConfig) -> int:
    """Runs `vmr parity method=… case=FILE.npz`, for any of the three forms of case.

    Args:
        cfg: the configuration composed from conf/parity.yaml; `case` is the file, `out` a JSON file for the
            verdicts or None.

    Returns:
        0 if every number is within its tolerance, else 1.

    Raises:
        VmrError: if the method has no golden cases, or the file is not one of them.
    """
    if cfg.get("released") is None:
        raise VmrError("This method has no released code to compare with. Methods that have: conf/released/.")
    case = Case(Path(cfg.case))
    check = {"step": _check_step, "trajectory": _check_trajectory, "files": _check_files}[case.form]
    verdicts = check(cfg, case)
    failed = [v.key for v in verdicts if not v.passed]
    Console().print(f"{len(verdicts) - len(failed)} of {len(verdicts)} arrays within tolerance.")
    if cfg.get("out"):
        write_json(Path(cfg.out), [v._asdict() for v in verdicts])
    return 1 if failed else 0


def _check_step(cfg: DictConfig, case: Case) -> list[Verdict]:
    released: Released = hydra.utils.instantiate(cfg.released)
    method = build_released(cfg, released, case.options, case.group("param"))
    verdicts = check_case(released, method, case)
    Console().print(_table(verdicts, f"{case.path.name}: {type(method).__name__}, variant released"))
    return verdicts


def _check_files(cfg: DictConfig, case: Case) -> list[Verdict]:
    from vmr_zoo.parity.files import check_files

    verdicts = check_files(cfg, case)
    Console().print(_table(verdicts, f"{case.path.name}: from data files to batches, variant released"))
    return verdicts


def _check_trajectory(cfg: DictConfig, case: Case) -> list[Verdict]:
    from vmr_zoo.parity.trajectory import check_trajectory

    job = HydraConfig.get()
    overrides = [text for text in job.overrides.task if not text.lstrip("+~").startswith(_OWN_KEYS)]
    result = check_trajectory(cfg, case, [*search_paths(job.overrides.hydra), *overrides])
    console = Console()
    steps = Table(title=f"{case.path.name}: {case.options['experiment']}, variant released")
    steps.add_column("step", justify="right")
    steps.add_column("worst, float32", overflow="fold")
    steps.add_column("relative", justify="right")
    steps.add_column("worst, float64", overflow="fold")
    steps.add_column("relative", justify="right")
    for number, (single, double) in enumerate(zip(result.float32, result.float64, strict=True)):
        steps.add_row(
            str(number), single.term, f"{single.difference:.1e}", double.term, f"{double.difference:.1e}"
        )
    console.print(steps)
    console.print(_table(_noteworthy(result.verdicts), "recipe, weights and failures"))
    console.print("Options " + next(v.note for v in result.verdicts if v.key == "config"))
    return result.verdicts


def _noteworthy(verdicts: list[Verdict]) -> list[Verdict]:
    """Selects failures and verdicts with a note."""
    return [v for v in verdicts if not v.passed or (v.note and v.key != "config")]


def _table(verdicts: list[Verdict], title: str) -> Table:
    table = Table(title=title)
    table.add_column("key", overflow="fold")
    for column in ("max abs difference", "tolerance", "verdict"):
        table.add_column(column, justify="right")
    for v in verdicts:
        word = "[green]pass" if v.passed else "[red]FAIL"
        table.add_row(v.key, f"{v.difference:.2e}", f"{v.tolerance:.2e}", f"{word} {v.note}".strip())
    return table
