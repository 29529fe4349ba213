"""Dropout that is fast on the CPU.

On the CPU torch draws a double per element, sequentially: on the input of Moment-DETR that takes several
times as long as the matrix product that follows. Here 16 random bits per element suffice.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_BITS = 2**16


def dropout(x: Tensor, p: float, training: bool = True) -> Tensor:
    """Sets each element to zero with probability p and divides the others by 1 - p.

    On the CPU p is rounded to the nearest multiple of 2^-16, also in the divisor.

    Args:
        x: any shape.
        p: probability, 0 to 1.
        training: False returns x.

    Returns:
        A tensor of the shape of x. The draws depend on torch's global generator only.
    """
    if not training or p == 0:
        return x
    kept = round(_BITS * (1 - p))
    if x.device.type != "cpu" or torch.compiler.is_compiling() or not 0 < kept < _BITS:
        return F.dropout(x, p)
    count = x.numel()
    words = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None)
    below = words.view(torch.int16)[:count].view(x.shape) < kept - _BITS // 2
    return x * below.to(x.dtype).mul_(_BITS / kept)


class Dropout(nn.Dropout):
    """`torch.nn.Dropout` with the fast `dropout`."""

    def forward(self, x: Tensor) -> Tensor:
        """Drops elements of x in training."""
        return dropout(x, self.p, self.training)
