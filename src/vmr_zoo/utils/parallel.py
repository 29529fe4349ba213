"""Long work over many items: in several processes, and with a progress bar."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from joblib import Parallel, cpu_count, delayed
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


@contextlib.contextmanager
def torch_threads(count: int | None = None) -> Iterator[None]:
    """Has torch use so many threads of the CPU in the block (None: as before it), and as before after it."""
    import torch

    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


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
        work: a function.
        items: what it is called with.
        what: shown beside the progress bar.
        processes: how many; None: one per available core; 1: no further process.

    Yields:
        The results.

    Raises:
        VmrError: if a process was killed, which usually means too little memory.
    """
    count = max(1, min(processes or cpu_count(), len(items)))
    with progress_bar(len(items)) as progress:
        # Not concurrent.futures: a job of a sweep, itself a process of joblib's, could start none of its.
        run = Parallel(count, backend="loky" if count > 1 else "sequential", return_as="generator")
        try:
            done = run(delayed(work)(item) for item in items)
            yield from progress.track(done, total=len(items), description=what)
        except BrokenProcessPool as error:
            raise VmrError(
                f"{what}: a worker process died, probably for want of memory. Run again with fewer processes "
                "(vmr extract: processes=1; data=shapes: data.protocol.processes=1); finished ones are kept."
            ) from error
