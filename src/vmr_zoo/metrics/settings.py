"""Which metrics a data set uses, and how its predictions are rounded.

This module and `per_query` do not import torch, so `vmr score` starts fast.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from vmr_zoo.errors import VmrError, unknown

R1_THRESHOLDS = (0.1, 0.3, 0.5, 0.7)
R5_THRESHOLDS = (0.5, 0.7)
MAP_THRESHOLDS = (0.5, 0.7, 0.75)
AP_THRESHOLDS = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
"""Literals, because accumulated steps of 0.05 are inexact and would change hits exactly at a threshold."""

LISTED, ON_SELECTION = "listed", "selection"
"""The named rules of `MetricSettings.sets`."""

_SHOWN = (
    "R1@0.3",
    "R1@0.5",
    "R1@0.7",
    "R5@0.5",
    "R5@0.7",
    "mIoU",
    "mAP",
    "highlight_mAP",
    "HIT@1",
    "EtF1",
    "C-Acc",
    "AUROC",
    "Rejection-Acc",
    "No-Answer-Acc",
    "R1@0.5/kept",
    "R1@0.5/rejection",
)


def shown_metrics(metrics: Mapping[str, Mapping[str, float | None]]) -> list[str]:
    """Returns the columns of a table of splits by metrics: the usual ones that any of the splits has."""
    return [name for name in _SHOWN if any(name in values for values in metrics.values())]


@dataclass(frozen=True, slots=True)
class Rounding:
    """How the predicted seconds on a data set are rounded before they are scored.

    Applied in this order: decimals, clamp, multiples.

    Attributes:
        decimals: digits after the decimal point; None does not round.
        clamp: lowest and highest second; None does not clamp.
        multiple_of: seconds; boundaries move to the nearest multiple, ties to the even one. None: no change.
    """

    decimals: int | None = 4
    clamp: Sequence[float] | None = None
    multiple_of: float | None = None

    def apply(self, seconds: NDArray[np.float64]) -> NDArray[np.float64]:
        """Rounds an array of any shape and returns a new one.

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
        return rounded + 0.0  # avoids minus zero in predictions files

    @property
    def description(self) -> str:
        """Text that is stored with the metrics.

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
    """Which metrics are computed; the fields of a file in `conf/metrics/`.

    Attributes:
        r1_thresholds: IoU thresholds m of R1@m.
        r5_thresholds: IoU thresholds m of R5@m.
        map_thresholds: IoU thresholds m of mAP@m, among `AP_THRESHOLDS`; mAP is the mean over all of those.
        windows: windows per query that average precision uses, the first in the order of the predictions.
        highlights: also score the saliency, and report under the keys of QVHighlights.
        rounding: rounding of predicted seconds.
        sets: which windows count as the set of moments of a query, for the metrics of `metrics.sets`: those
            from a score on, chosen on the selection split ("selection") or given as a number, or all that a
            row lists ("listed"); None: sets are not scored.
    """

    r1_thresholds: Sequence[float] = R1_THRESHOLDS
    r5_thresholds: Sequence[float] = R5_THRESHOLDS
    map_thresholds: Sequence[float] = MAP_THRESHOLDS
    windows: int = 10
    highlights: bool = False
    rounding: Rounding = field(default_factory=Rounding)
    sets: str | float | None = None

    def __post_init__(self) -> None:
        """Checks thresholds, number of windows and the rule of sets.

        Raises:
            VmrError: for a threshold outside (0, 1], one of mAP that is not in `AP_THRESHOLDS`, a window
                count below 1, or an unknown rule.
        """
        for threshold in (*self.r1_thresholds, *self.r5_thresholds):
            if not 0 < threshold <= 1:
                raise VmrError(
                    f"Expected IoU thresholds in (0, 1], found {threshold}. Set metrics.*_thresholds."
                )
        for threshold in self.map_thresholds:
            if threshold not in AP_THRESHOLDS:
                raise VmrError(
                    f"Expected IoU thresholds among {', '.join(map(str, AP_THRESHOLDS))}, found {threshold}. "
                    "Set metrics.map_thresholds."
                )
        if self.windows < 1:
            raise VmrError(f"Expected metrics.windows to be at least 1, found {self.windows}. Increase it.")
        if isinstance(self.sets, str) and self.sets not in (ON_SELECTION, LISTED):
            raise unknown("metrics.sets", self.sets, (ON_SELECTION, LISTED, "null", "a score, such as 0.5"))

    @property
    def windows_read(self) -> int:
        """The number of windows per query that the metrics use; R5@m uses five."""
        return max(self.windows, 5)
