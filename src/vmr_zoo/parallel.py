"""Long work over many items: in several processes, and with a progress bar."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from vmr_zoo.errors import VmrError

Item = TypeVar("Item")
Result = TypeVar("Result")


def progress_bar(count: int) -> Progress:
    """Returns a bar that counts items and times them, and vanishes at the end; none for a single item."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, transient=True, disable=count < 2)


def in_parallel(
    work: Callable[[Item], Result], items: Sequence[Item], what: str, processes: int | None = None
) -> Iterator[Result]:
    """Maps a function over items in fresh processes, with progress, results in the order of the items.

    Args:
        work: a module-level function.
        items: what it is called with.
        what: shown beside the progress bar.
        processes: how many; None: one per available core; 1: no further process.

    Yields:
        The results.

    Raises:
        VmrError: if a process was killed, which usually means too little memory.
    """
    count = min(processes or _cores(), len(items))
    with progress_bar(len(items)) as progress:
        if count <= 1:
            yield from progress.track(map(work, items), total=len(items), description=what)
            return
        # Spawned, not forked: the parent may already run torch's threads.
        context = multiprocessing.get_context("spawn")
        try:
            with ProcessPoolExecutor(count, mp_context=context) as pool:
                yield from progress.track(
                    pool.map(work, items, chunksize=4), total=len(items), description=what
                )
        except BrokenProcessPool as error:
            raise VmrError(
                f"{what}: a worker process died, probably for want of memory. Run again with fewer processes "
                "(vmr extract: processes=1; data=shapes: data.protocol.processes=1); finished ones are kept."
            ) from error


def _cores() -> int:
    """Returns the cores that this process may use, where the system tells."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
