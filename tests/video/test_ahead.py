from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from vmr_zoo.video.ahead import THREAD, ahead, ahead_of_all


class Source:
    """Counts up to a length, then fails or ends; records how far it is and whether it was closed."""

    def __init__(self, length: int, fails: bool = False) -> None:
        self.length, self.fails, self.made, self.closed_in = length, fails, 0, ""

    def __iter__(self) -> Iterator[int]:
        try:
            for number in range(self.length):
                self.made += 1
                yield number
            if self.fails:
                raise OSError("breaks off")
        finally:
            self.closed_in = threading.current_thread().name


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == THREAD]


def test_items_are_made_ahead_in_order_and_no_more_than_may_wait():
    source = Source(1000)
    numbers = ahead(source, depth=3)
    assert source.made == 0
    for taken in range(1, 4):
        assert next(numbers) == taken - 1
        until = time.monotonic() + 5
        while source.made < taken + 3 and time.monotonic() < until:
            time.sleep(0.001)
        time.sleep(0.02)
        assert source.made == taken + 3
    numbers.close()
    assert source.closed_in == THREAD
    assert not threads()
    assert list(ahead(range(50), 1)) == list(range(50))


def test_an_error_comes_after_the_items_before_it_and_ends_the_thread():
    seen: list[int] = []
    with pytest.raises(OSError, match="breaks off"):
        seen.extend(ahead(Source(5, fails=True), 2))
    assert seen == [0, 1, 2, 3, 4]
    assert not threads()


def test_an_interrupted_consumer_leaves_no_thread():
    def interrupt(number: int) -> None:
        if number == 7:
            raise KeyboardInterrupt

    source = Source(1000)
    with pytest.raises(KeyboardInterrupt):
        list(map(interrupt, ahead_of_all([source, Source(1000), Source(1000)], 4, 2)))
    assert not threads()
    assert source.closed_in == THREAD


def test_several_threads_take_turns_whatever_their_speed():
    def slow(name: str, length: int, seconds: float) -> Iterator[str]:
        for number in range(length):
            time.sleep(seconds)
            yield f"{name}{number}"

    def sources() -> list[Iterator[str]]:
        return [slow("a", 3, 0.01), slow("b", 1, 0), slow("c", 1, 0), slow("d", 2, 0)]

    assert list(ahead_of_all(sources(), 4, 2)) == ["a0", "b0", "a1", "d0", "a2", "d1", "c0"]
    assert list(ahead_of_all(sources(), 4, 1)) == ["a0", "a1", "a2", "b0", "c0", "d0", "d1"]
    assert list(ahead_of_all([], 4, 2)) == []
