"""Weak alignment: training moments that fit their sentences badly, on purpose. Tests stay exact.

People draw boundaries carelessly, and a sentence often describes only a part of the moment that it is
attached to. Both are simulated with a declared strength, in the train split alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from vmr_zoo.data.annotations.records import Query, Split
from vmr_zoo.data.worlds.shapes.world import Scene, WorldSettings, scene_of
from vmr_zoo.errors import VmrError

SHORTEST = 0.5
"""Seconds that a shifted moment keeps at least."""

_GAP = 0.2
"""Longest pause before an event that is joined to a moment, as a fraction of the video."""


@dataclass(frozen=True, slots=True)
class WeakAlignment:
    """How badly training moments fit.

    Attributes:
        boundary_noise: standard deviation of each boundary's shift, as a fraction of the moment's length.
        partial: share of sentences with one moment whose moment is extended to another event that precedes or
            follows it: the sentence then describes a part of the moment.
        seed: seed of both.
    """

    boundary_noise: float = 0.0
    partial: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Rejects impossible strengths."""
        if not self.boundary_noise >= 0:
            raise VmrError(
                f"Expected a boundary noise of 0 or more, found {self.boundary_noise}. "
                "Change data.protocol.weak.boundary_noise."
            )
        if not 0 <= self.partial <= 1:
            raise VmrError(
                f"Expected a share from 0 to 1, found {self.partial}. Change data.protocol.weak.partial."
            )

    def weaken(self, train: Split, world: WorldSettings) -> Split:
        """Returns the train split with moments of this strength; equal settings give equal moments."""
        if not (self.boundary_noise or self.partial):
            return train
        queries = []
        for query in train.queries:
            scene = scene_of(world, query.video_id)
            number = int(query.query_id.rsplit("-", 1)[1])
            rng = np.random.default_rng((self.seed, *scene.seed[1:3], number))
            queries.append(self._weaken(query, scene, rng))
        return replace(train, queries=tuple(queries))

    def _weaken(self, query: Query, scene: Scene, rng: np.random.Generator) -> Query:
        """Draws every number at any rate: one strength does not change the effect of the other."""
        joined, choice = rng.random(2)
        shifts = self.boundary_noise * rng.standard_normal((len(query.moments), 2))
        moments = list(query.moments)
        if len(moments) == 1 and joined < self.partial:
            options = _neighbours(scene, moments[0])
            if options:
                start, end = options[int(choice * len(options))]
                moments = [(min(start, moments[0][0]), max(end, moments[0][1]))]
        pairs = zip(moments, shifts, strict=True)
        shifted = [_shift(moment, shift, query.duration) for moment, shift in pairs]
        return replace(query, moments=tuple(sorted(shifted)))


def _neighbours(scene: Scene, moment: tuple[float, float]) -> list[tuple[float, float]]:
    """Lists the events that precede or follow a moment within a fifth of the video."""
    gap = _GAP * scene.duration
    return [
        (event.start, event.end)
        for event in scene.events
        if 0 <= event.start - moment[1] <= gap or 0 <= moment[0] - event.end <= gap
    ]


def _shift(moment: tuple[float, float], shift: Sequence[float], duration: float) -> tuple[float, float]:
    """Moves both boundaries by fractions of the length, inside the video."""
    length = moment[1] - moment[0]
    start, end = (bound + length * float(by) for bound, by in zip(moment, shift, strict=True))
    middle = min(max((start + end) / 2, SHORTEST / 2), duration - SHORTEST / 2)
    start, end = min(start, middle - SHORTEST / 2), max(end, middle + SHORTEST / 2)
    return max(0.0, start), min(duration, end)
