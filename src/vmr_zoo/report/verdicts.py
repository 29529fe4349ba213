"""Answers claims with finished runs: an effect, its intervals over queries and over seeds, and a verdict.

The error of an effect has two sources, the sample of queries and the seeds of training. A bootstrap over
videos measures the first (scores averaged over seeds), the spread of the effect over seeds the second. Two
or three seeds often agree by chance, so the spread counts as at least that of all claims of the paper, which
compare the same methods. Its degrees of freedom are the mean of the claim's own and those of all these;
claims about the same runs count once. The two variances add up, with Welch-Satterthwaite degrees of freedom.
A claim *does not hold* if its effect is below `margin`, and otherwise *holds* if its effect has the claimed
sign; both after Holm's correction for the number of claims. How often simulated sets of claims had a wrong
verdict is in docs/report.md. Anything else is *not settled*, and so is a claim with rows that are missing,
were still rising, or do not read their sentences.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from vmr_zoo.errors import VmrError, abbreviate
from vmr_zoo.report.caveats import caveats_of
from vmr_zoo.report.claims import ANY, Cell, Claim, describe, select_runs
from vmr_zoo.report.leaderboard import TABLE_KEYS
from vmr_zoo.report.notes import unlike_annotations, unlike_seeds
from vmr_zoo.report.query_scores import QueryScores, load_scores
from vmr_zoo.report.run_settings import has_setting, setting
from vmr_zoo.report.runs import Run
from vmr_zoo.report.significance import (
    LEVEL,
    RESAMPLES,
    least_p,
    percentile_interval,
    resampled_means,
    video_codes,
)
from vmr_zoo.report.stored_scores import QUERY
from vmr_zoo.runs.directory import SIMULATED

_WORLDS = "vmr_zoo.data.worlds."
"""The package whose classes make up features and narrations."""

HOLDS, FAILS, OPEN = "holds", "does not hold", "not settled"


class Spread(NamedTuple):
    """How much an effect differs from seed to seed.

    Attributes:
        variance: of the effect of one seed, in squared points.
        freedom: degrees of freedom of the estimate.
    """

    variance: float
    freedom: int


NO_SPREAD = Spread(0.0, 0)

Rows = Mapping[int, Run]
"""The run of a row by seed."""

Scores = Callable[[Run], QueryScores]
"""Reads the scores of single queries of a run."""


@dataclass(frozen=True)
class Effect:
    """The estimated effect of a claim, in points.

    Attributes:
        mean: over seeds and queries.
        low: lower end of the interval over queries that contains `LEVEL` of the resampled means.
        high: its upper end.
        by_seed: the effect of each seed.
        queries: number of queries of each split.
        error: standard deviation over resamples.
        videos: number of videos, in the split with the fewest.
        runs: what it was measured on; equal for claims about the same runs.
        common: the spread over seeds that the claims of its paper share.
    """

    mean: float
    low: float
    high: float
    by_seed: Mapping[int, float]
    queries: Mapping[str, int]
    error: float
    videos: int
    runs: frozenset[Path]
    common: Spread = NO_SPREAD

    @property
    def spread(self) -> Spread:
        """The spread over the seeds of this claim alone."""
        values = list(self.by_seed.values())
        return Spread(float(np.var(values, ddof=1)), len(values) - 1) if len(values) > 1 else NO_SPREAD

    @property
    def seed_interval(self) -> tuple[float, float] | None:
        """The interval of the mean over seeds, by Student's t; None with one seed."""
        if not self.spread.freedom:
            return None
        error = math.sqrt(self.spread.variance / len(self.by_seed))
        half = float(stats.t.ppf(0.5 + LEVEL / 2, self.spread.freedom)) * error
        return self.mean - half, self.mean + half

    def p_above(self, bound: float) -> float:
        """Returns the two-sided p of an effect of `bound`, 1 if the effect is not above it.

        Few videos count as a small sample: their variance is that of a sample, with its degrees of freedom,
        and p is at least that of a sign test.
        """
        distance = self.mean - bound
        if distance <= 0:
            return 1.0
        others = self.videos - 1
        queries = self.error**2 * self.videos / others
        spreads = [one for one in (self.spread, self.common) if one.freedom] or [NO_SPREAD]
        seeds = max(one.variance for one in spreads) / len(self.by_seed)
        if not queries + seeds:
            return least_p(self.videos)
        uncertain = queries**2 / others
        if seeds:
            uncertain += seeds**2 / statistics.fmean(one.freedom for one in spreads)
        p = 2 * float(stats.t.sf(distance / math.sqrt(queries + seeds), (queries + seeds) ** 2 / uncertain))
        return min(1.0, max(p, least_p(self.videos)))

    def flipped(self) -> Effect:
        """Returns the effect with the other sign."""
        by_seed = {seed: -value for seed, value in self.by_seed.items()}
        return replace(self, mean=-self.mean, low=-self.high, high=-self.low, by_seed=by_seed)


