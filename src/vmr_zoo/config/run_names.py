"""Names of runs, derived from the command line."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable

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
_LONGEST_RUN_NAME = 120


def run_name(method: str, variant: str, overrides: Iterable[str]) -> str:
    """Names a run after the settings that distinguish it from others on the same data.

    Args:
        method: the chosen file in `conf/method`.
        variant: "paper" or "released".
        overrides: from the command line. Data, features, method, variant and seed have their own place in
            the path. Paths, loggers and callbacks do not change a result. Nor does features.packed: where
            packing changed a number, the features have another name.

    Returns:
        Such as `bm_detr-paper` or `bm_detr-paper+decoder_memory-raw+no_shift`: one directory name, in
        characters that `run=DIR` takes without quotes.
    """
    parts = []
    for override in sorted(overrides):
        key, _, value = override.lstrip("+~").partition("=")
        if key in _NOT_IN_RUN_NAME or key.startswith(_NOT_IN_RUN_NAME_PREFIXES):
            continue
        if key in ("experiment", "ablation", "switch"):
            items = [item.strip().split("/")[-1] for item in value.strip("[]").split(",")]
            parts += [item for item in items if item not in ("", "full")]
        else:
            parts.append(f"{key.split('.')[-1]}-{value}")
    name = "+".join([f"{method}-{variant}", *(re.sub(r"[^\w.@-]+", "_", part) for part in parts)])
    if len(name) > _LONGEST_RUN_NAME:
        digest = hashlib.sha256(name.encode()).hexdigest()[:8]
        name = f"{name[:_LONGEST_RUN_NAME]}+{digest}"
    return name
