"""The world of shapes: the things in a video, their actions, and their state at every time.

A scene contains three or four coloured shapes. Each performs one action at a time; several act
simultaneously. All draws come from a generator seeded by (seed, group, index): a video depends neither on the
number of videos nor on the process that renders it.

The *temporal prior* imitates biased benchmarks: most actions have a place in time (`places`). When something
happens is uniform; which action it is depends on the time. In the group "exchanged" opposite actions exchange
their places, and nothing else changes: times, actions, lengths and speeds are distributed as before.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from vmr_zoo.errors import VmrError

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (225, 30, 35),
    "orange": (245, 130, 20),
    "yellow": (240, 225, 30),
    "green": (30, 170, 50),
    "cyan": (20, 205, 220),
    "blue": (35, 70, 225),
    "purple": (130, 40, 205),
    "pink": (245, 70, 180),
}
"""RGB by colour; saturated, unlike all backgrounds."""

ROUND = frozenset({"circle", "ring"})
"""Shapes whose rotation is invisible."""

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "bar")

ACTIONS = ("left", "right", "up", "down", "spin", "grow", "shrink", "blink", "shake", "appear", "vanish")

NOVEL_PAIRS: frozenset[tuple[str, str]] = frozenset(
    {
        ("circle", "up"),
        ("square", "blink"),
        ("triangle", "grow"),
        ("star", "left"),
        ("cross", "shake"),
        ("ring", "shrink"),
        ("bar", "spin"),
        ("red", "shrink"),
        ("orange", "down"),
        ("yellow", "shake"),
        ("green", "right"),
        ("cyan", "blink"),
        ("blue", "grow"),
        ("purple", "spin"),
        ("pink", "up"),
    }
)
"""(shape or colour, action) pairs that occur in the group "pairs" only: the novel compositions."""

OPPOSITES = (("left", "right"), ("up", "down"), ("grow", "shrink"))
"""Actions that exchange their places in time. Each is possible as often as its opposite."""

BY_SHAPE = ("spin", "blink", "shake")
"""Actions whose place in time depends on the shape: `SHAPES` of even and of odd index exchange theirs."""

PLACES = ((0.08, 0.64), (0.36, 0.92))
"""Places in time that are exchanged: fractions of the time at which an event can start."""

PLACE_WIDTH = 0.09
"""Standard deviation of a place, in the same unit."""

GROUPS = ("train", "selection", "test", "exchanged", "pairs")
"""Groups of videos. "test" serves iid, novel_word, paraphrase and complex; "exchanged" ood_time; "pairs"
novel_composition."""

_SIZES = {
    "train": "train_videos",
    "selection": "selection_videos",
    "test": "test_videos",
    "exchanged": "test_videos",
    "pairs": "test_videos",
}
"""The setting that says how many videos a group has."""

ASPECT = 4 / 3
"""Width of the frame, in units of its height."""

X, Y, LOG_SIZE, ANGLE, ALPHA = range(5)
"""Columns of an object's state: centre (heights), log radius (heights), radians, opacity."""

SMALLEST, LARGEST = 0.09, 0.25
GAP_SECONDS = 1.0
ALWAYS_POSSIBLE = {"blink": 0.7, "shake": 0.7, "vanish": 0.35}
"""Weights of actions that need no space (others: 1), which make all actions about equally frequent."""

NOVEL = 16.0
"""Factor for novel compositions, where they are possible."""

SAME, ALIKE = 10.0, 16.0
"""Factors for actions that another thing, or another thing of this shape, performs too: the whole sentence
has to be read."""


