"""Repeats training steps of the authors' code with our optimizer, schedule and trainer, and compares them."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import hydra
import torch
from lightning.pytorch.plugins import DoublePrecision, Precision
from omegaconf import DictConfig
from torch import Tensor

from vmr_zoo.config.compose import compose
from vmr_zoo.errors import VmrError
from vmr_zoo.methods.base import Method
from vmr_zoo.parity.case import Case, Number, Released
from vmr_zoo.parity.check import Verdict, compare_array
from vmr_zoo.parity.trajectories.base import ReleasedTrajectory
from vmr_zoo.parity.trajectories.recipe import apply_case, compare_optimizer, unread
from vmr_zoo.parity.trajectories.training import Run, train
from vmr_zoo.parity.trajectories.weights import compare_weights
from vmr_zoo.utils.parallel import torch_threads

_FLOAT32, _FLOAT64 = 1e-4, 1e-9  # relative, of losses and of the gradient's norm
_NORM32 = 1e-3
"""Relative, of that norm in float32: an input of a ReLU may have another sign on another processor."""
_ZERO32, _ZERO64 = 1e-6, 1e-12  # absolute, for a loss that is 0 but for rounding
_RATE = 1e-12  # relative, of learning rates


class WorstTerm(NamedTuple):
    """The curve that deviates most at one step.

    Attributes:
        term: the authors' name.
        difference: relative.
    """

    term: str
    difference: float


class Trajectory(NamedTuple):
    """The comparison of a trajectory.

    Attributes:
        verdicts: of the recipe, every curve, every array of every step, and every weight.
        float32: the worst curve of every step, in float32.
        float64: in float64.
    """

    verdicts: list[Verdict]
    float32: list[WorstTerm]
    float64: list[WorstTerm]


def check_trajectory(cfg: DictConfig, case: Case, overrides: Sequence[str] = ()) -> Trajectory:
    """Trains on the recorded batches and draws, from the recorded weights, and compares what the case holds.

    Args:
        cfg: composed from conf/parity.yaml; `released` and `trajectory` are the adapters.
        case: the case.
        overrides: further overrides of the experiment.

    Raises:
        VmrError: if the method has no adapter, or the case is not one of its trajectories.
    """
    if cfg.get("trajectory") is None:
        raise VmrError(f"{case.path} is a trajectory, which conf/released has no adapter for.")
    released: Released = hydra.utils.instantiate(cfg.released)
    adapter: ReleasedTrajectory[Any] = hydra.utils.instantiate(cfg.trajectory, released=released)
    count = _check_case(case)
    with tempfile.TemporaryDirectory() as folder, torch_threads(1):
        composed = _compose(cfg, case, [*overrides, *adapter.overrides(case, Path(folder))])
        verdicts = apply_case(composed, adapter, case)
        try:
            runs = [
                train(composed, adapter, case, _load(composed, adapter, case, dtype), dtype, Path(folder))
                for dtype in (torch.float32, torch.float64)
            ]
        except (IndexError, RuntimeError) as error:  # torch's, of indices out of range and sizes that differ
            raise VmrError(f"The arrays of {case.path} do not fit each other: {error}") from error
    verdicts += compare_optimizer(runs[0], adapter, case, count)
    verdicts += _compare_curves(adapter, case, *runs)
    verdicts += _compare_steps(case, runs[1])
    verdicts += compare_weights(adapter, case, *runs)
    keys = {verdict.key for verdict in verdicts}
    known = ("init/", "step")
    verdicts += [
        compare_array(case, key, None)
        for key in case.keys
        if key not in keys and not key.startswith(known) and key != "config"
    ]
    verdicts.append(unread(case))
    curves = _curves(case)
    worst = [_worst(case, run, curves, prefix) for run, prefix in zip(runs, ("", "float64/"), strict=True)]
    return Trajectory(verdicts, *worst)


def _check_case(case: Case) -> int:
    """Returns the number of steps; refuses a case whose parts do not agree on it."""
    try:
        count = int(case.options["epochs"]) * int(case.options["steps_per_epoch"])
        case.options["experiment"]
    except (KeyError, ValueError, TypeError) as error:
        raise VmrError(
            f"Expected experiment, epochs and steps_per_epoch in the config of {case.path}, found no {error}."
        ) from error
    steps = {key.split("/")[0] for key in case.keys if key.startswith("step")}
    lengths = {len(case.stored(key)) for key in case.keys if key.startswith("curve/")}
    if len(steps) != count or lengths != {count}:
        raise VmrError(
            f"Expected {count} steps (epochs x steps_per_epoch of its config) in {case.path}, found "
            f"{len(steps)} batches and curves of {sorted(lengths)} numbers."
        )
    return count


def _compose(cfg: DictConfig, case: Case, overrides: Sequence[str]) -> DictConfig:
    """Composes the case's experiment as `vmr train` would, in `variant: released`."""
    experiment = case.options["experiment"]
    composed = compose("train", [f"experiment={experiment}", "variant=released", *overrides])
    if composed.method["_target_"] != cfg.method["_target_"]:
        raise VmrError(
            f"{case.path} is a trajectory of experiment={experiment}, whose method is "
            f"{composed.choices.method}. Set method={composed.choices.method}."
        )
    return composed


