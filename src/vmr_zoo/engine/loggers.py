"""Weights & Biases during training: the logger, and what is logged besides the curves.

The run directory remains the record of a run. A run on Weights & Biases carries the header of metrics.json in
its configuration and every test result in its summary as `final/SPLIT/METRIC`; `vmr report source=wandb`
rebuilds the run from these. wandb is imported only if its logger is used.
"""

from __future__ import annotations

import netrc
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from vmr_zoo.runs.directory import HEADER, METRICS, read_json

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

    Args:
        project: name of the project.
        entity: user or team that owns the project; None: the default of the API key.
        save_dir: the run directory.
        offline: whether to write to disk only, for a later `wandb sync`; None: offline without an API key.
        name: name of the run.
        group: runs with the same group are shown together.
        tags: labels to filter runs by.
    """
    from lightning.pytorch.loggers import WandbLogger

    return WandbLogger(
        name=name[-_LONGEST_NAME:],  # the seed is at the end
        save_dir=save_dir,
        offline=wandb_offline() if offline is None else offline,
        project=project,
        entity=entity,
        group=group[:_LONGEST_NAME],
        tags=list(dict.fromkeys(tag[:_LONGEST_TAG] for tag in tags)),
        job_type="train",
    )


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
