"""Marks the best row of a table and those to which one is significantly superior, by a paired bootstrap.

The bootstrap resamples videos, each with all its queries: queries about one video, which are often about one
moment, are no independent samples. On Charades-CD with simulated features the variance of the difference
between two rows (R1@0.5, seed 0) is on average 1.35 times that of a bootstrap over single queries, on shapes
0.9 times.

Where both rows have several seeds, their spread over seeds counts too (`with_seeds`). Otherwise the
comparison is of the trained models alone, and the notes say so (`seeds_left_out`).

A table compares every row with every other, in each split and metric: the best row may have varying seeds and
then be no better than any other, while the second is. A row is worse if any other is significantly better.
The p-values of all comparisons of a table are corrected together by Benjamini and Hochberg (1995): of the
pairs that it separates, at most 5 % are expected to be equal. Williams, Jones and Tukey (1999) recommend
that correction for all pairs.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from vmr_zoo.metrics.per_query import Floats
from vmr_zoo.report.leaderboard import BEST, TIED, WORSE, Leaderboard, LeaderboardRow
from vmr_zoo.report.query_scores import QueryScores, split_means
from vmr_zoo.report.stored_scores import VIDEO

Videos = NDArray[np.intp]
"""(N,) the video of each query, as a number from 0."""

RESAMPLES = 10_000
LEVEL = 0.95

TEST = "paired bootstrap over videos, Welch's t over seeds; Benjamini-Hochberg over the table, 5 %"
"""What decides on a mark, for the notes below tables."""

_AT_ONCE = 500
"""Comparisons at a time: their resampled means need 40 MB."""

_DRAWS = 2_000_000
"""Draws at a time: limits the bootstrap to about 40 MB of memory, however many videos there are."""


class Difference(NamedTuple):
    """How much better one row is than another, in points.

    Attributes:
        mean: the mean of the paired differences.
        low: lower end of the interval that contains `LEVEL` of the resampled means.
        high: its upper end.
        p: two-sided p of no difference: twice the share of the resampled means that have the other sign, at
            least 2 / (`RESAMPLES` + 1), and at least that of a sign test over the videos, 1 if there is one
            video only. Not corrected.
        error: standard deviation of the resampled means.
    """

    mean: float
    low: float
    high: float
    p: float
    error: float


def mark_significance(board: Leaderboard, scores: Sequence[Sequence[QueryScores]]) -> None:
    """Marks, for each split and metric, the best row and the rows to which another is significantly superior.

    Scores of each query are averaged over seeds; the differences of all pairs of rows are bootstrapped, and
    the spread over seeds is added. All comparisons of the table are corrected together. A row without scores
    of single queries may be the best, but then nothing is compared: `Leaderboard.not_compared`.

    Args:
        board: the table; its rows are marked in place.
        scores: scores of single queries by row and run.
    """
    found: dict[tuple[int, int, str, str], float] = {}
    for split in board.splits:
        rows = split_means(scores, split)
        best: dict[str, int] = {}
        for metric in board.metrics:
            top = board.best((split, metric))
            if top is not None:
                top.marks[split, metric] = BEST
                best[metric] = next(number for number, row in enumerate(board.rows) if row is top)
        for (one, other, metric), difference in compare_rows(rows, best).items():
            first, second = (board.rows[number].values.get((split, metric)) for number in (one, other))
            if first and second:
                weaker, stronger = (one, other) if difference.mean < 0 else (other, one)
                found[weaker, stronger, split, metric] = with_seeds(difference, first, second)
    for (weaker, stronger, split, metric), p in zip(found, correct(list(found.values())), strict=True):
        for number in (weaker, stronger):
            board.rows[number].marks.setdefault((split, metric), TIED)
        if p <= 1 - LEVEL and board.rows[weaker].marks[split, metric] != BEST:
            board.rows[weaker].marks[split, metric] = WORSE


def correct(p: Sequence[float]) -> list[float]:
    """Corrects the p-values of one table for their number, by Benjamini and Hochberg.

    >>> correct([0.01, 0.04, 0.03])
    [0.03, 0.04, 0.04]
    """
    corrected: Any = stats.false_discovery_control(p, method="bh") if len(p) else []
    return [round(float(value), 12) for value in corrected]


def with_seeds(difference: Difference, *rows: Sequence[float]) -> float:
    """Returns p of no difference between two rows, with their spread over seeds.

    The variances of the two means over seeds add to that over resampled videos; the degrees of freedom are
    those of Welch and Satterthwaite, infinite for videos. Seeds are not paired: seed 0 of two methods has
    nothing in common but the order of the data. Resampling the seeds too, deviations scaled by
    sqrt(S / (S - 1)), is too sure with two or three: simulated, where seeds vary three to eight times as
    much as videos, it called 9 to 30 % of equal rows different at 5 %, this test 4 to 11 %, videos alone 44
    to 77 %.

    Args:
        difference: of the means over seeds.
        rows: the score of each seed of either row, in points. With one seed, only videos count.

    >>> one = Difference(2.0, 1.0, 3.0, 0.01, error=0.5)
    >>> with_seeds(one, [8.0], [6.0, 6.0]), round(with_seeds(one, [7.0, 9.0], [5.5, 6.5]), 2)
    (0.01, 0.24)
    """
    if min(map(len, rows)) < 2:
        return difference.p
    variances = [float(np.var(row, ddof=1)) / len(row) for row in rows]
    total = difference.error**2 + sum(variances)
    freedom = sum(one**2 / (len(row) - 1) for one, row in zip(variances, rows, strict=True))
    if not freedom:
        return difference.p
    p = 2 * float(stats.t.sf(abs(difference.mean) / total**0.5, total**2 / freedom))
    return max(difference.p, p)


def seeds_left_out(rows: Sequence[LeaderboardRow]) -> str:
    """Says which comparisons are of the trained models alone; "" if all rows have several seeds."""
    several = [len(row.runs) > 1 for row in rows]
    if all(several):
        return ""
    which = (
        "rows with one seed are compared as trained" if any(several) else "of these trained models, one seed"
    )
    return f"{which}: seeds are not counted"


def compare_rows(
    rows: Sequence[pd.DataFrame | None], best: Mapping[str, int]
) -> dict[tuple[int, int, str], Difference]:
    """Compares every row with every other, query by query.

    Args:
        rows: (N, metrics) scores of each row in one split, averaged over seeds; None if a row has none.
        best: number of the best row by metric.

    Returns:
        First row minus second by the numbers of both and the metric, for rows that share queries with the
        best row and with each other.
    """
    groups: dict[bytes, list[tuple[tuple[int, int, str], Floats]]] = defaultdict(list)
    patterns: dict[tuple[int, bytes], bytes] = {}
    for metric, top in best.items():
        reference = rows[top]
        if reference is None or metric not in reference:
            continue
        # Indexes belong to the frames: a column makes a new one each time, so that it has no lasting id.
        scored = [
            (number, row.index, row[metric])
            for number, row in enumerate(rows)
            if row is not None
            and metric in row
            and (row.index is reference.index or row.index.isin(reference.index).any())
        ]
        for (one, index, first), (other, its, second) in itertools.combinations(scored, 2):
            aligned = second if its is index else second.reindex(index)
            difference = 100.0 * (first.to_numpy(np.float64) - aligned.to_numpy(np.float64))
            both = ~np.isnan(difference)
            if both.any():
                # Only comparisons whose queries have the same pattern of videos can share their draws.
                key = id(index), both.tobytes()
                if key not in patterns:
                    patterns[key] = video_codes(index[both])[0].tobytes()
                groups[patterns[key]].append(((one, other, metric), difference[both]))
    found: dict[tuple[int, int, str], Difference] = {}
    for codes, group in groups.items():
        videos = np.frombuffer(codes, np.intp)
        for part in (group[start : start + _AT_ONCE] for start in range(0, len(group), _AT_ONCE)):
            compared = paired_bootstrap(np.stack([difference for _, difference in part]), videos)
            found |= dict(zip([key for key, _ in part], compared, strict=True))
    return found


def video_codes(*indexes: pd.Index) -> list[Videos]:
    """Returns the number of the video of each query, counted from 0 in the order of the queries.

    Args:
        indexes: of scores of single queries (`query_scores.query_index`). They share one numbering.
    """
    videos = [index.get_level_values(VIDEO) for index in indexes]
    codes = np.asarray(pd.factorize(np.concatenate(videos))[0], np.intp)
    return np.split(codes, np.cumsum([len(own) for own in videos])[:-1])


def paired_bootstrap(differences: Floats, videos: Videos, resamples: int = RESAMPLES) -> list[Difference]:
    """Computes percentile bootstrap intervals and p of mean differences; all comparisons share their draws.

    With one query per video it equals `scipy.stats.bootstrap` with the same seed (tested).

    Args:
        differences: (R, N) paired differences of R comparisons over N queries, in points.
        videos: (N,) the video of each query (`video_codes`).
        resamples: number of resamples.
    """
    means = resampled_means(differences, videos, resamples)
    low, high = percentile_interval(means)
    # One more in each count: the observed sample is a possible resample, and no p is 0.
    less, more = ((1 + side.sum(1)) / (resamples + 1) for side in (means <= 0, means >= 0))
    count = 1 + int(videos.max())
    observed, error = differences.mean(1), means.std(1)
    # Percentiles alone are too sure: 14 % of equal rows differ at 5 % with 6 videos, 10 % with 10.
    with np.errstate(divide="ignore", invalid="ignore"):
        score = np.abs(observed) / (error * np.sqrt(np.float64(count) / (count - 1)))
    small = np.nan_to_num(2 * stats.t.sf(score, count - 1), nan=1.0)
    p = np.clip(np.maximum(2 * np.minimum(less, more), small), least_p(count), 1.0)
    columns = zip(observed, low, high, p, error, strict=True)
    return [Difference(*map(float, own)) for own in columns]


def percentile_interval(means: Floats) -> tuple[Any, Any]:
    """Returns the ends of the interval that contains `LEVEL` of resampled means, along the last axis."""
    tail = 50 * (1 - LEVEL)
    low, high = np.percentile(means, [tail, 100 - tail], axis=-1)
    return low, high


def least_p(videos: int) -> float:
    """Returns the least two-sided p that a sign test over so many videos can have.

    >>> least_p(1), least_p(6)
    (1.0, 0.03125)
    """
    return 2.0 ** (1 - videos)


def resampled_means(
    differences: Floats, videos: Videos, resamples: int = RESAMPLES, seed: int = 0, number: int = 0
) -> Floats:
    """Returns (R, resamples) means over the queries of resampled videos; NaN where no query was drawn.

    Counting how often each video is drawn turns the means of all comparisons into one matrix product.

    Args:
        differences: (R, N) differences of R comparisons over N queries.
        videos: (N,) the video of each query (`video_codes`).
        resamples: number of resamples.
        seed: seed of the draws, which are the same for the same number of videos.
        number: number of videos to draw from, if there are others than those of the queries.
    """
    queries = np.bincount(videos, minlength=number)
    number = len(queries)
    sums = np.stack([np.bincount(videos, row, number) for row in differences])
    rng = np.random.default_rng(seed)
    means = np.empty((len(differences), resamples))
    batch = max(1, _DRAWS // number)
    for start in range(0, resamples, batch):
        size = min(batch, resamples - start)
        draws = rng.integers(0, number, (size, number))
        draws += np.arange(size)[:, None] * number
        counts = np.bincount(draws.ravel(), minlength=size * number).reshape(size, number)
        times = counts.T.astype(np.float64)
        with np.errstate(invalid="ignore"):
            means[:, start : start + size] = sums @ times / (queries @ times)
    return means
