"""`vmr train`: compose, instantiate, fit, predict every test split, write the run directory.

It knows no method and no data set: Hydra builds both from the configuration.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning
import torch
from hydra.utils import instantiate
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig

from vmr_zoo.engine.callbacks import PruneByMedian, StepTime
from vmr_zoo.engine.evaluation import predict_rows, predictor, print_metrics, quiet, score, splits_of
from vmr_zoo.errors import VmrError
from vmr_zoo.methods.base import Method, parameter_count
from vmr_zoo.report import wandb_runs
from vmr_zoo.runs import directory
from vmr_zoo.runs.directory import HEADER
from vmr_zoo.utils.parallel import torch_threads

if TYPE_CHECKING:
    from vmr_zoo.data.batches.datamodule import VMRDataModule

log = logging.getLogger(__name__)

_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


def main(cfg: DictConfig) -> int:
    """Trains one run.

    Args:
        cfg: what `conf/train.yaml` composes.

    Returns:
        0 once metrics.json is written.

    Raises:
        VmrError: for anything the user can mend, before training starts where possible.
        SystemExit: after an interruption, 128 plus the signal's number; the run can be resumed.
    """
    try:
        with torch_threads(cfg.threads):
            return _train(cfg)
    finally:
        wandb = sys.modules.get("wandb")
        if wandb is not None and wandb.run is not None:
            failed = sys.exc_info()[0] is not None
            wandb.finish(exit_code=int(failed))  # else the next job of a sweep goes on writing into this one


def _train(cfg: DictConfig) -> int:
    """Does the work of `main`."""
    if not isinstance(cfg.seed, int) or cfg.seed < 0:
        raise VmrError(f"Expected seed to be a whole number, 0 or more; found {cfg.seed!r}. Say seed=0.")
    run = Path(cfg.run)
    config = directory.relocatable(cfg)
    # DDP starts this command once more for each further process: they train along and leave the rest to one.
    leads = getattr(rank_zero_only, "rank", 0) == 0
    if not leads:
        return _fit(cfg, run, config, leads)
    with directory.hold(run):
        if directory.is_done(run, config, cfg.resume):
            log.info(f"{run} is {directory.status(run)['state']} already.")
            return 0
        directory.check_free(run, cfg.resume)
        try:
            return _fit(cfg, run, config, leads)
        except Exception as error:
            full = _no_room(error)
            if full is None:
                raise
            raise directory.unwritable(run, full) from error


def _fit(cfg: DictConfig, run: Path, config: dict[str, Any], leads: bool) -> int:
    """Trains, predicts and writes the results.

    Args:
        cfg: the composed configuration.
        run: the run directory, held by this process.
        config: what config.yaml shall hold.
        leads: whether this process writes into the run directory.
    """
    lightning.seed_everything(cfg.seed, workers=True, verbose=False)
    method: Method = instantiate(cfg.method)
    parameters = parameter_count(method)  # before first epochs in which some are frozen
    if cfg.compile:
        method.compile()  # in place: the names of the weights stay
    data: VMRDataModule = instantiate(cfg.data, needs=method.needs)
    data.prepare_data()
    with quiet():
        trainer = _trainer(cfg, run)

    resuming, before = cfg.resume, 0.0
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    if leads:
        resuming = directory.open_new(run, config, cfg.resume)
        manifest, annotations = data.features.manifest(), directory.digests(data.protocol.splits)
        if resuming:
            directory.check_same_data(run, manifest, annotations)
        log.info(f"{cfg.name} on {cfg.data.name} ({cfg.features.name}), seed {cfg.seed} -> {run}")
        directory.write_json(run / directory.ENVIRONMENT, directory.environment(cfg.seed))
        directory.write_json(run / directory.MANIFEST, manifest)
        directory.write_json(run / directory.ANNOTATIONS, annotations)
        directory.keep_earlier(run / "metrics.csv")  # the logger starts its file anew
        before = directory.status(run)["train_seconds"]
    started = time.monotonic()

    def stopped(state: str, message: str = "") -> None:
        if leads:
            directory.set_status(run, state, before + time.monotonic() - started, message)

    stopped("running")
    last = run / directory.LAST
    received: list[int] = []
    try:
        with _graceful(received), quiet():
            if leads:
                wandb_runs.describe(trainer.loggers, config)
            trainer.fit(
                method,
                datamodule=data,
                ckpt_path=str(last) if resuming and last.is_file() else None,
                weights_only=True,
            )
        seconds = before + time.monotonic() - started
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        if not leads:
            return 0
        hooks = trainer.callbacks  # type: ignore[attr-defined]
        verdict = next((hook.verdict for hook in hooks if isinstance(hook, PruneByMedian)), "")
        if verdict:
            stopped("pruned", verdict)
            log.info(f"Pruned {run}: {verdict}.")
            return 0
        header, metrics = _results(cfg, run, trainer, method, data, seconds, parameters)
    except SystemExit as stop:
        # Lightning ends both Ctrl-C and SIGTERM by SystemExit, the latter with exit code 0. A launcher may
        # end a job likewise, and needs its own exit code back: submitit starts a job anew by it.
        name = signal.Signals(received[0]).name if received else f"exit code {stop.code}"
        with contextlib.suppress(OSError):
            stopped("interrupted", name)
        again = "The same command" if cfg.resume else "The same command with resume=true"
        log.error(f"Interrupted. {again} continues {run}.")
        raise SystemExit(128 + received[0] if received else stop.code or 128 + signal.SIGTERM) from stop
    except BaseException as error:
        with contextlib.suppress(OSError):  # a full disk takes no status either; the error says more
            state = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
            stopped(state, f"{type(error).__name__}: {error}")
        raise
    stopped("finished")
    wandb_runs.record(trainer.loggers, run)
    print_metrics(header, metrics)
    return 0


def _results(
    cfg: DictConfig,
    run: Path,
    trainer: lightning.Trainer,
    method: Method,
    data: VMRDataModule,
    seconds: float,
    parameters: int,
) -> tuple[dict[str, Any], dict[str, dict[str, float]]]:
    """Predicts every split with the selected weights and writes what came out.

    Returns:
        The header, and the metrics of each split.
    """
    best = _load_best(trainer, method)
    _export(method, run / directory.WEIGHTS)
    rows, metrics = [], {}
    alone = predictor(cfg.trainer, run)
    cost = _cost(trainer)
    asked = time.monotonic()
    for name in splits_of(data):
        split_rows = predict_rows(alone, method, data, name)
        metrics[name] = score(split_rows, data, name, method)
        rows += split_rows
    header = {
        **_identity(cfg, data, method),
        "parameters": parameters,
        "epochs": trainer.current_epoch,
        "best_epoch": best,
        "train_seconds": round(seconds, 1),
        **cost,
        "inference_ms": round(1000 * (time.monotonic() - asked) / max(1, len(rows)), 3),
    }
    directory.write_rows(run / directory.PREDICTIONS, rows)
    directory.write_json(run / directory.METRICS, {HEADER: header, **metrics})
    return header, metrics


def _cost(trainer: lightning.Trainer) -> dict[str, float]:
    """Says what training took, where it can be told.

    Returns:
        "step_ms": milliseconds of a step since the run was last started, see `StepTime`; on a GPU
        "peak_memory_mb", MiB that tensors took at most. What a process took on the CPU would count the jobs
        before this one: `vmr bench` measures that.
    """
    cost: dict[str, float] = {}
    hooks = trainer.callbacks  # type: ignore[attr-defined]
    clock = next((hook for hook in hooks if isinstance(hook, StepTime)), None)
    if clock is not None and clock.steps:
        cost["step_ms"] = round(1000 * clock.seconds / clock.steps, 3)
    if trainer.strategy.root_device.type == "cuda":
        cost["peak_memory_mb"] = round(torch.cuda.max_memory_allocated() / 2**20, 1)
    return cost


def _no_room(error: BaseException) -> OSError | None:
    """Finds the full disk or the missing permission behind an error, whoever wrapped it."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in _UNWRITABLE:
            return cause
        cause = cause.__cause__ or cause.__context__
    for number in _UNWRITABLE:  # writers in C++ and Rust say it in words
        if os.strerror(number) in str(error):
            return OSError(number, os.strerror(number))
    return None


