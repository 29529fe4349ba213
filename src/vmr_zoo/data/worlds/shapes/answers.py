"""Asks the scenes of a world whether a video holds the moment of a sentence about another video."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vmr_zoo.data.annotations.records import Query
from vmr_zoo.data.worlds.shapes.sentences import Clause, may_hold
from vmr_zoo.data.worlds.shapes.world import WorldSettings, scene_of

_Meaning = tuple[tuple[Clause, ...], tuple[str, ...]]


@dataclass(frozen=True)
class SceneAnswers:
    """The ground truth of a world for any pair of a video and a sentence.

    Attributes:
        world: its settings.
        files: its annotation files, which hold the meaning of every sentence.
    """

    world: WorldSettings
    files: tuple[Path, ...]

    def __call__(self, video_id: str, query: Query) -> bool:
        """Returns whether a video holds, or nearly holds, a moment of a sentence of this world."""
        return may_hold(scene_of(self.world, video_id), *_meanings(self.files)[query.query_id])


@functools.lru_cache(maxsize=2)
def _meanings(files: Sequence[Path]) -> dict[str, _Meaning]:
    """Reads clauses and relations of every sentence, by query id."""
    lines = [line for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    return {
        row["query_id"]: (tuple(Clause(**clause) for clause in row["clauses"]), tuple(row["relations"]))
        for row in map(json.loads, lines)
    }
