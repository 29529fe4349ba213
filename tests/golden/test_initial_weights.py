"""Initial weights have the distributions of the authors' own initialisation, under both variants.

`cases/initial_weights.json` describes every weight that the trajectories start from, by our names:
its shape, mean, root mean square and largest absolute value; and, of layers in a stack, whether a later one
starts with the values of the first.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import hydra
import pytest
import torch
from omegaconf import OmegaConf, open_dict
from torch import Tensor

from golden.find import COMMITTED, golden_case
from vmr_zoo.config.compose import compose
from vmr_zoo.parity.case import Case
from vmr_zoo.parity.trajectories.recipe import plain

RECORDS = json.loads((COMMITTED / "initial_weights.json").read_text())
METHODS = ["moment_detr", "qd_detr", "bm_detr", "mesm", "emb", "mmn"]
SEEDS = 4
SIGMAS = 5


def described(weights: Mapping[str, Tensor]) -> dict[str, list[Any]]:
    """Shape, mean, rms and maximum of each weight, and whether it repeats that of the first layer."""
    found = {}
    for name, weight in weights.items():
        first = weights.get(re.sub(r"(\blayers\.)\d+", r"\g<1>0", name, count=1), weight)
        repeats = weight.shape == first.shape and bool((weight == first).all())
        values = weight.double()
        numbers = [float(x) for x in (values.mean(), values.square().mean().sqrt(), values.abs().max())]
        found[name] = [list(weight.shape), *(round(x, 6) for x in numbers), repeats]
    return found


def record(method: str, case: Case) -> dict[str, Any]:
    """What the case says about the authors' initial weights, and what builds a method of its sizes."""
    cfg = compose("parity", [f"method={method}", f"case={case.path}"])
    released = hydra.utils.instantiate(cfg.released)
    adapter = hydra.utils.instantiate(cfg.trajectory, released=released)
    named = {name: (released.names.ours(name), weight) for name, weight in case.group("init").items()}
    weights = {ours: released.names.keep(ours, weight) for ours, weight in named.values() if ours}
    settings = {key: plain(value) for key, value in adapter.settings(case).items() if key in adapter.sizes}
    return {
        "experiment": case.options["experiment"],
        "distilbert": case.options.get("distilbert"),
        "settings": settings,
        "weights": described(weights),
    }


def initial(method: str, variant: str, folder: Path) -> list[dict[str, Tensor]]:
    """Our weights for several seeds, by name."""
    known = RECORDS[method]
    overrides = [f"experiment={known['experiment']}", f"variant={variant}"]
    if known["distilbert"]:
        from transformers import DistilBertConfig, DistilBertModel

        DistilBertModel(DistilBertConfig(**known["distilbert"])).save_pretrained(folder)
        overrides += ["method/text=distilbert", f"method.text.folder={folder}"]
    cfg = compose("train", overrides)
    with open_dict(cfg):
        for key, value in known["settings"].items():
            OmegaConf.update(cfg.method, key, value, merge=False)
    seeds = []
    for seed in range(SEEDS):
        torch.manual_seed(seed)
        built = hydra.utils.instantiate(cfg.method)
        tensors = (*built.named_parameters(), *built.named_buffers())
        seeds.append({name: tensor.detach() for name, tensor in tensors})
    return seeds


def differences(theirs: list[Any], ours: Tensor) -> list[str]:
    """What distinguishes our values (seeds, ...) from the authors', beyond sampling error."""
    _, mean, rms, largest, _ = theirs
    count = ours[0].numel()
    values = ours.double()
    spread = SIGMAS * rms * math.sqrt(1 / count + 1 / values.numel())
    found = {"mean": float(values.mean()), "rms": float(values.square().mean().sqrt())}
    bounds = {"mean": spread, "rms": spread * math.sqrt(0.5)}
    expected = {"mean": mean, "rms": rms, "max": largest}
    if count == 1 and values.max() > values.min():  # one drawn value says nothing about its distribution
        return []
    if abs(mean) == largest == rms:  # a constant
        bounds = dict.fromkeys(bounds, 1e-6)
    elif count >= 100 and largest < 1.8 * rms:  # uniform: the largest value is close to the bound
        found["max"] = float(values.abs().max())
        bounds["max"] = largest * 10 / count
    return [
        f"{key} {value:.4f}, the authors' {expected[key]:.4f}"
        for key, value in found.items()
        if abs(value - expected[key]) > bounds[key]
    ]


@pytest.mark.parametrize("variant", ["released", "paper"])
@pytest.mark.parametrize("method", METHODS)
def test_they_are_drawn_as_the_authors_draw_them(method, variant, tmp_path):
    theirs, seeds = RECORDS[method]["weights"], initial(method, variant, tmp_path)
    common = [n for n, known in theirs.items() if n in seeds[0] and list(seeds[0][n].shape) == known[0]]
    assert len(common) > (len(theirs) - 1 if variant == "released" else len(theirs) / 4)
    wrong, ours = {}, described(seeds[0])
    for name in common:
        found = differences(theirs[name], torch.stack([seed[name] for seed in seeds]))
        if ours[name][-1] != theirs[name][-1]:
            found.append(f"starts as in the first layer: {not theirs[name][-1]}")
        if found:
            wrong[name] = found
    assert not wrong


@pytest.mark.parametrize("method", METHODS)
def test_the_record_is_that_of_the_trajectory(method):
    case = Case(golden_case(f"trajectories/{method}_a.npz"))
    assert json.loads(json.dumps(record(method, case))) == RECORDS[method]
