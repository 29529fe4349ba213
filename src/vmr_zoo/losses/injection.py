"""Consistency of correlations across two spaces (VDI Eq. 5)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def correlation_consistency(left: Tensor, right: Tensor, pairs: Tensor) -> Tensor:
    """Asks two vectors of one space to be as alike as their counterparts in another one.

    Args:
        left: (S, D).
        right: (S, E), row by row the counterparts.
        pairs: (S, S) bool, which pairs count.

    Returns:
        Mean squared difference of the cosines, a scalar; 0 without any pair.
    """
    left, right = F.normalize(left, dim=1), F.normalize(right, dim=1)
    difference = (left @ left.T - right @ right.T).square()
    return (difference * pairs).sum() / pairs.sum().clamp(min=1)
