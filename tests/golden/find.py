"""Finds golden cases and changes them.

Committed ones are in `cases/`, larger ones in `../shared/golden` beside the checkout.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vmr_zoo.parity.case import Case

COMMITTED = Path(__file__).parent / "cases"
LARGER = Path(__file__).parents[2].parent / "shared" / "golden"


def golden_case(name: str) -> Path:
    """Returns the path of a golden case such as "mesm_a.npz"; skips the test if the case is absent."""
    for folder in (COMMITTED, LARGER):
        if (folder / name).is_file():
            return folder / name
    pytest.skip(f"{name} is too large to be committed and is not in ../shared/golden")


def arrays(name: str) -> dict[str, np.ndarray[Any, Any]]:
    """Returns what a golden case such as "mesm_a.npz" holds."""
    with np.load(golden_case(name), allow_pickle=False) as file:
        return dict(file)


def saved(content: Mapping[str, np.ndarray[Any, Any]], folder: Path) -> Case:
    """Writes a case of these arrays."""
    np.savez(folder / "case.npz", **content)  # type: ignore[arg-type]
    return Case(folder / "case.npz")


def with_last_altered(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Returns an array with another last item; a draw becomes one that is impossible."""
    altered = array.copy()
    last = tuple(size - 1 for size in array.shape)
    altered[last] = "z" if array.dtype.kind == "U" else altered[last] + 100
    return altered
