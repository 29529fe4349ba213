"""`vmr bench`: what a step, a prediction and a batch cost, measured as `vmr train` runs them.

Training and prediction go through Lightning with the run's own data module, trainer and optimizer; a callback
notes the time between its hooks (on a GPU by CUDA events, so that nothing is made to wait). FLOPs are counted
by torch over the same number of steps, and the rate of plain matrix products is measured before and after, on
the same threads and in the precision of training: their ratio compares machines.
"""

from __future__ import annotations

import contextlib
import os
import resource
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning
import torch
from hydra.utils import instantiate
from lightning.pytorch.callbacks import Callback
from omegaconf import DictConfig, OmegaConf
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from vmr_zoo.data.annotations.records import TRAIN
from vmr_zoo.engine.evaluation import quiet
from vmr_zoo.errors import VmrError
from vmr_zoo.methods.base import Method, parameter_count
from vmr_zoo.report.leaderboard import wide_console
from vmr_zoo.runs import directory
from vmr_zoo.utils.files import alone_in
from vmr_zoo.utils.parallel import torch_threads

if TYPE_CHECKING:
    from vmr_zoo.data.batches.datamodule import VMRDataModule
    from vmr_zoo.types import Batch

FILE = "bench.json"
SCHEMA = 1
_MATRIX = {"cpu": 1024, "cuda": 8192}
_KEY = ("name", "data", "recipe", "features", "device", "hardware", "threads", "precision")
"""What a row of the file is about: measured again, it is replaced."""


def main(cfg: DictConfig) -> int:
    """Measures one method and prints every row of the file.

    Args:
        cfg: what `conf/bench.yaml` composes.

    Returns:
        0 once bench.json is written.

    Raises:
        VmrError: for a method without parameters, or settings that measure nothing.
    """
    with torch_threads(cfg.threads):
        row = {"name": _name(cfg), **measure(cfg)}
    path = Path(cfg.out) / FILE
    with alone_in(path.parent):
        kept = [one for one in stored(path) if any(one.get(key) != row[key] for key in _KEY)]
        rows = [*kept, row]
        directory.write_json(path, {"schema": SCHEMA, "rows": rows})
    show(rows)
    print(path)
    return 0


def _name(cfg: DictConfig) -> str:
    """Names a row after what the command line changed, save what does not change a step."""
    from hydra.core.hydra_config import HydraConfig

    from vmr_zoo.config.compose import run_name

    asked = HydraConfig.get().overrides.task
    changes = [text for text in asked if text.partition("=")[0] not in ("out", "steps", "warmup")]
    return run_name(str(cfg.choices.method), cfg.variant, changes)


def stored(path: Path) -> list[dict[str, Any]]:
    """Returns the rows of a bench.json; none if there is no file.

    Raises:
        VmrError: if it is another file.
    """
    if not path.is_file():
        return []
    found = directory.read_json(path)
    if not isinstance(found, dict) or found.get("schema") != SCHEMA:
        raise VmrError(f"{path} was not written by this vmr bench. Choose another directory with out=DIR.")
    return list(found["rows"])


