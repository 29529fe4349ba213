"""`vmr gpu`: does what only a GPU can tell, item by item, and prints the state of each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console

from vmr_zoo.engine.gpu import DONE, FAILED, run_items
from vmr_zoo.engine.gpu_items import items

if TYPE_CHECKING:
    from omegaconf import DictConfig


def main(cfg: DictConfig) -> int:
    """Runs the items of a configuration that are not finished.

    Args:
        cfg: composed from `conf/gpu.yaml`.

    Returns:
        1 if an item failed, else 0.

    Raises:
        VmrError: for settings that contradict each other, or a device that stopped working.
    """
    console = Console(highlight=False, soft_wrap=True)
    file, rows, left = run_items(cfg, items(cfg), console)
    counts = {state: sum(row["status"] == state for row in rows) for state in (DONE, "skipped", FAILED)}
    shown = ", ".join(f"{count} {state}" for state, count in counts.items())
    console.print(f"{file}: {shown}, {len(left)} not run." + (" Run it again for these." if left else ""))
    return int(counts[FAILED] > 0)
