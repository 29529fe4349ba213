"""The grammar: what may be asked about a scene, in which words, and which moments answer it.

A sentence is written from its meaning, one or more `Clause`s. Ground truth is found the other way round, by
asking the scene which events satisfy the meaning, so a sentence never has an answer that its ground truth
lacks.

`WORDS` are what every split says; `NOVEL` are synonyms that only the split novel_word says. The concepts
stay known: a model must carry the meaning of a new word over from the pretrained text encoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from vmr_zoo.data.worlds.shapes.world import Event, Scene, held_out

WORDS: dict[str, tuple[str, ...]] = {
    **{
        colour: (colour,) for colour in ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
    },
    "circle": ("circle", "disc"),
    "square": ("square", "box"),
    "triangle": ("triangle",),
    "star": ("star",),
    "cross": ("cross", "plus sign"),
    "ring": ("ring",),
    "bar": ("bar", "rectangle"),
}
"""Every word for a colour or a shape, by concept."""

NOVEL: dict[str, tuple[str, ...]] = {
    "red": ("crimson", "scarlet"),
    "orange": ("tangerine", "amber"),
    "yellow": ("golden", "lemon"),
    "green": ("emerald", "lime"),
    "cyan": ("turquoise", "teal"),
    "blue": ("navy", "cobalt"),
    "purple": ("violet", "lilac"),
    "pink": ("magenta", "fuchsia"),
    "circle": ("ball", "disk"),
    "square": ("cube", "tile"),
    "triangle": ("pyramid", "wedge"),
    "star": ("asterisk", "pentagram"),
    "cross": ("crucifix", "crosshair"),
    "ring": ("hoop", "donut"),
    "bar": ("stick", "plank"),
}
"""Words for a colour or a shape that training never sees."""

VERBS: dict[str, tuple[tuple[str, str], ...]] = {
    "left": (("moves left", "moving left"), ("slides to the left", "sliding to the left")),
    "right": (("moves right", "moving right"), ("slides to the right", "sliding to the right")),
    "up": (("moves up", "moving up"), ("rises", "rising")),
    "down": (("moves down", "moving down"), ("falls", "falling")),
    "spin": (("spins", "spinning"), ("rotates", "rotating")),
    "grow": (("grows", "growing"), ("gets bigger", "getting bigger")),
    "shrink": (("shrinks", "shrinking"), ("gets smaller", "getting smaller")),
    "blink": (("blinks", "blinking"), ("flashes", "flashing")),
    "shake": (("shakes", "shaking"), ("trembles", "trembling")),
    "appear": (("appears", "appearing"), ("fades in", "fading in")),
    "vanish": (("disappears", "disappearing"), ("fades away", "fading away")),
}
"""Every phrase for an action, as (present tense, -ing form)."""

NOVEL_VERBS: dict[str, tuple[tuple[str, str], ...]] = {
    "left": (("glides leftward", "gliding leftward"),),
    "right": (("glides rightward", "gliding rightward"),),
    "up": (("ascends", "ascending"), ("climbs", "climbing")),
    "down": (("descends", "descending"), ("drops", "dropping")),
    "spin": (("whirls", "whirling"), ("revolves", "revolving")),
    "grow": (("expands", "expanding"), ("swells", "swelling")),
    "shrink": (("contracts", "contracting"), ("dwindles", "dwindling")),
    "blink": (("flickers", "flickering"), ("strobes", "strobing")),
    "shake": (("vibrates", "vibrating"), ("jitters", "jittering")),
    "appear": (("materializes", "materializing"), ("emerges", "emerging")),
    "vanish": (("vanishes", "vanishing"), ("dissolves", "dissolving")),
}
"""Phrases for an action that training never sees."""

NOUNS = ("shape", "figure", "object")
SUBCLAUSES = ("the {thing} {verb}", "a {thing} {verb}", "a {thing} is {ing}")
FRAMES = (*SUBCLAUSES, "there is a {thing} {ing}", "we see a {thing} that {verb}")

RELATIONS = ("while", "before", "after")
SLACK_SECONDS = 1.0
"""Two events happen "while" each other if they share this long; one that only nearly does makes a sentence
vague, and vague sentences are not asked."""

MAX_MOMENTS = 2

SINGLE_CLAUSE = frozenset({"novel_word", "novel_composition"})
"""Splits that never mix in several clauses: what they test is something else."""


@dataclass(frozen=True, slots=True)
class Clause:
    """Something happening: an action of a thing known by its colour, its shape or both."""

    action: str
    colour: str | None
    shape: str | None


@dataclass(frozen=True, slots=True)
class Question:
    """One sentence about a scene.

    Attributes:
        text: the sentence.
        moments: the answer, (start, end) seconds in order.
        clauses: the meaning; the first is the one asked for.
        relations: how each later clause restricts the first (a relation of `RELATIONS`), or "then": the
            moment runs from the start of the first to the end of the second.
    """

    text: str
    moments: tuple[tuple[float, float], ...]
    clauses: tuple[Clause, ...]
    relations: tuple[str, ...] = ()


def matching(scene: Scene, clause: Clause) -> list[Event]:
    """Returns every event of the scene that the clause describes, ordered by start."""
    return [
        event
        for event in scene.events
        if event.action == clause.action
        and clause.colour in (None, scene.colour(event))
        and clause.shape in (None, scene.shape(event))
    ]


def write_clause(
    clause: Clause, rng: np.random.Generator, novel: str | None = None, frames: Sequence[str] = FRAMES
) -> str:
    """Writes a clause.

    Args:
        clause: the meaning.
        rng: chooses among paraphrases.
        novel: which part is said in a word of `NOVEL` or `NOVEL_VERBS`: "colour", "shape" or "action".
        frames: the sentence patterns to choose from.

    Returns:
        Lower-case words without a full stop.
    """

    def word(concept: str, part: str) -> str:
        return str(rng.choice((NOVEL if novel == part else WORDS)[concept]))

    noun = word(clause.shape, "shape") if clause.shape else str(rng.choice(NOUNS))
    thing = f"{word(clause.colour, 'colour')} {noun}" if clause.colour else noun
    verbs = (NOVEL_VERBS if novel == "action" else VERBS)[clause.action]
    verb, ing = verbs[int(rng.integers(len(verbs)))]
    text = str(rng.choice(frames)).format(thing=thing, verb=verb, ing=ing)
    for vowel in "aeiou":
        text = text.replace(f" a {vowel}", f" an {vowel}")
        if text.startswith(f"a {vowel}"):
            text = f"an{text[1:]}"
    return text


def ask(scene: Scene, split: str, rng: np.random.Generator, complex_share: float) -> list[Question]:
    """Writes the sentences of one split about a scene.

    Args:
        scene: what they are about.
        split: "train", "selection", "iid", "ood_time", "novel_word", "novel_composition" or "complex".
        rng: the split's own generator for this scene.
        complex_share: share of multi-clause sentences where simple and complex are mixed.

    Returns:
        At most one question per event. Given equal generators, novel_word asks exactly what iid asks in one
        clause, with one word replaced.
    """
    questions: list[Question] = []
    asked: set[tuple[tuple[float, float], ...]] = set()
    for event in scene.events:
        meaning, words = rng.spawn(2)  # the meaning must not depend on how many words were drawn before
        is_held_out = held_out(scene.colour(event), scene.shape(event), event.action)
        if is_held_out != (split == "novel_composition"):
            continue
        clause = _refer(scene, event, meaning, whole=is_held_out)
        several = split == "complex" or (split not in SINGLE_CLAUSE and meaning.random() < complex_share)
        moments = tuple((e.start, e.end) for e in matching(scene, clause)) if clause else ()
        if moments in asked:
            continue
        if clause:
            asked.add(moments)
        if several:
            question = _several_clauses(scene, event, words)
            if question is not None:
                questions.append(question)
        elif clause:
            novel = _part(clause, words) if split == "novel_word" else None
            questions.append(Question(_finish(write_clause(clause, words, novel)), moments, (clause,)))
    return questions


def _part(clause: Clause, rng: np.random.Generator) -> str:
    """Chooses which part of a clause to say in a novel word."""
    return str(rng.choice([part for part in ("action", "colour", "shape") if getattr(clause, part)]))


def _references(scene: Scene, event: Event, rng: np.random.Generator) -> list[Clause]:
    """Lists ways to refer to an event: colour or shape alone in random order, then both."""
    full = Clause(event.action, scene.colour(event), scene.shape(event))
    either = [replace(full, shape=None), replace(full, colour=None)]
    return [*(either[i] for i in rng.permutation(2)), full]


def _refer(scene: Scene, event: Event, rng: np.random.Generator, *, whole: bool = False) -> Clause | None:
    """Finds a reference that only this event answers, or the same thing doing the same once more."""
    options = _references(scene, event, rng)
    if whole or rng.random() < 0.6:
        options = options[-1:]
    for clause in options:
        events = matching(scene, clause)
        if {e.thing for e in events} == {event.thing} and len(events) <= MAX_MOMENTS:
            return clause
    return None


def _related(main: Event, relation: str, other: Event, slack: float = 0.0) -> bool:
    """Tells whether `main` is while, before or after `other`; slack makes it easier."""
    if relation == "while":
        return min(main.end, other.end) - max(main.start, other.start) >= SLACK_SECONDS - slack
    if relation == "before":
        return main.end <= other.start + slack
    return main.start >= other.end - slack


def _several_clauses(scene: Scene, main: Event, rng: np.random.Generator) -> Question | None:
    """Writes a sentence of two or three clauses that exactly one moment answers.

    Sentences whose first clause alone has several answers, so that the others decide, are preferred.
    """
    others = [
        (clause, event)
        for event in scene.events
        if (event.thing, event.action) != (main.thing, main.action)
        and (clause := _refer(scene, event, rng)) is not None
        and len(matching(scene, clause)) == 1
    ]
    conditions = [
        (relation, *other) for other in others for relation in RELATIONS if _related(main, relation, other[1])
    ]
    combinations: list[tuple[tuple[str, Clause, Event], ...]] = [(condition,) for condition in conditions]
    combinations += [(a, b) for a in conditions for b in conditions if a[0] < b[0] and a[2] != b[2]]
    deciding: list[Question] = []
    confirming: list[Question] = []
    for combination in combinations:
        for clause in _references(scene, main, rng):
            candidates = matching(scene, clause)
            answers = [
                e for e in candidates if all(_related(e, r, o, SLACK_SECONDS) for r, _, o in combination)
            ]
            if answers == [main]:
                rest = " and ".join(
                    f"{r} {write_clause(c, rng, frames=SUBCLAUSES)}" for r, c, _ in combination
                )
                question = Question(
                    _finish(f"{write_clause(clause, rng)} {rest}"),
                    ((main.start, main.end),),
                    (clause, *(c for _, c, _ in combination)),
                    tuple(r for r, _, _ in combination),
                )
                (deciding if len(candidates) > 1 else confirming).append(question)
    first = _refer(scene, main, rng)
    if first is not None and len(matching(scene, first)) == 1:
        for clause, event in others:
            if -0.5 <= event.start - main.end <= 0.2 * scene.duration:
                text = f"{write_clause(first, rng)} and then {write_clause(clause, rng, frames=SUBCLAUSES)}"
                moment = (main.start, max(main.end, event.end))
                confirming.append(Question(_finish(text), (moment,), (first, clause), ("then",)))
    # Three clauses outnumber two; draw the number of clauses before the sentence.
    pool = deciding if deciding and rng.random() < 0.7 else confirming or deciding
    if not pool:
        return None
    count = int(rng.choice(sorted({len(question.clauses) for question in pool})))
    pool = [question for question in pool if len(question.clauses) == count]
    return pool[int(rng.integers(len(pool)))]


def _finish(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."
