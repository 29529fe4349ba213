"""`vmr score`: scores files of predictions, and writes a row from elsewhere as a run directory.

Imports no torch, for a fast start.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from vmr_zoo.data.annotations.protocols import find_split
from vmr_zoo.data.annotations.records import SELECTION, Protocol, Split
from vmr_zoo.engine.answer_files import read_answers
from vmr_zoo.engine.elsewhere import EXCERPT, REFUSE, SKIP, UNPARSED, AnswerMatcher, Tally
from vmr_zoo.engine.elsewhere_run import check_run, write_run
from vmr_zoo.engine.moment_sets import SetRule, query_sets, set_rule
from vmr_zoo.engine.scoring import SubmissionScores, score_queries
from vmr_zoo.engine.submission import (
    SALIENCY,
    WINDOWS,
    LocatedRow,
    PredictionRow,
    read_prediction_rows,
    truth_row,
)
from vmr_zoo.errors import VmrError, abbreviate
from vmr_zoo.metrics.per_query import Floats
from vmr_zoo.metrics.settings import LISTED, MetricSettings, shown_metrics
from vmr_zoo.utils.files import atomic_write
from vmr_zoo.utils.text import one_line

ALL, TESTS = "all", "tests"
"""Values of `split`: every test split and the selection split; every test split."""


@dataclass(frozen=True, slots=True)
class ScoredSplit:
    """A scored split.

    Attributes:
        split: the ground truth.
        scores: of its queries.
        tally: what was found in the answers.
        rows: rows of predictions.jsonl; empty if nothing needs them.
        rule: which windows count as sets of moments; None: sets were not scored.
        sets: says so, or why they were not scored; "" if they were not requested.
    """

    split: Split
    scores: SubmissionScores
    tally: Tally
    rows: list[dict[str, Any]]
    rule: SetRule | None
    sets: str


def score_file(cfg: Any) -> None:
    """Scores `predictions` on splits of `data` and prints a table.

    Writes `out` and the run directory `run` unless they are null.

    Args:
        cfg: composed from `conf/score.yaml`.

    Raises:
        VmrError: for a missing or bad predictions file, an unknown split, or a run directory in use.
    """
    from hydra.utils import instantiate

    paths = _files(cfg)
    run = Path(str(cfg.run)) if cfg.get("run") else None
    if run is not None:
        check_run(run, cfg.model)
    protocol: Protocol = instantiate(cfg.data.protocol)
    splits = _splits(protocol, cfg.split)
    # conf/metrics/*.yaml names a torchmetrics class with the same fields, which imports torch.
    node = {**cfg.metrics, "_target_": "vmr_zoo.metrics.settings.MetricSettings"}
    settings: MetricSettings = instantiate(node, _convert_="all")
    scorer = _Scorer(cfg, paths, protocol, splits, settings, keep=run is not None)
    results = [scorer.score(split) for split in splits]
    _print_results(results, f"{abbreviate((path.name for path in paths), 3)} on {protocol.name}")
    for result in results:
        for line in _findings(result, len(results) > 1):
            print(line)
    written = []
    if cfg.get("out"):
        own = {one.split.name: _content(one, settings) for one in results}
        content = own if len(own) > 1 else next(iter(own.values()))
        atomic_write(cfg.out, json.dumps(content, indent=4))
        written.append(f"{cfg.out}")
    if run is not None:
        write_run(run, cfg, protocol, results, paths)
        written.append(f"{run}")
    if run is not None:
        print(f"Wrote {', '.join(written)}. Next: vmr report {shlex.quote(f'runs={run.parent}')}")
    elif written:
        print(f"Wrote {written[0]}.")
    else:
        print("Wrote nothing; out=FILE.json stores the metrics, run=DIR makes a row of `vmr report`.")


def _files(cfg: Any) -> list[Path]:
    """Returns the files of predictions, each of which exists."""
    given = cfg.get("predictions")
    if not given:
        raise VmrError(
            "Nothing to score. Name a file of predictions: vmr score predictions=FILE.jsonl data=… split=…"
        )
    paths = [Path(str(one)) for one in ([given] if isinstance(given, str) else given)]
    for path in paths:
        read_prediction_rows(path)  # refuses a missing file
    return paths


def _splits(protocol: Protocol, requested: str | Sequence[str]) -> list[Split]:
    """Returns the requested splits, each once."""
    names = [requested] if isinstance(requested, str) else list(requested)
    if names in ([ALL], [TESTS]):
        names = [*protocol.tests, *([SELECTION] if names == [ALL] else [])]
    return list({split.name: split for split in (find_split(protocol, name) for name in names)}.values())


@dataclass(frozen=True)
class _Scorer:
    """Scores one split after the other, reading the files for each: they may have any size."""

    cfg: Any
    paths: Sequence[Path]
    protocol: Protocol
    splits: Sequence[Split]
    settings: MetricSettings
    keep: bool

    def score(self, split: Split) -> ScoredSplit:
        """Scores a split."""
        sets = self.settings.sets is not None
        kept: list[PredictionRow] = []
        matcher = self._matcher(split, self.cfg.get("missing", REFUSE), self.cfg.get("extra", REFUSE))
        rows = matcher.rows(self._answers(split))
        if self.keep or sets:
            rows = _collect(rows, split, kept)
        unit = self.cfg.get("unit")
        source = ", ".join(map(str, self.paths))
        scores = score_queries(rows, split, self.settings, source, check_unit=unit is None)
        done = _with_truth(kept, split)
        rule, text = self._rule(split, done, matcher.tally) if sets else (None, "")
        if rule is not None:
            by_query: dict[str, Floats] = query_sets(done, rule)
            scores = replace(scores, queries=scores.queries | by_query)
        if rule is None and matcher.tally.unscored:
            rule = SetRule(LISTED, -math.inf)  # for reports: a model without scores lists its set
        return ScoredSplit(split, scores, matcher.tally, done, rule, text)

    def _matcher(self, split: Split, missing: str, extra: str) -> AnswerMatcher:
        others = {one.name: one for one in self.splits if one is not split}
        return AnswerMatcher(split, others, missing, extra, self.cfg.get("unit"))

    def _answers(self, split: Split) -> Iterator[Any]:
        return chain.from_iterable(read_answers(path, split.name) for path in self.paths)

    def _rule(
        self, split: Split, rows: Sequence[Mapping[str, Any]], tally: Tally
    ) -> tuple[SetRule | None, str]:
        """Decides which windows are sets of moments, by a score that is chosen on the selection split."""
        selection = self.protocol.selection
        if tally.unscored:
            rule: SetRule | None = SetRule(LISTED, -math.inf)
        elif split is selection or self.settings.sets != SELECTION:
            rule = set_rule(self.settings, rows)
        else:
            own = list(self._matcher(selection, REFUSE, SKIP).rows(self._answers(selection)))
            chosen_on = _with_truth(list(_own(own, selection)), selection)
            complete = len(chosen_on) == len(selection.queries)
            rule = set_rule(self.settings, chosen_on if complete else ())
        if rule is None:
            return None, (
                "not scored: the score from which windows count is chosen on the selection split, whose "
                "queries this file lacks; metrics.sets=listed counts every window, metrics.sets=0.5 those "
                "from 0.5 on"
            )
        return rule, rule.description


def _own(rows: Iterable[LocatedRow], split: Split) -> Iterator[PredictionRow]:
    return (row for row, _ in rows if row.get("split", split.name) == split.name)


def _collect(rows: Iterable[LocatedRow], split: Split, kept: list[PredictionRow]) -> Iterator[LocatedRow]:
    """Yields rows, and keeps those of the split."""
    for row, location in rows:
        kept.extend(_own([(row, location)], split))
        yield row, location


def _with_truth(rows: Sequence[PredictionRow], split: Split) -> list[dict[str, Any]]:
    """Returns scored rows as predictions.jsonl has them: the query, its ground truth, the ranked windows."""
    queries = {query.query_id: query for query in split.queries}
    found = []
    for row in rows:
        query, answer = queries[str(row.get("query_id", row.get("qid")))], row.get("answer")
        found.append(
            {
                **truth_row(split.name, query),
                WINDOWS: [list(map(float, window)) for window in row[WINDOWS]],
                **({SALIENCY: row[SALIENCY]} if SALIENCY in row else {}),
                **({"answer": one_line(answer)[:EXCERPT]} if isinstance(answer, str) else {}),
                **{key: True for key in (UNPARSED, "missing") if row.get(key) is True},
            }
        )
    return found


def _content(result: ScoredSplit, settings: MetricSettings) -> dict[str, Any]:
    """Returns what `out` stores of a split."""
    if settings.highlights:
        return result.scores.official
    return {**result.scores.metrics, "rounding": result.scores.rounding}


def _print_results(results: Sequence[ScoredSplit], title: str) -> None:
    """Prints every metric of one split, or the usual metrics of several."""
    from rich.table import Table
    from rich.text import Text

    from vmr_zoo.utils.console import wide_console

    table = Table()
    if len(results) == 1:
        scored = results[0].scores
        title += f", split {results[0].split.name}"
        table.add_column("metric")
        table.add_column("%", justify="right")
        table.add_column("queries", justify="right")
        for name, value in scored.metrics.items():
            table.add_row(name, f"{value:.2f}", f"{np.isfinite(scored.queries[name]).sum():,}")
    else:
        metrics = {one.split.name: one.scores.metrics for one in results}
        shown = shown_metrics(metrics)
        for column in ("split", *shown):
            table.add_column(column, justify="left" if column == "split" else "right")
        for name, values in metrics.items():
            table.add_row(name, *(f"{values[key]:.2f}" if key in values else "" for key in shown))
    wide_console().print(Text(title, "bold"), table)


def _findings(result: ScoredSplit, several: bool) -> Iterator[str]:
    """Says how the answers of a split were read."""
    tally, scores = result.tally, result.scores
    where = f"{result.split.name}: " if several else ""
    yield f"{where}rounding of windows: {scores.rounding}"
    if result.sets:
        yield f"{where}sets of moments (EtF1, C-Acc): {result.sets}"
    share = f" of {tally.queries:,} queries ({tally.unparsed / tally.queries:.1%})"
    ranked = "answers without scores: windows are ranked in the order of the answer"
    notes = {
        f"{tally.unparsed:,}{share}: the answer states no moment, scored as a miss": tally.unparsed,
        f"{tally.missing:,} queries without an answer, scored as misses": tally.missing,
        f"{tally.unscored:,} {ranked}": tally.unscored,
        f"WARNING: {tally.outside:,} best windows begin after the end of their video": tally.outside,
        f"WARNING: {tally.other_truth:,} answers state another annotated moment than ours: their file may be "
        "about another version of the annotations": tally.other_truth,
        f"{tally.skipped:,} answers to other queries were skipped": tally.skipped,
    }
    yield from (f"{where}{text}" for text, count in notes.items() if count)
