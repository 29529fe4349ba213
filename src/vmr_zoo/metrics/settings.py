"""What is measured on a data set, and how its predictions are rounded.

Imports no torch, nor does `per_query`, so that `vmr score` starts fast.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from vmr_zoo.errors import VmrError

R1_THRESHOLDS = (0.1, 0.3, 0.5, 0.7)
R5_THRESHOLDS = (0.5, 0.7)
AP_THRESHOLDS = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
"""Written out: adding up steps of 0.05 misses some of them by a bit, and with it the hits exactly there."""


@dataclass(frozen=True, slots=True)
class Rounding:
    """How predicted seconds are rounded before they are scored: a property of the data set.

    Applied in this order: decimals, clamp, multiples.

    Attributes:
        decimals: digits after the point; None leaves them.
        clamp: lowest and highest second allowed; None for no bound.
        multiple_of: seconds; a boundary moves to the nearest multiple, a tie to the even one. None leaves it.
    """

    decimals: int | None = 4
    clamp: Sequence[float] | None = None
    multiple_of: float | None = None

    def apply(self, seconds: NDArray[np.float64]) -> NDArray[np.float64]:
        """Rounds an array of any shape; returns a new one.

        >>> Rounding(decimals=4, clamp=(0, 150), multiple_of=2).apply(np.array([-0.3, 1.0, 3.0, 150.7]))
        array([  0.,   0.,   4., 150.])
        """
        rounded = np.array(seconds, dtype=np.float64)
        if self.decimals is not None:
            rounded = np.round(rounded, self.decimals)
        if self.clamp is not None:
            rounded = rounded.clip(self.clamp[0], self.clamp[1])
        if self.multiple_of is not None:
            rounded = np.rint(rounded / self.multiple_of) * self.multiple_of
        return rounded + 0.0  # no minus zero in a predictions file

    @property
    def description(self) -> str:
        """What is recorded beside every number.

        >>> Rounding(decimals=4, clamp=(0, 150), multiple_of=2).description
        '4 decimals, clamped to [0, 150] s, nearest multiple of 2 s'
        """
        parts = []
        if self.decimals is not None:
            parts.append(f"{self.decimals} decimals")
        if self.clamp is not None:
            parts.append(f"clamped to [{self.clamp[0]:g}, {self.clamp[1]:g}] s")
        if self.multiple_of is not None:
            parts.append(f"nearest multiple of {self.multiple_of:g} s")
        return ", ".join(parts) or "none"


@dataclass(frozen=True, slots=True)
class MetricSettings:
    """What is measured; the fields of a file in `conf/metrics/`.

    Attributes:
        r1_thresholds: IoU thresholds m of R1@m.
        r5_thresholds: IoU thresholds m of R5@m.
        windows: how many windows per query average precision reads, counted in the order given.
        highlights: score the saliency too, as QVHighlights does, and report under that benchmark's keys.
        rounding: how predicted seconds are rounded.
    """

    r1_thresholds: Sequence[float] = R1_THRESHOLDS
    r5_thresholds: Sequence[float] = R5_THRESHOLDS
    windows: int = 10
    highlights: bool = False
    rounding: Rounding = field(default_factory=Rounding)

    def __post_init__(self) -> None:
        """Refuses thresholds that no evaluation means.

        Raises:
            VmrError: for a threshold outside (0, 1] or a window count below 1.
        """
        for threshold in (*self.r1_thresholds, *self.r5_thresholds):
            if not 0 < threshold <= 1:
                raise VmrError(
                    f"Expected IoU thresholds in (0, 1], found {threshold}. Mend it in metrics.*_thresholds."
                )
        if self.windows < 1:
            raise VmrError(f"Expected metrics.windows to be at least 1, found {self.windows}.")

    @property
    def windows_read(self) -> int:
        """How many windows per query any metric reads: R5@m reads five."""
        return max(self.windows, 5)
