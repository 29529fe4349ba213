"""What `vmr gpu` measures about training: waits, step times, kernels, the loader, whole trainings."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import lightning
import torch
from hydra.utils import instantiate
from lightning.pytorch.callbacks import Callback
from omegaconf import DictConfig
from torch.profiler import ProfilerActivity, profile

from vmr_zoo.config.arguments import as_typed
from vmr_zoo.config.compose import compose
from vmr_zoo.data.features.packed import pack
from vmr_zoo.engine.bench import compare
from vmr_zoo.engine.callbacks import LearningRate, NonFiniteLoss, SeedSteps, StepTime
from vmr_zoo.engine.device import synchronise
from vmr_zoo.engine.gpu import Skipped, nvidia_smi
from vmr_zoo.engine.trainers import build_trainer, quiet_lightning
from vmr_zoo.engine.training import train
from vmr_zoo.engine.waits import FindWaits
from vmr_zoo.methods.base import Method
from vmr_zoo.runs import directory
from vmr_zoo.utils.parallel import torch_threads

if TYPE_CHECKING:
    from vmr_zoo.data.batches.datamodule import VMRDataModule

_WARMUP, _EXAMINED = 3, 2
"""Steps of `find_waits` and `profile_steps` before the examined ones, and examined steps."""


def bench_config(cfg: DictConfig, method: str, *overrides: str) -> DictConfig:
    """Composes `vmr bench` for a method in published sizes, or in those of a dry run."""
    return compose(
        "bench",
        [
            f"method={method}",
            "data=synthetic",
            f"recipe={cfg.recipes.get(method, f'synthetic/{method}')}",
            f"trainer.accelerator={cfg.device}",
            f"warmup={cfg.warmup}",
            f"steps={cfg.steps}",
            *cfg.bench_overrides,
            *overrides,
        ],
    )


def bench(cfg: DictConfig, method: str, settings: Sequence[str]) -> dict[str, Any]:
    """Measures settings of a method in turns; returns the row of `vmr bench` by setting."""
    composed = {name: bench_config(cfg, method, *cfg.settings[name]) for name in settings}
    return dict(zip(settings, compare(composed, cfg.rounds), strict=True))


def residency(cfg: DictConfig, method: str) -> dict[str, Any]:
    """Measures loader and step in turns: features in RAM and on the GPU; in a dry run, on disk and in RAM."""
    places = ("memory", "device") if cfg.device == "cuda" else ("disk", "memory")
    composed = {place: bench_config(cfg, method, f"data.residency={place}") for place in places}
    kept = ("step", "loader", "step_per_query", "setup", "peak_training_gb")
    rows = compare(composed, cfg.rounds)
    return {place: {key: row[key] for key in kept} for place, row in zip(places, rows, strict=True)}


def find_waits(cfg: DictConfig, method: str, precisions: Sequence[str]) -> dict[str, Any]:
    """Finds the operators of a training step that wait for the GPU.

    Returns:
        By precision and number of moments per query ("one moment", "several moments"): "waits", those of each
        examined step, and "operators" per step. In a dry run nothing waits, and "waits" is None.
    """
    found: dict[str, Any] = {}
    for precision in precisions:
        for moments, shares in (("one moment", "[1]"), ("several moments", "[0,1]")):
            composed = bench_config(
                cfg, method, f"trainer.precision={precision}", f"data.protocol.moments_per_query={shares}"
            )
            waits = FindWaits(_WARMUP)
            _fit(composed, [SeedSteps(0), NonFiniteLoss(), LearningRate(), StepTime(), waits])
            found[f"{precision}, {moments}"] = {
                "waits": waits.steps if cfg.device == "cuda" else None,
                "operators": waits.operators,
            }
    return found


def profile_steps(cfg: DictConfig, method: str, precisions: Sequence[str]) -> dict[str, Any]:
    """Counts the kernels of training steps, and how long they keep the GPU busy.

    Returns:
        By precision: "step" in seconds, "kernels" per step, "busy", the share of the step in which a kernel
        runs, and "top", the operators with the longest kernels and their share of kernel time.
    """
    found = {}
    for precision in precisions:
        profiler = Profile(_WARMUP)
        _fit(bench_config(cfg, method, f"trainer.precision={precision}"), [profiler])
        found[precision] = profiler.summary()
    return found


class Profile(Callback):
    """Profiles the steps after the first ones with torch's profiler."""

    def __init__(self, warmup: int) -> None:
        """Stores the number of steps before the profiled ones."""
        self.warmup = warmup
        self.steps = 0
        self.seconds = 0.0
        self.profiler: profile | None = None
        self._started = 0.0

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Starts the profiler before the first profiled step."""
        if trainer.global_step == self.warmup:
            gpu = pl_module.device.type == "cuda"
            kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]
            self.profiler = profile(activities=kinds)
            self.profiler.start()
            synchronise(pl_module.device)
            self._started = time.perf_counter()

    def on_train_batch_end(self, *_: Any, **__: Any) -> None:
        """Counts the step."""
        self.steps += self.profiler is not None

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Stops the profiler."""
        assert self.profiler is not None
        synchronise(pl_module.device)
        self.seconds = time.perf_counter() - self._started
        self.profiler.stop()

    def summary(self) -> dict[str, Any]:
        """Returns the numbers of `profile_steps`; "kernels" are operators and "busy" is None on a CPU."""
        assert self.profiler is not None
        on_gpu = ProfilerActivity.CUDA in self.profiler.activities
        cpu, gpu = torch.autograd.DeviceType.CPU, torch.autograd.DeviceType.CUDA
        kind = gpu if on_gpu else cpu
        events = [
            event
            for event in self.profiler.events()
            if event.device_type == kind and not event.is_user_annotation
        ]
        # The rows of operators hold the time of the kernels that they start.
        operators = [row for row in self.profiler.key_averages() if row.device_type == cpu]
        key = "self_device_time_total" if on_gpu else "self_cpu_time_total"
        spent = {row.key: float(getattr(row, key)) for row in operators}
        total = sum(spent.values())
        longest = sorted(spent, key=lambda name: -spent[name])[:8]
        busy = sum(event.time_range.elapsed_us() for event in events) / 1e6 / self.seconds
        return {
            "step": self.seconds / self.steps,
            "kernels": len(events) / self.steps,
            "busy": busy if on_gpu else None,
            "top": {name: spent[name] / total for name in longest},
        }


