"""`vmr parity`: recomputes a golden case of the authors' code and compares every number in it."""

from __future__ import annotations

from pathlib import Path

import hydra
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from vmr_zoo.errors import VmrError
from vmr_zoo.parity.case import Case, Released
from vmr_zoo.parity.check import Verdict, build_released, check_case
from vmr_zoo.utils.files import write_json


def main(cfg: DictConfig) -> int:
    """Runs `vmr parity method=… case=FILE.npz`.

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
    released: Released = hydra.utils.instantiate(cfg.released)
    case = Case(Path(cfg.case))
    method = build_released(cfg, released, case.options, case.group("param"))
    verdicts = check_case(released, method, case)
    console = Console()
    console.print(_table(verdicts, f"{case.path.name}: {type(method).__name__}, variant released"))
    failed = [v.key for v in verdicts if not v.passed]
    console.print(f"{len(verdicts) - len(failed)} of {len(verdicts)} arrays within tolerance.")
    if cfg.get("out"):
        write_json(Path(cfg.out), [v._asdict() for v in verdicts])
    return 1 if failed else 0


def _table(verdicts: list[Verdict], title: str) -> Table:
    table = Table(title=title)
    table.add_column("key", overflow="fold")
    for column in ("max abs difference", "tolerance", "verdict"):
        table.add_column(column, justify="right")
    for v in verdicts:
        word = "[green]pass" if v.passed else "[red]FAIL"
        table.add_row(v.key, f"{v.difference:.2e}", f"{v.tolerance:.2e}", f"{word} {v.note}".strip())
    return table
