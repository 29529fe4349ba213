"""The classes and functions that the configuration of a stored run may name.

Hydra builds whatever `_target_` names, so a run that somebody else made could call anything. Before a run is
rebuilt from its directory, every name in its configuration is looked up here: it must be one of `conf/`, one
of the short list below, or belong to a package that the user trusts (`VMR_TRUST`). Whole names are compared:
`vmr_zoo.utils.files.os.system` is not on the list, although it begins like our own.
"""

from __future__ import annotations

import functools
import importlib
import os
import re
from collections.abc import Iterator
from typing import Any

from vmr_zoo.config.compose import config_dir
from vmr_zoo.errors import VmrError

TRUST = "VMR_TRUST"
"""Environment variable: packages, modules or single classes, separated by commas; for runs of the hub also
models of the hub, as OWNER/NAME."""

_FURTHER = {
    "torch.nn": "CELU ELU GELU Identity LayerNorm LeakyReLU Mish PReLU ReLU RMSNorm SELU SiLU Softplus Tanh",
    "torch.optim": "Adagrad Adam Adamax AdamW NAdam RAdam RMSprop SGD",
    "torch.optim.lr_scheduler": "ConstantLR CosineAnnealingLR CosineAnnealingWarmRestarts ExponentialLR "
    "LinearLR MultiStepLR OneCycleLR PolynomialLR ReduceLROnPlateau StepLR",
    "lightning.pytorch.callbacks": "EarlyStopping ModelCheckpoint ModelSummary RichModelSummary "
    "RichProgressBar StochasticWeightAveraging TQDMProgressBar Timer",
    "lightning.pytorch.loggers": "CSVLogger MLFlowLogger TensorBoardLogger WandbLogger",
}
"""What `conf/` does not name but a command line reasonably does. It only computes, or logs a training."""

FORMER_NAMES = {
    "vmr_zoo.engine.loggers.wandb_logger": "vmr_zoo.engine.wandb_logger.wandb_logger",
    "vmr_zoo.engine.callbacks.progress": "vmr_zoo.engine.progress.progress",
    "vmr_zoo.engine.callbacks.PruneByMedian": "vmr_zoo.engine.callbacks.Prune",
}
"""What runs of vmr_zoo 0.2.0 name, and where it is now."""

_NAMED = re.compile(r"_target_: *([^\n]*)")
_NAME = re.compile(r"\b(?:vmr_zoo|torch|lightning)(?:\.\w+)+")


@functools.cache
def allowed_names() -> frozenset[str]:
    """Returns the names in `conf/` and those of the short list."""
    names = {f"{module}.{name}" for module, listed in _FURTHER.items() for name in listed.split()}
    for path in config_dir().rglob("*.yaml"):
        for rest in _NAMED.findall(path.read_text(encoding="utf-8")):
            names.update(_NAME.findall(rest))
    return frozenset(names)


def check_names(tree: Any, source: str) -> None:
    """Refuses a configuration that names anything else.

    Args:
        tree: plain, without interpolations.
        source: where it comes from, for the error.

    Raises:
        VmrError: with the key and the name.
    """
    for key, name in _names(tree, ""):
        if not isinstance(name, str) or not (name in allowed_names() or _is_trusted(name)):
            raise VmrError(
                f"{source} names {name!s:.200} at {key}. A run is rebuilt from what vmr_zoo itself names in "
                "conf/ alone: anything else could run a stranger's code. If it is a class of your own "
                f"package, name the package in the environment variable {TRUST} (docs/security.md)."
            )


def _names(tree: Any, key: str) -> Iterator[tuple[str, Any]]:
    """Yields key and value of every `_target_`, at any depth."""
    if isinstance(tree, dict):
        for name, value in tree.items():
            inside = f"{key}.{name}".lstrip(".")
            if name == "_target_":
                yield inside, value
            yield from _names(value, inside)
    elif isinstance(tree, list):
        for number, value in enumerate(tree):
            yield from _names(value, f"{key}[{number}]")


def trusted_entries() -> list[str]:
    """Returns what the user trusts, in the words of the environment variable."""
    return [entry.strip() for entry in os.environ.get(TRUST, "").split(",") if entry.strip()]


def _is_trusted(name: str) -> bool:
    """Returns whether a name stands for a class or function that a trusted package defines."""
    within = [entry for entry in trusted_entries() if name == entry or name.startswith(f"{entry}.")]
    if not within:
        return False
    module, _, leaf = name.rpartition(".")
    try:  # only modules inside of a trusted package are imported
        found = getattr(importlib.import_module(module), leaf)
    except (ImportError, ValueError, AttributeError):
        return False
    # A module also has what it imports: mine.os, mine.run_path.
    defined = f"{getattr(found, '__module__', '')}."
    return callable(found) and (name in within or any(defined.startswith(f"{entry}.") for entry in within))
