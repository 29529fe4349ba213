"""Simulates how often verdicts on claims are wrong, and updates the table of docs/report.md.

python experiments/verdict_errors.py

Reports of 12 or 20 claims about two or four papers, each claim with an effect per seed. Without true effects,
every settled effect is wrong, in either direction; if every third claim has an effect of 8 points, the table
has how many of those hold. Ranges are over both numbers of claims and papers, and over errors over queries
of 0.3 and 1 point.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from collect import HERE, update_own_page

from vmr_zoo.report.claims import read_claims
from vmr_zoo.report.escape import markdown_table
from vmr_zoo.report.significance import LEVEL
from vmr_zoo.report.verdicts import ClaimAnswer, Effect, holm, with_common_spread

REPORTS = 400
SEEDS = (2, 3)
SIZES = ((12, 4), (20, 4), (20, 2))  # claims and papers
ERRORS = (0.3, 1.0)
SPREAD = 1.5  # standard deviation over seeds, in points
EFFECT = 8.0
VIDEOS = 300


@dataclass(frozen=True)
class World:
    """How the spreads over seeds of single claims are related.

    Attributes:
        title: the row of the table.
        factor: standard deviations over seeds differ by this factor, one standard deviation of the logarithm.
        within: what shares a standard deviation: "claim" or "paper".
        largest: the first claim or paper has this many times the standard deviation of the others.
        together: claims about the same runs.
        correlation: of their effects over seeds.
    """

    title: str
    factor: float = 1.0
    within: str = "claim"
    largest: float = 1.0
    together: int = 1
    correlation: float = 0.0


WORLDS = (
    World("the same for all claims"),
    World("differs between claims by a factor of 1.6", factor=1.6),
    World("differs between claims by a factor of 2.7", factor=2.7),
    World("differs between papers by a factor of 2.7", factor=2.7, within="paper"),
    World("one claim eight times the others", largest=8.0),
    World("one paper eight times the others", largest=8.0, within="paper"),
    World("two claims about the same runs, correlation 0.5", together=2, correlation=0.5),
    World("two claims about the same runs, correlation 0.8", together=2, correlation=0.8),
    World("all claims of a paper about the same runs, 0.8", together=20, correlation=0.8),
)


def draw_reports(
    world: World, claims: int, papers: int, seeds: int, error: float, true: np.ndarray
) -> Iterator[list[ClaimAnswer]]:
    """Yields reports whose claims have the given true effects, (claims,) in points."""
    generator = np.random.default_rng(0)
    claim = read_claims(HERE / "claims")[0]
    of_paper = claims // papers
    paper = np.arange(claims) // of_paper
    runs = paper * claims + np.arange(claims) % of_paper // world.together
    _, group = np.unique(paper if world.within == "paper" else np.arange(claims), return_inverse=True)
    for _ in range(REPORTS):
        deviation = SPREAD * world.factor ** generator.normal(size=claims)[group]
        deviation[group == 0] *= world.largest
        shared = generator.normal(size=(runs.max() + 1, seeds))[runs]
        own = generator.normal(size=(claims, seeds))
        mixed = np.sqrt(world.correlation) * shared + np.sqrt(1 - world.correlation) * own
        centre = true + generator.normal(0, error, claims)
        by_seed = centre[:, None] + deviation[:, None] * mixed
        yield [
            ClaimAnswer(
                replace(claim, paper=str(paper[number])),
                Effect(
                    float(values.mean()), 0.0, 0.0, dict(enumerate(map(float, values))), {}, error, VIDEOS,
                    frozenset({Path(str(runs[number]))}),
                ),
            )
            for number, values in enumerate(by_seed)
        ]  # fmt: skip


def settled(report: list[ClaimAnswer]) -> tuple[np.ndarray, np.ndarray]:
    """Returns which claims of a report would hold, and which would if they claimed the opposite."""
    effects = [answer.effect for answer in with_common_spread(report)]
    above = holm([effect.p_above(0.0) for effect in effects])
    below = holm([effect.flipped().p_above(0.0) for effect in effects])
    return np.less(above, 1 - LEVEL), np.less(below, 1 - LEVEL)


def percentages(world: World, seeds: int) -> tuple[str, str]:
    """Returns the range of reports with a wrong verdict, and of effects that hold, in per cent."""
    wrong, found = [], []
    for (claims, papers), error in itertools.product(SIZES, ERRORS):
        none, some = np.zeros(claims), np.where(np.arange(claims) % 3, 0.0, EFFECT)
        reports = draw_reports(world, claims, papers, seeds, error, none)
        wrong.append(np.mean([np.any(settled(report)) for report in reports]))
        reports = draw_reports(world, claims, papers, seeds, error, some)
        found.append(np.mean([settled(report)[0][some > 0].mean() for report in reports]))
    return tuple(f"{100 * min(own):.0f} to {100 * max(own):.0f} %" for own in (wrong, found))


def main() -> None:
    """Prints the table and updates the page."""
    rows = []
    for world in WORLDS:
        cells = [percentages(world, seeds) for seeds in SEEDS]
        rows.append((world.title, *(cell for pair in zip(*cells, strict=True) for cell in pair)))
    titles = ("wrong, 2 seeds", "wrong, 3 seeds", "holds, 2 seeds", "holds, 3 seeds")
    table = markdown_table(("spread over seeds", *titles), rows)
    print(table)
    update_own_page(HERE.parent / "docs" / "report.md", {"wrong verdicts": table})


if __name__ == "__main__":
    main()