@dataclass(frozen=True)
class ClaimAnswer:
    """A claim and what the runs say about it.

    Attributes:
        claim: the claim.
        effect: None if a row is missing.
        p: p of the effect having the claimed sign, corrected; None without an effect.
        p_fails: p of the effect being below the claim's margin, corrected; None without an effect.
        reasons: what keeps the claim open, whatever its effect is.
        data: the data of its rows, and which parts of it are rendered or simulated.
    """

    claim: Claim
    effect: Effect | None = None
    p: float | None = None
    p_fails: float | None = None
    reasons: tuple[str, ...] = field(default=())
    data: tuple[str, ...] = field(default=())

    @property
    def verdict(self) -> str:
        """`HOLDS`, `FAILS` or `OPEN`."""
        if self.reasons or self.p is None or self.p_fails is None:
            return OPEN
        if self.p_fails < 1 - LEVEL:
            return FAILS
        return HOLDS if self.p < 1 - LEVEL else OPEN

    @property
    def reason(self) -> str:
        """Why the claim is open; "" otherwise."""
        if self.verdict != OPEN:
            return ""
        if self.reasons or self.effect is None:
            return "; ".join(self.reasons)
        effect, margin = _claimed(self)
        if effect.mean > margin:
            return "the effect is too uncertain: more seeds or queries are needed"
        size = f" of more than {margin:g} points" if margin else ""
        return f"no effect{size} in the claimed direction was seen, but it is not ruled out either"


def answer_claims(claims: Sequence[Claim], runs: Sequence[Run]) -> list[ClaimAnswer]:
    """Answers claims, corrected for their number.

    Claims without an effect are not counted: they have not been tested.

    Args:
        claims: from `read_claims`.
        runs: finished runs with directories.
    """
    cache: dict[Path, QueryScores] = {}
    splits = sorted({cell.split for claim in claims for cell in claim.cells})
    metrics = sorted({claim.metric for claim in claims})

    def scores(run: Run) -> QueryScores:
        if run.directory not in cache:
            _, cache[run.directory] = load_scores(run, splits, metrics)
        return cache[run.directory]

    answers = with_common_spread([_estimate(claim, runs, scores) for claim in claims])
    tested = [place for place, answer in enumerate(answers) if answer.effect is not None]
    claimed = [_claimed(answers[place]) for place in tested]
    above = holm([effect.p_above(0.0) for effect, _ in claimed])
    below = holm([effect.flipped().p_above(-margin) for effect, margin in claimed])
    for place, p, p_fails in zip(tested, above, below, strict=True):
        answers[place] = replace(answers[place], p=p, p_fails=p_fails)
    return answers


def with_common_spread(answers: Sequence[ClaimAnswer]) -> list[ClaimAnswer]:
    """Gives each effect the spread over seeds of all claims of its paper: their mean by degrees of freedom.

    Not of all claims: the seeds of one method would then decide what is known about another.
    """
    effects: dict[str, list[Effect]] = defaultdict(list)
    for answer in answers:
        if answer.effect is not None:
            effects[answer.claim.paper].append(answer.effect)
    common = {paper: mean_spread(of_paper) for paper, of_paper in effects.items()}
    return [
        answer
        if answer.effect is None
        else replace(answer, effect=replace(answer.effect, common=common[answer.claim.paper]))
        for answer in answers
    ]


def mean_spread(effects: Sequence[Effect]) -> Spread:
    """Returns the mean of the spreads of effects by their degrees of freedom; without any, `NO_SPREAD`.

    Its own degrees of freedom are those of the sets of runs: what two claims say about the same runs is not
    independent.
    """
    weights = [one.spread.freedom for one in effects]
    if not any(weights):
        return NO_SPREAD
    variance = float(np.average([one.spread.variance for one in effects], weights=weights))
    return Spread(variance, sum({one.runs: one.spread.freedom for one in effects}.values()))