def _trainer(cfg: DictConfig, run: Path) -> lightning.Trainer:
    """Builds the trainer with its callbacks and loggers."""
    os.environ.setdefault("WANDB_SILENT", "true")
    callbacks = [instantiate(node) for node in cfg.callbacks.values() if node]
    loggers = [instantiate(node) for node in (cfg.logger or {}).values() if node]
    trainer: lightning.Trainer = instantiate(
        cfg.trainer,
        callbacks=callbacks,
        logger=loggers or False,
        default_root_dir=str(run),
        enable_progress_bar=any(isinstance(callback, ProgressBar) for callback in callbacks),
    )
    return trainer


def _load_best(trainer: lightning.Trainer, method: Method) -> int:
    """Loads the checkpoint that the selection split chose.

    Returns:
        The epoch that it ended, counted from 1.
    """
    best = getattr(trainer.checkpoint_callback, "best_model_path", "")
    if not best:
        # A baseline without parameters takes no step, before which Lightning chooses no checkpoint.
        return trainer.current_epoch
    checkpoint = torch.load(best, map_location="cpu", weights_only=True)
    method.load_state_dict(checkpoint["state_dict"])
    return int(checkpoint["epoch"]) + 1


def _export(method: Method, path: Path) -> None:
    """Writes the weights and buffers as safetensors."""
    from safetensors.torch import save_model

    from vmr_zoo.utils.files import atomic_path

    with atomic_path(path) as temporary:
        save_model(method, str(temporary))


def _identity(cfg: DictConfig, data: VMRDataModule, method: Method) -> dict[str, Any]:
    """Says what was run: all that decides whether two rows may stand in one table."""
    # Rounding makes them other features, whether or not they had been rounded before.
    held = "" if data.storage == torch.float32 else f", held in {str(data.storage).removeprefix('torch.')}"
    return {
        "name": cfg.name,
        "method": cfg.choices.method,
        "variant": cfg.variant,
        "experiment": cfg.choices.experiment,
        "ablation": cfg.choices.ablation,
        "protocol": data.protocol.name,
        "features": f"{data.features.name}{held}",
        "origin": data.features.origin,
        "selection": data.selection_origin,
        "selection_metric": data.selection_metric,
        "rounding": method.metrics.settings.rounding.description,
        "seed": cfg.seed,
        "longest_training_video": max(query.duration for query in data.protocol.train.queries),
    }


@contextlib.contextmanager
def _graceful(received: list[int]) -> Iterator[None]:
    """Lets Ctrl-C end training between two steps, as SIGTERM does; a second Ctrl-C ends it at once.

    Args:
        received: the signals that came, in order.
    """

    def on_terminate(number: int, frame: Any) -> None:
        received.append(number)

    def on_interrupt(number: int, frame: Any) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)
        log.info("Stopping after this step; press Ctrl-C again to stop at once.")
        os.kill(os.getpid(), signal.SIGTERM)

    # Lightning calls an earlier SIGTERM handler along with its own.
    handlers = {signal.SIGTERM: on_terminate, signal.SIGINT: on_interrupt}
    try:
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    except ValueError:  # not the main thread: whoever runs this one handles signals
        before = {}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
