"""Runs a verb as a Hydra job, or as the jobs of a sweep."""

from __future__ import annotations

import contextlib
import importlib
import os
import secrets
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vmr_zoo.cli.explain import complain, explain

if TYPE_CHECKING:
    from omegaconf import DictConfig


def run_verb(verb: str, module: str, args: list[str], full_error: bool) -> int:
    """Hands the arguments to Hydra.

    Args:
        verb: the verb.
        module: the module with its `main`.
        args: the arguments after the verb.
        full_error: whether to print the traceback of a failed job of a sweep.

    Returns:
        The exit code: that of `main`; for a sweep 1 if a job failed, else 0.
    """
    import hydra

    from vmr_zoo.config.compose import config_dir
    from vmr_zoo.config.resolvers import register_resolvers
    from vmr_zoo.runs import sweep

    register_resolvers()
    runner = _Runner(verb, module, full_error, sys.argv[0], secrets.token_hex(4))

    def job(cfg: DictConfig) -> None:
        runner.run(cfg)

    sweep.SweepFolder.path, sweep.SweepFolder.jobs, sweep.SweepFolder.results = None, [], None
    reports: list[sweep.JobReport] = []
    failure: Exception | None = None
    try:
        # Without this variable Hydra prints shorter messages of its own; with it, it raises.
        with _environment(HYDRA_FULL_ERROR="1", **{sweep.JOB_COUNT: ""}), _arguments([f"vmr {verb}", *args]):
            hydra.main(config_path=str(config_dir()), config_name=verb, version_base="1.3")(job)()
    except Exception as error:
        failure = error
    finally:
        if sweep.SweepFolder.path is not None:
            folder = sweep.reports_folder(sweep.SweepFolder.path, runner.token)
            reports = sweep.take_reports(folder, sweep.SweepFolder.jobs)
            if reports or sweep.SweepFolder.results is not None:
                sweep.print_summary(reports, verb)
    failure = failure or runner.failure
    failed = [report for report in reports if report.state not in sweep.DONE]
    if failure is not None and not failed:
        raise failure
    if failure is not None:  # of the launcher or the sweeper; the table shows the failed jobs
        complain(f"{type(failure).__name__}: {failure}")
    return 1 if failed else runner.code


@dataclass
class _Runner:
    """Runs the Hydra jobs of one command; launchers copy it into other processes.

    Attributes:
        verb, module, full_error: as for `run_verb`.
        script: sys.argv[0] of the command.
        token: distinguishes sweeps that run at the same time.
        code: the exit code of a single job.
        failure: the exception of a single job.
    """

    verb: str
    module: str
    full_error: bool
    script: str
    token: str
    code: int = 0
    failure: Exception | None = None

    def run(self, cfg: DictConfig) -> None:
        """Runs one job."""
        from vmr_zoo.config.compose import resolve_job_keys
        from vmr_zoo.config.resolvers import in_sweep, register_resolvers

        register_resolvers()  # the launcher may have started this process
        if in_sweep():
            self._sweep_job(cfg)
            return
        try:
            resolve_job_keys(cfg)
            self.code = self._main(cfg)
        except Exception as error:
            self.failure = error

    def _main(self, cfg: DictConfig) -> int:
        """Checks the configuration and calls the verb's `main`."""
        from hydra.core.hydra_config import HydraConfig

        from vmr_zoo.config.groups import check_recipe
        from vmr_zoo.config.values import check_values
        from vmr_zoo.utils.machine import keep_freed_memory

        check_recipe()
        check_values(self.verb, cfg, HydraConfig.get().overrides.task)
        main: Callable[[DictConfig], int] = importlib.import_module(self.module).main
        keep_freed_memory()
        # Lightning's DDP starts its other processes with the command line that it finds.
        with _arguments([self.script, self.verb, *_single_job_arguments(cfg)]):
            return main(cfg)

    def _sweep_job(self, cfg: DictConfig) -> None:
        """Runs a job of a sweep. A failure is recorded and the other jobs go on."""
        from hydra.core.hydra_config import HydraConfig

        from vmr_zoo.config.compose import resolve_job_keys
        from vmr_zoo.runs import search, status, sweep
        from vmr_zoo.utils.parallel import end_with_parent

        end_with_parent()
        hydra = HydraConfig.get()
        overrides = list(hydra.overrides.task)
        folder = sweep.reports_folder(Path(hydra.sweep.dir), self.token)
        run: Path | None = None

        def report(state: str, message: str = "") -> None:
            path = "" if run is None else str(run)
            sweep.JobReport(" ".join(overrides), state, path, message).write(folder, hydra.job.num)

        try:
            report("started")
            resolve_job_keys(cfg)
            if self.verb == "train":
                run = Path(cfg.run)
                report("started")
            ended = self._run_unless_done(cfg, run, folder, hydra.job.num)
            if run is not None and ended[0] in sweep.DONE:
                search.record_result(run, cfg.data.selection_metric)
            report(*ended)
        except (SystemExit, KeyboardInterrupt):
            report("interrupted")
            raise
        except Exception as error:
            message = explain(error, self.verb, overrides)
            if self.full_error or message is None:
                traceback.print_exc()
            message = message or f"{type(error).__name__}: {error}"
            complain(f"{' '.join(overrides)}\n{message}")
            if run is not None:
                status.record_failure(run, message)
            report("failed", message)

    def _run_unless_done(
        self, cfg: DictConfig, run: Path | None, folder: Path, number: int
    ) -> tuple[str, str]:
        """Returns the state of the job afterwards, and why it failed."""
        from vmr_zoo.runs import sweep
        from vmr_zoo.runs.directory import relocatable
        from vmr_zoo.runs.resume import check_same_settings, is_done
        from vmr_zoo.runs.status import read_status

        if run is not None and is_done(run, relocatable(cfg), cfg.resume):
            return "skipped", ""
        with contextlib.nullcontext(True) if run is None else sweep.claim(folder, run, number) as mine:
            if run is not None and not mine:
                check_same_settings(run, relocatable(cfg))  # a job with other settings must not look done
                return "skipped", ""
            code = self._main(cfg)
        if code:
            return "failed", f"exit code {code}"
        state = "new" if run is None else read_status(run)["state"]
        return ("finished" if state == "new" else state), ""  # fast_dev_run leaves no status


def _single_job_arguments(cfg: DictConfig) -> list[str]:
    """Returns the arguments that run the current Hydra job alone, in another process."""
    from hydra.core.hydra_config import HydraConfig

    job = HydraConfig.get()
    folders = [source.path for source in job.runtime.config_sources if source.provider == "command-line"]
    overrides = [
        text for text in (*job.overrides.hydra, *job.overrides.task) if not text.startswith("hydra.mode=")
    ]
    resume = ["resume=true"] if cfg.get("resume") is True else []
    if resume:
        overrides = [text for text in overrides if not text.startswith("resume=")]
    return [
        *(f"--config-dir={path}" for path in folders),
        f"--config-name={job.job.config_name}",
        *overrides,
        *resume,
        "hydra.mode=RUN",
    ]


@contextlib.contextmanager
def _environment(**values: str) -> Iterator[None]:
    """Sets environment variables for the duration of the block."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _arguments(argv: list[str]) -> Iterator[None]:
    """Replaces sys.argv, the only place that Hydra reads arguments from, for the duration of the block."""
    before = sys.argv
    sys.argv = argv
    try:
        yield
    finally:
        sys.argv = before
