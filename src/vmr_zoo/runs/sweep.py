"""Sweeps: the report of each job, and the summary table at the end.

Jobs may run in other processes or on other machines; each writes a small file into a folder beside the runs.
Nothing here imports torch: a job whose run is finished ends before it would need it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shlex
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from filelock import FileLock
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

from vmr_zoo.runs.status import ENDED
from vmr_zoo.utils.files import atomic_write

if TYPE_CHECKING:
    from rich.console import RenderableType

DONE = (*ENDED, "skipped")
"""The states of a job that needs no further work."""

_LISTED = 10
"""Jobs that never started, by name."""

_REPEATED = ("bench", "eval", "predict")
"""Verbs that do not pass over what an earlier command did."""

JOB_COUNT = "VMR_SWEEP_JOBS"
"""Environment variable with the number of jobs of the sweep, for the processes of its jobs."""


class SweepFolder(Callback):
    """Remembers the folder and the jobs of a sweep in the process that starts it.

    Attributes:
        path: the folder; None: there is no sweep.
        jobs: the overrides of each job; empty if they follow from earlier results, as in a search.
        results: of a search that has ended, for the terminal.
    """

    path: ClassVar[Path | None] = None
    jobs: ClassVar[list[str]] = []
    results: ClassVar[RenderableType | None] = None

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Called by Hydra before the first job."""
        SweepFolder.path = Path(config.hydra.sweep.dir)
        SweepFolder.jobs = _list_jobs(config)
        os.environ[JOB_COUNT] = str(len(SweepFolder.jobs) or "")


def _list_jobs(config: DictConfig) -> list[str]:
    """Returns the overrides of each job that Hydra's own sweeper will start, empty for another sweeper."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser

    sweeper = config.hydra.sweeper
    if not str(sweeper.get("_target_", "")).endswith("BasicSweeper"):
        return []
    params = [f"{key}={value}" for key, value in (sweeper.get("params") or {}).items()]
    parsed = OverridesParser.create().parse_overrides([*params, *config.hydra.overrides.task])
    try:
        batches = BasicSweeper.split_arguments(parsed, None)
    except Exception:  # glob(…) needs the configuration's files; Hydra reports other mistakes itself
        return []
    return [" ".join(job) for batch in batches for job in batch]


def position() -> str:
    """Returns "[3/8] " in the third of eight jobs of a sweep, "[trial 3] " in a search, and "" outside."""
    from hydra.core.hydra_config import HydraConfig

    if not HydraConfig.initialized() or HydraConfig.get().mode is not RunMode.MULTIRUN:
        return ""
    if (trial := HydraConfig.get().sweeper.get("trial")) is not None:
        return f"[trial {trial}] "
    total = os.environ.get(JOB_COUNT)
    return f"[{HydraConfig.get().job.num + 1}{f'/{total}' if total else ''}] "


@dataclass(frozen=True)
class JobReport:
    """The state of one job.

    Attributes:
        overrides: what distinguishes the job from the others.
        state: one of `DONE` ("skipped": finished before), "failed", "interrupted", "started", "not started".
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


@contextlib.contextmanager
def claim(folder: Path, run: Path, number: int) -> Iterator[bool]:
    """Yields whether a job of this sweep should do a run: the first that asks, if a job is named twice.

    Another job waits until the first has ended, however it ended. If the process of the first is killed, the
    system releases its lock, and the job that waits does the run.

    Args:
        folder: of the reports.
        run: the run directory.
        number: the job that asks.
    """
    name = hashlib.sha256(os.fsencode(os.path.abspath(run))).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    ended = folder / f"{name}.run"
    with FileLock(folder / f"{name}.lock"):
        # A job that was pre-empted and starts again finds its own number.
        mine = not ended.is_file() or ended.read_text() == str(number)
        try:
            yield mine
        finally:
            if mine:
                with contextlib.suppress(OSError):  # a full disk is reported elsewhere
                    ended.write_text(str(number))


def reports_folder(parent: Path, token: str) -> Path:
    """Returns the folder for the reports of one sweep.

    Args:
        parent: Hydra's folder for the sweep, which every job can access.
        token: distinguishes sweeps that run at the same time.
    """
    return parent / f".sweep-{token}"


def take_reports(folder: Path, jobs: Sequence[str] = ()) -> list[JobReport]:
    """Reads the reports in the order of the jobs, and removes the folder.

    Args:
        folder: of the reports.
        jobs: the overrides of each job; one without a report never started.
    """
    files = folder.glob("[0-9]*.json") if folder.is_dir() else ()
    found = {int(path.stem): JobReport(**json.loads(path.read_text(encoding="utf-8"))) for path in files}
    shutil.rmtree(folder, ignore_errors=True)
    if found:
        found = {number: JobReport(job, "not started") for number, job in enumerate(jobs)} | found
    return [found[number] for number in sorted(found)]


def print_summary(reports: Sequence[JobReport], verb: str) -> None:
    """Prints to standard error how many jobs are in each state, the errors, and what comes next.

    Args:
        reports: of the jobs; none if a search had nothing left to do.
        verb: of the sweep.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    counts = Counter(report.state for report in reports)
    table = Table(title=f"{len(reports)} job{'s' * (len(reports) != 1)}", title_justify="left")
    for column in ("", "jobs", "error and directory"):
        table.add_column(column, overflow="fold", justify="right" if column == "jobs" else "left")
    notes = {
        "skipped": "finished before, or named twice",
        "debug": "debugging runs, which no report lists",
        "started": "exited without reporting: killed, or out of memory?",
        "not started": "the sweep ended before",
    }
    for state in (*DONE, "interrupted", "failed", "started", "not started"):
        if counts[state]:
            table.add_row(state, str(counts[state]), notes.get(state, ""))
    for report in reports:
        if report.state in ("failed", "started"):
            directory = f"\n{report.run}" if report.run else ""
            table.add_row("", "", Text.assemble((report.overrides, "bold"), f"\n{report.message}{directory}"))
    waiting = [report.overrides for report in reports if report.state == "not started"]
    if waiting:
        more = f"\n… and {len(waiting) - _LISTED} more" if len(waiting) > _LISTED else ""
        table.add_row("", "", Text("never started:\n" + "\n".join(waiting[:_LISTED]) + more))
    console = Console(stderr=True)
    if reports:
        console.print(table)
    runs = [os.path.abspath(report.run) for report in reports if report.run]
    if SweepFolder.results is not None:
        console.print(SweepFolder.results, soft_wrap=True)
    if any(report.state not in DONE for report in reports):
        repeated = "Run the jobs that are not finished alone; the same command would repeat the others."
        console.print(repeated if verb in _REPEATED else "Run the same command again to resume the sweep.")
    elif runs and SweepFolder.results is None:
        console.print(Text(f"Next: vmr report {shlex.quote(f'runs={_shared_folder(runs)}')}"), soft_wrap=True)


def _shared_folder(runs: Sequence[str]) -> str:
    """Returns the folder that holds all runs, relative to the working directory where that is shorter."""
    folder = os.path.commonpath([os.path.dirname(run) for run in runs])
    return min(folder, os.path.relpath(folder), key=len)
