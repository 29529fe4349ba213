"""Benchmarks a method as `vmr train` runs it: training step, prediction, memory, FLOPs.

Training and prediction go through Lightning with the run's own data module, trainer and optimizer, timed by
callbacks. The rate of plain matrix products is measured before and after, on the same threads and in the
precision of training; the efficiency, FLOPs relative to that rate, compares machines.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from rich.table import Table

from vmr_zoo.config.run_names import run_name
from vmr_zoo.data.annotations.records import TRAIN
from vmr_zoo.engine.clocks import PredictClock, StepClock
from vmr_zoo.engine.flops import count_flops, matrix_rate
from vmr_zoo.engine.trainers import build_trainer, quiet_lightning
from vmr_zoo.errors import VmrError
from vmr_zoo.methods.base import Method, parameter_count
from vmr_zoo.runs.directory import read_json
from vmr_zoo.utils.console import wide_console
from vmr_zoo.utils.files import lock_folder, write_json
from vmr_zoo.utils.machine import peak_memory, processor, reset_peak_memory
from vmr_zoo.utils.parallel import torch_threads

if TYPE_CHECKING:
    from vmr_zoo.data.batches.datamodule import VMRDataModule

FILE = "bench.json"
SCHEMA = 1
KEY = ("name", "data", "recipe", "features", "device", "hardware", "threads", "precision")
"""Identifies a row of the file; a new measurement replaces the row with the same values."""


def benchmark(cfg: DictConfig) -> Path:
    """Measures one method and stores its row; prints every row of the file.

    Args:
        cfg: composed from `conf/bench.yaml`.

    Returns:
        The file, bench.json.

    Raises:
        VmrError: for a method without parameters, or settings that measure nothing.
    """
    with torch_threads(cfg.threads):
        row = {"name": _row_name(cfg), **measure(cfg)}
    path = Path(cfg.out) / FILE
    with lock_folder(path.parent):
        kept = [other for other in stored_rows(path) if any(other.get(key) != row[key] for key in KEY)]
        rows = [*kept, row]
        write_json(path, {"schema": SCHEMA, "rows": rows})
    print_rows(rows)
    return path


def _row_name(cfg: DictConfig) -> str:
    """Names a row after the overrides that affect a step."""
    from hydra.core.hydra_config import HydraConfig

    overrides = HydraConfig.get().overrides.task
    changes = [text for text in overrides if text.partition("=")[0] not in ("out", "steps", "warmup")]
    return run_name(str(cfg.choices.method), cfg.variant, changes)


def stored_rows(path: Path) -> list[dict[str, Any]]:
    """Returns the rows of a bench.json; none if there is no file.

    Raises:
        VmrError: if it is another file.
    """
    if not path.is_file():
        return []
    found = read_json(path)
    if not isinstance(found, dict) or found.get("schema") != SCHEMA:
        raise VmrError(f"{path} was not written by this vmr bench. Choose another directory with out=DIR.")
    return list(found["rows"])


def measure(cfg: DictConfig) -> dict[str, Any]:
    """Measures a configuration.

    Args:
        cfg: with `method`, `data`, `trainer`, `seed`, `warmup`, `steps`, `choices` and `reference`.

    Returns:
        A JSON-able row. Times are seconds; docs/performance.md describes the columns.

    Raises:
        VmrError: for a method without parameters, or settings that measure nothing.
    """
    for key, least in (("steps", 1), ("warmup", 0)):
        if not isinstance(cfg[key], int) or cfg[key] < least:
            raise VmrError(f"Expected {key} to be a whole number, {least} or more; found {cfg[key]!r}.")
    lightning.seed_everything(cfg.seed, workers=True, verbose=False)
    method: Method = instantiate(cfg.method)
    if not parameter_count(method):
        raise VmrError(f"{type(method).__name__} has no parameters: there is no training step to measure.")
    data: VMRDataModule = instantiate(cfg.data, needs=method.needs)
    # Before training: MMN and VDI freeze a part in their first epochs, and the measured steps are among them.
    parameters = {
        "parameters": sum(one.numel() for one in method.parameters()),
        "parameters_trained": parameter_count(method),
    }
    setup = _setup_seconds(data)
    clock = StepClock(cfg.warmup)
    total = cfg.warmup + cfg.steps
    # When a short epoch ends, the loader starts again, as it does in a run.
    trainer = _bench_trainer(cfg, clock, max_epochs=total, max_steps=total, limit_val_batches=0)
    device, precision = trainer.strategy.root_device, str(cfg.trainer.precision)
    rates = [matrix_rate(device, precision)]
    training = _measure_training(cfg, trainer, clock, method, data)
    inference = _measure_inference(cfg, device, method, data)
    rates.append(matrix_rate(device, precision))
    row = {
        **_setting(cfg, data, device),
        "setup": setup,
        **training,
        **inference,
        **parameters,
        "matrix_rates": rates,
        "efficiency": training["flops"] / statistics.fmean(clock.seconds()["step"]) / statistics.fmean(rates),
        "reference": OmegaConf.to_container(cfg.reference) if cfg.reference else None,
    }
    return row | {"ratio": speedups(row)}


def _setting(cfg: DictConfig, data: VMRDataModule, device: torch.device) -> dict[str, Any]:
    """Returns the columns that describe the setting."""
    queries = data.split(TRAIN).queries
    return {
        "method": cfg.choices.method,
        "variant": cfg.variant,
        "data": cfg.data.name,
        "recipe": cfg.choices.recipe,
        "features": data.features.name,
        "device": device.type,
        "hardware": _hardware(device),
        "threads": torch.get_num_threads(),
        "precision": str(cfg.trainer.precision),
        "torch": torch.__version__,
        "warmup": cfg.warmup,
        "steps": cfg.steps,
        "training_set": {"query": len(queries), "video": len({query.video_id for query in queries})},
    }


def _setup_seconds(data: VMRDataModule) -> float:
    started = time.perf_counter()
    data.setup("fit")
    return time.perf_counter() - started


def _bench_trainer(cfg: DictConfig, clock: StepClock | PredictClock, **limits: Any) -> lightning.Trainer:
    """Builds the run's trainer, with a clock and without anything that writes."""
    return build_trainer(cfg.trainer, [clock], devices=1, enable_checkpointing=False, **limits)


