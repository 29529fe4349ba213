"""Recognises predicted windows that are not in seconds. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from vmr_zoo.data.annotations.records import Query
from vmr_zoo.errors import VmrError, unknown
from vmr_zoo.metrics.highlight import CLIP_SECONDS
from vmr_zoo.metrics.per_query import Floats, pad_lists, pairwise_iou

SECONDS = "seconds"
_FRACTIONS, _PERCENT = "fractions", "percent"

_OUTSIDE = 0.25
"""Share of best windows that begin after the end of their video above which a file is refused."""
_BETTER, _GOOD = 2.0, 0.3
"""Another unit explains a file better if it multiplies the mean IoU by the first and reaches the second."""
_ENOUGH, _VARIED = 8, 0.1
"""Queries, and relative deviation of the ends of windows, that this takes: nearly equal answers to every
query fit some unit by chance."""

_READINGS: dict[str, Callable[[Floats, Floats], Floats]] = {
    "fractions of the video": lambda windows, duration: windows * duration,
    "per cent of the video": lambda windows, duration: windows * duration / 100,
    "milliseconds": lambda windows, duration: windows / 1000,
    "frames at 24 per second": lambda windows, duration: windows / 24,
    "frames at 25 per second": lambda windows, duration: windows / 25,
    "frames at 30 per second": lambda windows, duration: windows / 30,
    "clips of 2 s": lambda windows, duration: windows * CLIP_SECONDS,
    "minutes": lambda windows, duration: windows * 60,
    "start and length": lambda windows, duration: np.stack((windows[:, 0], windows.sum(1)), 1),
    "centre and length": lambda windows, duration: windows[:, :1] + windows[:, 1:] * [-0.5, 0.5],
}
"""What `[start, end]` may mean besides seconds, and how to turn it into seconds."""

_DECLARED = {"fractions of the video": _FRACTIONS, "per cent of the video": _PERCENT}
"""Readings that `unit=…` can name."""


def refuse_other_unit(best: Floats, queries: Sequence[Query], source: str) -> None:
    """Refuses windows that make sense in another unit than seconds, and little in seconds.

    A wrong unit gives scores near 0 that look like those of a bad model.

    Args:
        best: (B, 2) the best window of each query.
        queries: their ground truth.
        source: the file's name, for the error.

    Raises:
        VmrError: if many windows begin after the end of their video, if all end within the first second, or
            if another unit fits the ground truth far better.
    """
    if not queries:
        return
    duration = np.array([[query.duration] for query in queries])
    as_seconds = _mean_iou(best, queries)
    scores = {name: _mean_iou(convert(best, duration), queries) for name, convert in _READINGS.items()}
    likely = max(scores, key=lambda name: scores[name])
    outside = (best[:, 0] > duration[:, 0]).mean()
    small = best.max() <= 1 and (best % 1).any() and duration.min() >= 2
    ends = best[:, 1], best[:, 1] / duration[:, 0]
    varied = len(queries) >= _ENOUGH and all(end.std() > _VARIED * abs(end.mean()) for end in ends)
    fits = varied and scores[likely] >= max(_BETTER * as_seconds, _GOOD)
    if not (outside > _OUTSIDE or small or fits):
        return
    found = (
        f"{outside:.0%} of the best windows begin beyond the end of their video"
        if outside > _OUTSIDE
        else "every best window ends within the first second"
        if small
        else f"as seconds they have a mean IoU of {as_seconds:.2f}"
    )
    guess = (
        f"; as {likely} they have a mean IoU of {scores[likely]:.2f}" if scores[likely] > as_seconds else ""
    )
    declare = _DECLARED.get(likely, "") if guess else ""
    raise VmrError(
        f"{source}: the windows do not look like seconds: {found}{guess}. Write [start, end] in seconds"
        f"{declare and f', declare them with unit={declare}'}, or score the file as it is with unit=seconds."
    )


def in_seconds(windows: Sequence[Any], unit: str, duration: float) -> list[Any]:
    """Turns windows into seconds; what is no window of numbers is left for the checks to refuse.

    Args:
        windows: [start, end, …] each.
        unit: "seconds", or "fractions" or "percent" of the length of the video.
        duration: length of the video in seconds.

    Raises:
        VmrError: if the unit is unknown.
    """
    factors = {SECONDS: 1.0, _FRACTIONS: duration, _PERCENT: duration / 100}
    if unit not in factors:
        raise unknown("unit", unit, factors)
    factor = factors[unit]
    return [
        [one[0] * factor, one[1] * factor, *one[2:]]
        if factor != 1
        and isinstance(one, list | tuple)
        and len(one) >= 2
        and all(isinstance(x, int | float) for x in one)
        else one
        for one in windows
    ]


def _mean_iou(windows: Floats, queries: Sequence[Query]) -> float:
    """Returns the mean over queries of the IoU of a window with the moment that it overlaps most."""
    moments, _ = pad_lists([query.moments for query in queries], 2)  # padding is empty: its IoU is 0
    return float(pairwise_iou(windows[:, None], moments).max((1, 2), initial=0.0).mean())
