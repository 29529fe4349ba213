"""Which predicted windows count as the set of moments of a query, and the metrics of these sets.

`metrics.sets` declares the rule: "selection" (windows from a score on, which has the highest mean EtF1 on the
selection split), "listed" (every window of a row: the method decides how many), or a score. The score is
written into the header of metrics.json, and `vmr eval` and `vmr report` use it again: nothing is ever chosen
on a test split.

Works on rows of predictions alone, and imports no torch.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vmr_zoo.data.annotations.records import SELECTION
from vmr_zoo.engine.submission import WINDOWS, PredictionRow, read_prediction_rows
from vmr_zoo.metrics.per_query import Floats, mean
from vmr_zoo.metrics.sets import ONLY_BEST, SET_METRICS, choose_set_threshold, predicted_set, set_scores
from vmr_zoo.metrics.settings import LISTED, MetricSettings
from vmr_zoo.runs.directory import PREDICTIONS

log = logging.getLogger(__name__)

SET_SOURCES = {
    SELECTION: "the best window and those from a score on, chosen on the selection split by EtF1",
    LISTED: "every window that the method lists",
    "given": "the best window and those from the score in metrics.sets on",
}
"""Where the rule of a set can come from, and what the set then holds."""

HEADER_KEY = "moment_sets"
"""Where the header of metrics.json keeps the rule."""


@dataclass(frozen=True, slots=True)
class SetRule:
    """Which windows of a row are the predicted set.

    Attributes:
        source: "selection", "listed" or "given".
        threshold: the lowest score of the set; -inf for "listed".
    """

    source: str
    threshold: float

    @property
    def header(self) -> dict[str, Any]:
        """The entry of the header; a score of null stands for the best window alone."""
        return {
            "from": self.source,
            "score": self.threshold if math.isfinite(self.threshold) else None,
        }

    @property
    def description(self) -> str:
        """Says which windows count."""
        if self.source == LISTED:
            return "every listed window"
        found = (
            "the best window alone"
            if self.threshold == ONLY_BEST
            else f"the best window and others with a score of at least {self.threshold:g}"
        )
        return f"{found}, chosen on {SELECTION} by EtF1" if self.source == SELECTION else found


def rule_from_header(header: Mapping[str, Any]) -> SetRule | None:
    """Returns the rule that a run was scored with; None if its sets were not scored."""
    stored = header.get(HEADER_KEY)
    if not stored:
        return None
    source, score = str(stored["from"]), stored["score"]
    return SetRule(source, -math.inf if source == LISTED else ONLY_BEST if score is None else float(score))


def set_rule(settings: MetricSettings, selection: Iterable[PredictionRow]) -> SetRule | None:
    """Decides which windows count, by `metrics.sets`.

    Args:
        settings: of the run.
        selection: rows of the selection split with their `moments`.

    Returns:
        None if sets are not scored, or if the score must be chosen and there are no rows to choose it on.
    """
    if settings.sets is None:
        return None
    if settings.sets == LISTED:
        return SetRule(LISTED, -math.inf)
    if settings.sets != SELECTION:
        return SetRule("given", float(settings.sets))
    annotated = [(_windows(row), _moments(row)) for row in selection if row["moments"]]
    return SetRule(SELECTION, choose_set_threshold(annotated)) if annotated else None


def query_sets(rows: Sequence[PredictionRow], rule: SetRule) -> dict[str, Floats]:
    """Scores the set of every row.

    Args:
        rows: with their `moments`.
        rule: which windows count.

    Returns:
        (B,) values in [0, 1] by metric name; NaN for a row without a moment.
    """
    table = np.full((len(SET_METRICS), len(rows)), np.nan)
    for number, row in enumerate(rows):
        if row["moments"]:
            chosen = predicted_set(_windows(row), rule.threshold)
            table[:, number] = list(set_scores(chosen, _moments(row)).values())
    return dict(zip(SET_METRICS, table, strict=True))


def set_metrics(rows: Sequence[PredictionRow], rule: SetRule | None) -> dict[str, dict[str, float]]:
    """Scores the rows of a predictions file.

    Args:
        rows: of any splits.
        rule: None: sets are not scored.

    Returns:
        Percentages by split and metric name.
    """
    if rule is None:
        return {}
    splits: dict[str, list[PredictionRow]] = {}
    for row in rows:
        splits.setdefault(str(row["split"]), []).append(row)
    return {split: mean(query_sets(own, rule)) for split, own in splits.items()}


def _windows(row: PredictionRow) -> Floats:
    return np.array(row[WINDOWS], dtype=np.float64)


def _moments(row: PredictionRow) -> Floats:
    return np.array(row["moments"], dtype=np.float64)


def rule_of_run(run: Path, header: Mapping[str, Any], settings: MetricSettings) -> SetRule | None:
    """Returns the rule of a trained run: that of its header, else decided on its own selection split.

    Args:
        run: its directory.
        header: of its metrics.json.
        settings: its metrics.
    """
    known = rule_from_header(header)
    if known is not None or settings.sets is None:
        return known
    file = run / PREDICTIONS
    rows = read_prediction_rows(file) if file.is_file() else ()
    return set_rule(settings, (row for row, _ in rows if row.get("split") == SELECTION))


def header_entry(run: Path, header: Mapping[str, Any], settings: MetricSettings) -> dict[str, Any]:
    """Returns the rule of a trained run as an entry of a header; empty if its sets are not scored.

    Args:
        run: its directory.
        header: of its metrics.json.
        settings: its metrics.
    """
    rule = rule_of_run(run, header, settings)
    if rule is None and settings.sets is not None:
        log.info(
            f"Sets of moments (EtF1, C-Acc, tF1, tIoU) are not scored: {run} has no predictions of the "
            f"{SELECTION} split, on which their score is chosen."
        )
    return {} if rule is None else {HEADER_KEY: rule.header}
