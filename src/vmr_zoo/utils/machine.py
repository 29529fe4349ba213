"""What the system says about the machine and this process."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import resource
import sys
from pathlib import Path


def processor() -> str:
    """Returns the name of the CPU, with its family and model: rented machines often omit them in the name."""
    name = _proc_field("cpuinfo", "model name") or platform.processor()
    family, model = _proc_field("cpuinfo", "cpu family"), _proc_field("cpuinfo", "model")
    return f"{name}, family {family}, model {model}" if family and model else name


def total_memory() -> int:
    """Returns the bytes of physical memory."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def free_memory() -> int:
    """Returns the bytes of available memory; the total where the system does not report it."""
    available = _proc_field("meminfo", "MemAvailable")
    return total_memory() if available is None else _bytes(available)


def reset_peak_memory() -> None:
    """Resets the process's memory high-water mark, where the system allows it."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> int:
    """Returns the memory high-water mark of the process in bytes, since `reset_peak_memory` if it worked."""
    peak = _proc_field("self/status", "VmHWM")
    if peak is not None:
        return _bytes(peak)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def keep_freed_memory() -> None:
    """Makes glibc reuse freed memory; does nothing without glibc.

    By default glibc returns every block over 32 MB to the system and gets it back page by page, zeroed. The
    attention weights of long videos are that large, and the page faults then take up to half of a training
    step on the CPU.
    """
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD in malloc.h
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(mmap_threshold, 2**30)
        mallopt(trim_threshold, -1)  # never


def _proc_field(file: str, name: str) -> str | None:
    """Returns a field of a file in /proc; None where there is no such file or field."""
    with contextlib.suppress(OSError):
        for line in Path("/proc", file).read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == name:
                return value.strip()
    return None


def _bytes(kilobytes: str) -> int:
    """Converts a field such as "123 kB"."""
    return int(kilobytes.split()[0]) * 1024
