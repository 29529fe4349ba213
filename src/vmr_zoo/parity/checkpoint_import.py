"""`vmr import`: turn a checkpoint of the authors' code into a run directory that `vmr eval` accepts."""

from __future__ import annotations

import argparse
import logging
import pickle
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
import torch
from omegaconf import DictConfig, open_dict
from torch import Tensor

from vmr_zoo.config.compose import compose
from vmr_zoo.errors import VmrError, some
from vmr_zoo.methods.base import Method, parameter_count
from vmr_zoo.parity.case import Released
from vmr_zoo.parity.check import build
from vmr_zoo.runs import directory
from vmr_zoo.utils.files import atomic_path

if TYPE_CHECKING:
    from vmr_zoo.data.batches.datamodule import VMRDataModule

log = logging.getLogger(__name__)

_OWN_KEYS = ("checkpoint=", "out=", "released=", "variant=")
_WEIGHTS = ("model", "state_dict")
_OPTIONS = "configs.json"


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads an authors' checkpoint without running any code in it.

    Args:
        path: a file written by `torch.save`: a dict with the weights under `model` (EMB: `state_dict`) and,
            from the Moment-DETR family, the options under `opt` (a dict, an `argparse.Namespace` or an
            `EasyDict`); or the weights alone.

    Returns:
        Weights by the authors' names, without a leading "module."; and options, if not in the file, then
        those of `configs.json` beside it (EMB), else none (MMN).

    Raises:
        VmrError: if it cannot be read, holds objects other than those, or lacks the weights.
    """
    if not path.is_file():
        raise VmrError(
            f"Expected the authors' checkpoint at {path}, found no such file. Name it: checkpoint=FILE."
        )
    # An EasyDict is a dict whose keys are attributes too: the keys are all that is wanted.
    safe: list[Any] = [argparse.Namespace, OrderedDict, (OrderedDict, "easydict.EasyDict")]
    try:
        with torch.serialization.safe_globals(safe):
            stored = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"an object of {found[1]}" if found else "something else"
        raise VmrError(
            f"Expected tensors, plain values and argparse.Namespace or EasyDict options in {path}, "
            f"found {what}. It is not loaded, since unpickling it could run any code."
        ) from error
    except Exception as error:  # what a broken file raises depends on the byte
        raise VmrError(
            f"{path} is no checkpoint that torch.load can read: {error}. Copy or download it again."
        ) from error
    weights = _weights_in(stored)
    if weights is None:
        held = some(map(str, stored)) if isinstance(stored, Mapping) else type(stored).__name__
        raise VmrError(
            f"Expected {' or '.join(map(repr, _WEIGHTS))}, tensors by name, in {path}, found {held}. Is it "
            "the released code's checkpoint?"
        )
    options = stored.get("opt")
    if options is None:
        beside = path.parent / _OPTIONS
        options = directory.read_json(beside) if beside.is_file() else {}
    if isinstance(options, argparse.Namespace):
        options = vars(options)
    if not isinstance(options, Mapping):
        raise VmrError(f"Expected the authors' options by name with {path}, found {type(options).__name__}.")
    return {name.removeprefix("module."): weight for name, weight in weights.items()}, dict(options)


def _weights_in(stored: Any) -> Mapping[str, Tensor] | None:
    """Finds tensors by name: under one of the authors' keys, or alone."""
    if not isinstance(stored, Mapping):
        return None
    inner = next((stored[key] for key in _WEIGHTS if key in stored), stored)
    if not isinstance(inner, Mapping) or not inner:
        return None
    return inner if all(isinstance(weight, Tensor) for weight in inner.values()) else None


def configuration(released: Released, options: Mapping[str, Any], overrides: Sequence[str]) -> DictConfig:
    """Composes the configuration of the run that the checkpoint stands for.

    Args:
        released: the method's released code.
        options: the authors' options.
        overrides: of `vmr import`; data, if neither they nor an experiment among them say, is what the
            options name.

    Returns:
        What `vmr train` would have composed, in `variant: released`.
    """
    kept = [text for text in overrides if not text.lstrip("+~").startswith(_OWN_KEYS)]
    if not any(text.startswith(("data=", "experiment=")) for text in kept):
        kept.append(f"data={released.data(options)}")
    return compose("train", [*kept, "variant=released"])