@dataclass(frozen=True, slots=True)
class WorldSettings:
    """Settings that determine the generated data; their hash names the cache directory.

    Attributes:
        seed: seed of the world; the narrator and training have their own seeds.
        train_videos: number of videos of the train split. Other videos do not depend on it.
        selection_videos: number of videos of the selection split.
        test_videos: number of videos of each of the groups test, exchanged and pairs.
        shortest: length of the shortest video in seconds.
        longest: length of the longest video in seconds.
        fps: frames per second.
        height: height in pixels; the width is 4/3 of it.
        time_bias: strength of the temporal prior, 0 (none) to 1 (actions keep their places where possible).
        complex_share: share of multi-clause sentences in train, selection, iid and ood_time.
        wordings: sentences per event in train, with independent references and words.
    """

    seed: int = 0
    train_videos: int = 640
    selection_videos: int = 100
    test_videos: int = 300
    shortest: int = 16
    longest: int = 40
    fps: int = 8
    height: int = 96
    time_bias: float = 0.95
    complex_share: float = 0.15
    wordings: int = 2

    def __post_init__(self) -> None:
        """Rejects impossible settings."""
        for group, setting in _SIZES.items():
            if self.size(group) < 1:
                raise VmrError(
                    f"Expected at least 1 video per group, found {setting}={self.size(group)}. "
                    f"Raise data.protocol.world.{setting}."
                )
        if self.wordings < 1:
            raise VmrError(
                f"Expected at least 1 wording, found {self.wordings}. Raise data.protocol.world.wordings."
            )
        if not 10 <= self.shortest <= self.longest:
            raise VmrError(
                f"Expected 10 <= shortest <= longest seconds, found {self.shortest} and {self.longest}. "
                "Change data.protocol.world.shortest or longest."
            )
        if not 0 <= self.time_bias <= 1:
            raise VmrError(
                f"Expected a time bias from 0 to 1, found {self.time_bias}. "
                "Change data.protocol.world.time_bias."
            )
        if self.height % 48 or self.fps < 4:
            raise VmrError(
                f"Expected a height divisible by 48 and at least 4 frames per second, found {self.height} "
                f"and {self.fps}. Change data.protocol.world.height or fps."
            )

    @property
    def width(self) -> int:
        """Width in pixels."""
        return self.height * 4 // 3

    def size(self, group: str) -> int:
        """Returns the number of videos of a group."""
        size: int = getattr(self, _SIZES[group])
        return size


@dataclass(frozen=True, slots=True)
class Thing:
    """One coloured shape; `state` is (5,) at time 0, columns X, Y, LOG_SIZE, ANGLE, ALPHA."""

    colour: str
    shape: str
    state: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Event:
    """An action of one thing from `start` to `end` seconds, which adds `change` to its state linearly."""

    thing: int
    action: str
    start: float
    end: float
    change: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Background:
    """The background from `start` seconds on: a drifting pattern of two muted colours."""

    start: float
    pattern: str
    colours: tuple[tuple[int, int, int], tuple[int, int, int]]
    drift: tuple[float, float]
    scale: float


@dataclass(frozen=True, slots=True)
class Scene:
    """A whole video before rendering.

    Attributes:
        video_id: "<group>_<index>".
        duration: whole seconds.
        things: the shapes, in drawing order.
        events: their actions, ordered by start.
        backgrounds: backgrounds ordered by start; the first starts at 0.
        seed: seed of the jitter of shaking: that of the world, the numbers of group and video, and 1.
    """

    video_id: str
    duration: int
    things: tuple[Thing, ...]
    events: tuple[Event, ...]
    backgrounds: tuple[Background, ...]
    seed: tuple[int, ...] = field(default=(0,))

    def colour(self, event: Event) -> str:
        """Returns the colour of the acting thing."""
        return self.things[event.thing].colour

    def shape(self, event: Event) -> str:
        """Returns the shape of the acting thing."""
        return self.things[event.thing].shape


def held_out(colour: str, shape: str, action: str) -> bool:
    """Returns whether an action of a coloured shape is a novel composition."""
    return (colour, action) in NOVEL_PAIRS or (shape, action) in NOVEL_PAIRS


def sample_scene(settings: WorldSettings, group: str, index: int) -> Scene:
    """Draws one scene.

    Args:
        settings: settings of the world.
        group: one of `GROUPS`.
        index: index of the video in the group.

    Returns:
        The scene, equal for equal arguments.
    """
    seed = (settings.seed, GROUPS.index(group), index)
    rng = np.random.default_rng(seed)
    while True:
        duration = int(rng.integers(settings.shortest, settings.longest + 1))
        looks = _looks(rng)
        intervals = _intervals(rng, duration, len(looks))
        things, events = _actions(rng, looks, intervals, group, _Prior(settings, group, duration))
        novel = [e for e in events if held_out(*looks[e.thing], e.action)]
        if len(events) >= 4 and (group != "pairs" or len(novel) >= 2):
            break
    order = sorted(events, key=lambda event: (event.start, event.thing))
    return Scene(
        f"{group}_{index:05d}", duration, tuple(things), tuple(order), _backgrounds(rng, duration), (*seed, 1)
    )


@lru_cache(maxsize=4096)
def scene_of(settings: WorldSettings, video_id: str) -> Scene:
    """Draws the scene of a video; the latest ones are remembered."""
    group, index = video_id.rsplit("_", 1)
    return sample_scene(settings, group, int(index))


