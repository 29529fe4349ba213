"""Finds golden cases: committed ones in `cases/`, larger ones in `../shared/golden` beside the checkout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

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
