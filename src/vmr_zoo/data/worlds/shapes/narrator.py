"""The noisy narrator: says what happens in a rendered video, wrong at known rates.

It stands where a multimodal language model would. It watches windows of a few seconds and says one sentence
for each thing that happens in most of a window. Each is left out with probability `miss`; else one of its
colour, shape and action is exchanged for another with probability `confuse`; and with probability
`hallucinate` a window gets a sentence about something that does not happen in it. It draws from a seed of
its own, so its errors can change while the videos stay.

It reads the scene, not the pixels: its narrations are simulated and their manifest says so.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from vmr_zoo.data.worlds.shapes.sentences import VERBS, Clause
from vmr_zoo.data.worlds.shapes.world import ACTIONS, COLOURS, GROUPS, SHAPES, Event, Scene
from vmr_zoo.errors import VmrError

VERSION = "1"
"""To be raised with every change of what the narrator says; part of the manifest and of the cache's name."""


@dataclass(frozen=True, slots=True)
class Narrator:
    """How the narrator works and how often it errs.

    Attributes:
        seed: of its errors.
        window: seconds per look.
        miss: share of what happens that it leaves out.
        confuse: share of what it says in which one of colour, shape and action is wrong.
        hallucinate: share of windows in which it adds something that does not happen.
    """

    seed: int = 0
    window: float = 2.0
    miss: float = 0.2
    confuse: float = 0.15
    hallucinate: float = 0.1

    def __post_init__(self) -> None:
        """Refuses rates that are no probabilities."""
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
        """Tells what happens in a scene.

        Args:
            scene: the scene.

        Returns:
            (start, end, sentence) in order of time, seconds.
        """
        group, index = scene.video_id.split("_")
        rng = np.random.default_rng((self.seed, GROUPS.index(group), int(index)))
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
        """Draws what is said about one window."""
        happening = [event for event in scene.events if _share(event, start, end) >= 0.5]
        clauses = []
        for event in happening:
            # All are drawn whatever the rates, so that another rate moves only what it is about.
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
        """Returns everything that decides the narrations."""
        return {
            "model": "shapes narrator (simulated)",
            "revision": VERSION,
            "prompt": None,
            "sampling_rate": 1 / self.window,
            "seed": self.seed,
            "date": None,  # the same at any date
            "miss": self.miss,
            "confuse": self.confuse,
            "hallucinate": self.hallucinate,
        }


def _share(event: Event, start: float, end: float) -> float:
    """Returns how much of the window the event fills."""
    return max(0.0, min(event.end, end) - max(event.start, start)) / (end - start)


def _exchange(clause: Clause, rng: np.random.Generator) -> Clause:
    """Exchanges one part of a clause for another of its kind."""
    part = str(rng.choice(("colour", "shape", "action")))
    kinds = {"colour": tuple(COLOURS), "shape": SHAPES, "action": ACTIONS}[part]
    others = [kind for kind in kinds if kind != getattr(clause, part)]
    return replace(clause, **{part: str(rng.choice(others))})


def _imagine(scene: Scene, happening: list[Event], rng: np.random.Generator) -> Clause:
    """Draws something that a thing of the scene is not doing."""
    number = int(rng.integers(len(scene.things)))
    doing = {event.action for event in happening if event.thing == number}
    action = str(rng.choice([action for action in ACTIONS if action not in doing]))
    return Clause(action, scene.things[number].colour, scene.things[number].shape)


def _sentence(clause: Clause) -> str:
    verb = VERBS[clause.action][0][1]
    return f"{_article(clause.colour).capitalize()} {clause.colour} {clause.shape} is {verb}."


def _article(colour: str | None) -> str:
    return "an" if colour == "orange" else "a"
