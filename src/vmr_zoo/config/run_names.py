"""Names of runs, derived from the command line."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from typing import Any

from vmr_zoo.config.arguments import unquoted

_NOT_IN_RUN_NAME = {
    "data",
    "features",
    "method",
    "variant",
    "seed",
    "run",
    "resume",
    "search",
    "threads",
    "logger",
    "callbacks",
    # Files of data=jsonl: the names of data and protocol say which.
    "train",
    "selection",
    "test",
}
_NOT_IN_RUN_NAME_PREFIXES = (
    "paths.",
    "logger.",
    "callbacks.",
    "hydra.",
    "hydra/",
    "choices.",
    "data.residency",
    "data.num_workers",
    "features.packed",
    "trainer.accelerator",
    "trainer.enable_",
)
_EQUAL_TRAINERS = ("default", "cpu", "gpu", "mps")
"""Presets that choose the device alone."""
_LONGEST_RUN_NAME = 120


def run_name(method: str, variant: str, overrides: Iterable[str], keys: Iterable[str] = ()) -> str:
    """Names a run after the settings that distinguish it from others on the same data.

    Args:
        method: the chosen file in `conf/method`.
        variant: "paper" or "released".
        overrides: from the command line. Data, features, method, variant and seed have their own place in
            the path. Paths, loggers and callbacks do not change a result. Nor does features.packed: where
            packing changed a number, the features have another name.
        keys: every key of the configuration. A key is named by its last part, or by as many as distinguish
            it from the others: two runs that differ never have the same name.

    Returns:
        Such as `bm_detr-paper` or `bm_detr-paper+decoder_memory-raw+no_shift`: one directory name, in
        characters that `run=DIR` takes without quotes.
    """
    parts, known = [], [f".{key}" for key in keys]
    for key, value in result_overrides(sorted(overrides)):
        if key in ("experiment", "ablation", "switch"):
            items = [item.strip().split("/")[-1] for item in value.strip("[]").split(",")]
            parts += [item for item in items if item not in ("", "full")]
        else:
            parts.append(f"{_short_key(key, known)}-{value}")
    name = "+".join([f"{method}-{variant}", *(re.sub(r"[^\w.@-]+", "_", part) for part in parts)])
    if len(name) > _LONGEST_RUN_NAME:
        digest = hashlib.sha256(name.encode()).hexdigest()[:8]
        name = f"{name[:_LONGEST_RUN_NAME]}+{digest}"
    return name


def _short_key(key: str, known: list[str]) -> str:
    """Returns the shortest end of a dotted key that no other key has."""
    words = key.split(".")
    for count in range(1, len(words)):
        end = ".".join(words[-count:])
        if not any(other.endswith(f".{end}") and other != f".{key}" for other in known):
            return end
    return key


def result_overrides(overrides: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yields key and value of the overrides that can change a result and are part of the run's name."""
    for override in overrides:
        key, _, value = override.lstrip("+~").partition("=")
        if key == "trainer" and unquoted(value) in _EQUAL_TRAINERS:
            continue
        if key not in _NOT_IN_RUN_NAME and not key.startswith(_NOT_IN_RUN_NAME_PREFIXES):
            yield key, unquoted(value)


def job_origin() -> dict[str, Any]:
    """Returns where the settings of the current Hydra job come from, for the header of its results.

    Returns:
        "overrides" by key; and for a trial of a search its search space, "search". Nothing outside of Hydra.
    """
    from hydra.core.hydra_config import HydraConfig

    if not HydraConfig.initialized():
        return {}
    hydra = HydraConfig.get()
    origin: dict[str, Any] = {"overrides": dict(result_overrides(hydra.overrides.task))}
    search = hydra.runtime.choices.get("search")
    return origin if search in (None, "null") else {**origin, "search": str(search)}
