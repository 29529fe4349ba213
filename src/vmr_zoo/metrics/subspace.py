"""How much of one set of vectors lies in the space of another (MESM, Figure 5)."""

from __future__ import annotations

import torch
from torch import Tensor


def subspace_similarity(text: Tensor, segment: Tensor) -> Tensor:
    """Compares the top-i singular vectors of a text with all singular vectors of a segment.

    MESM gives no formula and cites Hamm and Lee (2008) and LoRA (Hu et al. 2021, Eq. 4):
    ||U_i^T V||_F^2 / min(i, columns of V), U_i and V orthonormal. It is 1 if one space contains the other,
    and 0 if they are orthogonal. Directions with a singular value of 0 are left out.

    Args:
        text: (T, D) vectors of the words.
        segment: (S, D) vectors of the clips.

    Returns:
        (R,) float64 values in [0, 1] for i = 1 … R, the rank of the text; empty without words or clips.
    """
    of_text, of_segment = _directions(text), _directions(segment)
    if not len(of_segment):
        return of_text.new_zeros(0)
    shared = (of_text @ of_segment.T).square().sum(1).cumsum(0)
    count = torch.arange(1, len(of_text) + 1, device=shared.device)
    return shared / count.clamp(max=len(of_segment))


def _directions(vectors: Tensor) -> Tensor:
    """Returns (R, D) orthonormal rows, the right singular vectors by falling singular value."""
    _, values, directions = torch.linalg.svd(vectors.double(), full_matrices=False)
    smallest = torch.finfo(vectors.dtype).eps * max(vectors.shape) * values.amax() if len(values) else 0.0
    return directions[values > smallest]
