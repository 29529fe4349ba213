"""The type of a NumPy array, and the normalisation of feature vectors."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


def l2_normalise(x: Array) -> Array:
    """Divides each vector on the last axis by (its L2 norm + 1e-5), as the Moment-DETR family does."""
    return x / (np.linalg.norm(x, axis=-1, keepdims=True) + 1e-5)
