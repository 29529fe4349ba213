"""Still pictures of the world and captions of them, from which an image-text model learns its words.

A `tour` is a scene that shows other things every second: each of its pictures is new, and neither background
nor colour predicts a form. It is drawn without regard to any video. A caption says what one picture shows:
colours, forms, sizes and places, with the words of all splits, the novel synonyms included. It says nothing
about motion. Captions in the grammar of the queries have a verb, but a random one, which a model learns to
ignore.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vmr_zoo.data.worlds.shapes import sentences
from vmr_zoo.data.worlds.shapes.sentences import (
    NOUNS,
    NOVEL,
    NOVEL_VERBS,
    PARAPHRASES,
    RELATIONS,
    VERBS,
    WORDS,
)
from vmr_zoo.data.worlds.shapes.world import (
    ACTIONS,
    ALPHA,
    ASPECT,
    COLOURS,
    LARGEST,
    LOG_SIZE,
    SHAPES,
    SMALLEST,
    Event,
    Scene,
    Thing,
    WorldSettings,
    X,
    Y,
    sample_scene,
    states,
)

SMALL, BIG = ("small", "little", "tiny"), ("big", "large", "huge")
SMALL_BELOW, BIG_ABOVE = 0.125, 0.17
"""Radii, in heights of the frame, at which a thing counts as small or big; between them it is neither."""

COLUMNS, ROWS = ("left", "", "right"), ("top", "", "bottom")
PLACES = {
    ("left", ""): ("on the left", "at the left"),
    ("right", ""): ("on the right", "at the right"),
    ("", "top"): ("at the top", "above the middle"),
    ("", "bottom"): ("at the bottom", "below the middle"),
    ("", ""): ("in the middle", "in the centre"),
    **{
        (column, row): (f"at the {row} {column}", f"in the {row} {column} corner")
        for column in ("left", "right")
        for row in ("top", "bottom")
    },
}
"""Phrases for a place, by column and row of a grid of 3 x 3."""

MENTIONS = ("{}", "there is {}", "we see {}", "{} can be seen")
JOINTS = ("left of", "right of", "above", "below")
SHOWN = (0.3, 0.3, 0.25, 0.15)
"""Probabilities that a picture of a tour shows 1, 2, 3 or 4 things."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A visible thing of a picture; `x`, `y` and `size` are in heights of the frame."""

    colour: str
    shape: str
    x: float
    y: float
    size: float


