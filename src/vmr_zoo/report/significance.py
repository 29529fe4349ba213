"""Scores of single queries from predictions files, and whether one row is really worse than another."""

from __future__ import annotations

import functools
import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from hydra.utils import instantiate
from omegaconf import OmegaConf

from vmr_zoo.data.annotations.records import Query, Split
from vmr_zoo.engine.scoring import Row, placed, read_rows, score_queries
from vmr_zoo.metrics.per_query import Floats, moment_scores, name_scores, packed
from vmr_zoo.metrics.settings import MetricSettings, Rounding
from vmr_zoo.runs import directory

RESAMPLES = 10_000
LEVEL = 0.95
FIRST_IOU = "mIoU"
"""The metric whose score of one query is the IoU of the first moment."""

_DRAWS = 2_000_000
"""Draws at a time: bounds the memory of the bootstrap to some 40 MB, whatever the number of queries."""

Scores = dict[str, pd.DataFrame]
"""Of one run, by split: (N, metrics) float32 scores in [0, 1], a row for each query id; NaN where a metric
does not apply to a query."""


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


def paired_bootstrap(differences: Floats, resamples: int = RESAMPLES, seed: int = 0) -> list[Difference]:
    """Compares rows on the same queries; all comparisons share their draws.

    The numbers are those of `scipy.stats.bootstrap` with the same seed (tested). Counting how often each
    query was drawn turns the resampled means of all comparisons into one matrix product.

    Args:
        differences: (R, N) of R comparisons and N queries: one row's score less the other's, in points.
        resamples: how often N queries are drawn with replacement.
        seed: of the draws.

    Returns:
        For each comparison the mean difference and its percentile interval.
    """
    rows, queries = differences.shape
    rng = np.random.default_rng(seed)
    means = np.empty((rows, resamples))
    batch = max(1, _DRAWS // queries)
    for start in range(0, resamples, batch):
        size = min(batch, resamples - start)
        draws = rng.integers(0, queries, (size, queries))
        draws += np.arange(size)[:, None] * queries
        counts = np.bincount(draws.ravel(), minlength=size * queries).reshape(size, queries)
        means[:, start : start + size] = differences @ counts.T.astype(np.float64) / queries
    tail = 50 * (1 - LEVEL)
    low, high = np.percentile(means, [tail, 100 - tail], axis=1)
    return [Difference(*map(float, three)) for three in zip(differences.mean(1), low, high, strict=True)]


def split_rows(files: Sequence[Path]) -> dict[str, list[Row]]:
    """Reads predictions files and sorts their rows by split.

    Args:
        files: of one run: its predictions.jsonl, or those that `vmr eval` left split by split.

    Raises:
        VmrError: if one is missing or broken.
    """
    rows: dict[str, list[Row]] = defaultdict(list)
    decode = json.JSONDecoder().decode
    for file in files:
        try:
            with file.open(encoding="utf-8") as lines:
                read = [decode(line) for line in lines]
            for row in read:
                rows[row["split"]].append(row)
        except (OSError, ValueError, TypeError, KeyError):
            # `vmr score` reads at half the speed and says what is wrong.
            for row, _ in read_rows(file):
                rows[row.get("split", "")].append(row)
    return rows


def query_scores(
    rows: Mapping[str, Sequence[Row]],
    run: Path,
    splits: Sequence[str],
    metrics: Sequence[str] | None = None,
    indexes: dict[str, list[pd.Index]] | None = None,
) -> Scores:
    """Scores every query of a run from its predictions alone, by the metrics of `vmr score`.

    Args:
        rows: what `split_rows` returned.
        run: the run directory, whose configuration says what is measured.
        splits: which splits.
        metrics: which metrics to keep, those that single queries have no score for left out; None: all.
        indexes: query ids by split that other runs had: equal ones are shared, so that many runs do not hold
            as many lists of ids; gets the new ones.

    Raises:
        VmrError: if the predictions lack the ground truth or are broken.
    """
    settings = _settings(run)
    answered = {name: [row for row in rows.get(name, ()) if row["moments"]] for name in splits}
    answered = {name: own for name, own in answered.items() if own}
    ids = {name: pd.Index([str(row["query_id"]) for row in own]) for name, own in answered.items()}
    # All splits at once: many short ones would cost more in calls than in arithmetic.
    together = _scored([row for own in answered.values() for row in own], settings)
    scores: Scores = {}
    start = 0
    for name, own in answered.items():
        if together is None or not ids[name].is_unique:
            scored = _checked(own, settings, name, f"{run}, split {name}")
        else:
            scored = {key: x[start : start + len(own)] for key, x in together.items()}
        start += len(own)
        kept = {key: x for key, x in scored.items() if metrics is None or key in metrics}
        known = [] if indexes is None else indexes.setdefault(name, [])
        shared = next((other for other in known if other.equals(ids[name])), None)
        if shared is None:
            known.append(ids[name])
        scores[name] = pd.DataFrame(
            {key: x.astype(np.float32) for key, x in kept.items()},
            index=ids[name] if shared is None else shared,
        )
    return scores


def _scored(rows: Sequence[Row], settings: MetricSettings) -> dict[str, Floats] | None:
    """Scores rows by metric, without the checks of `vmr score`; None where they would fail."""
    if not rows:
        return None
    read = settings.windows_read
    try:
        windows, window_mask = packed([row["pred_relevant_windows"][:read] for row in rows], 3)
        targets, target_mask = packed([row["moments"] for row in rows], 2)
    except (KeyError, TypeError, ValueError):
        return None
    if not np.isfinite(windows).all() or not window_mask[:, 0].all():
        return None
    order = np.where(window_mask, windows[..., 2], -np.inf)
    return name_scores(
        moment_scores(windows[..., :2], targets, target_mask, order, settings.windows), settings
    )


def _checked(rows: Sequence[Row], settings: MetricSettings, split: str, source: str) -> dict[str, Floats]:
    """Scores rows by the code of `vmr score`, which says what is wrong with them."""
    queries = tuple(
        Query(
            str(row["query_id"]),
            row["video_id"],
            row["query"],
            tuple((start, end) for start, end in row["moments"]),
            row["duration"],
        )
        for row in rows
    )
    return score_queries(placed(rows, source), Split(split, queries), settings, source).queries


def _settings(run: Path) -> MetricSettings:
    """Reads what was measured from a run's configuration; predictions are rounded already."""
    if not (run / directory.CONFIG).is_file():
        directory.load_config(run)  # says what is missing
    return _parsed(block(run, "metrics"))


def block(run: Path, key: str) -> str:
    """Returns the lines of one key of config.yaml: to parse the whole file of 1,000 runs takes a minute."""
    text = (run / directory.CONFIG).read_text(encoding="utf-8") if (run / directory.CONFIG).is_file() else ""
    found = re.search(rf"^{key}:.*\n?(?:[ \-#].*\n?)*", text, re.MULTILINE)
    return found.group() if found else ""


@functools.lru_cache(maxsize=64)
def _parsed(text: str) -> MetricSettings:
    node = OmegaConf.create(text).metrics
    return MetricSettings(
        r1_thresholds=list(node.r1_thresholds),
        r5_thresholds=list(node.r5_thresholds),
        windows=node.windows,
        rounding=instantiate(node.rounding) if node.get("rounding") else Rounding(),
    )


def average(runs: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Averages the scores of each query over seeds; queries that some seed lacks are left out.

    >>> one, other = pd.DataFrame({"m": [1.0, 0.0]}, ["a", "b"]), pd.DataFrame({"m": [0.0]}, ["a"])
    >>> average([one, other])
         m
    a  0.5
    """
    common = runs[0].index
    for frame in runs[1:]:
        if frame.index is not common:
            common = common.intersection(frame.index, sort=False)
    columns = [column for column in runs[0] if all(column in frame for frame in runs)]
    aligned = [frame if frame.index.equals(common) else frame.loc[common] for frame in runs]
    return pd.DataFrame(
        np.mean([frame[columns].to_numpy() for frame in aligned], axis=0), index=common, columns=columns
    )


def worse_than_best(
    rows: Sequence[pd.DataFrame | None], best: Mapping[str, int]
) -> dict[tuple[int, str], Difference]:
    """Compares rows with the best row of each metric, query by query.

    Args:
        rows: (N, metrics) scores of each row in one split, averaged over seeds; None: it has none.
        best: number of the best row by metric.

    Returns:
        Best row less the other, by row number and metric; a pair without a query in common is left out.
    """
    groups: dict[bytes, list[tuple[tuple[int, str], Floats]]] = defaultdict(list)
    for metric, top in best.items():
        reference = rows[top]
        if reference is None or metric not in reference:
            continue
        for number, other in enumerate(rows):
            if number == top or other is None or metric not in other:
                continue
            aligned = (
                other[metric] if other.index is reference.index else other[metric].reindex(reference.index)
            )
            difference = 100.0 * (reference[metric].to_numpy(np.float64) - aligned.to_numpy(np.float64))
            both = ~np.isnan(difference)
            if both.any():
                # Comparisons over the same queries share their draws; whose queries differ have their own.
                groups[both.tobytes()].append(((number, metric), difference[both]))
    found: dict[tuple[int, str], Difference] = {}
    for group in groups.values():
        compared = paired_bootstrap(np.stack([difference for _, difference in group]))
        found |= dict(zip([key for key, _ in group], compared, strict=True))
    return found
