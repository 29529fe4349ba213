"""Convolution of a map on the CPU with fewer multiplications: tile by tile in the frequency domain.

A tile of t x t cells, t = 2 (k - 1), gives (k - 1) x (k - 1) outputs of a k x k kernel. Its discrete Fourier
transform turns the k^2 products of each output into one product per frequency (overlap-save). With k = 5,
94 products per pair of channels replace 16 x 25 = 400. The transforms are exact up to rounding, which is no
larger than that of the direct sum.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def spectral_products(kernel: int) -> tuple[Tensor, Tensor, Tensor]:
    """Writes the correlation of a tile with a kernel as y = A [(G w) * (B x)].

    The transform of real numbers at frequency -f is the conjugate of that at f, so one of them suffices. A
    product of two complex numbers takes three real ones: with X = a + b i and W = c + d i, (a + b) c,
    a (d - c) and b (c + d).

    Args:
        kernel: k.

    Returns:
        B (products, t^2), G (products, k^2) and A ((k - 1)^2, products), float32.
    """
    step = kernel - 1
    size = 2 * step
    place = torch.arange(size, dtype=torch.float64)
    tile: list[Tensor] = []
    weight: list[Tensor] = []
    output: list[Tensor] = []
    for u in range(size):
        for v in range(size):
            opposite = (-u % size, -v % size)
            if opposite < (u, v):
                continue
            angle = 2 * math.pi / size * (u * place.unsqueeze(1) + v * place)
            cos, sin = angle.cos(), angle.sin()
            a, b = cos.flatten(), -sin.flatten()
            c, d = cos[:kernel, :kernel].flatten(), sin[:kernel, :kernel].flatten()  # conjugate: correlation
            count = 1 if opposite == (u, v) else 2
            real, imaginary = (count / size**2 * x[:step, :step].flatten() for x in (cos, -sin))
            if count == 1:
                tile, weight, output = [*tile, a], [*weight, c], [*output, real]
            else:
                tile += [a + b, a, b]
                weight += [c, d - c, c + d]
                output += [real + imaginary, imaginary, -real]
    return torch.stack(tile).float(), torch.stack(weight).float(), torch.stack(output, 1).float()


class TiledConvolution(nn.Module):
    """`conv2d` of one map size on the CPU; skips tiles whose outputs are all known to equal the bias."""

    tile: Tensor
    weight: Tensor
    output: Tensor
    _read: Tensor
    _write: Tensor

    def __init__(
        self, products: Sequence[Tensor], kernel: int, side: int, padding: int, reached: Tensor
    ) -> None:
        """Lists the cells that each tile reads and writes.

        Args:
            products: B, G and A of `spectral_products`.
            kernel: k.
            side: of the input.
            padding: on each side of the input.
            reached: (m, m) bool, the outputs that may differ from the bias; m is the side of the output.
        """
        super().__init__()
        step = kernel - 1
        self.side, self.padding, self.out_side = side, padding, len(reached)
        self.tiles = -(-len(reached) // step)  # per side
        over = self.tiles * step - len(reached)
        needed = F.pad(reached, (0, over, 0, over)).unflatten(1, (-1, step)).unflatten(0, (-1, step))
        row, column = needed.any(3).any(1).nonzero().T  # of each tile
        self.padded = (self.tiles + 1) * step
        inside, outside = torch.arange(2 * step).unsqueeze(1), torch.arange(step).unsqueeze(1)
        read = (inside + row * step).unsqueeze(1) * self.padded + inside + column * step
        write = (outside + row * step).unsqueeze(1) * (self.tiles * step) + outside + column * step
        for name, value in zip(("tile", "weight", "output"), products, strict=True):
            self.register_buffer(name, value, persistent=False)
        self.register_buffer("_read", read.flatten(), persistent=False)
        self.register_buffer("_write", write.flatten(), persistent=False)

    def forward(self, grid: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Convolves (B, C, n, n) with (D, C, k, k) to (B, D, m, m).

        The result is stored with the axes of the map first and the channels last, and an input in the same
        order is not copied: a cell of all rows is one block of memory.
        """
        batch, channels = grid.shape[:2]
        end = self.padded - self.side - self.padding
        cells = F.pad(grid.permute(2, 3, 0, 1), (0, 0, 0, 0, self.padding, end, self.padding, end))
        tiles = cells.flatten(0, 1).index_select(0, self._read)
        spectra = (self.tile @ tiles.view(self.tile.shape[1], -1)).view(len(self.tile), -1, channels)
        kernels = (self.weight @ weight.flatten(2).flatten(0, 1).T).view(len(self.weight), -1, channels)
        products = spectra @ kernels.mT
        found = (self.output @ products.flatten(1)).view(-1, batch, len(weight))
        side = self.tiles * (self.padded // (self.tiles + 1))
        out = found.new_zeros(side**2, batch, len(weight)).index_copy(0, self._write, found) + bias
        return out.unflatten(0, (side, side))[: self.out_side, : self.out_side].permute(2, 3, 0, 1)
