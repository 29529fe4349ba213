"""The noisy narrator: describes a rendered video with known error rates.

It simulates a multimodal language model. In windows of a few seconds it says one sentence for each event that
fills at least half of the window. An event is omitted with probability `miss`; otherwise its colour, shape or
action is replaced by another one with probability `confuse`. With probability `hallucinate` a window gets a
sentence about an event that does not happen. Errors have their own seed: they can change without the videos.

It reads the scene, not the pixels: its narrations are simulated, and their manifest says so.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from vmr_zoo.data.worlds.shapes.sentences import VERBS, Clause
from vmr_zoo.data.worlds.shapes.world import ACTIONS, COLOURS, SHAPES, Event, Scene
from vmr_zoo.errors import VmrError

VERSION = "1"
"""Must be raised with every change of the narrations; part of the manifest and of the cache path."""


@dataclass(frozen=True, slots=True)
class SceneNarrator:
    """Settings and error rates of the narrator.

    Attributes:
        seed: seed of the errors.
        window: length of a window in seconds.
        miss: share of events that are omitted.
        confuse: share of sentences in which colour, shape or action is wrong.
        hallucinate: share of windows with a sentence about an event that does not happen.
    """

    seed: int = 0
    window: float = 1.0
    miss: float = 0.2
    confuse: float = 0.15
    hallucinate: float = 0.1

    def __post_init__(self) -> None:
        """Rejects rates that are no probabilities."""
        for name in ("miss", "confuse", "hallucinate"):
            rate = getattr(self, name)
            if not 0 <= rate <= 1:
                raise VmrError(
                    f"Expected a rate from 0 to 1, found {rate}. Change features.narration.narrator.{name}."
                )
        if self.window <= 0:
            raise VmrError(
                f"Expected a window longer than 0 s, found {self.window}. "
                "Change features.narration.narrator.window."
            )

    def narrate(self, scene: Scene) -> list[tuple[float, float, str]]:
        """Narrates a scene.

        Args:
            scene: the scene.

        Returns:
            (start, end, sentence) in seconds, in order of time.
        """
        rng = np.random.default_rng((self.seed, *scene.seed[1:3]))
        rows = []
        for start in np.arange(0, scene.duration, self.window).tolist():
            end = min(start + self.window, float(scene.duration))
            texts = [_sentence(clause) for clause in self._noticed(scene, start, end, rng)]
            if not texts:
                thing = scene.things[int(rng.integers(len(scene.things)))]
                texts = [f"There is {_article(thing.colour)} {thing.colour} {thing.shape}."]
            rows += [(start, end, text) for text in texts]
        return rows

    def _noticed(self, scene: Scene, start: float, end: float, rng: np.random.Generator) -> list[Clause]:
        """Draws the clauses that are said about one window."""
        happening = [event for event in scene.events if _share(event, start, end) >= 0.5]
        clauses = []
        for event in happening:
            # All numbers are drawn at any rate: changing one rate affects no other error.
            missed, confused = rng.random(2)
            clause = Clause(event.action, scene.colour(event), scene.shape(event))
            wrong = _exchange(clause, rng)
            if missed >= self.miss:
                clauses.append(wrong if confused < self.confuse else clause)
        imagined = _imagine(scene, happening, rng)
        if rng.random() < self.hallucinate:
            clauses.append(imagined)
        return clauses

    def manifest(self) -> dict[str, Any]:
        """Returns everything that determines the narrations."""
        return {
            "model": "shapes narrator (simulated)",
            "revision": VERSION,
            "prompt": None,
            "sampling_rate": 1 / self.window,
            "seed": self.seed,
            "date": None,  # independent of the date
            "miss": self.miss,
            "confuse": self.confuse,
            "hallucinate": self.hallucinate,
        }


def _share(event: Event, start: float, end: float) -> float:
    """Returns the share of the window that the event fills."""
    return max(0.0, min(event.end, end) - max(event.start, start)) / (end - start)


def _exchange(clause: Clause, rng: np.random.Generator) -> Clause:
    """Replaces colour, shape or action of a clause by another one."""
    part = str(rng.choice(("colour", "shape", "action")))
    kinds = {"colour": tuple(COLOURS), "shape": SHAPES, "action": ACTIONS}[part]
    others = [kind for kind in kinds if kind != getattr(clause, part)]
    return replace(clause, **{part: str(rng.choice(others))})


def _imagine(scene: Scene, happening: list[Event], rng: np.random.Generator) -> Clause:
    """Draws an action that a thing of the scene does not perform."""
    number = int(rng.integers(len(scene.things)))
    doing = {event.action for event in happening if event.thing == number}
    action = str(rng.choice([action for action in ACTIONS if action not in doing]))
    return Clause(action, scene.things[number].colour, scene.things[number].shape)


def _sentence(clause: Clause) -> str:
    verb = VERBS[clause.action][0][1]
    return f"{_article(clause.colour).capitalize()} {clause.colour} {clause.shape} is {verb}."


def _article(colour: str | None) -> str:
    return "an" if colour == "orange" else "a"