def measure(cfg: DictConfig) -> dict[str, Any]:
    """Measures what a configuration runs.

    Args:
        cfg: with `method`, `data`, `trainer`, `seed`, `warmup`, `steps`, `choices` and `reference`.

    Returns:
        A JSON-able row. Times are seconds; see docs/performance.md.

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
    precision = str(cfg.trainer.precision)
    total = cfg.warmup + cfg.steps
    # Before training: MMN and VDI hold a part still in their first epochs, which the steps lie in.
    parameters = {
        "parameters": sum(one.numel() for one in method.parameters()),
        "parameters_trained": parameter_count(method),
    }

    started = time.perf_counter()
    data.setup("fit")
    setup = time.perf_counter() - started
    queries = data.split(TRAIN).queries
    clock = StepClock(cfg.warmup)
    # A short epoch ends and the loader starts anew, as it does in a run.
    fit = _trainer(cfg, clock, max_epochs=total, max_steps=total, limit_val_batches=0)
    device = fit.strategy.root_device
    rates = [matrix_rate(device, precision)]
    _reset_peak(device)
    with quiet(), _cpu_share() as share_training:
        fit.fit(method, datamodule=data)
    peak_training = _peak(device)
    training = clock.seconds()
    flops, batch = count_flops(method.to(device), data, fit, cfg.warmup, cfg.steps)

    data.setup("test")
    watch = PredictClock(cfg.warmup)
    predict = _trainer(cfg, watch)
    loader = data.test_dataloader()[0]
    _reset_peak(device)
    with quiet(), _cpu_share() as share_inference:
        # A small split is answered several times.
        predict.predict(method, [loader] * -(-total // len(loader)), return_predictions=False)
    peak_inference = _peak(device)
    inference = watch.seconds()
    rates.append(matrix_rate(device, precision))

    rate = statistics.fmean(rates)
    row = {
        "method": cfg.choices.method,
        "variant": cfg.variant,
        "data": cfg.data.name,
        "recipe": cfg.choices.recipe,
        "features": data.features.name,
        "device": device.type,
        "hardware": _hardware(device),
        "threads": torch.get_num_threads(),
        "precision": precision,
        "torch": torch.__version__,
        "warmup": cfg.warmup,
        "steps": cfg.steps,
        "training_set": {"query": len(queries), "video": len({query.video_id for query in queries})},
        "setup": setup,
        "batch": batch,
        **{name: spread(values) for name, values in training.items()},
        **{f"step_per_{unit}": spread(values) for unit, values in clock.per().items()},
        "step_cpu": clock.cpu_seconds / cfg.steps,
        "inference": spread(inference["batch"]),
        "inference_loader": spread(inference["loader"]),
        **{f"inference_per_{unit}": spread(values) for unit, values in watch.per().items()},
        "inference_cpu": watch.cpu_seconds / len(watch.queries),
        "inference_batch": {
            "query": statistics.fmean(watch.queries),
            "video": statistics.fmean(watch.videos),
        },
        "peak_training_gb": peak_training,
        "peak_inference_gb": peak_inference,
        **parameters,
        "flops": flops,
        "matrix_rates": rates,
        "efficiency": flops / statistics.fmean(training["step"]) / rate,
        "cpu_share_training": share_training[0],
        "cpu_share_inference": share_inference[0],
        "reference": OmegaConf.to_container(cfg.reference) if cfg.reference else None,
    }
    return row | {"ratio": ratios(row)}


def _trainer(cfg: DictConfig, clock: _Clock, **limits: Any) -> lightning.Trainer:
    """Builds the run's trainer, with a clock and without anything that writes."""
    with quiet():
        built: lightning.Trainer = instantiate(
            cfg.trainer,
            devices=1,
            callbacks=[clock],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            **limits,
        )
    return built


def count_flops(
    method: Method, data: VMRDataModule, trainer: lightning.Trainer, skip: int, steps: int
) -> tuple[float, dict[str, float]]:
    """Counts the floating-point operations of training steps, forward and backward.

    Torch counts matrix products, convolutions and fused attention; recurrent layers and what works element by
    element count nothing.

    Args:
        method: on its device.
        data: set up for training.
        trainer: whose precision is used.
        skip: batches left out first.
        steps: how many to count.

    Returns:
        The mean of the steps, and the means of what their batches hold: "query" and "video" (how many),
        "clips" (padded) and "padding" (the share of clips that are none).
    """
    sizes: dict[str, list[float]] = {"query": [], "video": [], "clips": [], "padding": []}
    total = 0
    loader = data.train_dataloader()
    batches: list[Batch] = list(islice(loader, skip, skip + steps)) or list(islice(loader, steps))
    plugin = trainer.strategy.precision_plugin
    method.train()
    for batch in batches:
        mask = batch["video_mask"]
        sizes["query"].append(len(batch["query_id"]))
        sizes["video"].append(len(set(batch["video_id"])))
        sizes["clips"].append(mask.shape[1])
        sizes["padding"].append(1 - float(mask.float().mean()))
        placed = trainer.strategy.batch_to_device(batch, method.device)
        with FlopCounterMode(display=False) as counter:
            with plugin.forward_context():
                loss = method.total_loss(method.losses(placed))
            loss.backward()
        total += counter.get_total_flops()
        method.zero_grad()
    return total / len(batches), {name: statistics.fmean(values) for name, values in sizes.items()}


def matrix_rate(device: torch.device, precision: str) -> float:
    """Measures the machine's own rate of matrix products, in FLOP/s, on the threads that torch has now.

    Args:
        device: where.
        precision: Lightning's name of the training precision; decides the type of the matrices.
    """
    half = {"bf16": torch.bfloat16, "16": torch.float16}
    dtype = next((kind for name, kind in half.items() if precision.startswith(name)), torch.float32)
    size = _MATRIX[device.type]
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    c = torch.empty_like(a)

    def seconds(products: int) -> float:
        _synchronise(device)
        started = time.perf_counter()
        for _ in range(products):
            torch.mm(a, b, out=c)
        _synchronise(device)
        return (time.perf_counter() - started) / products

    seconds(2)
    return 2 * size**3 / statistics.median(seconds(2) for _ in range(5))


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Returns median, quartiles and number of some measurements."""
    low, middle, high = (
        statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
    )
    return {"median": middle, "low": low, "high": high, "n": len(values)}


def ratios(row: Mapping[str, Any]) -> dict[str, float] | None:
    """Divides what the released code took by what the row took, for each query or video.

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


