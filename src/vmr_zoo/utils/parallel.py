"""Parallel work over many items, and torch's threads."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from joblib import Parallel, cpu_count, delayed

from vmr_zoo.errors import VmrError
from vmr_zoo.utils.console import progress

_WATCH = "end with the parent"

Item = TypeVar("Item")
Result = TypeVar("Result")


@contextlib.contextmanager
def torch_threads(count: int | None = None) -> Iterator[None]:
    """Sets the number of torch's CPU threads for the duration of the block; None: leaves it."""
    import torch

    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _watched(parent: int, work: Callable[[Item], Result], item: Item) -> Result:
    """Does the work of an item in a process that ends soon after its parent is killed."""
    if os.getppid() == parent and not any(thread.name == _WATCH for thread in threading.enumerate()):
        threading.Thread(target=_end_with, args=(parent,), name=_WATCH, daemon=True).start()
    return work(item)


def _end_with(parent: int) -> None:
    """Ends this process when its parent is gone. Workers of joblib would wait minutes for more work."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def in_parallel(
    work: Callable[[Item], Result], items: Sequence[Item], what: str, processes: int | None = None
) -> Iterator[Result]:
    """Maps a function over items in new processes, with a progress bar.

    Args:
        work: the function.
        items: its arguments.
        what: label of the progress bar.
        processes: number of processes; None: one per available core; 1: this process.

    Yields:
        The results in the order of the items.

    Raises:
        VmrError: if a process was killed, which usually means too little memory.
    """
    count = max(1, min(processes or cpu_count(), len(items)))
    # Not concurrent.futures: a job of a sweep, a process of joblib's, could not start processes with it.
    run = Parallel(count, backend="loky" if count > 1 else "sequential", return_as="generator")
    try:
        done = run(delayed(_watched)(os.getpid(), work, item) for item in items)
        yield from progress(done, what, total=len(items))
    except BrokenProcessPool as error:
        raise VmrError(
            f"{what}: a worker process died, probably out of memory. Run again with fewer processes "
            "(vmr extract: processes=1; data=shapes: data.protocol.processes=1); finished ones are kept."
        ) from error
