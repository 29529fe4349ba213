"""Trains a run: instantiate, fit, predict every test split, write the run directory.

Knows no method and no data set: Hydra builds both from the configuration.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning
import torch
from hydra.utils import instantiate
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig

from vmr_zoo.config.run_names import job_origin
from vmr_zoo.data.annotations.records import SELECTION
from vmr_zoo.engine import moment_sets
from vmr_zoo.engine.callbacks import Prune, StepTime
from vmr_zoo.engine.debugging import debugging
from vmr_zoo.engine.loggers import build_loggers, continue_curve, log_config, log_results
from vmr_zoo.engine.moment_sets import set_metrics, set_rule
from vmr_zoo.engine.plateau import plateau_header
from vmr_zoo.engine.prediction import (
    predict_rows,
    prediction_trainer,
    print_metrics,
    score_split,
    scored_splits,
)
from vmr_zoo.engine.stopping import Stop
from vmr_zoo.engine.trainers import build_trainer, find_callback, quiet_lightning
from vmr_zoo.engine.validity import refuse_unselected, refuse_untrainable, selection_origin
from vmr_zoo.engine.wandb_logger import close_wandb
from vmr_zoo.engine.weights import check_checkpoint, export_weights
from vmr_zoo.errors import unknown
from vmr_zoo.methods.base import Method, parameter_count
from vmr_zoo.runs import directory, resume
from vmr_zoo.runs.directory import HEADER
from vmr_zoo.runs.environment import describe_environment
from vmr_zoo.runs.log_file import RunLog, collected_log
from vmr_zoo.runs.record import raised_budgets
from vmr_zoo.runs.status import read_status, write_status
from vmr_zoo.runs.sweep import position
from vmr_zoo.utils.files import WriteError, unwritable_cause, write_json, write_rows
from vmr_zoo.utils.parallel import torch_threads

if TYPE_CHECKING:
    from vmr_zoo.data.batches.datamodule import VMRDataModule

log = logging.getLogger(__name__)


def train(cfg: DictConfig) -> None:
    """Trains one run, or completes it.

    Args:
        cfg: composed from `conf/train.yaml`.

    Raises:
        VmrError: for any user-fixable error, before training starts where possible.
        SystemExit: after an interruption, 128 plus the signal's number; the run can be resumed.
    """
    try:
        with torch_threads(cfg.threads), collected_log() as journal:
            if cfg.trainer.get("fast_dev_run"):
                _try_out(cfg)
                return
            # DDP runs this command once more for each further process. They train too, but write nothing.
            if getattr(rank_zero_only, "rank", 0) == 0:
                _train_locked(cfg, Path(cfg.run), journal)
            else:
                _fit(cfg, Path(cfg.run), None, journal)
    finally:
        close_wandb(failed=sys.exc_info()[0] is not None)


def _train_locked(cfg: DictConfig, run: Path, journal: RunLog) -> None:
    """Trains while holding the lock of the run directory."""
    config = directory.relocatable(cfg)
    with directory.create_and_lock(run):
        if cfg.choices.get("debug") and not cfg.resume:
            resume.set_debugging_run_aside(run)
        if resume.is_done(run, config, cfg.resume):
            log.info(f"{run} is {read_status(run)['state']} already.")
            return
        resume.check_free(run, cfg.resume)
        if cfg.resume:
            resume.check_same_settings(run, config)  # before any feature is read
        try:
            _fit(cfg, run, config, journal)
        except Exception as error:
            cause = unwritable_cause(error)
            if cause is None:
                raise
            if cause.filename and not Path(os.path.abspath(cause.filename)).is_relative_to(run.absolute()):
                raise WriteError(cause.filename, cause) from error  # such as a cache
            raise directory.UnwritableRun(run, cause) from error


def _fit(cfg: DictConfig, run: Path, config: dict[str, Any] | None, journal: RunLog) -> None:
    """Trains, predicts and writes the results.

    Args:
        cfg: the composed configuration.
        run: the run directory.
        config: the content of config.yaml; None: this process writes nothing into the run directory.
        journal: writes train.log.
    """
    stop = Stop()
    method, parameters, data, trainer = _build(cfg, run, stop)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    resumed = cfg.resume if config is None else _describe_run(cfg, run, config, method, data)
    if config is not None:
        journal.open(run, f"{'resumed' if resumed else 'started'}: {cfg.name}, seed {cfg.seed} -> {run}")
    session = _Session(run, writes=config is not None)
    with stop.handled(), _record_stop(session, stop.received, cfg.resume):
        session.write("running")
        with quiet_lightning():
            last = run / directory.LAST
            steps = check_checkpoint(last) if resumed and last.is_file() else None
            if config is not None:
                log_config(trainer.loggers, config, run, steps)
                continue_curve(trainer.loggers, run, steps)
            checkpoint = None if steps is None else str(last)
            trainer.fit(method, datamodule=data, ckpt_path=checkpoint, weights_only=True)
        seconds = session.seconds
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        if config is None:
            return
        if verdict := _pruning_verdict(trainer):
            session.write("pruned", verdict)
            log.info(f"Pruned {run}: {verdict}.")
            return
        if parameters:  # a baseline without any has nothing to learn and to select
            refuse_unselected(trainer)
        header, metrics = _write_results(cfg, run, trainer, method, data, seconds, parameters)
        shortened = header.get("debug", "")
        session.write("debug" if shortened else "finished", shortened)
    if not shortened:
        log_results(trainer.loggers, run)
    print_metrics(header, metrics)
    encodes = data.features.video.encodes and data.features.query.encodes
    log.info(_what_comes_next(run, Path(cfg.paths.runs), shortened, encodes))


def _what_comes_next(run: Path, root: Path, shortened: str, encodes: bool) -> str:
    """Returns the last line of a training, outside of a sweep, whose summary says what comes next."""
    if shortened:
        profiles = "".join(f" Profile: {path}." for path in sorted(run.glob("fit-profile*.txt")))
        return f"Wrote {run}: a debugging run ({shortened}), which no report lists.{profiles}"
    if position():
        return f"Wrote {run}."
    runs = root if run.is_relative_to(root) else run.parent
    search = f", or vmr predict {shlex.quote(f'run={run}')} video=FILE query=…" if encodes else ""
    return f"Wrote {run}. Next: vmr report {shlex.quote(f'runs={runs}')}{search}"


def _build(cfg: DictConfig, run: Path, stop: Stop) -> tuple[Method, int, VMRDataModule, lightning.Trainer]:
    """Builds the method, its number of trainable parameters, the prepared data, and the trainer."""
    loggers = build_loggers(cfg.logger)  # first, since they may refuse names or lack a package
    lightning.seed_everything(cfg.seed, workers=True, verbose=False)
    method: Method = instantiate(cfg.method)
    if cfg.data.selection_metric not in method.metrics.names:
        raise unknown("data.selection_metric", cfg.data.selection_metric, method.metrics.names)
    parameters = parameter_count(method)  # before training, which may freeze some in the first epochs
    if cfg.compile:
        method.compile()  # in place: the names of the weights stay
    data: VMRDataModule = instantiate(cfg.data, needs=method.needs)
    data.prepare_data()
    data.check_words()
    trainer = _trainer(cfg, run, stop, loggers)
    if parameters:
        refuse_untrainable(trainer, data.selection_metric)
    return method, parameters, data, trainer


def _try_out(cfg: DictConfig) -> None:
    """Runs `+trainer.fast_dev_run=true`: trains, validates and predicts a batch each, and writes nothing."""
    with tempfile.TemporaryDirectory() as folder:
        cfg.run, cfg.logger = folder, None
        stop = Stop()
        method, _, data, trainer = _build(cfg, Path(folder), stop)
        with stop.handled():
            with quiet_lightning():
                trainer.fit(method, datamodule=data)
            for name in scored_splits(data):
                predict_rows(trainer, method, data, name)
    log.info("fast_dev_run: training, validation and prediction work. Nothing was written.")


def _trainer(cfg: DictConfig, run: Path, stop: Stop, loggers: list[Logger]) -> lightning.Trainer:
    """Builds the trainer with its callbacks and loggers."""
    with quiet_lightning():
        callbacks = [instantiate(node) for node in cfg.callbacks.values() if node]
    return build_trainer(cfg.trainer, [stop, *callbacks], loggers, default_root_dir=str(run))


def _describe_run(
    cfg: DictConfig, run: Path, config: dict[str, Any], method: Method, data: VMRDataModule
) -> bool:
    """Writes the description of the run; returns whether an earlier session is resumed."""
    manifest, annotations = data.features.manifest(), resume.split_digests(data.protocol.splits)
    if cfg.resume:
        resume.check_same_settings(run, config, method.follows_epochs)
        resume.check_same_data(run, manifest, annotations)
    resumed = resume.start_or_resume(run, config, cfg.resume)
    write_json(run / directory.ENVIRONMENT, describe_environment(cfg.seed))
    write_json(run / directory.MANIFEST, manifest)
    write_json(run / directory.ANNOTATIONS, annotations)
    return resumed


class _Session:
    """The status of a run while one process trains it.

    Attributes:
        run: the run directory.
        seconds: trained so far, earlier sessions included.
    """

    def __init__(self, run: Path, writes: bool) -> None:
        self.run = run
        self._writes = writes
        self._before = read_status(run)["train_seconds"] if writes else 0.0
        self._started = time.monotonic()

    @property
    def seconds(self) -> float:
        return float(self._before + time.monotonic() - self._started)

    def write(self, state: str, message: str = "") -> None:
        if self._writes:
            write_status(self.run, state, self.seconds, message)


@contextlib.contextmanager
def _record_stop(session: _Session, received: list[int], resumes: bool) -> Iterator[None]:
    """Records why a session stops early.

    Args:
        session: writes the status.
        received: the signals received so far.
        resumes: whether the same command would resume the run.
    """
    try:
        yield
    except SystemExit as stop:
        # Lightning ends both Ctrl-C and SIGTERM by SystemExit, the latter with exit code 0. A launcher may
        # end a job the same way, and needs its own exit code: submitit requeues the job by it.
        name = signal.Signals(received[0]).name if received else f"exit code {stop.code}"
        with contextlib.suppress(OSError):
            session.write("interrupted", name)
        command = "The same command" if resumes else "The same command with resume=true"
        log.error(f"Interrupted. {command} continues {session.run}.")
        raise SystemExit(128 + received[0] if received else stop.code or 128 + signal.SIGTERM) from stop
    except BaseException as error:
        with contextlib.suppress(OSError):  # a full disk takes no status either; the error says more
            state = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
            session.write(state, f"{type(error).__name__}: {error}")
        raise


def _pruning_verdict(trainer: lightning.Trainer) -> str:
    """Returns why a search pruned the run, "" if it did not."""
    prune = find_callback(trainer, Prune)
    return "" if prune is None else prune.verdict


def _write_results(
    cfg: DictConfig,
    run: Path,
    trainer: lightning.Trainer,
    method: Method,
    data: VMRDataModule,
    seconds: float,
    parameters: int,
) -> tuple[dict[str, Any], dict[str, dict[str, float]]]:
    """Predicts every split with the selected weights and writes the results.

    Returns:
        The header, and the metrics of each split.
    """
    best = _load_best(trainer, method)
    export_weights(method, run / directory.WEIGHTS)
    rows, metrics = [], {}
    predictor = prediction_trainer(cfg.trainer, run, trainer.limit_test_batches)
    shortened = debugging(cfg, trainer)
    trained, cost = plateau_header(trainer), _training_cost(trainer)
    started = time.monotonic()
    tests = {data.split(name).name for name in data.test_names}
    test_seconds = 0.0
    for name in scored_splits(data):
        before = time.monotonic()
        split_rows = predict_rows(predictor, method, data, name)
        metrics[name] = score_split(split_rows, data, name, method, partly=bool(shortened))
        test_seconds += time.monotonic() - before if name in tests else 0.0
        rows += split_rows
    rule = set_rule(method.metrics.settings, (row for row in rows if row["split"] == SELECTION))
    for name, values in set_metrics(rows, rule).items():
        metrics[name] |= values
    header = {
        **_identity(cfg, data, method),
        **({"selection": selection_origin(trainer, data.protocol.selection_origin)} if parameters else {}),
        "parameters": parameters,
        directory.DIGEST: directory.weights_digest(run),
        "epochs": trainer.current_epoch,
        "best_epoch": best,
        "train_seconds": round(seconds, 1),
        **trained,
        **({"debug": shortened} if shortened else {}),
        **({"raised": raised} if (raised := raised_budgets(run)) else {}),
        **cost,
        "inference_ms": round(1000 * (time.monotonic() - started) / max(1, len(rows)), 3),
        "inference_seconds": round(test_seconds, 3),
        **({moment_sets.HEADER_KEY: rule.header} if rule else {}),
    }
    write_rows(run / directory.PREDICTIONS, rows)
    write_json(run / directory.METRICS, {HEADER: header, **metrics})
    return header, metrics


def _training_cost(trainer: lightning.Trainer) -> dict[str, float]:
    """Returns the cost of training as far as it is known.

    Returns:
        "step_ms", milliseconds of a training step since the last start or resume (`StepTime`); on a GPU
        "peak_memory_mb", the most MiB that tensors took. On the CPU the memory of the process would include
        earlier jobs; `vmr bench` measures it.
    """
    cost: dict[str, float] = {}
    clock = find_callback(trainer, StepTime)
    if clock is not None and clock.steps:
        cost["step_ms"] = round(1000 * clock.seconds / clock.steps, 3)
    if trainer.strategy.root_device.type == "cuda":
        cost["peak_memory_mb"] = round(torch.cuda.max_memory_allocated() / 2**20, 1)
    return cost


def _load_best(trainer: lightning.Trainer, method: Method) -> int:
    """Loads the checkpoint selected on the selection split.

    Returns:
        The number of its epoch, from 1.
    """
    best = getattr(trainer.checkpoint_callback, "best_model_path", "")
    if not best:
        # A baseline without parameters takes no step, and Lightning selects no checkpoint.
        return trainer.current_epoch
    checkpoint = torch.load(best, map_location="cpu", weights_only=True)
    method.load_state_dict(checkpoint["state_dict"])
    return int(checkpoint["epoch"]) + 1


def _identity(cfg: DictConfig, data: VMRDataModule, method: Method) -> dict[str, Any]:
    """Identifies the run: everything that decides whether two runs may share a table."""
    # Features in half precision count as other features, even if they were rounded before.
    held = "" if data.storage == "float32" else f", held in {data.storage}"
    return {
        "name": cfg.name,
        "method": cfg.choices.method,
        "family": method.family,
        "variant": cfg.variant,
        "experiment": cfg.choices.experiment,
        "ablation": cfg.choices.ablation,
        "protocol": data.protocol.name,
        **({"settings": data.protocol.settings} if data.protocol.settings else {}),
        "features": f"{data.features.name}{held}",
        "origin": data.features.origin,
        "selection": data.protocol.selection_origin,
        "selection_metric": data.selection_metric,
        "rounding": method.metrics.settings.rounding.description,
        "seed": cfg.seed,
        "longest_training_video": max(query.duration for query in data.protocol.train.queries),
        **({"warnings": list(data.protocol.doubts)} if data.protocol.doubts else {}),
        **job_origin(),
    }
