"""Parallel work over many items, processes that end with their parent, and torch's threads."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from vmr_zoo.errors import VmrError
from vmr_zoo.utils.console import progress

_WATCH = "end with the parent"

_GRACE = 30.0
"""Seconds that a process has to end after its parent was killed."""

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


def end_with_parent() -> None:
    """Ends this process soon after the one that started it was killed; joblib's would go on for minutes.

    SIGTERM comes first: a training stops after its step, and can be resumed. Does nothing in a process that
    multiprocessing did not start.
    """
    parent = multiprocessing.parent_process()
    if parent is None or any(thread.name == _WATCH for thread in threading.enumerate()):
        return

    def watch(pid: int | None = parent.pid) -> None:
        while os.getppid() == pid:
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_GRACE)
        os._exit(1)

    threading.Thread(target=watch, name=_WATCH, daemon=True).start()


def _watched(work: Callable[[Item], Result], item: Item) -> Result:
    """Does the work of an item in a process that ends soon after its parent is killed."""
    end_with_parent()
    return work(item)


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
    from joblib import Parallel, cpu_count, delayed  # slow to import; a job of a sweep may not need it

    count = max(1, min(processes or cpu_count(), len(items)))
    # Not concurrent.futures: a job of a sweep, a process of joblib's, could not start processes with it.
    run = Parallel(count, backend="loky" if count > 1 else "sequential", return_as="generator")
    try:
        done = run(delayed(_watched)(work, item) for item in items)
        yield from progress(done, what, total=len(items))
    except BrokenProcessPool as error:
        raise VmrError(
            f"{what}: a worker process died, probably out of memory. Run again with fewer processes "
            "(vmr extract: processes=1; data=shapes: data.protocol.processes=1); finished ones are kept."
        ) from error
