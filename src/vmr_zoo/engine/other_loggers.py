"""TensorBoard and MLflow: Lightning's loggers, with the configuration, tags and results of a run."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import yaml
from lightning.pytorch.loggers import MLFlowLogger, TensorBoardLogger

from vmr_zoo.engine.loggers import Mirror, earlier_id, final_numbers, refuse_unknown, remember_id, require
from vmr_zoo.errors import VmrError, first_line


class TensorBoardMirror(TensorBoardLogger, Mirror):
    """Lightning's logger; the page HPARAMS compares finished runs.

    Attributes:
        tags: labels of the run.
    """

    tags: Sequence[str] = ()
    _config: Mapping[str, Any]

    def log_start(self, config: Mapping[str, Any], run: Path, steps: int | None) -> None:
        """Logs the configuration and the tags as texts; hides the steps that are taken again."""
        if steps is not None:
            self._kwargs["purge_step"] = steps
        self._config = dict(config)
        text = yaml.safe_dump(self._config, sort_keys=False)
        self.experiment.add_text("config", "".join(f"    {line}\n" for line in text.splitlines()))
        self.experiment.add_text("tags", ", ".join(self.tags))

    def log_end(self, header: Mapping[str, Any], metrics: Mapping[str, Mapping[str, Any]], run: Path) -> None:
        """Logs the results with the configuration: the page HPARAMS reads one entry per run."""
        shown = {**self._config, "header": dict(header), "tags": ", ".join(self.tags)}
        self.log_hyperparams(shown, final_numbers(metrics))
        self.save()
        self.experiment.flush()


def tensorboard_logger(save_dir: str, name: str, tags: Sequence[str], **options: Any) -> TensorBoardMirror:
    """Builds the logger; every argument of Lightning's TensorBoardLogger and of SummaryWriter passes through.

    Args:
        save_dir: the run directory.
        name: the folder below it that gets the event files.
        tags: labels of the run.
        **options: further ones.

    Raises:
        VmrError: if TensorBoard is missing, or an argument is unknown.
    """
    require("tensorboard", "TensorBoard", "pip install 'vmr_zoo[tensorboard]'")
    from torch.utils.tensorboard import SummaryWriter

    refuse_unknown(
        "tensorboard", options, tensorboard_logger, TensorBoardLogger.__init__, SummaryWriter.__init__
    )
    defaults = {"version": "", "default_hp_metric": False}
    logger = TensorBoardMirror(save_dir=save_dir, name=name, **{**defaults, **options})
    logger.tags = list(dict.fromkeys(tags))
    return logger


class MlflowMirror(MLFlowLogger, Mirror):
    """Lightning's logger; metrics have names that MLflow allows, `R1_at_0.5` for `R1@0.5`."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Logs metrics; Lightning would turn `R1@0.5` into `R10.5`."""
        super().log_metrics({name.replace("@", "_at_"): value for name, value in metrics.items()}, step)

    def log_start(self, config: Mapping[str, Any], run: Path, steps: int | None) -> None:
        """Logs the configuration as parameters, which cannot change, and records the id of a new run."""
        continued = earlier_id(run, "mlflow") is not None
        try:
            identifier = str(self.run_id)
            if continued:
                self.experiment.update_run(identifier, status="RUNNING")
            else:
                self.log_hyperparams(dict(config))
        except Exception as error:
            raise _refusal(self._tracking_uri, error) from error
        remember_id(run, "mlflow", identifier)

    def log_end(self, header: Mapping[str, Any], metrics: Mapping[str, Mapping[str, Any]], run: Path) -> None:
        """Logs the results as metrics and the header as tags, which a later session may replace."""
        for key, value in header.items():
            self.experiment.set_tag(self.run_id, f"header.{key}", str(value))
        self.log_metrics(final_numbers(metrics))


def mlflow_logger(
    save_dir: str,
    experiment_name: str,
    run_name: str,
    tags: Mapping[str, Any],
    tracking_uri: str | None = None,
    run_id: str | None = None,
    log_model: Literal["all"] | bool = False,
    **options: Any,
) -> MlflowMirror:
    """Builds the logger; every argument of Lightning's MLFlowLogger passes through.

    Args:
        save_dir: the run directory.
        experiment_name: runs of one experiment are shown together.
        run_name: name of the run.
        tags: of the run, by name.
        tracking_uri: the server or database; None: the environment variable MLFLOW_TRACKING_URI.
        run_id: of the run in MLflow; None: that of an earlier session of the run directory, else a new one.
        log_model: whether to upload the best checkpoint, "all": every checkpoint.
        **options: further ones.

    Raises:
        VmrError: if MLflow is missing, an argument is unknown, or no server or database is named or reached.
    """
    require("mlflow", "MLflow", "pip install 'vmr_zoo[mlflow]', or mlflow-skinny for a server elsewhere")
    refuse_unknown("mlflow", options, mlflow_logger, MLFlowLogger.__init__)
    address = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
    if not address:
        raise VmrError(
            "logger=mlflow needs a server or a database: set MLFLOW_TRACKING_URI or "
            "logger.mlflow.tracking_uri, such as http://localhost:5000 or sqlite:////home/me/mlflow.db."
        )
    if tracking_uri and urlsplit(tracking_uri).password:
        raise VmrError(
            "logger.mlflow.tracking_uri contains a password, which config.yaml would show. Set "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_URI."
        )
    logger = MlflowMirror(
        experiment_name=experiment_name,
        run_name=run_name,
        tracking_uri=address,
        tags={key: str(value) for key, value in tags.items()},
        run_id=run_id or earlier_id(save_dir, "mlflow"),
        log_model=log_model,
        **options,
    )
    try:
        logger._mlflow_client.search_experiments(max_results=1)
    except Exception as error:  # of MLflow, of its database or of the network
        raise _refusal(address, error) from error
    return logger


def _refusal(address: str, error: Exception) -> VmrError:
    parts = urlsplit(address)
    shown = address if parts.password is None else parts._replace(netloc=f"…@{parts.hostname}").geturl()
    return VmrError(
        f"MLflow at {shown} does not answer: {first_line(error):.300}. Check the address and the server; "
        "logger=csv trains without it."
    )
