"""A device: waiting for it, the time of work on it, and its peak of memory; on a CPU that of the process."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from vmr_zoo.utils.machine import peak_memory, reset_peak_memory


def synchronise(device: torch.device | str) -> None:
    """Waits until a GPU has done what it was given."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def mean_seconds(work: Callable[[], object], repeats: int, device: torch.device | str) -> float:
    """Returns the mean time of some repetitions, after one that does not count."""
    work()
    synchronise(device)
    started = time.perf_counter()
    for _ in range(repeats):
        work()
    synchronise(device)
    return (time.perf_counter() - started) / repeats


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
