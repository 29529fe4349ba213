"""Two batches as one: splits the rows of nested named tuples of tensors."""

from __future__ import annotations

from typing import TypeVar

from torch import Tensor

T = TypeVar("T")


def split_rows(both: T) -> tuple[T, T]:
    """Splits a tensor (2B, ...), or a tuple of such values, into two halves of B rows; keeps all else."""
    if isinstance(both, Tensor):
        return both.chunk(2)  # type: ignore[return-value]
    if isinstance(both, tuple):
        halves = zip(*map(split_rows, both), strict=True)
        first, second = (type(both)(*half) for half in halves)
        return first, second
    return both, both