def states(scene: Scene, times: NDArray[np.float64]) -> NDArray[np.float64]:
    """Computes the state of all things.

    Args:
        scene: the scene.
        times: (F,) seconds, increasing.

    Returns:
        (F, number of things, 5), columns X, Y, LOG_SIZE, ANGLE, ALPHA.
    """
    jitter = np.random.default_rng(scene.seed)
    result = np.tile(np.array([thing.state for thing in scene.things]), (len(times), 1, 1))
    for event in scene.events:
        progress = np.clip((times - event.start) / (event.end - event.start), 0, 1)
        result[:, event.thing] += progress[:, None] * np.array(event.change)
        offsets = jitter.uniform(0.035, 0.06, (len(times), 2)) * jitter.choice((-1, 1), (len(times), 2))
        inside = (times >= event.start) & (times < event.end)
        if event.action == "shake":
            result[:, event.thing, X : Y + 1] += np.where(inside[:, None], offsets, 0)
        elif event.action == "blink":
            off = inside & ((times - event.start) % 1.0 >= 0.5)
            result[:, event.thing, ALPHA] = np.where(off, 0, result[:, event.thing, ALPHA])
    return result


def _looks(rng: np.random.Generator) -> list[tuple[str, str]]:
    """Draws three or four distinct (colour, shape) pairs; they often share shapes, sometimes colours."""
    count = int(rng.integers(3, 5))
    colours = list(rng.permutation(list(COLOURS))[:count])
    shapes = list(rng.permutation(SHAPES)[:count])
    if rng.random() < 0.75:
        shapes[1] = shapes[0]
    if rng.random() < 0.2:
        colours[2] = colours[0]
    return [(str(c), str(s)) for c, s in zip(colours, shapes, strict=True)]


def places(seed: int) -> dict[tuple[str, str], tuple[float, float]]:
    """Draws where in time actions are likely.

    Args:
        seed: seed of the world.

    Returns:
        By (action, shape): the place in all groups but "exchanged", and the place there, as fractions of the
        time at which an event can start. Appearing and vanishing have none: they determine what a thing can
        do afterwards.
    """
    rng = np.random.default_rng((seed, len(GROUPS)))
    table = {}
    for actions in (*OPPOSITES, *((action, action) for action in BY_SHAPE)):
        pair = rng.permutation(PLACES[int(rng.integers(len(PLACES)))]).tolist()
        for number, shape in enumerate(SHAPES):
            for side, action in enumerate(actions):
                first = number % 2 if actions[0] == actions[1] else side
                table[action, shape] = (pair[first], pair[1 - first])
    return table


class _Prior:
    """How likely the actions of a scene are at each time."""

    def __init__(self, settings: WorldSettings, group: str, duration: int) -> None:
        self._bias = settings.time_bias
        self._places = places(settings.seed)
        self._exchanged = group == "exchanged"
        self._duration = duration

    def weight(self, action: str, shape: str, start: float, end: float) -> float:
        """Returns a factor of mean about 1 over all times; 1 for actions without a place."""
        pair = self._places.get((action, shape))
        if pair is None:
            return 1.0
        distance = start / (self._duration - (end - start)) - pair[self._exchanged]
        density = math.exp(-0.5 * (distance / PLACE_WIDTH) ** 2) / (PLACE_WIDTH * math.sqrt(2 * math.pi))
        return 1 - self._bias + self._bias * density


def _intervals(rng: np.random.Generator, duration: int, things: int) -> list[list[tuple[float, float]]]:
    """Draws when each thing acts; its intervals are `GAP_SECONDS` apart."""
    wanted = int(np.clip(round(duration / 7 + 1.5 + rng.normal(0, 0.7)), 4, 8))
    taken: list[list[tuple[float, float]]] = [[] for _ in range(things)]
    for _ in range(12 * wanted):
        length = float(np.clip(duration * math.exp(rng.normal(math.log(0.22), 0.4)), 2.5, 12.0))
        start = rng.random() * (duration - length)
        start, end = (
            round(start * 8) / 8,
            round((start + length) * 8) / 8,
        )  # eighths are exact in binary and in JSON
        thing = int(rng.integers(things))
        if all(end + GAP_SECONDS <= s or e + GAP_SECONDS <= start for s, e in taken[thing]):
            taken[thing].append((start, end))
            wanted -= 1
            if not wanted:
                break
    return [sorted(one) for one in taken]


