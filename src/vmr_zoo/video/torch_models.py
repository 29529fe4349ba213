"""Device, precision and weights of encoders that are torch models."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file
from torch import nn

from vmr_zoo.errors import VmrError

Precision = Literal["float32", "bfloat16", "float16"]


def find_device(name: str | None) -> torch.device:
    """Returns a device by name; None: a GPU if available."""
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise VmrError(f"Expected device=cpu, cuda or cuda:N; found device={name}.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise VmrError(f"device={name} was requested, but torch finds no GPU. Set device=cpu.")
    return device


@contextlib.contextmanager
def inference(device: torch.device, dtype: Precision) -> Iterator[None]:
    """Disables gradients and computes in the given precision where torch considers it safe (autocast)."""
    with (
        torch.inference_mode(),
        torch.autocast(device.type, dtype=getattr(torch, dtype), enabled=dtype != "float32"),
    ):
        yield


@contextlib.contextmanager
def same_random_weights() -> Iterator[None]:
    """Gives modules that are built inside the same random weights every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def read_state(path: Path) -> dict[str, Any]:
    """Reads a file of weights to the CPU: safetensors by its suffix, else what `torch.save` wrote.

    Pickled code is never executed.
    """
    if path.suffix == ".safetensors":
        return load_file(path)
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def weights_hash(module: nn.Module) -> str:
    """Returns 16 hex digits of a SHA-256 over names, types, shapes and values of a module's state."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
