"""Weights & Biases: the logger of a run, which also uploads the files that a report needs.

The configuration of a run on Weights & Biases carries the header of metrics.json, its summary every result as
`final/SPLIT/METRIC`, and an artifact the files in `FILES`; `vmr report source=wandb` rebuilds the run from
these. wandb is imported only if its logger is used.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lightning.pytorch.loggers import WandbLogger

from vmr_zoo.engine.loggers import Mirror, earlier_id, final_numbers, refuse_unknown, remember_id, require
from vmr_zoo.engine.wandb_layout import ARTIFACT_TYPE, FILES, SPLITS, UPLOADED, artifact_name, wandb_offline
from vmr_zoo.errors import VmrError
from vmr_zoo.runs.directory import HEADER
from vmr_zoo.utils.hashing import sha256_of

if TYPE_CHECKING:
    from wandb import Run

_LONGEST_NAME, _LONGEST_TAG = 128, 64
"""Characters that wandb accepts; it refuses to start with a longer tag."""

_NAMES = {
    "project": (r"[^/\\#?%:\r\n]{1,128}", r"1 to 128 characters without / \ # ? % and :"),
    "entity": (r"[A-Za-z0-9_-]{1,128}", "a user or a team: letters, digits, - and _"),
    "id": (r"[A-Za-z0-9_.-]{1,64}", "1 to 64 letters, digits, -, _ and ."),
    "job_type": (r".{1,64}", "1 to 64 characters"),
    "checkpoint_name": (r"[A-Za-z0-9_.-]{1,128}", "an artifact: 1 to 128 letters, digits, -, _ and ."),
}
"""What names have to be, as a pattern and in words; None stands for the default."""


class WandbMirror(WandbLogger, Mirror):
    """Lightning's logger, with the files of the run as an artifact.

    Attributes:
        upload: whether to upload the files.
    """

    upload = True

    def log_start(self, config: Mapping[str, Any], run: Path, steps: int | None) -> None:
        """Logs the configuration, and records the run's id for a later session."""
        self.experiment.config.update(dict(config), allow_val_change=True)
        if not self.experiment.disabled:
            remember_id(run, "wandb", self.experiment.id)

    def log_end(self, header: Mapping[str, Any], metrics: Mapping[str, Mapping[str, Any]], run: Path) -> None:
        """Logs the header, the results, and the files with their digests."""
        open_run: Run = self.experiment
        files = [run / name for name in FILES if (run / name).is_file()] if self.upload else []
        # A server may sort the summary by name, but the order of the splits matters in tables.
        found = {HEADER: dict(header), SPLITS: list(metrics)}
        found[UPLOADED] = {file.name: sha256_of(file) for file in files}
        open_run.config.update(found, allow_val_change=True)
        open_run.summary.update(final_numbers(metrics))
        if files and not open_run.disabled:
            import wandb

            artifact = wandb.Artifact(artifact_name(open_run.id), ARTIFACT_TYPE)
            for file in files:
                # Neither a second copy in wandb's folders nor one in its cache: the run directory keeps them.
                artifact.add_file(str(file), name=file.name, policy="immutable", skip_cache=True)
            open_run.log_artifact(artifact)


def wandb_logger(
    project: str,
    entity: str | None,
    save_dir: str,
    offline: bool | None,
    name: str,
    group: str,
    tags: Sequence[str],
    id: str | None = None,
    resume: Literal["allow", "must", "never", "auto"] | bool = "allow",
    log_model: Literal["all"] | bool = False,
    upload: bool = True,
    **options: Any,
) -> WandbMirror:
    """Builds the logger; every argument of Lightning's WandbLogger and of wandb.init passes through.

    Names, groups and tags are cut to the lengths that wandb accepts: those of a run follow from its settings.

    Args:
        project: name of the project.
        entity: user or team that owns the project; None: the default of the API key.
        save_dir: the run directory.
        offline: whether to write to disk only, for a later `wandb sync`; None: offline without an API key.
        name: name of the run.
        group: runs with the same group are shown together.
        tags: labels to filter runs by.
        id: of the run on Weights & Biases; None: that of an earlier session of the run directory, else that
            which `wandb agent` has chosen, else a new one.
        resume: what to do if the run exists on the server: "allow" continues it.
        log_model: whether to upload the best checkpoint, "all": every checkpoint.
        upload: whether to upload predictions, configuration and metrics as an artifact.
        **options: further ones, such as job_type and notes.

    Raises:
        VmrError: if wandb is missing, or an argument is unknown or one that wandb refuses.
    """
    require("wandb", "Weights & Biases", "pip install wandb")
    import wandb

    refuse_unknown("wandb", options, wandb_logger, WandbLogger.__init__, wandb.init)
    id = _run_id(save_dir, id)
    _check_names({"project": project, "entity": entity, "id": id, **options}, tags)
    offline = _stays_offline(offline, log_model)
    logger = WandbMirror(
        id=id,
        name=name[-_LONGEST_NAME:],  # the seed is at the end
        save_dir=options.pop("dir", save_dir),  # Lightning ignores dir beside save_dir
        offline=offline,
        project=project,
        entity=entity,
        group=group[:_LONGEST_NAME],
        tags=list(dict.fromkeys(tag[:_LONGEST_TAG] for tag in tags)),
        resume=resume,
        log_model=log_model,
        **(({"mode": "offline"} if offline else {}) | options),  # Lightning sets WANDB_MODE, too late
    )
    logger.upload = upload
    # Lightning passes an argument of old versions of wandb, which warns about it in every process.
    logger._wandb_init.pop("anonymous", None)
    return logger


def _run_id(save_dir: str, given: str | None) -> str | None:
    """Returns the id of a run: given, of an earlier session, or chosen by `wandb agent`; None: a new one."""
    earlier = earlier_id(save_dir, "wandb")
    if given and earlier and given != earlier:
        raise VmrError(
            f"The run in {save_dir} has the id {earlier} on Weights & Biases; found logger.wandb.id={given}. "
            "Leave logger.wandb.id out to continue it, or choose another directory with run=DIR."
        )
    return given or earlier or os.environ.get("WANDB_RUN_ID")


def _stays_offline(offline: bool | None, log_model: Literal["all"] | bool) -> bool:
    """Decides whether a run stays offline, which uploading checkpoints excludes."""
    offline = wandb_offline() if offline is None else offline
    if offline and log_model:
        raise VmrError(
            f"logger.wandb.log_model={str(log_model).lower()} uploads checkpoints, which wandb cannot do "
            "offline. Log in (`wandb login`), or leave it out: the run directory keeps the checkpoints."
        )
    return offline


def _check_names(given: Mapping[str, Any], tags: Sequence[str]) -> None:
    """Refuses names that wandb, or its server after the training, would refuse."""
    wrong = [
        f"logger.wandb.{key}={given[key]} ({words})"
        for key, (pattern, words) in _NAMES.items()
        if given.get(key) is not None and not re.fullmatch(pattern, str(given[key]))
    ]
    if "" in tags:
        wrong.append("an empty tag in logger.wandb.tags (1 to 64 characters)")
    if wrong:
        raise VmrError(
            f"Weights & Biases refuses {'; '.join(wrong)}. Choose other names, or logger=csv for no mirror."
        )


def close_wandb(failed: bool) -> None:
    """Ends the open wandb run, if any: the next job of a sweep would log into it otherwise.

    Args:
        failed: whether to mark the run as failed.
    """
    wandb = sys.modules.get("wandb")
    if wandb is not None and wandb.run is not None:
        wandb.finish(exit_code=int(failed))
