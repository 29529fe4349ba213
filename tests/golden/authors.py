"""Weights as the authors' code names them, at any size, made from the names in a golden case."""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from vmr_zoo.released.weights import WeightNames


def weights(module: nn.Module, names: WeightNames, like: Iterable[str], seed: int = 0) -> dict[str, Tensor]:
    """Random weights for `module` under the authors' names.

    Args:
        module: ours, of any size.
        names: how the authors name its weights.
        like: the names in a golden case; layers that it lacks are named after its first and second one.

    Returns:
        Weights by the authors' names, those that are never used included.
    """
    generator = torch.Generator().manual_seed(seed)
    ours = dict(module.named_parameters())
    candidates = set(like)
    for name in like:
        if re.search(r"layers\.1\.", name) and "transformer" in name and "coder.layers" in name:
            candidates |= {re.sub(r"layers\.1\.", f"layers.{i}.", name, count=1) for i in range(2, 6)}
    made = {}
    for name in sorted(candidates):
        target = names.ours(name)
        if target is None:
            made[name] = torch.randn(3, generator=generator)
        elif target in ours:
            shape = list(ours[target].shape)
            if target in names.rows:
                shape[0] += 1
            made[name] = torch.randn(shape, generator=generator) * 0.3
    assert {names.ours(name) for name in made} - {None} == ours.keys()
    return made
