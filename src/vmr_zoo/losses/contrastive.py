"""Contrastive losses over the pairs of a batch."""

from __future__ import annotations

import torch
from torch import Tensor


def pair_contrast(
    left: Tensor, right: Tensor, *, temperature: float, positive_in_denominator: bool
) -> Tensor:
    """Asks each left vector to be closer to its own right vector than to those of other rows.

    Args:
        left: (B, D) unit vectors.
        right: (B, D) unit vectors.
        temperature: tau.
        positive_in_denominator: True is InfoNCE (van den Oord et al. 2018); False leaves the row's own pair
            out of the denominator, so that the loss may fall below zero.

    Returns:
        Mean over the rows, a scalar. A batch of one row has nothing to contrast with and gives 0.
    """
    similarity = left @ right.T / temperature
    own = similarity.diagonal()
    if len(left) == 1:
        return 0 * own.sum()
    if not positive_in_denominator:
        eye = torch.eye(len(left), dtype=torch.bool, device=left.device)
        similarity = similarity.masked_fill(eye, -torch.inf)
    return (similarity.logsumexp(1) - own).mean()
