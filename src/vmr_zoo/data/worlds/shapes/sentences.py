"""The grammar: queries about a scene, their wording, and the moments that match them.

A sentence is generated from its meaning, one or more `Clause`s. Its ground truth is every event of the scene
that satisfies the meaning: no matching moment is missing.

Every split uses `WORDS`; only the split novel_word uses the synonyms in `NOVEL`. The concepts stay the same:
a model must know the meaning of a new word from the pretrained text encoder.
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
"""Words for a colour or a shape, by concept."""

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
"""Words for a colour or a shape that do not occur in training."""

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
"""Phrases for an action, as (present tense, -ing form)."""

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
"""Phrases for an action that do not occur in training."""

NOUNS = ("shape", "figure", "object")
SUBCLAUSES = ("the {thing} {verb}", "a {thing} {verb}", "a {thing} is {ing}")
FRAMES = (*SUBCLAUSES, "there is a {thing} {ing}", "we see a {thing} that {verb}")
PARAPHRASES = (
    "at some point a {thing} {verb}",
    "look for the {thing} that is {ing}",
    "what we want to see is a {thing} while it {verb}",
    "a {thing} can be seen {ing}",
    "{ing}, that is what a {thing} does here",
)
"""Sentence patterns of the split paraphrase; no other split uses them."""

RELATIONS = ("while", "before", "after")
SLACK_SECONDS = 1.0
"""Minimum overlap of two events for "while". A sentence that another event nearly satisfies within this
tolerance is ambiguous and not used."""

MAX_MOMENTS = 2

SINGLE_CLAUSE = frozenset({"novel_word", "novel_composition", "paraphrase"})
"""Splits without sentences of several clauses, because they test something else."""


@dataclass(frozen=True, slots=True)
class Clause:
    """An action of a thing identified by its colour, its shape or both."""

    action: str
    colour: str | None
    shape: str | None


@dataclass(frozen=True, slots=True)
class Question:
    """One sentence about a scene.

    Attributes:
        text: the sentence.
        moments: ground truth, (start, end) in seconds, in order.
        clauses: the meaning; the first describes the target.
        relations: how each later clause restricts the first (one of `RELATIONS`), or "then": the moment spans
            from the start of the first to the end of the second.
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


def may_hold(scene: Scene, clauses: Sequence[Clause], relations: Sequence[str]) -> bool:
    """Returns whether a scene holds what a sentence means, or nearly does: times may be `SLACK_SECONDS` off.

    Args:
        scene: the scene.
        clauses: the meaning, as in `Question`.
        relations: of each later clause to the first.

    Returns:
        False only if no event of the scene, or no combination of its events, fits the sentence.
    """
    mains, *conditions = (matching(scene, clause) for clause in clauses)
    if relations and relations[0] == "then":
        return any(b.start >= a.end - SLACK_SECONDS for a in mains for b in conditions[0])
    return any(
        all(
            any(_related(main, relation, other, SLACK_SECONDS) for other in others)
            for relation, others in zip(relations, conditions, strict=True)
        )
        for main in mains
    )


def write_clause(
    clause: Clause, rng: np.random.Generator, novel: str | None = None, frames: Sequence[str] = FRAMES
) -> str:
    """Writes a clause as text.

    Args:
        clause: the meaning.
        rng: chooses among paraphrases.
        novel: part that uses a word of `NOVEL` or `NOVEL_VERBS`: "colour", "shape" or "action".
        frames: sentence patterns to choose from.

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
        scene: the scene.
        split: "train", "selection", "iid", "ood_time", "novel_word", "novel_composition", "paraphrase" or
            "complex".
        rng: generator of the split for this scene.
        complex_share: share of multi-clause sentences in splits that mix both kinds.

    Returns:
        At most one question per event. With equal generators, the questions of novel_word are the
        single-clause questions of iid with one word replaced, and those of paraphrase have other patterns.
    """
    questions: list[Question] = []
    used: set[tuple[tuple[float, float], ...]] = set()
    for event in scene.events:
        meaning, words = rng.spawn(2)  # the meaning must not depend on the number of words drawn before
        is_held_out = held_out(scene.colour(event), scene.shape(event), event.action)
        if is_held_out != (split == "novel_composition"):
            continue
        clause = _refer(scene, event, meaning, whole=is_held_out)
        several = split == "complex" or (split not in SINGLE_CLAUSE and meaning.random() < complex_share)
        moments = tuple((e.start, e.end) for e in matching(scene, clause)) if clause else ()
        if moments in used:
            continue
        if clause:
            used.add(moments)
        if several:
            question = _several_clauses(scene, event, words)
            if question is not None:
                questions.append(question)
        elif clause:
            novel = _part(clause, words) if split == "novel_word" else None
            frames = PARAPHRASES if split == "paraphrase" else FRAMES
            text = _finish(write_clause(clause, words, novel, frames))
            questions.append(Question(text, moments, (clause,)))
    return questions


def _part(clause: Clause, rng: np.random.Generator) -> str:
    """Chooses the part of a clause that uses a novel word."""
    return str(rng.choice([part for part in ("action", "colour", "shape") if getattr(clause, part)]))


def _references(scene: Scene, event: Event, rng: np.random.Generator) -> list[Clause]:
    """Lists references to an event: colour or shape alone in random order, then both."""
    full = Clause(event.action, scene.colour(event), scene.shape(event))
    either = [replace(full, shape=None), replace(full, colour=None)]
    return [*(either[i] for i in rng.permutation(2)), full]


def _refer(scene: Scene, event: Event, rng: np.random.Generator, *, whole: bool = False) -> Clause | None:
    """Finds a reference that matches only this event, or also the same action of the same thing later."""
    options = _references(scene, event, rng)
    if whole or rng.random() < 0.6:
        options = options[-1:]
    for clause in options:
        events = matching(scene, clause)
        if {e.thing for e in events} == {event.thing} and len(events) <= MAX_MOMENTS:
            return clause
    return None


def _related(main: Event, relation: str, other: Event, slack: float = 0.0) -> bool:
    """Returns whether `main` is while, before or after `other`, up to a tolerance `slack`."""
    if relation == "while":
        return min(main.end, other.end) - max(main.start, other.start) >= SLACK_SECONDS - slack
    if relation == "before":
        return main.end <= other.start + slack
    return main.start >= other.end - slack


def _several_clauses(scene: Scene, main: Event, rng: np.random.Generator) -> Question | None:
    """Writes a sentence of two or three clauses that matches exactly one moment.

    Sentences whose first clause alone matches several moments are preferred: there the other clauses decide.
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
    # There are more sentences of three clauses than of two: the number of clauses is drawn first.
    pool = deciding if deciding and rng.random() < 0.7 else confirming or deciding
    if not pool:
        return None
    count = int(rng.choice(sorted({len(question.clauses) for question in pool})))
    pool = [question for question in pool if len(question.clauses) == count]
    return pool[int(rng.integers(len(pool)))]


def _finish(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."
