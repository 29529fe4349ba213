"""Scores of single queries, computed from predictions files by the metrics of `vmr score`."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from vmr_zoo.data.annotations.records import Query, Split
from vmr_zoo.engine.moment_sets import SetRule, query_sets, rule_of_run
from vmr_zoo.engine.scoring import score_queries
from vmr_zoo.engine.submission import WINDOWS, PredictionRow, locate_rows, read_prediction_rows
from vmr_zoo.errors import VmrError
from vmr_zoo.metrics.per_query import Floats, pad_lists, query_scores
from vmr_zoo.metrics.sets import SET_METRICS
from vmr_zoo.metrics.settings import ON_SELECTION, MetricSettings
from vmr_zoo.report.leaderboard import Leaderboard
from vmr_zoo.report.runs import Run
from vmr_zoo.report.stored_scores import QUERY, SCORES, index_of, other_means, read_scores
from vmr_zoo.runs.config_sections import metric_settings
from vmr_zoo.runs.directory import EXTERNAL, HEADER, METRICS, read_json
from vmr_zoo.utils.console import progress

FIRST_IOU = "mIoU"
"""The metric whose score of a single query is the IoU of the top-ranked moment."""

QueryScores = dict[str, pd.DataFrame]
"""Scores of one run by split: (N, metrics) float32 in [0, 1], one row per query, see `query_index`; NaN where
a metric does not apply to a query."""

RowsBySplit = Mapping[str, Sequence[PredictionRow]]
"""Rows of predictions files by split."""


class DamagedRun(VmrError):
    """The predictions of a run are there, but broken.

    Attributes:
        folders: those that hold them.
    """

    def __init__(self, folders: tuple[Path, ...], message: str) -> None:
        """Adds the folders to the message."""
        super().__init__(message)
        self.folders = folders


@contextmanager
def reading(run: Run) -> Iterator[None]:
    """Raises errors as `DamagedRun` while the predictions of a run are read, unless a file is missing."""
    try:
        yield
    except VmrError as error:
        if not all(file.is_file() for file in run.predictions):
            raise
        raise DamagedRun(run.folders, str(error)) from error


def leaderboard_scores(
    board: Leaderboard,
    visit: Callable[[int, Run, RowsBySplit], None] | None = None,
    only: Collection[int] | None = None,
) -> list[list[QueryScores]]:
    """Scores every query of every run in a table; holds the predictions of one run at a time.

    Args:
        board: the table.
        visit: called with the number of a row, one of its runs, and the predictions of that run; a stored run
            has none.
        only: the numbers of the rows to read; the others have no scores. None: all.

    Returns:
        Scores by row and run, in the metrics of the table and `FIRST_IOU`.

    Raises:
        VmrError: as `load_scores` raises.
    """
    numbered = [
        (number, run)
        for number, row in enumerate(board.rows)
        if only is None or number in only
        for run in row.runs
    ]
    scores: list[list[QueryScores]] = [[] for _ in board.rows]
    indexes: dict[str, list[pd.Index]] = {}
    for number, run in progress(numbered, "Reading predictions", 4):
        rows, own = load_scores(run, board.splits, [*board.metrics, FIRST_IOU], indexes)
        scores[number].append(own)
        if visit is not None:
            visit(number, run, rows)
    return scores


def load_scores(
    run: Run,
    splits: Sequence[str],
    metrics: Sequence[str],
    indexes: dict[str, list[pd.Index]] | None = None,
) -> tuple[RowsBySplit, QueryScores]:
    """Returns the predictions of a run and the scores of its queries.

    A run that was stored without predictions (`report.store`) has its scores in a file.

    Args:
        run: the run.
        splits: the splits to score; those without predictions are left out.
        metrics: the metrics to keep, if they have scores of single queries.
        indexes: see `run_query_scores`.

    Raises:
        DamagedRun: if the predictions are broken, or lack the ground truth.
        VmrError: if the run has neither, or the scores are broken.
    """
    indexes = {} if indexes is None else indexes
    if is_stored(run):
        stored = read_scores(run.directory / SCORES, run.metrics, metrics)
        found = {name: stored[name] for name in splits if name in stored}
        for name, frame in found.items():
            frame.index = _shared(frame.index, indexes, name)
        return {}, found
    with reading(run):
        rows = read_predictions(run.predictions)
        scores = run_query_scores(rows, run.directory, splits, metrics, indexes)
        # A row from elsewhere may leave queries unanswered, which are misses in its metrics alone.
        if EXTERNAL not in run.header and (difference := other_means(scores, run.metrics)):
            raise VmrError(
                f"The predictions of {run.directory} were cut or changed: {difference}. Copy the run again, "
                f"or write them again: vmr eval run={run.directory}."
            )
    return rows, scores


def is_stored(run: Run) -> bool:
    """Whether a run was stored without predictions."""
    return not run.evals and not run.predictions[0].is_file() and (run.directory / SCORES).is_file()


def read_predictions(files: Sequence[Path]) -> dict[str, list[PredictionRow]]:
    """Reads the predictions files of one run and groups their rows by split.

    Args:
        files: predictions.jsonl of the run, or those of its evaluations.

    Raises:
        VmrError: if a file is missing or broken.
    """
    rows: dict[str, list[PredictionRow]] = defaultdict(list)
    for file in files:
        if not file.is_file():
            raise VmrError(
                f"Expected the predictions of a run in '{file}', found no such file. A stored run keeps its "
                "metrics and the scores of its queries only: ask for metrics that it keeps, or name the run "
                "directory. A run directory without predictions: vmr eval run=DIR writes them."
            )
        for split, read in _rows_by_split(file).items():
            rows[split] += read
    return rows


def _rows_by_split(file: Path) -> dict[str, list[PredictionRow]]:
    """Reads one predictions file; the rows without a split have the key ""."""
    rows: dict[str, list[PredictionRow]] = defaultdict(list)
    decode = json.JSONDecoder().decode
    try:
        with file.open(encoding="utf-8") as lines:
            read = [decode(line) for line in lines]
        for row in read:
            rows[row["split"]].append(row)
        return rows
    except (OSError, ValueError, TypeError, KeyError):
        # The reader of `vmr score` is half as fast, but reports what is wrong.
        checked: dict[str, list[PredictionRow]] = defaultdict(list)
        for row, _ in read_prediction_rows(file):
            checked[row.get("split", "")].append(row)
        return checked


def run_query_scores(
    rows: RowsBySplit,
    run: Path,
    splits: Sequence[str],
    metrics: Sequence[str] | None = None,
    indexes: dict[str, list[pd.Index]] | None = None,
) -> QueryScores:
    """Scores every query of a run from its predictions alone.

    Args:
        rows: the predictions of the run by split.
        run: the run directory, whose config.yaml defines the metrics.
        splits: the splits to score.
        metrics: the metrics to keep, if they have scores of single queries; None: all.
        indexes: indexes of earlier runs by split. Equal ones are shared to save memory; new ones are added.

    Raises:
        VmrError: if the predictions lack the ground truth or are broken.
    """
    settings = metric_settings(run)
    rule = rule_of_sets(run, settings) if set(SET_METRICS) & set(metrics or ()) else None
    annotated = {name: [row for row in rows.get(name, ()) if row["moments"]] for name in splits}
    annotated = {name: own for name, own in annotated.items() if own}
    # All splits at once: many short ones would cost more in calls than in arithmetic.
    together = _score([row for own in annotated.values() for row in own], settings)
    scores: QueryScores = {}
    start = 0
    for name, own in annotated.items():
        index = query_index(own)
        if together is None or not index.get_level_values(QUERY).is_unique:
            scored = _score_checked(own, settings, name, f"{run}, split {name}")
        else:
            scored = {key: x[start : start + len(own)] for key, x in together.items()}
        start += len(own)
        scored = {**scored, **({} if rule is None else query_sets(own, rule))}
        kept = {key: x.astype(np.float32) for key, x in scored.items() if metrics is None or key in metrics}
        scores[name] = pd.DataFrame(kept, index=_shared(index, {} if indexes is None else indexes, name))
    return scores


def query_index(rows: Sequence[PredictionRow]) -> pd.MultiIndex:
    """Returns the index of scores of single queries: the id of the video, and that of the query."""
    return index_of([str(row["video_id"]) for row in rows], [str(row["query_id"]) for row in rows])


def rule_of_sets(run: Path, settings: MetricSettings) -> SetRule | None:
    """Returns which windows of a run are sets of moments: by its own rule, else one of its selection split.

    Args:
        run: its directory.
        settings: its metrics, which may have no rule.
    """
    wanted = settings if settings.sets is not None else replace(settings, sets=ON_SELECTION)
    return rule_of_run(run, read_json(run / METRICS)[HEADER], wanted)


def _shared(index: pd.Index, indexes: dict[str, list[pd.Index]], split: str) -> pd.Index:
    """Returns the equal index that an earlier run has, else adds this one."""
    known = indexes.setdefault(split, [])
    for other in known:
        if other.equals(index):
            return other
    known.append(index)
    return index


def _score(rows: Sequence[PredictionRow], settings: MetricSettings) -> dict[str, Floats] | None:
    """Scores rows by metric without the checks of `vmr score`; None if a check would fail."""
    if not rows:
        return None
    read = settings.windows_read
    try:
        windows, window_mask = pad_lists([row[WINDOWS][:read] for row in rows], 3)
        targets, target_mask = pad_lists([row["moments"] for row in rows], 2)
    except (KeyError, TypeError, ValueError):
        return None
    if not np.isfinite(windows).all() or not window_mask[:, 0].all():
        return None
    order = np.where(window_mask, windows[..., 2], -np.inf)
    return query_scores(windows[..., :2], targets, target_mask, settings, order)


def _score_checked(
    rows: Sequence[PredictionRow], settings: MetricSettings, split: str, source: str
) -> dict[str, Floats]:
    """Scores rows with the code of `vmr score`, which reports what is wrong with them."""
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
    return score_queries(locate_rows(rows, source), Split(split, queries), settings, source).queries


def split_means(scores: Sequence[Sequence[QueryScores]], split: str) -> list[pd.DataFrame | None]:
    """Returns the scores of each row in one split, averaged over seeds; None if one of its runs has none."""
    return [
        mean_over_seeds([seed[split] for seed in seeds])
        if seeds and all(split in seed for seed in seeds)
        else None
        for seeds in scores
    ]


def mean_over_seeds(runs: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Averages the scores of each query over seeds; drops queries that one of the seeds lacks.

    >>> one, other = pd.DataFrame({"m": [1.0, 0.0]}, ["a", "b"]), pd.DataFrame({"m": [0.0]}, ["a"])
    >>> mean_over_seeds([one, other])
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
