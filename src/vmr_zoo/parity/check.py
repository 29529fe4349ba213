"""Compares every number in a golden case with what our code computes from the same inputs and weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import hydra
import torch
from omegaconf import DictConfig, OmegaConf, open_dict
from torch import Tensor, nn

from vmr_zoo.methods.base import Method
from vmr_zoo.parity.case import Case, Number, Released

GIVEN = ("param/", "input/", "target/")
"""Prefixes of arrays that may be inputs; all others must be recomputed."""

_ROUNDING = 1e-6  # of the inputs of an activation, as a share of their standard deviation
_MOVED = "with kinks moved"


class Verdict(NamedTuple):
    """The comparison of one array.

    Attributes:
        key: name of the array in the case.
        difference: the largest absolute difference; NaN if the array could not be compared.
        tolerance: the largest tolerance of any entry.
        passed: whether every entry is within its tolerance.
        note: why the array could not be compared, or that it passed with kinks moved (`_moved_kinks`); else
            "".
    """

    key: str
    difference: float
    tolerance: float
    passed: bool
    note: str = ""


def check_case(released: Released, method: Method, case: Case) -> list[Verdict]:
    """Recomputes a case and compares every array in it.

    Args:
        released: adapter of the authors' code.
        method: the method, with the case's weights.
        case: the case.

    Returns:
        One verdict per array, in the order of the file. Inputs (weights, features, random draws) are omitted
        unless they can be recomputed from others. An array that is neither an input nor recomputed fails.
    """
    weights = copy.deepcopy(method.state_dict())
    verdicts = _compare(released, method, case)
    failed = {one.key for one in verdicts if not one.passed}
    if not failed or not all("grad" in key or key.startswith("after") for key in failed):
        return verdicts
    for share in (-_ROUNDING, _ROUNDING):
        method.load_state_dict(weights)
        with _moved_kinks(method, share):
            moved = _compare(released, method, case)
        if all(one.passed for one in moved):
            return [one._replace(note=_MOVED) if one.key in failed else one for one in moved]
    return verdicts


def _compare(released: Released, method: Method, case: Case) -> list[Verdict]:
    numbers = released.recompute(method, case)
    given = {key for key in case.read if key.startswith(GIVEN) and key not in numbers} | {"config"}
    return [compare_array(case, key, numbers.get(key)) for key in case.keys if key not in given]


@contextmanager
def _moved_kinks(method: Method, share: float) -> Iterator[None]:
    """Moves the inputs of activations with a kink at 0 by a share of their standard deviation.

    One that is 0 but for rounding has another gradient on either side, and which side that is depends on the
    processor. One such input of `mesm_b` changes the norm of all gradients by 0.1 %, and no loss by 1e-6.
    """

    def moved(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (inputs[0] + share * inputs[0].detach().std(), *inputs[1:])

    hooks = [
        module.register_forward_pre_hook(moved)
        for module in method.modules()
        if isinstance(module, (nn.ReLU, nn.PReLU))
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def compare_array(case: Case, key: str, number: Number | None) -> Verdict:
    """Compares one array of a case; NaN equals only NaN.

    Args:
        case: the case.
        key: name of the array.
        number: the recomputed array; None if it was not recomputed.
    """
    if number is None:
        return Verdict(key, math.nan, math.nan, False, "not recomputed")
    stored = case.stored(key).double()
    value = number.value.detach().double()
    if value.shape != stored.shape:
        return Verdict(key, math.nan, math.nan, False, f"{tuple(value.shape)}, stored {tuple(stored.shape)}")
    difference = (value - stored).abs()
    difference = torch.where(value.isnan() & stored.isnan(), torch.zeros_like(difference), difference)
    tolerance = torch.as_tensor(number.atol, dtype=torch.float64) + number.rtol * stored.nan_to_num().abs()
    tolerance = tolerance.expand_as(difference)
    if number.where is not None:
        where = number.where.expand_as(difference)
        difference, tolerance = difference[where], tolerance[where]
    if difference.numel() == 0:
        return Verdict(key, 0.0, 0.0, True, "empty")
    passed = bool((difference <= tolerance).all())  # False for NaN
    return Verdict(key, float(difference.max()), float(tolerance.max()), passed)


def build_released(cfg: DictConfig, released: Released, options: dict[str, Any], weights: Any) -> Method:
    """Builds a method in `variant: released` with the authors' settings and weights.

    Args:
        cfg: a composed configuration with a `method` node; modified in place.
        released: adapter of the authors' code.
        options: the authors' options.
        weights: the weights by the authors' names.
    """
    with open_dict(cfg):
        cfg.variant = "released"
        for key, value in released.settings(options, weights).items():
            OmegaConf.update(cfg.method, key, value, merge=False)
    method: Method = hydra.utils.instantiate(cfg.method)
    released.names.load(method, weights)
    return method
