"""Converts checkpoints of the authors' code into run directories that `vmr eval` accepts."""

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
from vmr_zoo.engine.weights import export_weights
from vmr_zoo.errors import VmrError, abbreviate
from vmr_zoo.methods.base import Method, parameter_count
from vmr_zoo.parity.case import Released
from vmr_zoo.parity.check import build_released
from vmr_zoo.runs import directory, resume
from vmr_zoo.utils.files import write_json

if TYPE_CHECKING:
    from vmr_zoo.data.batches.datamodule import VMRDataModule

log = logging.getLogger(__name__)

_OWN_KEYS = ("checkpoint=", "out=", "released=", "variant=")
_WEIGHT_KEYS = ("model", "state_dict")
_OPTIONS_FILE = "configs.json"


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads an authors' checkpoint without executing code in it.

    Args:
        path: a file written by `torch.save`: a dict with the weights under `model` (EMB: `state_dict`) and,
            in the Moment-DETR family, the options under `opt` (a dict, an `argparse.Namespace` or an
            `EasyDict`); or the weights alone.

    Returns:
        Weights by the authors' names, without a leading "module."; and options, from the file, else from
        `configs.json` beside it (EMB), else empty (MMN).

    Raises:
        VmrError: if the file cannot be read, contains other objects, or lacks the weights.
    """
    if not path.is_file():
        raise VmrError(
            f"Expected the authors' checkpoint at {path}, found no such file. Set checkpoint=FILE."
        )
    stored = _load_safely(path)
    weights = _find_weights(stored)
    if weights is None:
        held = abbreviate(map(str, stored)) if isinstance(stored, Mapping) else type(stored).__name__
        raise VmrError(
            f"Expected {' or '.join(map(repr, _WEIGHT_KEYS))}, tensors by name, in {path}, found {held}. Is "
            "it a checkpoint of the released code?"
        )
    options = stored.get("opt")
    if options is None:
        beside = path.parent / _OPTIONS_FILE
        options = directory.read_json(beside) if beside.is_file() else {}
    if isinstance(options, argparse.Namespace):
        options = vars(options)
    if not isinstance(options, Mapping):
        raise VmrError(f"Expected the authors' options by name with {path}, found {type(options).__name__}.")
    return {name.removeprefix("module."): weight for name, weight in weights.items()}, dict(options)


def _load_safely(path: Path) -> Any:
    """Loads tensors, plain values and option objects; refuses everything else."""
    # An EasyDict is a dict whose keys are also attributes: the keys are enough.
    safe: list[Any] = [argparse.Namespace, OrderedDict, (OrderedDict, "easydict.EasyDict")]
    try:
        with torch.serialization.safe_globals(safe):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"an object of {found[1]}" if found else "something else"
        raise VmrError(
            f"Expected tensors, plain values and argparse.Namespace or EasyDict options in {path}, "
            f"found {what}. The file is not loaded, because unpickling it could execute any code."
        ) from error
    except Exception as error:  # its type depends on which byte is broken
        raise VmrError(
            f"{path} is not a checkpoint that torch.load can read: {error}. Copy or download it again."
        ) from error


def _find_weights(stored: Any) -> Mapping[str, Tensor] | None:
    """Returns the tensors by name, under one of the authors' keys or at the top level."""
    if not isinstance(stored, Mapping):
        return None
    inner = next((stored[key] for key in _WEIGHT_KEYS if key in stored), stored)
    if not isinstance(inner, Mapping) or not inner:
        return None
    return inner if all(isinstance(weight, Tensor) for weight in inner.values()) else None


def imported_config(released: Released, options: Mapping[str, Any], overrides: Sequence[str]) -> DictConfig:
    """Composes the configuration that `vmr train` would use for such a run, in `variant: released`.

    Args:
        released: adapter of the authors' code.
        options: the authors' options.
        overrides: overrides of `vmr import`; without data= or experiment=, the options determine the data.
    """
    kept = [text for text in overrides if not text.lstrip("+~").startswith(_OWN_KEYS)]
    if not any(text.startswith(("data=", "experiment=")) for text in kept):
        kept.append(f"data={released.data(options)}")
    return compose("train", [*kept, "variant=released"])


def import_checkpoint(checkpoint: Path, out: Path, released: Released, overrides: Sequence[str]) -> Method:
    """Writes a run directory for a checkpoint.

    Args:
        checkpoint: the authors' file.
        out: the directory to create; must be empty or absent.
        released: adapter of the authors' code.
        overrides: overrides of `vmr import`.

    Returns:
        The method with the imported weights.

    Raises:
        VmrError: if the checkpoint does not fit the configuration, or the directory is not empty.
    """
    resume.check_free(out, resume=False)
    weights, options = read_checkpoint(checkpoint)
    cfg = imported_config(released, options, overrides)
    with open_dict(cfg):
        cfg.run, cfg.name = str(out), f"{cfg.choices.method}-imported"
    method = build_released(cfg, released, dict(options), weights)
    not_imported = released.names.left_out(weights)
    for why, names in not_imported.items():
        log.info(f"Not imported: {abbreviate(names, 4)}; {why}.")
    if not options:
        log.info(f"{checkpoint.name} has no options: what its weights do not determine is as configured.")
    _check_feature_widths(cfg)
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
        "not_imported": not_imported,
    }
    _write_run(out, cfg, method, data, header, options)
    return method


def _check_feature_widths(cfg: DictConfig) -> None:
    """Refuses features of other dimensions than the checkpoint reads."""
    available = (cfg.features.video_dim, cfg.features.query_dim)
    # A method with its own text encoder reads no query features.
    expected = (cfg.method.video_dim, cfg.method.get("query_dim", available[1]))
    if available != expected:
        raise VmrError(
            f"The checkpoint reads video and query features of {expected[0]} and {expected[1]} dimensions; "
            f"features={cfg.features.name} has {available[0]} and {available[1]}. Select the features that "
            "it was trained on: features=…"
        )


def _write_run(
    out: Path,
    cfg: DictConfig,
    method: Method,
    data: VMRDataModule,
    header: Mapping[str, Any],
    options: Mapping[str, Any],
) -> None:
    resume.start_or_resume(out, directory.relocatable(cfg), resume=False)
    export_weights(method, out / directory.WEIGHTS)
    write_json(out / directory.MANIFEST, data.features.manifest())
    digest = {directory.DIGEST: directory.weights_digest(out)}
    write_json(out / directory.METRICS, {directory.HEADER: {**header, **digest}})
    write_json(out / "released_options.json", {key: _jsonable(value) for key, value in options.items()})


def _jsonable(value: Any) -> Any:
    """Converts a value for JSON; other types become text."""
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _jsonable(item) for key, item in value.items()}
    return value if isinstance(value, str | int | float | bool | None) else str(value)