def _measure_training(
    cfg: DictConfig, trainer: lightning.Trainer, clock: StepClock, method: Method, data: VMRDataModule
) -> dict[str, Any]:
    """Trains for some steps and returns the columns about training."""
    device = trainer.strategy.root_device
    _reset_peak(device)
    with quiet_lightning(), _cpu_share() as share:
        trainer.fit(method, datamodule=data)
    peak = _peak(device)
    flops, batch = count_flops(method.to(device), data, trainer, cfg.warmup, cfg.steps)
    return {
        "batch": batch,
        **{name: quartiles(values) for name, values in clock.seconds().items()},
        **{f"step_per_{unit}": quartiles(values) for unit, values in clock.per().items()},
        "step_cpu": clock.cpu_seconds / cfg.steps,
        "flops": flops,
        "peak_training_gb": peak,
        "cpu_share_training": share[0],
    }


def _measure_inference(
    cfg: DictConfig, device: torch.device, method: Method, data: VMRDataModule
) -> dict[str, Any]:
    """Predicts a test split and returns the columns about inference."""
    data.setup("test")
    clock = PredictClock(cfg.warmup)
    trainer = _bench_trainer(cfg, clock)
    loader = data.test_dataloader()[0]
    repeats = -(-(cfg.warmup + cfg.steps) // len(loader))  # a small split is predicted several times
    _reset_peak(device)
    with quiet_lightning(), _cpu_share() as share:
        trainer.predict(method, [loader] * repeats, return_predictions=False)
    peak = _peak(device)
    seconds = clock.seconds()
    return {
        "inference": quartiles(seconds["batch"]),
        "inference_loader": quartiles(seconds["loader"]),
        **{f"inference_per_{unit}": quartiles(values) for unit, values in clock.per().items()},
        "inference_cpu": clock.cpu_seconds / len(clock.queries),
        "inference_batch": {
            "query": statistics.fmean(clock.queries),
            "video": statistics.fmean(clock.videos),
        },
        "peak_inference_gb": peak,
        "cpu_share_inference": share[0],
    }


def quartiles(values: Sequence[float]) -> dict[str, float]:
    """Returns median, quartiles and number of some measurements."""
    low, middle, high = (
        statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
    )
    return {"median": middle, "low": low, "high": high, "n": len(values)}


def speedups(row: Mapping[str, Any]) -> dict[str, float] | None:
    """Divides the time of the released code by that of the row, for each query or video.

    Returns:
        "step" and "inference", loader included, over 1 where the row is faster; None without a reference.
    """
    reference = row["reference"]
    if not reference:
        return None
    per = reference["per"]
    return {
        "step": reference["step"] / reference["size"] / row[f"step_per_{per}"]["median"],
        "inference": reference["inference"]
        / reference["inference_size"]
        / row[f"inference_per_{per}"]["median"],
    }


def print_rows(rows: Sequence[Mapping[str, Any]]) -> None:
    """Prints the rows as a table."""
    table = Table(title="Seconds, medians with quartiles; efficiency is against plain matrix products")
    for name in ("run", "batch", "step", "forward", "backward", "optimizer", "loader", "per 100 queries"):
        table.add_column(name, justify="left" if name == "run" else "right")
    for name in ("peak GB", "parameters", "GFLOP", "efficiency", "CPU", "x released", "x inference"):
        table.add_column(name, justify="right")
    for row in rows:
        step, ratio = row["step"], row["ratio"]
        where = f"{row['threads']} threads" if row["device"] == "cpu" else row["device"]
        table.add_row(
            f"{row['name']} {row['data']} ({where}, {row['precision']})",
            f"{row['batch']['query']:.0f} x {row['batch']['clips']:.0f}",
            f"{step['median']:.3f} [{step['low']:.3f}, {step['high']:.3f}]",
            *(f"{row[name]['median']:.3f}" for name in ("forward", "backward", "optimizer")),
            f"{row['loader']['median']:.4f}",
            f"{100 * row['inference_per_query']['median']:.3f}",
            f"{row['peak_training_gb']:.2f} / {row['peak_inference_gb']:.2f}",
            _parameters(row),
            f"{row['flops'] / 1e9:.1f}",
            f"{row['efficiency']:.0%}",
            f"{row['cpu_share_training']:.0%}",
            f"{ratio['step']:.2f}" if ratio else "",
            f"{ratio['inference']:.2f}" if ratio else "",
        )
    wide_console().print(table)


def _parameters(row: Mapping[str, Any]) -> str:
    """Formats the number of parameters, and of the trained ones where some are frozen throughout."""
    trained = row.get("parameters_trained", row["parameters"])
    return f"{row['parameters']:,}" + (f" ({trained:,} trained)" if trained != row["parameters"] else "")


def _hardware(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{processor()}, {os.cpu_count()} cores"


@contextmanager
def _cpu_share() -> Iterator[list[float]]:
    """Yields a list that receives CPU time / (wall time x threads); below 1, something else ran."""
    share: list[float] = []
    wall, cpu = time.perf_counter(), time.process_time()
    yield share
    elapsed = time.perf_counter() - wall
    share.append((time.process_time() - cpu) / (elapsed * torch.get_num_threads()))


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        reset_peak_memory()


def _peak(device: torch.device) -> float:
    """Returns the peak memory in GB since `_reset_peak`: of the process, or of torch on the GPU."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device)) / 1e9
    return peak_memory() / 1e9
