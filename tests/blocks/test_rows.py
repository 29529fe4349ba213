"""Rows joined and split again; an encoder whose last layer computes only what is read."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from vmr_zoo.blocks.encoder import Encoder
from vmr_zoo.blocks.projection import LayerSizes
from vmr_zoo.blocks.rows import join_rows, split_rows


class Part(NamedTuple):
    values: Tensor
    none: None
    count: int


class Whole(NamedTuple):
    part: Part
    mask: Tensor


def test_split_undoes_join() -> None:
    first, second = (Whole(Part(torch.full((2, 3), x), None, 3), torch.ones(2) * x) for x in (1.0, 2.0))
    joined = join_rows(first, second)
    assert joined.part.values.shape == (4, 3)
    for found, expected in zip(split_rows(joined), (first, second), strict=True):
        assert isinstance(found.part, Part)
        assert found.part[1:] == expected.part[1:]
        torch.testing.assert_close(found.part.values, expected.part.values)
        torch.testing.assert_close(found.mask, expected.mask)


def test_the_last_layer_computes_only_what_is_kept() -> None:
    torch.manual_seed(0)
    encoder = Encoder(LayerSizes(8, 2, 16, nn.ReLU, dropout=0.0), layers=2)
    x, position = torch.randn(2, 5, 8), torch.randn(2, 5, 8)
    mask = torch.tensor([[True] * 5, [True, True, False, True, False]])
    kept = encoder(x, mask, position, 3)
    torch.testing.assert_close(kept, encoder(x, mask, position)[:, :3])
    assert kept.shape == (2, 3, 8)
