"""Sweeps: the report of each job, and the summary table at the end.

Jobs may run in other processes or on other machines; each writes a small file into a folder beside the runs.
Nothing here imports torch: a job whose run is finished ends before it would need it.
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
"""The states of a job that needs no further work."""


class SweepFolder(Callback):
    """Remembers the folder of a sweep in the process that starts it."""

    path: ClassVar[Path | None] = None

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Called by Hydra before the first job."""
        SweepFolder.path = Path(config.hydra.sweep.dir)


@dataclass(frozen=True)
class JobReport:
    """The state of one job.

    Attributes:
        overrides: what distinguishes the job from the others.
        state: "finished", "pruned", "skipped" (finished before), "failed", "interrupted", or "started".
        run: the run directory; empty for a verb without one.
        message: why it failed.
    """

    overrides: str
    state: str
    run: str = ""
    message: str = ""

    def write(self, folder: Path, number: int) -> None:
        """Writes or replaces the report of a job. A full disk is reported elsewhere."""
        with contextlib.suppress(OSError):
            atomic_write(folder / f"{number}.json", json.dumps(asdict(self)))


def reports_folder(parent: Path, token: str) -> Path:
    """Returns the folder for the reports of one sweep.

    Args:
        parent: Hydra's folder for the sweep, which every job can access.
        token: distinguishes sweeps that run at the same time.
    """
    return parent / f".sweep-{token}"


def take_reports(folder: Path) -> list[JobReport]:
    """Reads the reports in the order of the jobs, and removes the folder."""
    files = sorted(folder.glob("[0-9]*.json"), key=lambda path: int(path.stem)) if folder.is_dir() else []
    reports = [JobReport(**json.loads(path.read_text(encoding="utf-8"))) for path in files]
    shutil.rmtree(folder, ignore_errors=True)
    return reports


def print_summary(reports: Sequence[JobReport]) -> None:
    """Prints to standard error how many jobs are in each state, and the errors."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    counts = Counter(report.state for report in reports)
    table = Table(title=f"{len(reports)} job{'s' * (len(reports) != 1)}", title_justify="left")
    for column in ("", "jobs", "error and directory"):
        table.add_column(column, overflow="fold", justify="right" if column == "jobs" else "left")
    notes = {"skipped": "finished before", "started": "exited without reporting: killed, or out of memory?"}
    for state in ("finished", "pruned", "skipped", "interrupted", "failed", "started"):
        if counts[state]:
            table.add_row(state, str(counts[state]), notes.get(state, ""))
    for report in reports:
        if report.state in ("failed", "started"):
            directory = f"\n{report.run}" if report.run else ""
            table.add_row("", "", Text.assemble((report.overrides, "bold"), f"\n{report.message}{directory}"))
    Console(stderr=True).print(table)
    if any(report.state not in DONE for report in reports):
        Console(stderr=True, soft_wrap=True).print("Run the same command again to resume the sweep.")
