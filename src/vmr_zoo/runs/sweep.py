"""A sweep: what each job tells the process that started it, and the table at the end.

Jobs may run in other processes or on other machines, so each leaves a small file in a folder beside the runs.
Nothing here imports torch: a job that finds its run finished is over before it would be needed.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from vmr_zoo.utils.files import atomic_write

DONE = ("finished", "pruned", "skipped")
"""The states of a job that leave nothing to do."""


class Where(Callback):
    """Notes, in the process that starts a sweep, where its jobs leave their reports: Hydra's own folder."""

    folder: ClassVar[Path | None] = None

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Is called by Hydra before the first job."""
        Where.folder = Path(config.hydra.sweep.dir)


@dataclass(frozen=True)
class Report:
    """What became of one job.

    Attributes:
        overrides: what sets the job apart.
        state: "finished", "pruned", "skipped" (finished before), "failed", "interrupted", or "started".
        run: the run directory; empty for a verb that has none.
        message: why it failed.
    """

    overrides: str
    state: str
    run: str = ""
    message: str = ""

    def write(self, folder: Path, number: int) -> None:
        """Writes or replaces the report of a job; a full disk is told elsewhere."""
        with contextlib.suppress(OSError):
            atomic_write(folder / f"{number}.json", json.dumps(asdict(self)))


def reports_folder(parent: Path, token: str) -> Path:
    """Returns the folder of one sweep's reports.

    Args:
        parent: Hydra's folder for the sweep, which every job sees.
        token: tells sweeps apart that run at the same time.
    """
    return parent / f".sweep-{token}"


def collect(folder: Path) -> list[Report]:
    """Reads the reports in the order of the jobs, and removes the folder."""
    files = sorted(folder.glob("[0-9]*.json"), key=lambda path: int(path.stem)) if folder.is_dir() else []
    reports = [Report(**json.loads(path.read_text(encoding="utf-8"))) for path in files]
    shutil.rmtree(folder, ignore_errors=True)
    return reports


def print_table(reports: Sequence[Report]) -> None:
    """Prints to standard error how many jobs are in each state, and what went wrong where."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    counts = Counter(report.state for report in reports)
    table = Table(title=f"{len(reports)} job{'s' * (len(reports) != 1)}", title_justify="left")
    for column in ("", "jobs", "error and directory"):
        table.add_column(column, overflow="fold", justify="right" if column == "jobs" else "left")
    told = {"skipped": "finished before", "started": "ended without a word: killed, or out of memory?"}
    for state in ("finished", "pruned", "skipped", "interrupted", "failed", "started"):
        if counts[state]:
            table.add_row(state, str(counts[state]), told.get(state, ""))
    for report in reports:
        if report.state in ("failed", "started"):
            where = f"\n{report.run}" if report.run else ""
            table.add_row("", "", Text.assemble((report.overrides, "bold"), f"\n{report.message}{where}"))
    Console(stderr=True).print(table)
    if any(report.state not in DONE for report in reports):
        Console(stderr=True, soft_wrap=True).print("The same command again does only what is missing.")
