"""One configuration under measurement by `vmr bench`: trains and predicts some batches in each turn.

Training and prediction go through Lightning with the configuration's own data module, trainer and optimizer,
timed by callbacks. The rate of plain matrix products is measured before and after, on the same threads and in
the precision of training; the efficiency, FLOPs relative to that rate, compares machines.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import lightning
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from vmr_zoo.data.annotations.records import TRAIN
from vmr_zoo.engine.clocks import PredictClock, StepClock
from vmr_zoo.engine.device import peak_gb, reset_peak
from vmr_zoo.engine.flops import count_flops, matrix_rate
from vmr_zoo.engine.trainers import build_trainer, quiet_lightning
from vmr_zoo.errors import VmrError
from vmr_zoo.methods.base import Method, parameter_count
from vmr_zoo.utils.machine import processor
from vmr_zoo.utils.parallel import torch_threads

if TYPE_CHECKING:
    from vmr_zoo.data.batches.datamodule import VMRDataModule


class Subject:
    """A configuration under measurement. Its network lives for all turns, its optimizer for one.

    Every turn sees the same batches: those of the first epochs, in the same order.

    Attributes:
        cfg: the configuration.
        training, inference: the clocks of its turns.
    """

    def __init__(self, cfg: DictConfig) -> None:
        """Builds network and data, and compiles if `cfg.compile`.

        Args:
            cfg: with `method`, `data`, `trainer`, `seed`, `threads`, `compile`, `tf32`, `warmup`, `steps`,
                `choices` and `reference`.

        Raises:
            VmrError: for a method without parameters, or settings that measure nothing.
        """
        for key, least in (("steps", 1), ("warmup", 0)):
            if not isinstance(cfg[key], int) or cfg[key] < least:
                raise VmrError(f"Expected {key} to be a whole number, {least} or more; found {cfg[key]!r}.")
        self.cfg = cfg
        self.training: list[StepClock] = []
        self.inference: list[PredictClock] = []
        self._first: tuple[StepClock, PredictClock] | None = None
        self._peaks: dict[str, float] = {}
        self._shares: dict[str, list[float]] = {"training": [], "inference": []}
        with torch_threads(cfg.threads), tensor_float_32(cfg.tf32):
            self._build()

    def _build(self) -> None:
        lightning.seed_everything(self.cfg.seed, workers=True, verbose=False)
        self._method: Method = instantiate(self.cfg.method)
        trained = parameter_count(self._method)
        if not trained:
            name = type(self._method).__name__
            raise VmrError(f"{name} has no parameters: there is no training step to measure.")
        # Before training: MMN and VDI freeze a part in their first epochs, and measured steps are in these.
        total = sum(one.numel() for one in self._method.parameters())
        self._parameters = {"parameters": total, "parameters_trained": trained}
        self._data: VMRDataModule = instantiate(self.cfg.data, needs=self._method.needs)
        started = time.perf_counter()
        self._data.setup("fit")
        self._setup = time.perf_counter() - started
        self._trainer = self._new_trainer(StepClock(0))
        self._rates = [self._matrix_rate()]
        if self.cfg.compile:
            self._method.compile()
            # All shapes of batches are compiled here, not in the turns.
            self._first = self._train(StepClock(0)), self._predict(PredictClock(0))
            self._peaks, self._shares = {}, {"training": [], "inference": []}

    def turn(self) -> None:
        """Trains and predicts `warmup` and `steps` batches each."""
        with torch_threads(self.cfg.threads), tensor_float_32(self.cfg.tf32):
            self.training.append(self._train(StepClock(self.cfg.warmup)))
            self.inference.append(self._predict(PredictClock(self.cfg.warmup)))

    def turns(self) -> list[dict[str, float]]:
        """Returns the median seconds of a "step" and of a batch of "inference" in each turn."""
        return [
            {
                "step": statistics.median(trained.seconds()["step"]),
                "inference": statistics.median(predicted.seconds()["batch"]),
            }
            for trained, predicted in zip(self.training, self.inference, strict=True)
        ]

    def row(self) -> dict[str, Any]:
        """Returns a JSON-able row. Times are seconds; docs/performance.md describes the columns."""
        with torch_threads(self.cfg.threads), tensor_float_32(self.cfg.tf32):
            return self._row()

    def _row(self) -> dict[str, Any]:
        steps = _joined([clock.seconds() for clock in self.training])
        flops, batch = self._count_flops()
        self._rates.append(self._matrix_rate())
        row = {
            **self._setting(),
            "setup": self._setup,
            "batch": batch,
            **{name: quartiles(values) for name, values in steps.items()},
            **_per_unit("step", self.training),
            "step_cpu": statistics.fmean(clock.cpu_seconds for clock in self.training) / self.cfg.steps,
            "flops": flops,
            **self._inference_columns(),
            **{f"peak_{phase}_gb": peak for phase, peak in self._peaks.items()},
            **{f"cpu_share_{phase}": statistics.fmean(shares) for phase, shares in self._shares.items()},
            **self._parameters,
            "matrix_rates": self._rates,
            "efficiency": flops / statistics.fmean(steps["step"]) / statistics.fmean(self._rates),
            "reference": OmegaConf.to_container(self.cfg.reference) if self.cfg.reference else None,
        }
        return row | {"compilation": self._compilation(row)}

    def _inference_columns(self) -> dict[str, Any]:
        batches = _joined([clock.seconds() for clock in self.inference])
        queries = [count for clock in self.inference for count in clock.queries]
        videos = [count for clock in self.inference for count in clock.videos]
        return {
            "inference": quartiles(batches["batch"]),
            "inference_loader": quartiles(batches["loader"]),
            **_per_unit("inference", self.inference),
            "inference_cpu": sum(clock.cpu_seconds for clock in self.inference) / len(queries),
            "inference_batch": {"query": statistics.fmean(queries), "video": statistics.fmean(videos)},
        }

    def _compilation(self, row: dict[str, Any]) -> dict[str, float] | None:
        """Returns the seconds by which the first pass over the batches took longer than a later one."""
        if self._first is None:
            return None
        trained, predicted = self._first
        step, batch = trained.seconds()["step"], predicted.seconds()["batch"]
        return {
            "training": max(0.0, sum(step) - len(step) * row["step"]["median"]),
            "inference": max(0.0, sum(batch) - len(batch) * row["inference"]["median"]),
        }

    def _setting(self) -> dict[str, Any]:
        """Returns the columns that describe the setting."""
        cfg, data, device = self.cfg, self._data, self._trainer.strategy.root_device
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
            "compile": cfg.compile,
            "tf32": cfg.tf32,
            "torch": torch.__version__,
            "warmup": cfg.warmup,
            "steps": cfg.steps,
            "turns": len(self.training),
            "training_set": {"query": len(queries), "video": len({query.video_id for query in queries})},
        }

    def _new_trainer(self, clock: StepClock | PredictClock, **limits: Any) -> lightning.Trainer:
        """Builds the run's trainer, with a clock and without anything that writes."""
        return build_trainer(self.cfg.trainer, [clock], devices=1, enable_checkpointing=False, **limits)

    def _train(self, clock: StepClock) -> StepClock:
        """Trains for some steps."""
        total = self.cfg.warmup + self.cfg.steps
        # When a short epoch ends, the loader starts again, as it does in a run.
        self._trainer = self._new_trainer(clock, max_epochs=total, max_steps=total, limit_val_batches=0)
        with self._measured("training"), quiet_lightning():
            self._trainer.fit(self._method, datamodule=self._data)
        return clock

    def _predict(self, clock: PredictClock) -> PredictClock:
        """Predicts a test split; a small one is predicted several times."""
        trainer = self._new_trainer(clock)
        self._data.setup("test")
        loader = self._data.test_dataloader()[0]
        repeats = -(-(self.cfg.warmup + self.cfg.steps) // len(loader))
        with self._measured("inference"), quiet_lightning():
            trainer.predict(self._method, [loader] * repeats, return_predictions=False)
        return clock

    def _count_flops(self) -> tuple[float, dict[str, float]]:
        """Counts the FLOPs of a step, which torch cannot count in compiled code."""
        plain = torch.compiler.set_stance("force_eager") if self.cfg.compile else contextlib.nullcontext()
        with plain:
            method = self._method.to(self._trainer.strategy.root_device)
            return count_flops(method, self._data, self._trainer, self.cfg.warmup, self.cfg.steps)

    def _matrix_rate(self) -> float:
        return matrix_rate(self._trainer.strategy.root_device, str(self.cfg.trainer.precision))

    @contextmanager
    def _measured(self, phase: str) -> Iterator[None]:
        """Records the peak memory of a phase, and CPU time / (wall time x threads)."""
        device = self._trainer.strategy.root_device
        reset_peak(device)
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        elapsed = time.perf_counter() - wall
        self._shares[phase].append((time.process_time() - cpu) / (elapsed * torch.get_num_threads()))
        self._peaks[phase] = max(peak_gb(device), self._peaks.get(phase, 0.0))


@contextmanager
def tensor_float_32(allowed: bool | None) -> Iterator[None]:
    """Lets products and convolutions of float32 round to TensorFloat-32 on a GPU, or forbids it.

    Args:
        allowed: None: torch's defaults, under which convolutions and recurrent layers may round and products
            may not.
    """
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    if allowed is not None:
        matmul.allow_tf32 = cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


def quartiles(values: Sequence[float]) -> dict[str, float]:
    """Returns median, quartiles and number of some measurements."""
    low, middle, high = (
        statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
    )
    return {"median": middle, "low": low, "high": high, "n": len(values)}


def _joined(turns: Sequence[dict[str, list[float]]]) -> dict[str, list[float]]:
    """Joins the values of several turns by name."""
    return {name: [value for turn in turns for value in turn[name]] for name in turns[0]}


def _per_unit(name: str, clocks: Sequence[StepClock] | Sequence[PredictClock]) -> dict[str, Any]:
    """Returns the columns of the time per query and per video."""
    joined = _joined([clock.per() for clock in clocks])
    return {f"{name}_per_{unit}": quartiles(values) for unit, values in joined.items()}


def _hardware(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{processor()}, {os.cpu_count()} cores"
