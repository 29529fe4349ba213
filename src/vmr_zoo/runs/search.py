"""Searches: Optuna proposes trials, jobs of a sweep run them, and a study stores what they reached.

Several commands can work on one study at the same time, also on several machines that share its folder.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from vmr_zoo.config.keys import COUNT, check_kind
from vmr_zoo.errors import VmrError
from vmr_zoo.runs.optuna_study import (
    begin_with,
    check_space,
    fail_running,
    open_study,
    propose,
    repeat_unfinished,
    worker,
)
from vmr_zoo.runs.search_results import RUN, results, write_best
from vmr_zoo.runs.search_space import configured, read_space
from vmr_zoo.runs.status import objective, read_status
from vmr_zoo.runs.sweep import SweepFolder
from vmr_zoo.utils.files import writing

if TYPE_CHECKING:
    import optuna

_OPTUNA = 4
"""The oldest major version with a journal file."""

log = logging.getLogger(__name__)


def search(
    config: DictConfig,
    arguments: Sequence[str],
    check: Callable[[list[list[str]]], None],
    launch: Callable[[list[list[str]], int], None],
) -> None:
    """Runs trials until the study has as many as the configuration says.

    Args:
        config: of the command, with the settings of `conf/hydra/sweeper/search.yaml`.
        arguments: overrides of the command line.
        check: refuses jobs that do not compose.
        launch: runs jobs, given by their overrides and the number of the first one.

    Raises:
        VmrError: for a search space or settings that Optuna refuses, a study with another space, or debugging
            runs.
    """
    _check_optuna()
    if (debug := config.hydra.runtime.choices.get("debug")) not in (None, "null"):
        raise VmrError(
            f"debug={debug} makes runs that are no results, and a search chooses by results: leave out one."
        )
    settings, folder = config.hydra.sweeper, Path(config.hydra.sweep.dir)
    for key in ("n_trials", "n_jobs"):
        check_kind(f"hydra.sweeper.{key}", settings[key], COUNT)
    space = read_space(settings.params, arguments)
    check([space.overrides(space.lowest())])
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    study, launched = open_study(config.hydra, create=True), 0
    check_space(study, space)
    if settings.configured_first:
        begin_with(study, configured(space, config), folder)
    with worker(study, folder) as name:
        repeat_unfinished(study, folder)
        while trials := propose(study, space, settings, folder, name):
            number = "hydra.sweeper.trial"
            jobs = [[*space.overrides(trial.params), f"{number}={trial.number}"] for trial in trials]
            launch(jobs, launched)
            launched += len(jobs)
            fail_running(study, (name,))  # each job records its result
            write_best(study, folder)
    write_best(study, folder)  # other workers may have found better values
    SweepFolder.results = results(study, config, space)


def _check_optuna() -> None:
    """Refuses a missing or old Optuna, which is an extra of the package."""
    try:
        found = version("optuna")
    except PackageNotFoundError:
        found = "none"
    if found == "none" or int(found.partition(".")[0]) < _OPTUNA:
        raise VmrError(
            f"A search needs Optuna {_OPTUNA} or newer; found {found}: pip install 'vmr_zoo[sweep]'."
        )


def trial_of_job() -> optuna.Trial | None:
    """Returns the trial that the current Hydra job runs; None if it belongs to no search."""
    hydra: Any = HydraConfig.get() if HydraConfig.initialized() else None
    number = None if hydra is None else hydra.sweeper.get("trial")
    if number is None:
        return None
    import optuna

    study = open_study(hydra)
    return optuna.Trial(study, study.get_trials(deepcopy=False)[number]._trial_id)


def record_result(run: Path, metric: str) -> None:
    """Records in the study what the run of the current Hydra job reached, and logs the progress.

    Args:
        run: the run directory.
        metric: the selection metric, for the message.

    Raises:
        VmrError: if the run has no result.
    """
    trial = trial_of_job()
    if trial is None:
        return
    from optuna.trial import TrialState

    hydra, study, state = HydraConfig.get(), trial.study, read_status(run)["state"]
    if study.get_trials(deepcopy=False)[trial.number].state is not TrialState.RUNNING:
        return  # another command took this one for dead; the trial that repeats it finds the run finished
    trial.set_user_attr(RUN, os.path.relpath(run, hydra.sweep.dir))
    if state == "pruned":
        study.tell(trial, state=TrialState.PRUNED)
        reached = "pruned"
    elif (value := objective(run)) is not None:
        study.tell(trial, value)
        reached = f"{metric} {value:.2f}"
    else:
        raise VmrError(f"The run is {state} and has no {metric} on the selection split: no result.")
    with suppress(ValueError):  # no trial is complete
        reached += f"; best so far {study.best_value:.2f} in trial {study.best_trial.number}"
    ended = (TrialState.COMPLETE, TrialState.PRUNED)
    done = len(study.get_trials(deepcopy=False, states=ended))
    log.info(f"Trial {trial.number}: {reached}. {done} of {hydra.sweeper.n_trials} trials are done.")
