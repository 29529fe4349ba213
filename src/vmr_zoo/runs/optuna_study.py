"""The study of a search: where it is stored, who works on it, and its next trials.

A trial whose job failed or was cut short is failed for Optuna. The next command enqueues its values once
more, and the run continues where it stopped.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig

from vmr_zoo.errors import VmrError, abbreviate, first_line
from vmr_zoo.runs.search_space import Space
from vmr_zoo.utils.files import writing
from vmr_zoo.utils.trees import differing

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

JOURNAL = "study.journal"
"""The studies of a search, in its folder."""

_WORKER, _REPEATS = "worker", "repeats"
"""User attributes of a trial: the command that runs it, and the number of the trial that it repeats."""


def open_study(hydra: DictConfig, create: bool = False) -> optuna.Study:
    """Opens the study of a search.

    Args:
        hydra: Hydra's configuration, in the command or in one of its jobs.
        create: whether it may be new.

    Raises:
        VmrError: if the storage cannot be opened.
        WriteError: if the journal cannot be written.
    """
    import optuna
    from sqlalchemy.exc import SQLAlchemyError

    optuna.logging.set_verbosity(optuna.logging.WARNING)  # else it logs every trial
    settings, folder = hydra.sweeper, Path(hydra.sweep.dir)
    place = "hydra.sweeper.storage" if settings.storage else str(folder / JOURNAL)
    try:
        with writing(place):
            storage: Any = settings.storage or _journal(folder)
            pruner = _built("pruner", settings.pruner) if settings.pruner else optuna.pruners.NopPruner()
            settled = {"study_name": str(settings.study_name), "storage": storage, "pruner": pruner}
            if create:
                return optuna.create_study(**settled, direction="maximize", load_if_exists=True)
            return optuna.load_study(**settled)
    except (ValueError, KeyError, ImportError, SQLAlchemyError, optuna.exceptions.OptunaError) as error:
        raise VmrError(
            f"Cannot open the study of this search ({place}): {first_line(error)}. Expected a file that "
            "Optuna wrote, or a database as in hydra.sweeper.storage=sqlite:///FILE."
        ) from error


def _built(key: str, node: DictConfig, **values: Any) -> Any:
    """Builds the sampler or the pruner."""
    try:
        return instantiate(node, **values)
    except InstantiationException as error:
        raise VmrError(
            f"Cannot build hydra.sweeper.{key}: {first_line(error.__cause__ or error)}. Expected a class of "
            f"optuna.{key}s and its arguments; ~hydra.sweeper.{key}.NAME removes one."
        ) from error


def _journal(folder: Path) -> optuna.storages.JournalStorage:
    from optuna.storages.journal import JournalFileBackend, JournalStorage

    # Optuna's lock is a link to the file: with a relative path it would point nowhere and never expire.
    return JournalStorage(JournalFileBackend(str((folder / JOURNAL).absolute())))


def check_space(study: optuna.Study, space: Space) -> None:
    """Refuses a space that differs from that of the earlier trials: Optuna would mix them."""
    for trial in study.get_trials(deepcopy=False):
        earlier, now = trial.distributions, space.distributions
        changed = [
            f"{key} was {earlier.get(key, 'not searched')}, now {now.get(key, 'not searched')}"
            for key in differing(earlier, now)
        ]
        if earlier and changed:
            raise VmrError(
                f"The study '{study.study_name}' has trials of another search space: "
                f"{abbreviate(changed, 3)}. Use the same ranges, or begin another study: "
                "hydra.sweeper.study_name=NAME."
            )


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Lets one worker of a search at a time look at the study and change it."""
    with FileLock(folder / ".search.lock"):
        yield


def begin_with(study: optuna.Study, values: Mapping[str, Any] | None, folder: Path) -> None:
    """Makes these values, if there are any, the first trial of a new study."""
    with _lock(folder):  # else two workers would both add them
        if values and not study.get_trials(deepcopy=False):
            study.enqueue_trial(dict(values))


@contextmanager
def worker(study: optuna.Study, folder: Path) -> Iterator[str]:
    """Yields a name for this process, and locks a file that shows others that it works.

    The system releases the lock of a killed process. Trials without a result are failed at the end.
    """
    name = secrets.token_hex(6)
    path = _worker_file(folder, name)
    with FileLock(path):
        try:
            yield name
        finally:
            fail_running(study, (name,))
    path.unlink(missing_ok=True)


def _worker_file(folder: Path, name: str) -> Path:
    return folder / f".worker-{name}.lock"


def _is_dead(folder: Path, name: str | None) -> bool:
    """Returns whether a worker was killed: before it left its name, or while it held its lock."""
    if name is None:
        return True
    path = _worker_file(folder, name)
    if not path.exists():  # it works in another folder
        return False
    with suppress(Timeout), FileLock(path, timeout=0):
        return True
    return False


def _running(study: optuna.Study) -> list[FrozenTrial]:
    from optuna.trial import TrialState

    return study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))


def fail_running(study: optuna.Study, workers: Collection[str | None]) -> None:
    """Marks the trials of these workers that have no result as failed."""
    from optuna.trial import TrialState

    for trial in _running(study):
        if trial.user_attrs.get(_WORKER) in workers:
            study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)


def repeat_unfinished(study: optuna.Study, folder: Path) -> None:
    """Enqueues failed trials, and those of killed workers, once more, with the epochs that they reported."""
    from optuna.trial import TrialState, create_trial

    with _lock(folder):
        names = {trial.user_attrs.get(_WORKER) for trial in _running(study)}
        dead = {name for name in names if _is_dead(folder, name)}
        fail_running(study, dead)
        for name in dead - {None}:
            _worker_file(folder, str(name)).unlink(missing_ok=True)
        for trial in latest(study.get_trials(deepcopy=False)):
            if trial.state is TrialState.FAIL:
                study.add_trial(
                    create_trial(
                        state=TrialState.WAITING,
                        params=trial.params,
                        distributions=trial.distributions,
                        intermediate_values=trial.intermediate_values,
                        user_attrs={_REPEATS: trial.number},
                    )
                )


def latest(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Returns the trials without those that another one repeats."""
    repeated = {trial.user_attrs.get(_REPEATS) for trial in trials}
    return [trial for trial in trials if trial.number not in repeated]


def propose(
    study: optuna.Study, space: Space, settings: DictConfig, folder: Path, worker: str
) -> list[optuna.Trial]:
    """Returns the next trials, at most `n_jobs`; none if the study has enough."""
    from optuna.trial import TrialState

    proposed: list[optuna.Trial] = []
    with _lock(folder):  # else two workers would propose the same values
        while len(proposed) < settings.n_jobs:
            trials = study.get_trials(deepcopy=False)
            waiting = any(trial.state is TrialState.WAITING for trial in trials)
            if not waiting and len(latest(trials)) >= settings.n_trials:
                break
            seed = settings.sampler.get("seed")
            numbered = {} if seed is None else {"seed": seed + len(trials)}
            study.sampler = _built("sampler", settings.sampler, **numbered)
            try:
                trial = study.ask(space.distributions)
            except ImportError as error:
                raise VmrError(f"{settings.sampler._target_} needs a package: {first_line(error)}") from error
            trial.set_user_attr(_WORKER, worker)
            proposed.append(trial)
    return proposed