def time_to_train(cfg: DictConfig, method: str, world: str) -> dict[str, Any]:
    """Trains a method as `vmr train` does.

    Args:
        cfg: composed from `conf/gpu.yaml`.
        method: the method.
        world: "shapes", trained with its whole recipe; or "charades_cd" with simulated features, trained for
            some epochs.

    Returns:
        "epochs" and "seconds" of training with validation, "epoch", seconds per epoch, "recipe_epochs",
        "estimated", seconds of all epochs of the recipe, and further numbers of the run's header.

    Raises:
        Skipped: if the annotations of Charades are not there.
    """
    out = Path(cfg.out).expanduser().resolve()
    overrides = [
        f"method={method}",
        f"data={world}",
        "logger=none",
        "seed=0",
        "resume=true",
        f"trainer.accelerator={cfg.device}",
        *as_typed("train", [f"run={out / 'train' / cfg.size / world / method}"]),
        *as_typed("train", [f"paths.{key}={cfg.paths[key]}" for key in ("annotations", "cache")]),
    ]
    if world == "charades_cd":
        overrides += _charades_overrides(cfg, method, out, overrides)
    else:
        overrides += cfg.train_overrides
    recipe = compose("train", [text for text in overrides if not text.startswith("trainer.max_epochs")])
    composed = compose("train", overrides)
    with gpu_load(cfg.device) as load, quiet_lightning():
        train(composed)
    header = json.loads((Path(composed.run) / directory.METRICS).read_text())[directory.HEADER]
    epoch = header["train_seconds"] / header["epochs"]
    kept = ("epochs", "step_ms", "inference_seconds", "parameters", "peak_memory_mb")
    return {
        "seconds": header["train_seconds"],
        "epoch": epoch,
        "recipe_epochs": recipe.trainer.max_epochs,
        "estimated": epoch * recipe.trainer.max_epochs,
        **{key: header[key] for key in kept if key in header},
        "load": load,
    }


def _charades_overrides(cfg: DictConfig, method: str, out: Path, overrides: list[str]) -> list[str]:
    """Packs the simulated features of Charades-CD unless they are packed; returns the remaining overrides."""
    folder = Path(cfg.paths.annotations).expanduser()
    missing = [name for name in ("charades", "charades_cd") if not (folder / name).is_dir()]
    if missing:
        raise Skipped(f"needs the annotations {', '.join(missing)} in paths.annotations={folder}")
    features = ["features=action_labels", *(["ablation=vdi/table3_vc_static"] if method == "vdi" else [])]
    composed = compose("train", [*overrides, *features])
    data: VMRDataModule = instantiate(composed.data)
    kind = "normalised" if composed.normalise_features else "as_they_are"
    source = data.features.video
    source.prepare(data.protocol)
    pack(source, data.protocol.video_ids, out / "packed" / kind, "float16")
    packed = as_typed("train", [f"features.packed={out / 'packed' / kind}"])
    return [*features, *packed, f"trainer.max_epochs={cfg.charades_epochs}"]


def _fit(cfg: DictConfig, callbacks: Sequence[Callback]) -> None:
    """Trains a configuration of `vmr bench` for the steps of `find_waits` and `profile_steps`."""
    with torch_threads(cfg.threads), quiet_lightning():
        lightning.seed_everything(cfg.seed, workers=True, verbose=False)
        method: Method = instantiate(cfg.method)
        data: VMRDataModule = instantiate(cfg.data, needs=method.needs)
        steps = _WARMUP + _EXAMINED
        trainer = build_trainer(
            cfg.trainer, callbacks, devices=1, enable_checkpointing=False,
            max_epochs=steps, max_steps=steps, limit_val_batches=0,
        )  # fmt: skip
        trainer.fit(method, datamodule=data)


@contextmanager
def gpu_load(device: str) -> Iterator[dict[str, Any]]:
    """Yields a dictionary that receives "utilisation", the mean share of time in which the GPU was busy.

    The driver reports it; it stays empty on a CPU and where the driver's tool is not installed.
    """
    load: dict[str, Any] = {}
    if device == "cpu":
        yield load
        return
    samples: list[float] = []
    stop = threading.Event()

    def sample() -> None:
        while not stop.wait(0.5):
            if (text := nvidia_smi("utilization.gpu")) and text.isdecimal():
                samples.append(float(text) / 100)

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield load
    finally:
        stop.set()
        thread.join()
        if samples:
            load |= {"utilisation": fmean(samples), "samples": len(samples)}