def _actions(
    rng: np.random.Generator,
    looks: list[tuple[str, str]],
    intervals: list[list[tuple[float, float]]],
    group: str,
    prior: _Prior,
) -> tuple[list[Thing], list[Event]]:
    """Gives every interval an action that is possible in the current state of its thing."""
    things: list[Thing] = []
    events: list[Event] = []
    for number, ((colour, shape), own) in enumerate(zip(looks, intervals, strict=True)):
        hidden = (
            bool(own) and rng.random() < 0.12 and (group == "pairs" or not held_out(colour, shape, "appear"))
        )
        state = np.array(
            [
                rng.uniform(0.2, ASPECT - 0.2),
                rng.uniform(0.2, 0.8),
                math.log(rng.choice((rng.uniform(0.09, 0.13), rng.uniform(0.17, 0.23)))),
                rng.uniform(0, 2 * math.pi) if rng.random() < 0.3 else 0.0,
                0.0 if hidden else 1.0,
            ]
        )
        things.append(Thing(colour, shape, tuple(map(float, state))))
        for start, end in own:
            options = _feasible(state, shape)
            if group != "pairs":
                options = [action for action in options if not held_out(colour, shape, action)]
            same = {e.action for e in events if e.thing != number}
            alike = {e.action for e in events if e.thing != number and looks[e.thing][1] == shape}
            weights = np.array(
                [
                    ALWAYS_POSSIBLE.get(action, 1.0)
                    * (ALIKE if action in alike else SAME if action in same else 1.0)
                    * (NOVEL if held_out(colour, shape, action) else 1.0)
                    * prior.weight(action, shape, start, end)
                    for action in options
                ]
            )
            action = str(rng.choice(options, p=weights / weights.sum()))
            change = _change(rng, state, action, end - start)
            state = state + change
            events.append(Event(number, action, start, end, tuple(map(float, change))))
    return things, events


def _feasible(state: NDArray[np.float64], shape: str) -> list[str]:
    """Lists the actions that are visible in this state."""
    if state[ALPHA] < 0.5:
        return ["appear"]
    size = math.exp(state[LOG_SIZE])
    room = {
        "left": state[X] - size,
        "right": ASPECT - size - state[X],
        "up": state[Y] - size,
        "down": 1 - size - state[Y],
    }
    options = [action for action, free in room.items() if free > 0.35]
    options += ["blink", "shake", "vanish"]
    if shape not in ROUND:
        options.append("spin")
    options.append("grow" if size < 0.15 else "shrink")
    return options


def _change(
    rng: np.random.Generator, state: NDArray[np.float64], action: str, seconds: float
) -> NDArray[np.float64]:
    """Draws the total change of state by an action."""
    change = np.zeros(5)
    size = math.exp(state[LOG_SIZE])
    if action in ("left", "right"):
        free = state[X] - size if action == "left" else ASPECT - size - state[X]
        change[X] = rng.uniform(0.75, 1.0) * free * (-1 if action == "left" else 1)
    elif action in ("up", "down"):
        free = state[Y] - size if action == "up" else 1 - size - state[Y]
        change[Y] = rng.uniform(0.75, 1.0) * free * (-1 if action == "up" else 1)
    elif action == "spin":
        change[ANGLE] = rng.choice((-1, 1)) * rng.uniform(0.25, 0.5) * 2 * math.pi * seconds
    elif action == "grow":
        change[LOG_SIZE] = math.log(rng.uniform(0.2, LARGEST)) - state[LOG_SIZE]
    elif action == "shrink":
        change[LOG_SIZE] = math.log(rng.uniform(SMALLEST, 0.11)) - state[LOG_SIZE]
    elif action == "appear":
        change[ALPHA] = 1.0
    elif action == "vanish":
        change[ALPHA] = -1.0
    return change


def _backgrounds(rng: np.random.Generator, duration: int) -> tuple[Background, ...]:
    """Draws two or three backgrounds, which change independently of the events."""
    count = int(rng.integers(2, 4))
    starts = [0.0, *sorted(rng.uniform(3, duration - 3, count - 1).tolist())]
    result = []
    for start in starts:
        base = rng.uniform(60, 190)
        grey = [base + rng.uniform(-14, 14, 3), base + rng.choice((-1, 1)) * 30 + rng.uniform(-14, 14, 3)]
        first, second = (tuple(int(v) for v in np.clip(g, 20, 235)) for g in grey)
        result.append(
            Background(
                float(start),
                str(rng.choice(("plain", "gradient", "stripes", "checks", "dots"))),
                ((first[0], first[1], first[2]), (second[0], second[1], second[2])),
                (float(rng.uniform(-0.03, 0.03)), float(rng.uniform(-0.03, 0.03))),
                float(rng.uniform(0.15, 0.4)),
            )
        )
    return tuple(result)
