"""Whether one row of a leaderboard is really worse than another: a paired bootstrap over queries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from hydra.utils import instantiate
from numpy.typing import NDArray

from vmr_zoo import run_dir
from vmr_zoo.data.annotations import Query, Split
from vmr_zoo.metrics.settings import MetricSettings, Rounding
from vmr_zoo.score import read_rows, score_queries

RESAMPLES = 10_000
LEVEL = 0.95
_BATCH = 500
"""Resamples at a time: bounds the memory to some 30 MB for 3,720 queries."""

Floats = NDArray[np.float64]


class Difference(NamedTuple):
    """How much better one row is than another, in points of a percentage.

    Attributes:
        mean: of the paired differences.
        low: lower end of the interval that holds `LEVEL` of the resampled means.
        high: its upper end.
    """

    mean: float
    low: float
    high: float

    @property
    def significant(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low > 0 or self.high < 0


def paired_bootstrap(better: Floats, worse: Floats, resamples: int = RESAMPLES, seed: int = 0) -> Difference:
    """Compares two rows on the same queries.

    Args:
        better: (N,) score of each query in [0, 1].
        worse: (N,) the same queries by another method.
        resamples: how often N queries are drawn with replacement.
        seed: of the draws.

    Returns:
        The mean difference and its percentile interval, in points.
    """
    from scipy.stats import bootstrap

    difference = 100.0 * (better - worse)
    mean = float(difference.mean())
    if (difference == difference[0]).all():
        return Difference(mean, mean, mean)
    interval = bootstrap(
        (difference,),
        np.mean,
        n_resamples=resamples,
        batch=_BATCH,
        vectorized=True,
        confidence_level=LEVEL,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Difference(mean, float(interval.low), float(interval.high))


def query_scores(run: Path, splits: Sequence[str]) -> dict[str, dict[str, dict[str, float]]]:
    """Scores every query of a run from its predictions alone, by the code of `vmr score`.

    Args:
        run: a finished run directory.
        splits: which splits.

    Returns:
        Score in [0, 1] by split, metric and query id; a query to which a metric does not apply is left out.

    Raises:
        VmrError: if the run has no predictions, or its predictions lack the ground truth.
    """
    rows, _ = read_rows(run / run_dir.PREDICTIONS)
    settings = _settings(run)
    scores: dict[str, dict[str, dict[str, float]]] = {}
    for name in splits:
        own = [row for row in rows if row.get("split") == name]
        queries = tuple(
            Query(
                str(row["query_id"]),
                row["video_id"],
                row["query"],
                tuple((start, end) for start, end in row["moments"]),
                row["duration"],
            )
            for row in own
            if row["moments"]
        )
        known = {query.query_id for query in queries}
        answered = [row for row in own if str(row["query_id"]) in known]
        if not answered:
            continue
        scored = score_queries(answered, Split(name, queries), settings, str(run / run_dir.PREDICTIONS))
        scores[name] = {
            metric: {
                query_id: float(value)
                for query_id, value in zip(scored.query_ids, values, strict=True)
                if not np.isnan(value)
            }
            for metric, values in scored.queries.items()
        }
    return scores


def _settings(run: Path) -> MetricSettings:
    """Reads what was measured from a run's configuration; predictions are rounded already."""
    node = run_dir.load_config(run).metrics
    return MetricSettings(
        r1_thresholds=list(node.r1_thresholds),
        r5_thresholds=list(node.r5_thresholds),
        windows=node.windows,
        rounding=instantiate(node.rounding) if node.get("rounding") else Rounding(),
    )


def average(runs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Averages the scores of each query over seeds; queries that some seed lacks are left out.

    >>> average([{"a": 1.0, "b": 0.0}, {"a": 0.0}])
    {'a': 0.5}
    """
    common = set(runs[0]).intersection(*runs[1:])
    return {query: float(np.mean([run[query] for run in runs])) for query in runs[0] if query in common}
