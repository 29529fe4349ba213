"""Two batches as one: the rows of nested named tuples of tensors, joined and split again."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


def join_rows(first: T, second: T) -> T:
    """Concatenates the rows of two values of one kind.

    Args:
        first: a tensor (B, ...), a tuple of such values, or anything else, which is kept.
        second: the same with other rows.
    """
    if isinstance(first, Tensor):
        return torch.cat((first, second))  # type: ignore[return-value, arg-type]
    if isinstance(first, tuple):
        return type(first)(*map(join_rows, first, second))  # type: ignore[call-overload]
    return first


def split_rows(both: T) -> tuple[T, T]:
    """Undoes `join_rows` for two values of equally many rows."""
    if isinstance(both, Tensor):
        return both.chunk(2)  # type: ignore[return-value]
    if isinstance(both, tuple):
        halves = zip(*map(split_rows, both), strict=True)
        first, second = (type(both)(*half) for half in halves)
        return first, second
    return both, both