def tour(settings: WorldSettings, index: int) -> Scene:
    """Draws a scene that holds still at every full second and shows other things at each.

    Args:
        settings: settings of the world; its seed and `index` determine the tour.
        index: number of the tour.

    Returns:
        The scene, with as many pictures as seconds.
    """
    ground = sample_scene(settings, "train", index)
    rng = np.random.default_rng((*ground.seed, 1))
    things: list[Thing] = []
    fades: list[Event] = []
    for second in range(ground.duration):
        count = int(rng.choice(len(SHOWN), p=SHOWN)) + 1
        looks = rng.permutation(len(COLOURS) * len(SHAPES))[:count]
        for look in looks.tolist():
            state = (
                rng.uniform(0.15, ASPECT - 0.15),
                rng.uniform(0.15, 0.85),
                rng.uniform(math.log(SMALLEST), math.log(LARGEST)),
                rng.uniform(0, 2 * math.pi) if rng.random() < 0.4 else 0.0,
                0.0 if second else 1.0,
            )
            colour, shape = tuple(COLOURS)[look % len(COLOURS)], SHAPES[look // len(COLOURS)]
            if second:
                fades.append(_fade(len(things), second - 0.75, 1.0))
            fades.append(_fade(len(things), second + 0.25, -1.0))
            things.append(Thing(colour, shape, tuple(map(float, state))))
    return replace(ground, things=tuple(things), events=tuple(fades))


def _fade(thing: int, start: float, change: float) -> Event:
    """Changes the opacity of a thing within half a second."""
    return Event(thing, "fade", start, start + 0.5, (0.0, 0.0, 0.0, 0.0, change))


def seen(scene: Scene, times: NDArray[np.float64]) -> list[list[Seen] | None]:
    """Lists what is visible at each time; None while a thing fades in or out.

    Args:
        scene: the scene.
        times: (F,) seconds, increasing.
    """
    shown: list[list[Seen] | None] = []
    for state in states(scene, times):
        alpha = state[:, ALPHA]
        if ((alpha > 0.05) & (alpha < 0.95)).any():
            shown.append(None)
            continue
        shown.append(
            [
                Seen(thing.colour, thing.shape, float(row[X]), float(row[Y]), math.exp(row[LOG_SIZE]))
                for thing, row in zip(scene.things, state, strict=True)
                if row[ALPHA] > 0.5
            ]
        )
    return shown


def describe(picture: Sequence[Seen], rng: np.random.Generator) -> str:
    """Describes every thing of a picture by colour, form, size and place, in random order."""
    parts = [
        _thing(picture[i], rng, size=True, place=True, whole=True) for i in rng.permutation(len(picture))
    ]
    start = ", ".join(parts[:-1])
    return _finish(f"{start} and {parts[-1]}" if start else parts[-1])


def close_up(thing: Seen, rng: np.random.Generator) -> str:
    """Mentions the thing in the middle of a picture, without its place, or writes a sentence like a query."""
    if rng.random() < 0.2:
        return query([thing], rng)
    text = _thing(thing, rng, size=rng.random() < 0.2)
    return _finish(str(rng.choice(MENTIONS)).format(text))


def mention(picture: Sequence[Seen], rng: np.random.Generator) -> str:
    """Mentions one or two things of a picture, by some of their properties."""
    one, *others = (picture[i] for i in rng.permutation(len(picture)))
    draw = rng.random()
    if others and draw < 0.25:
        joint = _relation(one, others[0])
        return _finish(f"{_thing(one, rng)} {joint} {_thing(others[0], rng)}")
    if others and draw < 0.4:
        return _finish(f"{_thing(one, rng)} and {_thing(others[0], rng)}")
    text = _thing(one, rng, size=rng.random() < 0.4, place=rng.random() < 0.4)
    return _finish(str(rng.choice(MENTIONS)).format(text))


def query(picture: Sequence[Seen], rng: np.random.Generator) -> str:
    """Writes a sentence of the queries' grammar about visible things, with random verbs and relations."""
    things = [picture[i] for i in rng.permutation(len(picture))]
    text = _clause(things[0], rng, (*sentences.FRAMES, *PARAPHRASES))
    if len(things) > 1 and rng.random() < 0.3:
        relation = str(rng.choice((*RELATIONS, "and then")))
        text = f"{text} {relation} {_clause(things[1], rng, sentences.SUBCLAUSES)}"
    return _finish(text)


def caption(picture: Sequence[Seen], rng: np.random.Generator) -> str:
    """Writes one caption: a full description, a mention or a sentence like a query."""
    write: Any = (describe, mention, query)[int(rng.choice(3, p=(0.45, 0.3, 0.25)))]
    return str(write(picture, rng))


def vocabulary() -> list[str]:
    """Lists the words of captions, queries and narrations, in alphabetical order."""
    phrases = [
        *(phrase for table in (WORDS, NOVEL, PLACES) for listed in table.values() for phrase in listed),
        *(
            phrase
            for table in (VERBS, NOVEL_VERBS)
            for pairs in table.values()
            for pair in pairs
            for phrase in pair
        ),
        *(*SMALL, *BIG, *NOUNS, *RELATIONS, *JOINTS, *MENTIONS, "a an and then"),
        *(frame.format(thing="", verb="", ing="") for frame in (*sentences.FRAMES, *PARAPHRASES)),
        *(frame.format(thing="", verb="", ing="") for frame in sentences.SUBCLAUSES),
    ]
    return sorted({word for phrase in phrases for word in re.findall(r"[a-z]+", phrase)})


def _clause(thing: Seen, rng: np.random.Generator, frames: Sequence[str]) -> str:
    """Writes a clause with any verb."""
    action = str(rng.choice(ACTIONS))
    verbs = (*VERBS[action], *NOVEL_VERBS[action])
    verb, ing = verbs[int(rng.integers(len(verbs)))]
    return str(rng.choice(frames)).format(thing=_name(thing, rng), verb=verb, ing=ing)


def _name(thing: Seen, rng: np.random.Generator, *, size: bool = False, whole: bool = False) -> str:
    """Names a thing by colour, form or both (`whole`), without an article."""
    colour, shape = ((True, True), (True, False), (False, True))[int(rng.choice(3, p=(0.4, 0.2, 0.4)))]
    words = []
    if size and not SMALL_BELOW <= thing.size <= BIG_ABOVE:
        words.append(rng.choice(SMALL if thing.size < SMALL_BELOW else BIG))
    if whole or colour:
        words.append(rng.choice((*WORDS[thing.colour], *NOVEL[thing.colour])))
    words.append(rng.choice((*WORDS[thing.shape], *NOVEL[thing.shape]) if whole or shape else NOUNS))
    return " ".join(map(str, words))


def _thing(
    thing: Seen,
    rng: np.random.Generator,
    *,
    size: bool = False,
    place: bool = False,
    whole: bool = False,
) -> str:
    """Writes a thing with an article, and with its place if requested."""
    text = f"a {_name(thing, rng, size=size, whole=whole)}"
    if not place:
        return text
    column = COLUMNS[min(2, int(3 * max(0.0, thing.x) / ASPECT))]
    row = ROWS[min(2, int(3 * max(0.0, thing.y)))]
    return f"{text} {rng.choice(PLACES[column, row])}"


def _relation(one: Seen, other: Seen) -> str:
    """Returns how two things are placed, along the axis on which they are further apart."""
    across, down = one.x - other.x, one.y - other.y
    left, right, above, below = JOINTS
    if abs(across) > abs(down):
        return right if across > 0 else left
    return below if down > 0 else above


def _finish(text: str) -> str:
    """Corrects the articles before vowels and adds capital and full stop."""
    text = re.sub(r"\ba (?=[aeiou])", "an ", text)
    return f"{text[0].upper()}{text[1:]}."
