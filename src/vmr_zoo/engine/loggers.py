"""The loggers of training: one curve per run in metrics.csv, and mirrors of the run on other programs.

The run directory remains the record of a run. A mirror (Weights & Biases, TensorBoard, MLflow, or a
logger of Lightning that the user adds) gets the same beside the curves: the configuration at the start, and
after the run the header of metrics.json and every result as `final/SPLIT/METRIC`.
"""

from __future__ import annotations

import csv
import importlib.util
import inspect
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.utils import instantiate
from omegaconf import DictConfig

from vmr_zoo.engine.trainers import quiet_lightning
from vmr_zoo.engine.wandb_layout import FINAL
from vmr_zoo.errors import VmrError, unknown
from vmr_zoo.runs.directory import HEADER, LOGGERS, METRICS, read_json
from vmr_zoo.runs.resume import rotate
from vmr_zoo.utils.files import write_json

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger


class Mirror(ABC):
    """What a logger does with the configuration and the results of a run, beside the curves."""

    @abstractmethod
    def log_start(self, config: Mapping[str, Any], run: Path, steps: int | None) -> None:
        """Logs the configuration, before training.

        Args:
            config: with relative paths, as `runs.directory.relocatable` returns it.
            run: the run directory.
            steps: optimizer steps of the checkpoint that training continues from; None: training starts.
        """

    @abstractmethod
    def log_end(self, header: Mapping[str, Any], metrics: Mapping[str, Mapping[str, Any]], run: Path) -> None:
        """Logs the results.

        Args:
            header: of metrics.json.
            metrics: by split and name; None where there is none.
            run: the run directory.
        """


def build_loggers(node: DictConfig | None) -> list[Logger]:
    """Builds the loggers of the group `logger`.

    Raises:
        VmrError: if a package is missing, or an argument is unknown or refused.
    """
    os.environ.setdefault("WANDB_SILENT", "true")
    with quiet_lightning():
        return [instantiate(one) for one in (node or {}).values() if one]


def require(package: str, program: str, command: str) -> None:
    """Refuses a logger whose package is not installed, before anything else starts.

    Args:
        package: the module.
        program: what it is called.
        command: what installs it.

    Raises:
        VmrError: says the command.
    """
    try:
        found = importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):  # a test or a user blocks the import
        found = False
    if not found:
        raise VmrError(
            f"{program} is not installed. Install it: {command}. Or train without it: logger=csv writes "
            "metrics.csv alone."
        )


def refuse_unknown(logger: str, given: Iterable[str], *takers: Callable[..., Any]) -> None:
    """Refuses arguments that a logger does not have.

    Args:
        logger: its name in the group `logger`.
        given: names of arguments.
        takers: functions that take them.

    Raises:
        VmrError: names the first, and the nearest valid ones.
    """
    valid = {
        name
        for taker in takers
        for name, one in inspect.signature(taker).parameters.items()
        if one.kind is not one.VAR_KEYWORD and name != "self"
    }
    for name in given:
        if name not in valid:
            raise unknown(f"argument of logger.{logger}", name, valid)


def earlier_id(run: str | Path, program: str) -> str | None:
    """Returns the id that an earlier session of a run has in a program, None for a new one."""
    file = Path(run) / LOGGERS
    found = read_json(file) if file.is_file() else {}
    value = found.get(program) if isinstance(found, dict) else None
    return value if isinstance(value, str) else None


def remember_id(run: Path, program: str, identifier: str) -> None:
    """Records the id of a run in a program, with which a later session continues it."""
    file = run / LOGGERS
    write_json(file, {**(read_json(file) if file.is_file() else {}), program: identifier})


def continue_curve(loggers: Iterable[Logger], run: Path, steps: int | None) -> None:
    """Makes metrics.csv one curve over all sessions of a run.

    The logger starts an empty file; it is given the earlier rows, without those of steps that the resumed
    training takes again.

    Args:
        loggers: the trainer's loggers, before training; only those of metrics.csv are used.
        run: the run directory.
        steps: optimizer steps of the checkpoint that training continues from; None: training starts.
    """
    from lightning.pytorch.loggers import CSVLogger

    earlier = [*sorted(run.glob("metrics-*.csv")), run / "metrics.csv"]
    rows: list[dict[str, Any]] = []
    if steps is not None:
        for file in (file for file in earlier if file.is_file()):
            with file.open(newline="", encoding="utf-8") as lines:
                kept = [row for row in csv.DictReader(lines) if _is_whole(row) and int(row["step"]) < steps]
            first = int(kept[0]["step"]) if kept else 0
            rows = [row for row in rows if int(row["step"]) < first] + kept
    rotate(run / "metrics.csv")  # kept until its rows are in the new file
    for logger in loggers:
        if isinstance(logger, CSVLogger) and rows:
            logger.experiment.metrics = [{k: v for k, v in row.items() if v} for row in rows]
            logger.save()
            for file in run.glob("metrics-*.csv"):
                file.unlink()


def _is_whole(row: Mapping[str, Any]) -> bool:
    """Returns whether a row of metrics.csv was written to its end; a kill may cut the last one."""
    return None not in row.values() and str(row.get("step", "")).isdigit()


def log_config(loggers: Iterable[Logger], config: Mapping[str, Any], run: Path, steps: int | None) -> None:
    """Logs the configuration to every logger but metrics.csv, before training.

    Args:
        loggers: the trainer's loggers.
        config: the configuration with relative paths, as `runs.directory.relocatable` returns it.
        run: the run directory.
        steps: optimizer steps of the checkpoint that training continues from; None: training starts.
    """
    for one in _mirrors(loggers):
        if isinstance(one, Mirror):
            one.log_start(config, run, steps)
        else:  # of the user
            one.log_hyperparams(dict(config))


def log_results(loggers: Iterable[Logger], run: Path) -> None:
    """Logs the header and the results in metrics.json to every logger but metrics.csv.

    Args:
        loggers: the trainer's loggers.
        run: the run directory.
    """
    for one in _mirrors(loggers):
        content = read_json(run / METRICS)
        header = content.pop(HEADER)
        if isinstance(one, Mirror):
            one.log_end(header, content, run)
        else:
            one.log_metrics(final_numbers(content))


def final_numbers(metrics: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Returns the results of a run by `final/SPLIT/METRIC`, without those that have no value."""
    return {
        f"{FINAL}/{split}/{metric}": value
        for split, values in metrics.items()
        for metric, value in values.items()
        if value is not None
    }


def _mirrors(loggers: Iterable[Logger]) -> list[Logger]:
    from lightning.pytorch.loggers import CSVLogger

    return [one for one in loggers if not isinstance(one, CSVLogger)]