def _claimed(answer: ClaimAnswer) -> tuple[Effect, float]:
    """Returns the effect in the claimed direction, and the claim's margin."""
    assert answer.effect is not None
    effect = answer.effect if answer.claim.sign > 0 else answer.effect.flipped()
    return effect, answer.claim.margin


def holm(p: Sequence[float]) -> list[float]:
    """Adjusts p-values for their number (Holm 1979), whatever their dependence.

    A verdict stands alone, as a statement about a paper, so a report bounds the chance that any of them is
    wrong. The marks of a leaderboard are read together, and only their share of errors is bounded
    (`significance.correct`).

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = np.argsort(p, kind="stable")
    factors = np.arange(len(p), 0, -1)
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(1, np.maximum.accumulate(np.asarray(p, float)[order] * factors))
    return [float(value) for value in adjusted]


def _estimate(claim: Claim, runs: Sequence[Run], scores: Scores) -> ClaimAnswer:
    """Estimates the effect of one claim, or says what is missing."""
    rows: list[tuple[Cell, Rows]] = []
    missing: dict[str, list[str]] = {}
    shared = _shared(claim)
    for cell in claim.cells:
        found, problem = _row(cell, runs, claim.metric)
        rows.append((cell, found))
        if problem:
            missing.setdefault(f"{problem}: {describe(cell.where, shared)}", []).append(cell.split)
    if missing:
        reasons = [f"{what} on {' and '.join(dict.fromkeys(splits))}" for what, splits in missing.items()]
        return ClaimAnswer(claim, reasons=tuple(reasons))
    common = sorted(set.intersection(*(set(found) for _, found in rows)))
    if not common:
        return ClaimAnswer(claim, reasons=("the rows share no seed",))
    try:
        effect = _effect(claim, rows, common, scores)
    except VmrError as error:  # the predictions of one run; other claims do not need it
        return ClaimAnswer(claim, reasons=(str(error),))
    if effect is None:
        return ClaimAnswer(claim, reasons=("the rows share no queries, or those of too few videos",))
    reasons = [] if len(common) >= claim.seeds else [f"{len(common)} of at least {claim.seeds} seeds"]
    for cell, found in rows:
        row = [found[seed] for seed in common]
        name = f"{row[0].header['name']}{cell.row[1:]}"  # in an interaction with the setting
        reasons += [f"{name}: {caveat.text}" for caveat in caveats_of(row)]
    reasons += _unlike(rows, common)
    data = dict.fromkeys(_data(found[common[0]]) for _, found in rows)
    return ClaimAnswer(claim, effect, reasons=tuple(dict.fromkeys(reasons)), data=tuple(data))


def _data(run: Run) -> str:
    """Names the data of a run, and the origin of its features and narrations unless they are real.

    Narrations are simulated if a world of ours makes them up.
    """
    origins = {"features": str(run.header["origin"]), "narrations": "real"}
    if str(setting(run, "features.narration._target_")).startswith(_WORLDS):
        origins["narrations"] = SIMULATED
    made = [
        f"{origin.upper() if origin == SIMULATED else origin} {what}"
        for what, origin in origins.items()
        if origin != "real"
    ]
    listed = ", ".join(made)
    return f"{run.header['protocol']}{f' ({listed})' if made else ''}"


def _shared(claim: Claim) -> Mapping[str, object]:
    """Returns the settings that all rows of a claim have in common, except for the method."""
    first, *others = (cell.where for cell in claim.cells)
    return {
        key: value
        for key, value in first.items()
        if key != "method" and all(one.get(key) == value for one in others)
    }


def _row(cell: Cell, runs: Sequence[Run], metric: str) -> tuple[Rows, str]:
    """Returns the runs of a cell by seed, and what is wrong with them, "" if nothing is."""
    if unknown_keys := [
        key for key, value in cell.where.items() if value != ANY and not has_setting(runs, key)
    ]:
        return {}, f"no run has the setting {', '.join(unknown_keys)}"
    found = [run for run in select_runs(runs, cell.where) if metric in run.metrics.get(cell.split, {})]
    by_seed = {int(run.header["seed"]): run for run in found}
    if not found:
        return {}, f"no run with {metric}"
    # Equal names alone are not enough: runs on other data or features do not share a row.
    settings = {tuple(str(run.header[key]) for key in ("name", *TABLE_KEYS)) for run in found}
    if len(settings) > 1:
        listed = abbreviate(sorted({f"{name} on {protocol}" for name, protocol, *_ in settings}), 3)
        return {}, f"several settings ({listed}), between which the claim must choose"
    if any(run.metrics != by_seed[int(run.header["seed"])].metrics for run in found):
        return {}, "a seed twice, with different results (choose one study by runs=DIR)"
    return by_seed, ""


def _unlike(rows: Sequence[tuple[Cell, Rows]], seeds: Sequence[int]) -> list[str]:
    """Returns differences in settings between the seeds of a row, and in annotations between rows."""
    found: list[str] = []
    compared: dict[tuple[str, str], list[tuple[str, Sequence[Run]]]] = defaultdict(list)
    for cell, by_seed in rows:
        runs = [by_seed[seed] for seed in seeds]
        compared[cell.row[1:], cell.split].append((str(runs[0].header["name"]), runs))
    for (_, split), named in compared.items():  # a setting may have annotations of its own
        found += [*unlike_seeds(named), *unlike_annotations(named, [split])]
    return found


def _effect(
    claim: Claim,
    rows: Sequence[tuple[Cell, Rows]],
    seeds: Sequence[int],
    scores: Scores,
) -> Effect | None:
    """Sums the cells, split by split, over the queries that all of them have; None: of too few videos.

    All splits share their draws, as they may be about the same videos.
    """
    tables = {
        split: _differences(
            [(cell.sign, found) for cell, found in rows if cell.split == split],
            split,
            claim,
            seeds,
            scores,
        )
        for split in dict.fromkeys(cell.split for cell, _ in rows)
    }
    _check_listed(claim, tables.values())
    codes = video_codes(*(table.index for table in tables.values()))
    fewest = min(len(np.unique(videos)) for videos in codes)
    if least_p(fewest) > 1 - LEVEL:
        return None
    number = 1 + max(int(videos.max()) for videos in codes)
    resampled = np.zeros(RESAMPLES)
    by_seed = np.zeros(len(seeds))
    for table, videos in zip(tables.values(), codes, strict=True):
        by_seed += table.mean().to_numpy()
        resampled += resampled_means(table.mean(axis=1).to_numpy()[None], videos, number=number)[0]
    if not np.isfinite(resampled).all():
        return None
    low, high = percentile_interval(resampled)
    return Effect(
        float(by_seed.mean()),
        float(low),
        float(high),
        dict(zip(seeds, map(float, by_seed), strict=True)),
        {split: len(table) for split, table in tables.items()},
        float(resampled.std()),
        fewest,
        frozenset(found[seed].directory for _, found in rows for seed in seeds),
    )


def _check_listed(claim: Claim, tables: Iterable[pd.DataFrame]) -> None:
    """Raises an error if the rows lack a query that the claim lists."""
    listed = claim.queries or frozenset()
    if lacking := listed.difference(*(table.index.get_level_values(QUERY) for table in tables)):
        raise VmrError(f"{len(lacking)} of {len(listed)} listed queries lack a score in one of the rows")


def _differences(
    cells: Sequence[tuple[int, Rows]],
    split: str,
    claim: Claim,
    seeds: Sequence[int],
    scores: Scores,
) -> pd.DataFrame:
    """Returns (queries, seeds) signed sums of the cells of one split, in points."""
    columns: list[pd.Series] = []
    for seed in seeds:
        parts = [sign * _scored(found[seed], split, claim.metric, scores) for sign, found in cells]
        columns.append(sum(parts[1:], parts[0]))  # aligned by query; NaN where a row lacks one
    table = 100.0 * pd.concat(columns, axis=1).dropna()
    if claim.queries is not None:
        table = table[table.index.get_level_values(QUERY).isin(claim.queries)]
    return table


def _scored(run: Run, split: str, metric: str, scores: Scores) -> pd.Series:
    frames = scores(run)
    if split not in frames or metric not in frames[split]:
        raise VmrError(f"{run.header['name']} has no scores of single queries for {metric} on {split}")
    return frames[split][metric].astype(np.float64)
