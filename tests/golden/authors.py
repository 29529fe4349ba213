"""Weights as the authors' code names them, at any size, made from the names in a golden case."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from vmr_zoo.errors import VmrError
from vmr_zoo.released.weights import WeightNames

_NUMBERED = re.compile(r"((?:\.|^)(?:layers|convs|bn|input_txt_proj|input_vid_proj)\.)\d+\.")


def weights(
    module: nn.Module, names: WeightNames, like: Mapping[str, Tensor], seed: int = 0
) -> dict[str, Tensor]:
    """Random weights for `module` under the authors' names and in their shapes.

    Args:
        module: ours, of any size.
        names: how the authors name its weights.
        like: the weights of a golden case; layers that it lacks are named after those that it has.

    Returns:
        Weights by the authors' names, those that ours does not have included, as the golden case has them.
    """
    generator = torch.Generator().manual_seed(seed)
    ours = module.state_dict()
    templates = dict(like)
    for name in like:
        for layer in range(6):
            templates.setdefault(_NUMBERED.sub(rf"\g<1>{layer}.", name, count=1), like[name])
    made = {}
    for name in sorted(templates):
        try:
            target = names.ours(name)
        except VmrError:
            continue  # a layer that the authors' network never has
        if target is None:
            made[name] = templates[name]
        elif target in ours:
            made[name] = _theirs(target, ours[target], names, templates[name].dim(), generator)
    assert {names.ours(name) for name in made} - {None} == ours.keys()
    return made


def _theirs(
    name: str, ours: Tensor, names: WeightNames, dimensions: int, generator: torch.Generator
) -> Tensor:
    """Draws a weight in the authors' shape: more rows than ours, axes of size 1, EMB's 2D convolution."""
    shape = list(ours.shape)
    if name in names.rows:
        shape[0] += 1
    if name.endswith("depthwise.weight"):
        shape = [shape[0], 1, shape[2], shape[1]]
    shape += [1] * (dimensions - len(shape))
    if name.endswith("num_batches_tracked"):
        return torch.tensor(7)
    drawn = torch.randn(shape, generator=generator) * 0.3
    return drawn.abs() + 0.1 if name.endswith("running_var") else drawn
