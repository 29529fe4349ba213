"""Waiting for a GPU, and the peak of memory: of torch on a GPU, else of the process."""

from __future__ import annotations

import torch

from vmr_zoo.utils.machine import peak_memory, reset_peak_memory


def synchronise(device: torch.device | str) -> None:
    """Waits until a GPU has done what it was given."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def reset_peak(device: torch.device | str) -> None:
    """Starts a new measurement of `peak_gb`."""
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        reset_peak_memory()


def peak_gb(device: torch.device | str) -> float:
    """Returns the most memory in GB since `reset_peak`."""
    if torch.device(device).type == "cuda":
        return float(torch.cuda.max_memory_allocated(device)) / 1e9
    return peak_memory() / 1e9
