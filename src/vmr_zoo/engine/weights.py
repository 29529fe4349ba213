"""The weights of a run as safetensors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vmr_zoo.errors import VmrError
from vmr_zoo.runs.directory import CONFIG
from vmr_zoo.utils.files import atomic_path

if TYPE_CHECKING:
    from vmr_zoo.methods.base import Method

_PARTS = {"state_dict", "loops", "optimizer_states", "lr_schedulers", "callbacks", "epoch", "global_step"}
"""What Lightning needs to continue a training."""

_LISTED = 3
"""Weights that do not fit, named in an error."""


def export_weights(method: Method, path: Path) -> None:
    """Writes the weights and buffers of a method."""
    from safetensors.torch import save_model

    with atomic_path(path) as temporary:
        save_model(method, str(temporary))


def check_checkpoint(path: Path) -> int:
    """Refuses a last.ckpt that training cannot continue from.

    Returns:
        The number of optimizer steps after which it was written.

    Raises:
        VmrError: if it is cut short, something else, or lacks a part.
    """
    import torch

    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
        lacking = sorted(_PARTS - set(found)) if isinstance(found, dict) else sorted(_PARTS)
        reason = f"it has no {', '.join(lacking)}" if lacking else ""
    except OSError:
        raise
    except Exception as error:  # a broken file raises nearly anything
        reason = f"{type(error).__name__}: {' '.join(str(error).split()):.200}"
    if reason:
        raise VmrError(
            f"Cannot continue from {path}: {reason}. Copy the run again, or train it in another directory "
            "(run=DIR)."
        )
    return int(found["global_step"])


def load_weights(method: Method, path: Path, changes: Sequence[str] = ()) -> None:
    """Loads exported weights into a method built from the same configuration.

    Args:
        method: receives the weights.
        path: the file.
        changes: arguments that differ from the run's, for the error.

    Raises:
        VmrError: if the file is missing, broken or does not fit.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_model

    if not path.is_file():
        raise VmrError(
            f"{path.parent} has no {path.name}: its run did not finish. "
            "Continue it with vmr train … resume=true."
        )
    try:
        load_model(method, str(path))
    except SafetensorError as error:
        raise VmrError(
            f"{path} is not a safetensors file ({error}). It holds the weights of the run: copy it again, or "
            "train the run again."
        ) from error
    except RuntimeError as error:
        changed = f" with {', '.join(changes)}" if changes else ""
        header, *found = (line.strip() for line in str(error).splitlines() if line.strip())
        more = f" … and {len(found) - _LISTED} more." if len(found) > _LISTED else ""
        listed = " ".join([header, *found[:_LISTED]])
        raise VmrError(
            f"{path} does not fit the method in {CONFIG} beside it{changed}: {listed}{more}"
        ) from error
