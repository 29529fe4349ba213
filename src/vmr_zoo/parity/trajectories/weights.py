"""Compares the weights after the last step, and what rounding did to the authors' own."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from vmr_zoo.parity.case import Case
from vmr_zoo.parity.check import Verdict
from vmr_zoo.parity.trajectories.base import ReleasedTrajectory
from vmr_zoo.parity.trajectories.training import Run

_MOVEMENT = 3e-4  # of the norm that all weights moved by
_NOISY = 1e-4  # a weight that rounding alone moves by more has no meaningful value in float32
_NOISE = 0.01  # relative, of the noise
_ROUNDING = 0.1  # of the relative tolerance of losses in float64: what a weight may differ by


class _Weight(NamedTuple):
    """One weight of the authors'.

    Attributes:
        start: its initial value.
        final: its last value.
        single: ours in float32.
        double: ours in float64.
    """

    start: Tensor
    final: Tensor
    single: Tensor
    double: Tensor

    @property
    def error(self) -> Tensor:
        """Norm of the difference in float32."""
        return (self.single.double() - self.final.double()).norm()

    @property
    def noise(self) -> Tensor:
        """The largest difference of the authors' float32 value and ours in float64."""
        return (self.final.double() - self.double.double()).abs().max()


def compare_weights(adapter: ReleasedTrajectory[Any], case: Case, single: Run, double: Run) -> list[Verdict]:
    """Compares the final weights in float32, and their distance from those in float64 with the stored noise.

    Args:
        adapter: of the method.
        case: the case.
        single: the run in float32.
        double: the run in float64.

    Returns:
        One verdict per array of `final` and `noise`, and one for all weights together.
    """
    weights = _weights(adapter, case, (single, double))
    verdicts, errors, movements = [], [], []
    for name, weight in weights.items():
        key = f"noise/{name}"
        if key in case and float(case.stored(key)) <= _NOISY:
            errors.append(weight.error)
            movements.append((weight.final.double() - weight.start.double()).norm())
    error, movement = (float(torch.stack(x).norm()) for x in (errors, movements))
    limit = _MOVEMENT * movement
    for name, weight in weights.items():
        key = f"noise/{name}"
        noisy = key in case and float(case.stored(key)) > _NOISY
        exact = not weight.final.is_floating_point()
        tolerance = 0.0 if exact else limit
        passed = noisy or float(weight.error) <= tolerance
        note = "moves by rounding alone" if noisy else ""
        verdicts.append(Verdict(f"final/{name}", float(weight.error), tolerance, passed, note))
        if key in case:
            stored = float(case.stored(key))
            allowed = _ROUNDING * adapter.float64_tolerance + _NOISE * stored
            difference = abs(float(weight.noise) - stored)
            verdicts.append(Verdict(key, difference, allowed, difference <= allowed))
    verdicts.append(Verdict("final/*", error, limit, error <= limit, f"of a movement of {movement:.3g}"))
    return verdicts


def _weights(adapter: ReleasedTrajectory[Any], case: Case, runs: tuple[Run, Run]) -> dict[str, _Weight]:
    """Pairs the authors' weights with ours; those that a run does not have are left out."""
    start, final = case.part("init"), case.part("final")
    names = adapter.released.names
    constants = [adapter.constants(run.method) for run in runs]
    found = {}
    for name in final.keys:
        before, after = start.stored(name), final.stored(name)
        own = names.ours(name)
        if name in constants[0]:
            found[name] = _Weight(before, after, *(each[name] for each in constants))
        elif own is None:  # without a gradient it stays
            found[name] = _Weight(before, after, before, before)
        else:
            values = [run.method.state_dict()[own] for run in runs]
            before, after = names.keep(own, before), names.keep(own, after)
            found[name] = _Weight(before, after, *values)
            if own in names.rows:
                found[name] = _with_unused_rows(found[name], start, final, name, names.rows[own], runs, own)
    return found


def _with_unused_rows(
    weight: _Weight, start: Case, final: Case, name: str, rows: int, runs: tuple[Run, Run], own: str
) -> _Weight:
    """Adds the rows that only the authors have. Their gradient is 0: the decay alone moves them."""
    before, after = start.stored(name)[rows:], final.stored(name)[rows:]
    values = []
    for run, value in zip(runs, weight[2:], strict=True):
        parameter = run.method.get_parameter(own)
        group = next(
            i
            for i, each in enumerate(run.optimizer.param_groups)
            if any(p is parameter for p in each["params"])
        )
        values.append(torch.cat((value, before.to(value.dtype) * run.decay[group])))
    return _Weight(torch.cat((weight.start, before)), torch.cat((weight.final, after)), *values)