def _load(composed: DictConfig, adapter: ReleasedTrajectory[Any], case: Case, dtype: torch.dtype) -> Method:
    """Builds the method, its constants in the given precision too, with the case's initial weights."""
    precision = DoublePrecision() if dtype == torch.float64 else Precision()
    with precision.module_init_context():
        method: Method = hydra.utils.instantiate(composed.method)
    adapter.released.names.load(method, case.group("init"))
    adapter.prepare(method, case)
    return method


def _curves(case: Case) -> list[str]:
    """Lists the curves of losses and of the gradient's norm, which both precisions have."""
    keys = [key.removeprefix("curve/") for key in case.keys if key.startswith("curve/")]
    return [key for key in keys if key.startswith("loss/") or key in ("total", "grad_norm")]


def _tolerances(adapter: ReleasedTrajectory[Any], key: str, steps: int, double: bool) -> tuple[float, Tensor]:
    """Returns the absolute and, for every step, the relative tolerance of a curve."""
    if key.removeprefix("loss/").rstrip("_0123456789") in adapter.counts:
        return 1e-3, torch.zeros(steps, dtype=torch.float64)
    if not double:
        relative32 = _NORM32 if key == "grad_norm" else _FLOAT32
        return _ZERO32, torch.full((steps,), relative32, dtype=torch.float64)
    relative = torch.full((steps,), _FLOAT64, dtype=torch.float64)
    if adapter.approximate:
        affected = key.removeprefix("loss/") in adapter.approximate or not key.startswith("loss/")
        relative[0 if affected else 1 :] = adapter.float64_tolerance
    return _ZERO64, relative


def _compare_curves(adapter: ReleasedTrajectory[Any], case: Case, single: Run, double: Run) -> list[Verdict]:
    """Compares losses, gradient norms, learning rates and the method's own curves at every step."""
    verdicts = []
    for run, prefix in ((single, "curve/"), (double, "curve/float64/")):
        numbers: dict[str, Number] = {}
        for key, value in run.curves.items():
            stored = case.stored(prefix + key) if prefix + key in case else value
            if key.startswith("loss/") or key in ("total", "grad_norm"):
                absolute, relative = _tolerances(adapter, key, len(value), run is double)
                numbers[key] = Number(value, absolute + relative * stored.abs())
            else:
                numbers[key] = Number(value, 0.0, _RATE)
        verdicts += [
            compare_array(case, prefix + key, number)
            for key, number in numbers.items()
            if prefix + key in case
        ]
        verdicts += [
            Verdict(prefix + key, float("nan"), 0.0, False, "the case lacks it")
            for key in numbers
            if prefix + key not in case and (run is single or key.startswith("loss/"))
        ]
    return verdicts


def _compare_steps(case: Case, run: Run) -> list[Verdict]:
    """Compares the arrays of every step that follow from others, and lists inputs that decide nothing."""
    verdicts = []
    notes: dict[str, tuple[int, str]] = {}
    for number, (part, inputs) in enumerate(zip(run.parts, run.inputs, strict=True)):
        prefix = f"step{number:02d}/"
        for key, count in inputs.violations.items():
            if key in inputs.notes:
                notes[key] = notes.get(key, (0, ""))[0] + count, inputs.notes[key]
            else:
                verdicts.append(Verdict(f"{prefix}{key} (possible)", count, 0.0, not count))
        for key in part.keys:
            if key in inputs.numbers:
                verdicts.append(compare_array(case, prefix + key, inputs.numbers[key]))
            elif key not in part.read:
                verdicts.append(compare_array(case, prefix + key, None))
    verdicts += [Verdict(f"step*/{key}", n, 0.0, not n, note) for key, (n, note) in notes.items()]
    return verdicts


def _worst(case: Case, run: Run, curves: Sequence[str], prefix: str) -> list[WorstTerm]:
    """Finds the curve that deviates most, relative to its stored value, at every step."""
    differences: Mapping[str, Tensor] = {
        key: (run.curves[key] - case.stored(f"curve/{prefix}{key}")).abs()
        / case.stored(f"curve/{prefix}{key}").abs().clamp(min=_ZERO32)
        for key in curves
        if key in run.curves and f"curve/{prefix}{key}" in case
    }
    names, table = list(differences), torch.stack(list(differences.values()))
    largest, index = table.max(0)
    return [
        WorstTerm(names[i].removeprefix("loss/"), d)
        for d, i in zip(largest.tolist(), index.tolist(), strict=True)
    ]