def convert(checkpoint: Path, out: Path, released: Released, overrides: Sequence[str]) -> Method:
    """Writes a run directory for a checkpoint.

    Args:
        checkpoint: the authors' file.
        out: the directory to make; must be empty or absent.
        released: the method's released code.
        overrides: of the command line.

    Returns:
        The method with the imported weights.

    Raises:
        VmrError: if the checkpoint does not fit, or the directory is taken.
    """
    from safetensors.torch import save_model

    directory.check_free(out, resume=False)
    weights, options = read(checkpoint)
    cfg = configuration(released, options, overrides)
    with open_dict(cfg):
        cfg.run, cfg.name = str(out), f"{cfg.choices.method}-imported"
    served = (cfg.features.video_dim, cfg.features.query_dim)
    method = build(cfg, released, dict(options), weights)
    left_out = released.names.left_out(weights)
    for why, names in left_out.items():
        log.info(f"Not imported: {some(names, 4)}; {why}.")
    if not options:
        log.info(f"{checkpoint.name} comes without options: what its weights do not tell is as configured.")
    # A method with a text encoder of its own reads no query features.
    wanted = (cfg.method.video_dim, cfg.method.get("query_dim", served[1]))
    if served != wanted:
        raise VmrError(
            f"The checkpoint reads video and query features of {wanted[0]} and {wanted[1]} dimensions; "
            f"features={cfg.features.name} has {served[0]} and {served[1]}. Name those that it was "
            "trained on: features=…"
        )
    data: VMRDataModule = hydra.utils.instantiate(cfg.data, needs=method.needs)
    header = {
        "name": cfg.name,
        "method": cfg.choices.method,
        "variant": "released",
        "protocol": data.protocol.name,
        "features": data.features.name,
        "origin": data.features.origin,
        "selection": "not recorded",
        "selection_metric": "the authors",
        "rounding": method.metrics.settings.rounding.description,
        "seed": cfg.seed,
        "parameters": parameter_count(method),
        "imported_from": checkpoint.name,
        "not_imported": left_out,
    }
    directory.open_new(out, directory.relocatable(cfg), resume=False)
    with atomic_path(out / directory.WEIGHTS) as temporary:
        save_model(method, str(temporary))
    directory.write_json(out / directory.MANIFEST, data.features.manifest())
    directory.write_json(out / directory.METRICS, {directory.HEADER: header})
    directory.write_json(
        out / "released_options.json", {key: _plain(value) for key, value in options.items()}
    )
    return method


def _plain(value: Any) -> Any:
    """Keeps what JSON can hold, and the text of anything else."""
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def main(cfg: DictConfig) -> int:
    """Runs `vmr import method=… checkpoint=FILE out=DIR`.

    Args:
        cfg: composed from conf/import.yaml.

    Returns:
        0 once the run directory is written.

    Raises:
        VmrError: if the method has no released code, or the checkpoint does not fit.
    """
    from hydra.core.hydra_config import HydraConfig

    if cfg.get("released") is None:
        raise VmrError("This method has no released code to import from; those that have: conf/released/.")
    job = HydraConfig.get()
    search = [text for text in job.overrides.hydra if text.startswith("hydra.searchpath=")]
    overrides = [*search, *job.overrides.task]
    if not any(text.startswith("method=") for text in overrides):
        overrides.append(f"method={job.runtime.choices['method']}")
    out = Path(cfg.out)
    method = convert(Path(cfg.checkpoint), out, hydra.utils.instantiate(cfg.released), overrides)
    log.info(f"{parameter_count(method)} parameters of {Path(cfg.checkpoint).name} -> {out}")
    log.info(f"Score it: vmr eval run={out}")
    return 0
