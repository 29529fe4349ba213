"""The loggers of training: one curve per run in metrics.csv, and Weights & Biases.

The run directory remains the record of a run. A run on Weights & Biases carries the header of metrics.json in
its configuration and every test result in its summary as `final/SPLIT/METRIC`; `vmr report source=wandb`
rebuilds the run from these. wandb is imported only if its logger is used.
"""

from __future__ import annotations

import csv
import netrc
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from vmr_zoo.errors import VmrError
from vmr_zoo.runs.directory import HEADER, METRICS, read_json
from vmr_zoo.runs.resume import rotate

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger, WandbLogger

FINAL = "final"
"""Prefix of the test results in a run's summary, which separates them from the last values of the curves."""

SPLITS = "splits"
"""Key of a run's configuration that lists the splits in order."""

_LONGEST_NAME, _LONGEST_TAG = 128, 64
"""Characters that wandb accepts; it refuses to start with a longer tag."""


def wandb_logger(
    project: str,
    entity: str | None,
    save_dir: str,
    offline: bool | None,
    name: str,
    group: str,
    tags: Sequence[str],
) -> WandbLogger:
    """Builds Lightning's logger and truncates names and tags to the lengths that wandb accepts.

    A resumed run continues its run on Weights & Biases: it has the same id.

    Args:
        project: name of the project.
        entity: user or team that owns the project; None: the default of the API key.
        save_dir: the run directory.
        offline: whether to write to disk only, for a later `wandb sync`; None: offline without an API key.
        name: name of the run.
        group: runs with the same group are shown together.
        tags: labels to filter runs by.

    Raises:
        VmrError: for a project name that wandb refuses.
    """
    from lightning.pytorch.loggers import WandbLogger

    if re.search(r"[/\\#?%:]", project) or not 0 < len(project) <= _LONGEST_NAME:
        raise VmrError(
            f"Weights & Biases refuses the project name '{project}': expected 1 to {_LONGEST_NAME} "
            r"characters without / \ # ? % and :. Set logger.wandb.project=NAME, or logger=csv for no mirror."
        )
    logger = WandbLogger(
        id=_earlier_wandb_id(Path(save_dir)),
        name=name[-_LONGEST_NAME:],  # the seed is at the end
        save_dir=save_dir,
        offline=wandb_offline() if offline is None else offline,
        project=project,
        entity=entity,
        group=group[:_LONGEST_NAME],
        tags=list(dict.fromkeys(tag[:_LONGEST_TAG] for tag in tags)),
        job_type="train",
    )
    # Lightning passes an argument of old versions of wandb, which warns about it in every process.
    logger._wandb_init.pop("anonymous", None)
    return logger


def _earlier_wandb_id(run: Path) -> str | None:
    """Returns the id of a run on Weights & Biases that an earlier session of a run directory started."""
    folders = sorted((run / "wandb").glob("*run-*-*"))  # (offline-)run-DATE_TIME-ID
    found = (re.fullmatch(r"(?:offline-)?run-[\d_]+-(\w+)", folder.name) for folder in folders[::-1])
    return next((match[1] for match in found if match), None)


def wandb_offline() -> bool:
    """Returns whether wandb must stay offline: WANDB_MODE says so, or no API key is found."""
    if os.environ.get("WANDB_MODE"):
        return os.environ["WANDB_MODE"] in ("offline", "dryrun")
    if os.environ.get("WANDB_API_KEY"):
        return False
    server = os.environ.get("WANDB_BASE_URL")
    hosts = [urlsplit(server).netloc] if server else ["api.forge.coreweave.com", "api.wandb.ai"]
    try:
        keys = netrc.netrc(os.environ.get("NETRC"))
    except (OSError, netrc.NetrcParseError):
        return True
    return not any(keys.authenticators(host) for host in hosts)


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


def log_config(loggers: Iterable[Logger], config: Mapping[str, Any]) -> None:
    """Logs the configuration to Weights & Biases, before training.

    Args:
        loggers: the trainer's loggers; only wandb's are used.
        config: the configuration with relative paths, as `runs.directory.relocatable` returns it.
    """
    for run in _wandb_runs(loggers):
        run.config.update(dict(config), allow_val_change=True)


def log_results(loggers: Iterable[Logger], run: Path) -> None:
    """Logs the header and the results in metrics.json to Weights & Biases.

    Args:
        loggers: the trainer's loggers; only wandb's are used.
        run: the run directory.
    """
    for open_run in _wandb_runs(loggers):
        content = read_json(run / METRICS)
        header = content.pop(HEADER)
        # A server may sort the summary by name, but the order of the splits matters in tables.
        open_run.config.update({HEADER: header, SPLITS: list(content)}, allow_val_change=True)
        open_run.summary.update(
            {
                f"{FINAL}/{split}/{metric}": value
                for split, values in content.items()
                for metric, value in values.items()
                if value is not None
            }
        )


def close_wandb(failed: bool) -> None:
    """Ends the open wandb run, if any: the next job of a sweep would log into it otherwise.

    Args:
        failed: whether to mark the run as failed.
    """
    wandb = sys.modules.get("wandb")
    if wandb is not None and wandb.run is not None:
        wandb.finish(exit_code=int(failed))


def _wandb_runs(loggers: Iterable[Logger]) -> list[Any]:
    from lightning.pytorch.loggers import WandbLogger

    return [one.experiment for one in loggers if isinstance(one, WandbLogger)]
