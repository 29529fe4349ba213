"""Makes items ahead of their use, in threads: decoding goes on while a network computes.

Decoding, scaling and torch release Python's lock, so threads run them in parallel. The number of waiting
items is bounded, their order does not depend on timing, and no thread outlives the iterator.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, nullcontext
from queue import SimpleQueue
from typing import TypeVar

T = TypeVar("T")

THREAD = "ahead"
"""Name of the threads."""

MOST_AT_ONCE = 8
"""Videos that are decoded at the same time, unless more are requested."""


class _End:
    """Follows the last item; `error` is what ended the items early."""

    error: BaseException | None = None


def ahead(items: Iterable[T], depth: int) -> Generator[T, None, None]:
    """Iterates over items that a thread makes ahead of their use.

    The thread starts with the first item that is requested. It ends when the items do, when the iterator is
    closed (also by garbage collection), and when the consumer is interrupted. A generator of items is closed
    in the thread.

    Args:
        items: makes the items, such as a generator that decodes a video.
        depth: number of items that may wait, including the one in the making.

    Yields:
        The items in their order.

    Raises:
        BaseException: what `items` raises, after the items before it.
    """
    ready: SimpleQueue[T | _End] = SimpleQueue()
    room = threading.Semaphore(depth)
    stop = threading.Event()

    def make() -> None:
        end = _End()
        try:
            iterator = iter(items)
            with closing(iterator) if isinstance(iterator, Generator) else nullcontext():
                while room.acquire() and not stop.is_set() and (item := next(iterator, end)) is not end:
                    ready.put(item)
        except BaseException as error:  # raised where the items are used
            end.error = error
        finally:
            ready.put(end)

    thread = threading.Thread(target=make, name=THREAD, daemon=True)
    thread.start()
    try:
        while not isinstance(item := ready.get(), _End):
            room.release()
            yield item
            del item  # while the next one is awaited, this one may be freed
        if item.error is not None:
            raise item.error
    finally:
        stop.set()
        room.release()
        thread.join()


def ahead_of_all(sources: Sequence[Iterable[T]], depth: int, threads: int) -> Generator[T, None, None]:
    """Iterates over the items of many sources, such as videos, which several threads make.

    Thread n makes the items of every `threads`-th source, one source after the other, and the items of the
    threads are taken in turn. The items of a source keep their order; those of up to `threads` sources
    alternate.

    Args:
        sources: the sources, in order.
        depth: number of items that may wait, of all threads together; at least one per thread.
        threads: number of threads; one: the order of the items is that of the sources.

    Yields:
        The items.

    Raises:
        BaseException: what a source raises, after the items of that thread before it.
    """
    threads = max(1, min(threads, len(sources)))
    each = max(1, depth // threads)
    with ExitStack() as stack:
        lanes = [ahead(_one_after_another(sources[n::threads]), each) for n in range(threads)]
        for lane in lanes:
            stack.enter_context(closing(lane))
        while lanes:
            for lane in list(lanes):
                try:
                    item = next(lane)
                except StopIteration:
                    lanes.remove(lane)
                else:
                    yield item


def _one_after_another(sources: Iterable[Iterable[T]]) -> Iterator[T]:
    """Chains sources; closing it closes the current one, which `itertools.chain` would leave open."""
    for source in sources:
        yield from source
