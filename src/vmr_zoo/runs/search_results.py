"""What a search found: the best values as a file, and the table at its end."""

from __future__ import annotations

import os
import re
import shlex
import warnings
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from omegaconf import DictConfig

from vmr_zoo.config.arguments import search_paths
from vmr_zoo.runs.optuna_study import JOURNAL, latest
from vmr_zoo.runs.search_space import Space
from vmr_zoo.utils.files import atomic_write

if TYPE_CHECKING:
    import optuna
    from rich.console import RenderableType
    from rich.table import Table

RUN = "run"
"""User attribute of a trial: its run directory, relative to the folder of the search."""

_SHOWN = 10
"""Trials in the table."""

_STATES = {
    "COMPLETE": "finished",
    "PRUNED": "pruned",
    "FAIL": "failed",
    "RUNNING": "running in another command",
    "WAITING": "waiting",
}


def best_file(study: optuna.Study, folder: Path) -> Path:
    """Returns the file with the best values of a study; a folder may hold several studies."""
    name = re.sub(r"[^\w.-]+", "_", study.study_name.rpartition("/")[2])
    return folder / f"best-{name}.yaml"


def write_best(study: optuna.Study, folder: Path) -> None:
    """Writes the best values so far, if a trial is complete."""
    with suppress(ValueError):
        best = study.best_trial
        content = {
            "study": study.study_name,
            "value": best.value,
            "trial": best.number,
            "run": best.user_attrs.get(RUN),
            "params": best.params,
        }
        atomic_write(best_file(study, folder), yaml.safe_dump(content, sort_keys=False))


def results(study: optuna.Study, config: DictConfig, space: Space) -> RenderableType:
    """Returns the table of the best trials, the importance of each key, and what comes next.

    Args:
        study: the study.
        config: of the command.
        space: of the search.
    """
    from rich.console import Group
    from rich.text import Text

    folder = Path(config.hydra.sweep.dir)
    trials = latest(study.get_trials(deepcopy=False))
    counts = Counter(_STATES[trial.state.name] for trial in trials)
    listed = ", ".join(f"{counts[state]} {state}" for state in _STATES.values() if counts[state])
    title = f"Search {study.study_name}: {len(trials)} trials, {listed}."
    if not counts["finished"]:
        return Text(f"{title} None is finished, so there are no best values.")
    lines = [
        f"Wrote {best_file(study, folder)}. More trials: hydra.sweeper.n_trials=N.",
        f"All trials and pictures: {_dashboard(config, folder)}",
        f"Next: train with the best values, on more seeds: {_train_command(study, config, space)}",
    ]
    table = _table(study, str(config.data.selection_metric))
    return Group(Text(title), table, Text("\n".join(lines)))


def _table(study: optuna.Study, metric: str) -> Table:
    from rich.table import Table

    finished = [trial for trial in study.get_trials(deepcopy=False) if trial.state.name == "COMPLETE"]
    finished.sort(key=lambda trial: trial.value or 0.0, reverse=True)
    important = _importance(study)
    keys = list(important or study.best_trial.params)
    short = {key: key.rpartition(".")[2] for key in keys}
    if len(set(short.values())) < len(keys):
        short = {key: key for key in keys}
    table = Table(
        show_footer=bool(important), caption="importance: by optuna.importance" if important else ""
    )
    table.add_column("trial", "", justify="right")
    table.add_column(metric, "importance", justify="right")
    for key in keys:
        table.add_column(short[key], f"{100 * important.get(key, 0):.0f} %", justify="right", overflow="fold")
    for trial in finished[:_SHOWN]:
        cells = [_shown(trial.params.get(key)) for key in keys]
        table.add_row(str(trial.number), _shown(trial.value), *cells)
    return table


def _importance(study: optuna.Study) -> dict[str, float]:
    """Returns the share of each key in what separates good trials, largest first; {} if unknown."""
    import optuna

    with warnings.catch_warnings(), suppress(ValueError, RuntimeError, UserWarning):
        warnings.simplefilter("error", UserWarning)  # with few trials Optuna warns, and calls all keys equal
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return dict(optuna.importance.get_param_importances(study))
    return {}


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _dashboard(config: DictConfig, folder: Path) -> str:
    """Returns the command that opens the study in a browser, without a password."""
    storage = config.hydra.sweeper.storage
    if storage is None:
        return f"optuna-dashboard {shlex.quote(os.path.relpath(folder / JOURNAL))}"
    from sqlalchemy.engine import make_url

    return f"optuna-dashboard {shlex.quote(make_url(storage).render_as_string(hide_password=True))}"


def _train_command(study: optuna.Study, config: DictConfig, space: Space) -> str:
    """Returns the command that trains with the best values."""
    replaced = ("search", "method", "variant", "seed", "resume")
    values = [
        text
        for text in space.overrides(study.best_params)
        if text.lstrip("+~").partition("=")[0] not in replaced
    ]
    method = f"method={config.hydra.runtime.choices.method}"
    paths = search_paths(config.hydra.overrides.hydra)
    words = [*paths, method, f"variant={config.variant}", "seed=0,1,2", *values]
    return "vmr train -m " + " ".join(map(shlex.quote, words))
