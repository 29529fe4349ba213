"""The type of a NumPy array, and the normalisation of feature vectors."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from vmr_zoo.errors import VmrError

Array = np.ndarray[Any, np.dtype[Any]]


Epsilon = Literal["added", "floor"]
"""How a division by an L2 norm avoids 0: it adds 1e-5 to the norm, or takes a norm of at least 1e-12."""


def l2_normalise(x: Array, epsilon: Epsilon = "added") -> Array:
    """Divides each vector on the last axis by its L2 norm.

    Args:
        x: (…, D).
        epsilon: "added" divides by (norm + 1e-5), as the Moment-DETR family does; "floor" by
            max(norm, 1e-12), as MESM's released code does.
    """
    norm = np.linalg.norm(x, axis=-1, keepdims=True)
    return x / (norm + 1e-5 if epsilon == "added" else np.maximum(norm, 1e-12))


def half(x: Array, what: str) -> Array:
    """Returns an array in float16.

    Args:
        x: of any shape.
        what: names the numbers in the error.

    Raises:
        VmrError: if a number is not finite in that precision, whose largest is 65,504.
    """
    with np.errstate(over="ignore"):
        small = x.astype(np.float16)
    if not np.isfinite(small).all():
        raise VmrError(
            f"Expected {what} that are finite in half precision (up to 65,504), found {np.abs(x).max():g}. "
            "Choose a model whose embeddings are smaller."
        )
    return small
