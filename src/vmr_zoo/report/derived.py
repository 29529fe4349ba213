"""Metrics that a table may show though no run stored them: computed from the predictions of a whole split.

Sets of moments (`metrics.sets`) and calibration (`metrics.calibration`) need a threshold or a map that is
chosen on the selection split, so they are no means of scores of single queries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from vmr_zoo.data.annotations.records import SELECTION
from vmr_zoo.engine.moment_sets import HEADER_KEY, set_metrics
from vmr_zoo.engine.submission import WINDOWS
from vmr_zoo.metrics.calibration import (
    CALIBRATION_METRICS,
    ECE,
    ECE_ISOTONIC,
    RIGHT_FROM,
    Bools,
    IsotonicMap,
    calibration_error,
)
from vmr_zoo.metrics.per_query import Floats, moment_scores, pad_lists
from vmr_zoo.metrics.sets import SET_METRICS
from vmr_zoo.report.elsewhere import has_scores
from vmr_zoo.report.leaderboard import DERIVED_METRICS
from vmr_zoo.report.query_scores import RowsBySplit, read_predictions, reading, rule_of_sets
from vmr_zoo.report.runs import Run
from vmr_zoo.runs.config_sections import metric_settings


@dataclass(frozen=True)
class Confidence:
    """The best windows of one split.

    Attributes:
        scores: (B,) of the first window of each query with a moment.
        right: (B,) whether its IoU with a moment reaches `RIGHT_FROM`.
    """

    scores: Floats
    right: Bools

    @property
    def in_range(self) -> bool:
        """Whether the scores can be read as probabilities."""
        return bool((self.scores >= 0).all() and (self.scores <= 1).all())


def with_derived(runs: Sequence[Run], columns: Sequence[str]) -> list[Run]:
    """Adds metrics of sets and of calibration to runs that lack them, from their predictions.

    Args:
        runs: finished runs; those without a directory stay as they are.
        columns: the metrics to show; without one of these two kinds nothing is read.
    """
    wanted = [name for name in columns if name in DERIVED_METRICS]
    return [_with_derived(run, wanted) if wanted and run.path is not None else run for run in runs]


def confidences(rows: RowsBySplit) -> dict[str, Confidence]:
    """Reads the first window of every query that has a moment.

    Args:
        rows: predictions by split.
    """
    found = {}
    for split, given in rows.items():
        own = [row for row in given if row["moments"]]
        if own:
            first = np.array([row[WINDOWS][0] for row in own], dtype=np.float64)
            moments, mask = pad_lists([row["moments"] for row in own], 2)
            iou = moment_scores(first[:, None, :2], moments, mask)["full"].iou[:, 0]
            found[split] = Confidence(first[:, 2], iou >= RIGHT_FROM)
    return found


def calibration_metrics(by_split: Mapping[str, Confidence]) -> dict[str, dict[str, float]]:
    """Returns the metrics of `CALIBRATION_METRICS` in per cent, by split.

    `ECE` is absent if a score of any split is outside [0, 1], `ECE-iso` on the selection split, on which its
    map is fitted, and without that split.
    """
    plain = all(one.in_range for one in by_split.values())
    fitted = by_split.get(SELECTION)
    mapped = None if fitted is None else IsotonicMap(fitted.scores, fitted.right)
    found: dict[str, dict[str, float]] = {}
    for split, one in by_split.items():
        values = found.setdefault(split, {})
        if plain:
            values[ECE] = 100 * calibration_error(one.scores, one.right)
        if mapped is not None and split != SELECTION:
            values[ECE_ISOTONIC] = 100 * calibration_error(mapped(one.scores), one.right)
    return found


def _with_derived(run: Run, wanted: Sequence[str]) -> Run:
    lacking = [name for name in wanted if not any(name in values for values in run.metrics.values())]
    if not lacking:
        return run
    with reading(run):
        rows = read_predictions(run.predictions)
    added: list[dict[str, dict[str, float]]] = []
    header = run.header
    if set(lacking) & set(SET_METRICS):
        rule = rule_of_sets(run.directory, metric_settings(run.directory))
        added.append(set_metrics([row for own in rows.values() for row in own], rule))
        header = header | ({HEADER_KEY: rule.header} if rule else {})
    if set(lacking) & set(CALIBRATION_METRICS) and has_scores(run):
        added.append(calibration_metrics(confidences(rows)))
    metrics = {
        split: {**values, **{name: x for one in added for name, x in one.get(split, {}).items()}}
        for split, values in run.metrics.items()
    }
    return replace(run, header=header, metrics=metrics)
