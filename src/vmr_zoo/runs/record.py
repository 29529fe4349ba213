"""`overrides.yaml` of a run directory: what was typed for each session, and when its budget was raised."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import yaml

from vmr_zoo.errors import VmrError
from vmr_zoo.utils.files import atomic_write, read_text
from vmr_zoo.utils.secrets import redacted

OVERRIDES = "overrides.yaml"

_TITLE = "# What was typed for each session of this run, oldest first, and the chosen files of conf/.\n"
_LARGEST = 2**22


def record_session(path: Path, raised: tuple[int, int] | None = None) -> None:
    """Appends the current Hydra job to the record of a run.

    Args:
        path: the run directory.
        raised: the epochs that the run had and has now, if this session raises them.
    """
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    session: dict[str, Any] = {"started": now, **_typed()}
    if raised is not None:
        session["raised"] = {"from": raised[0], "to": raised[1]}
    earlier = read_text(path / OVERRIDES, _LARGEST) if (path / OVERRIDES).is_file() else _TITLE
    new = yaml.safe_dump([session], sort_keys=False, allow_unicode=True, width=110)
    atomic_write(path / OVERRIDES, earlier + redacted(new))


def _typed() -> dict[str, Any]:
    """Returns the configuration file, overrides and choices of the current Hydra job; {} outside of Hydra."""
    from hydra.core.hydra_config import HydraConfig

    if not HydraConfig.initialized():
        return {}
    job = HydraConfig.get()
    hydra = [text for text in job.overrides.hydra if not text.startswith("hydra.mode=")]
    return {
        "config": str(job.job.config_name),
        "overrides": [*job.overrides.task, *hydra],
        "choices": {str(group): name for group, name in job.runtime.choices.items()},
    }


def raised_budgets(path: Path) -> list[str]:
    """Returns when more epochs were allowed, such as "from 30 to 60 epochs on 2026-11-29T01:00:00+00:00".

    Raises:
        VmrError: if the record is broken.
    """
    if not (path / OVERRIDES).is_file():
        return []
    try:
        sessions = yaml.safe_load(read_text(path / OVERRIDES, _LARGEST)) or []
        raised = [{**one["raised"], "on": one["started"]} for one in sessions if "raised" in one]
        return ["from {from} to {to} epochs on {on}".format(**one) for one in raised]
    except (yaml.YAMLError, KeyError, TypeError, RecursionError) as error:
        raise VmrError(
            f"{path / OVERRIDES} is not a record of sessions ({error!s:.200}). Remove the file."
        ) from error