def show(rows: Sequence[Mapping[str, Any]]) -> None:
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
    """All of them, and how many are trained at any time, where some never are."""
    trained = row.get("parameters_trained", row["parameters"])
    return f"{row['parameters']:,}" + (f" ({trained:,} trained)" if trained != row["parameters"] else "")


def _hardware(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{directory.processor()}, {os.cpu_count()} cores"


@contextmanager
def _cpu_share() -> Iterator[list[float]]:
    """Yields a list that afterwards holds CPU time / (wall time x threads): under 1, something else ran."""
    share: list[float] = []
    wall, cpu = time.perf_counter(), time.process_time()
    yield share
    elapsed = time.perf_counter() - wall
    share.append((time.process_time() - cpu) / (elapsed * torch.get_num_threads()))


def _reset_peak(device: torch.device) -> None:
    """Starts the high-water mark of memory anew, where the system allows that."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak(device: torch.device) -> float:
    """Returns the most memory in GB since `_reset_peak`: of the process, or what torch held on the GPU."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device)) / 1e9
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


class _Clock(Callback):
    """Notes moments without making a GPU wait for the host or the host for a GPU."""

    def __init__(self, warmup: int) -> None:
        """Stores how many batches pass before one counts; the first batch's loading is not known."""
        self.warmup = warmup
        self.queries: list[int] = []
        self.videos: list[int] = []
        self._marks: dict[str, list[Any]] = {}
        self._loaded: list[tuple[Any, Any]] = []
        self._ended: Any = None
        self._seen = 0
        self._cpu = 0.0
        self.cpu_seconds = 0.0

    @property
    def counts(self) -> bool:
        """Whether the batch at hand is past the warm-up."""
        return self._seen > self.warmup

    def _now(self, module: lightning.LightningModule) -> Any:
        if module.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _mark(self, name: str, module: lightning.LightningModule) -> None:
        if self.counts:
            self._marks.setdefault(name, []).append(self._now(module))

    def _start(self, module: lightning.LightningModule, batch: Batch) -> None:
        self._seen += 1
        if self.counts:
            self.queries.append(len(batch["query_id"]))
            self.videos.append(len(set(batch["video_id"])))
            self._loaded.append((self._ended, self._now(module)))
        self._cpu = time.process_time()
        self._mark("start", module)

    def _end(self, module: lightning.LightningModule) -> None:
        self._mark("end", module)
        if self.counts:
            self.cpu_seconds += time.process_time() - self._cpu
        self._ended = self._now(module)

    def per(self) -> dict[str, list[float]]:
        """Returns what each query, and each video, took of its batch's seconds, loading included."""
        whole = [a + b for a, b in zip(self._between("start", "end"), self._loader, strict=True)]
        return {
            # Each as often as it was in a batch: the rest of a split, a batch of one, counts as one.
            unit: [
                seconds / count for seconds, count in zip(whole, counts, strict=True) for _ in range(count)
            ]
            for unit, counts in (("query", self.queries), ("video", self.videos))
        }

    def _between(self, start: str, end: str) -> list[float]:
        return [_seconds(a, b) for a, b in zip(self._marks[start], self._marks[end], strict=True)]

    @property
    def _loader(self) -> list[float]:
        return [0.0 if a is None else _seconds(a, b) for a, b in self._loaded]


def _seconds(start: Any, end: Any) -> float:
    if isinstance(start, float):
        return float(end - start)
    end.synchronize()
    return float(start.elapsed_time(end)) / 1000


class StepClock(_Clock):
    """Times the phases of training steps."""

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """The batch is there."""
        self._start(pl_module, batch)

    def on_before_zero_grad(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, optimizer: Any
    ) -> None:
        """The losses are there."""
        self._mark("forward", pl_module)

    def on_after_backward(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """The gradients are there."""
        self._mark("backward", pl_module)

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """The weights are updated."""
        self._end(pl_module)

    def seconds(self) -> dict[str, list[float]]:
        """Returns a value a step: "step" is forward, backward and optimizer (clipping too)."""
        return {
            "step": self._between("start", "end"),
            "forward": self._between("start", "forward"),
            "backward": self._between("forward", "backward"),
            "optimizer": self._between("backward", "end"),
            "loader": self._loader,
        }


class PredictClock(_Clock):
    """Times predictions."""

    def on_predict_batch_start(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """The batch is there."""
        self._start(pl_module, batch)

    def on_predict_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """The answer is there."""
        self._end(pl_module)

    def seconds(self) -> dict[str, list[float]]:
        """Returns a value a batch."""
        return {"batch": self._between("start", "end"), "loader": self._loader}
