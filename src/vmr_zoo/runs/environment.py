"""The environment of a run: packages, git revision, hardware."""

from __future__ import annotations

import functools
import os
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from vmr_zoo.utils.machine import processor, total_memory


def describe_environment(seed: int) -> dict[str, Any]:
    """Describes the environment of a run.

    Args:
        seed: the run's seed.

    Returns:
        Package versions, git revision and whether the checkout had changes, hardware, seed, torch threads,
        and the names of preloaded libraries, which can replace kernels.
    """
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "seed": seed,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": processor(),
        "cpus": os.cpu_count(),
        "memory_gib": round(total_memory() / 2**30, 1),
        "gpus": gpus,
        "cuda": torch.version.cuda if gpus else None,
        "torch_threads": torch.get_num_threads(),
        "preloaded": [Path(one).name for one in re.split("[ :]+", os.environ.get("LD_PRELOAD", "")) if one],
        "git": _git_state(),
        "packages": dict(_packages()),
    }


@functools.cache
def _packages() -> tuple[tuple[str, str], ...]:
    """Returns names and versions of the installed packages; reading them takes most of a second."""
    found = (dist.metadata for dist in metadata.distributions())
    return tuple(
        sorted({one["Name"]: one["Version"] for one in found}.items(), key=lambda item: item[0].lower())
    )


def _git_state() -> dict[str, Any] | None:
    """Returns the revision of the checkout that the package runs from, None for an installed wheel."""
    checkout = Path(__file__).resolve().parents[3]
    if not (checkout / ".git").exists():
        return None
    try:
        revision = _git(checkout, "rev-parse", "HEAD").strip()
        changes = _git(checkout, "status", "--porcelain").strip()
    except (OSError, subprocess.SubprocessError) as error:
        return {"revision": None, "error": str(error)}
    return {"revision": revision, "dirty": bool(changes)}


def _git(checkout: Path, *args: str) -> str:
    return subprocess.run(
        ["git", *args], cwd=checkout, capture_output=True, text=True, check=True, timeout=10
    ).stdout
