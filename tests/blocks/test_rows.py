"""Rows of two batches in one, split again."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vmr_zoo.blocks.rows import split_rows


class Part(NamedTuple):
    values: Tensor
    none: None
    count: int


class Whole(NamedTuple):
    part: Part
    mask: Tensor


def test_rows_are_split_in_halves() -> None:
    first, second = (Whole(Part(torch.full((2, 3), x), None, 3), torch.ones(2) * x) for x in (1.0, 2.0))
    joined = Whole(
        Part(torch.cat((first.part.values, second.part.values)), None, 3),
        torch.cat((first.mask, second.mask)),
    )
    for found, expected in zip(split_rows(joined), (first, second), strict=True):
        assert isinstance(found.part, Part)
        assert found.part[1:] == expected.part[1:]
        torch.testing.assert_close(found.part.values, expected.part.values)
        torch.testing.assert_close(found.mask, expected.mask)
