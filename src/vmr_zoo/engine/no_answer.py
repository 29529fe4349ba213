"""Evaluates a run on sentences without an answer (docs/no_answer.md).

Every query of a split is predicted as always, then its counterpart without an answer is put to the same
video. The method's `answer_score` decides which queries are rejected. The threshold is given, or chosen on
the selection split and its counterparts; it never depends on a test split.
"""

from __future__ import annotations

import logging
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning
import numpy as np
from hydra.utils import instantiate
from omegaconf import DictConfig

from vmr_zoo.config.compose import build
from vmr_zoo.data.annotations.no_answer import NoAnswer, OutOfDomain
from vmr_zoo.data.annotations.records import SELECTION, Query
from vmr_zoo.engine.prediction import predict_rows, print_metrics, write_evaluation
from vmr_zoo.engine.probes import with_sentences
from vmr_zoo.engine.scoring import score_queries
from vmr_zoo.engine.submission import locate_rows
from vmr_zoo.engine.transfer import command_for_run
from vmr_zoo.errors import VmrError, abbreviate
from vmr_zoo.metrics.per_query import Floats
from vmr_zoo.metrics.rejection import (
    AUROC,
    DECISION,
    REJECTION,
    choose_rejection_threshold,
    rejection_metrics,
)
from vmr_zoo.runs import directory

if TYPE_CHECKING:
    from vmr_zoo.data.batches.datamodule import VMRDataModule
    from vmr_zoo.data.features.source import QuerySource
    from vmr_zoo.methods.base import Method
    from vmr_zoo.types import Batch

log = logging.getLogger(__name__)

COLUMNS = (AUROC, REJECTION, DECISION, "R1@0.5/rejection")
"""What a table of these results shows by default."""


@dataclass(frozen=True)
class RejectionTest:
    """The sentences without an answer that a command asks for.

    Attributes:
        choice: how they are chosen.
        command: the configuration of the command, with the paths of the run.
    """

    choice: NoAnswer
    command: DictConfig

    def run(
        self,
        trainer: lightning.Trainer,
        method: Method,
        data: VMRDataModule,
        splits: Sequence[str],
        header: dict[str, Any],
        run: Path,
    ) -> None:
        """Predicts and scores splits, and writes the results to RUN/eval/SPLIT-no_answer_KIND-001.

        Args:
            trainer: predicts.
            method: the method of the run.
            data: its data, prepared.
            splits: test splits.
            header: of the run's results.
            run: the run directory.
        """
        kind = self.choice.kind
        facts, threshold = self._choose_threshold(trainer, method, data, splits)
        header = header | {
            "protocol": f"{header['protocol']}, {kind.replace('_', '-')} sentences without an answer",
            "columns": list(COLUMNS),
        }
        metrics, written = {}, []
        for split in splits:
            with directory.claim_evaluation(run, f"{split}-{directory.NO_ANSWER}_{kind}") as target:
                answers = _Answers(trainer, method, data, split, self)
                metrics[split] = answers.metrics(threshold)
                header[directory.NO_ANSWER] = facts | answers.asked.facts
                write_evaluation(target, answers.rows(threshold), header, split, metrics[split], data.seed)
            written.append(str(target))
            log.info(_describe(split, header[directory.NO_ANSWER]))
        print_metrics(header, metrics)
        log.info(f"Wrote {', '.join(written)}. Next: vmr report {shlex.quote(f'runs={run}')}")

    def _choose_threshold(
        self, trainer: lightning.Trainer, method: Method, data: VMRDataModule, splits: Sequence[str]
    ) -> tuple[dict[str, Any], float]:
        """Returns what the header says about choice and rejection, and the threshold."""
        facts = self.choice.header(data.protocol) | {"score": method.answer_evidence}
        given = self.choice.threshold
        if given is not None:
            return facts | {"threshold": given, "threshold_from": "the command line"}, given
        self._check_selection(data, splits)
        threshold = choose_rejection_threshold(*_Answers(trainer, method, data, SELECTION, self).scores)
        # Below the lowest score nothing is rejected; JSON has no infinity.
        stored = threshold if math.isfinite(threshold) else None
        return facts | {"threshold": stored, "threshold_from": SELECTION}, threshold

    def _check_selection(self, data: VMRDataModule, splits: Sequence[str]) -> None:
        """Refuses to choose a threshold on what it is tested on."""
        tested = {query.query_id for name in splits for query in data.split(name).queries}
        protocol = data.protocol
        if protocol.selected_on_test or tested & {query.query_id for query in protocol.selection.queries}:
            raise VmrError(
                "The threshold of rejection is chosen on the selection split, which is a test split here "
                f"({protocol.selection_origin}; split={','.join(splits)}). Choose test splits alone, or give "
                "a threshold (no_answer.threshold=0.5)."
            )

    def query_source(self, data: VMRDataModule, donors: Sequence[Query]) -> QuerySource | None:
        """Prepares the text features of the sentences.

        Args:
            data: the data of the run.
            donors: the queries that the sentences were taken from.

        Returns:
            The source of stored features of another data set; None: the run's own serves the sentences.

        Raises:
            VmrError: if the run's features are stored, and there are none of the same kind for the sentences.
        """
        if not isinstance(self.choice, OutOfDomain):
            return None
        own, texts = data.features.query, [donor.text for donor in donors]
        words = data.features.narration_query if "narration_query" in data.needs else None
        if words is not None:
            if not words.encodes:
                raise VmrError(
                    "The run reads a second, stored encoding of its sentences (features/narration_query), "
                    "which sentences of other data lack. Use no_answer=in_domain."
                )
            words.encode(texts)
        if own.encodes:
            own.encode(texts)
            return None
        other: QuerySource = build(self.command.features.query)
        if other.manifest() != own.manifest():
            raise VmrError(
                f"The run reads stored text features, {own.manifest()}, but those of the other data "
                f"(features={self.command.features.name}) are {other.manifest()}. Name features of the same "
                "kind (features=…)."
            )
        other.prepare(self.choice.protocol)
        if missing := other.missing(donors):
            raise VmrError(
                f"Text features of {self.choice.protocol.label} are missing: {'; '.join(map(str, missing))} "
                "Fetch them, or name their folder (features.query.source.store.folder=…)."
            )
        return other


def _describe(split: str, facts: Mapping[str, Any]) -> str:
    """Says which sentences were asked, for the log."""
    parts = [f"{facts['sentences']:,} sentences without an answer ({facts['no_answer']})"]
    parts += [f"{facts['left_out']:,} queries have none"] if facts["left_out"] else []
    if "answered_after_all" in facts:
        parts.append(f"{facts['answered_after_all']:,} of them are answered after all")
    elif facts["passed_over"]:
        parts.append(f"{facts['passed_over']:,} passed over because the video answers them")
    limit = facts["threshold"]
    rejected = "nothing is rejected" if limit is None else f"rejected below {limit:.4g}"
    return f"{split}: {'; '.join(parts)}; {rejected} ({facts['threshold_from']}), by the {facts['score']}."


def find_rejection_test(stored: DictConfig, cfg: DictConfig) -> RejectionTest | None:
    """Returns what `no_answer=` of `vmr eval` asks for; None without it.

    Args:
        stored: the configuration of the run, resolved.
        cfg: composed from `conf/eval.yaml`.

    Raises:
        VmrError: for arguments that contradict it.
    """
    if cfg.get("no_answer") is None:
        return None
    for key in ("probe", "details", "frame_probability"):
        if cfg.get(key):
            raise VmrError(f"Found no_answer=… with {key}=…; evaluate them in two commands.")
    other = cfg.get("data")
    outside = "protocol" in cfg.no_answer
    if outside and other is None:
        raise VmrError(
            "no_answer=out_of_domain takes sentences of another data set. Name it, such as data=charades_sta."
        )
    if other is not None and not outside:
        raise VmrError(
            f"Found no_answer=in_domain with data={other.name}. In-domain sentences come from the run's own "
            "splits: leave out data=…, or use no_answer=out_of_domain for sentences of that data."
        )
    command = command_for_run(stored, cfg)
    return RejectionTest(instantiate(command.no_answer), command)


class _Answers:
    """The predictions for the queries of a split, and for their counterparts without an answer."""

    def __init__(
        self, trainer: lightning.Trainer, method: Method, data: VMRDataModule, split: str, test: RejectionTest
    ) -> None:
        self.truth = data.split(split)
        self.settings = replace(method.metrics.settings, highlights=False)
        self.asked = test.choice.choose(data.protocol, self.truth)
        self.answerable = _predict(trainer, method, data, split)
        name, features, protocol = self.asked.split.name, data.features, data.protocol
        source = test.query_source(data, list(self.asked.donors.values()))
        data.protocol = replace(protocol, tests={**protocol.tests, name: self.asked.split})
        data.features = with_sentences(features, self.asked.donors, source).features
        try:
            self.unanswerable = _predict(trainer, method, data, name)
        finally:
            data.protocol, data.features = protocol, features

    @property
    def scores(self) -> tuple[Floats, Floats]:
        """The answer scores of both kinds."""
        with_answer, without = (
            np.array([row["answer_score"] for row in rows], np.float64)
            for rows in (self.answerable, self.unanswerable)
        )
        return with_answer, without

    def metrics(self, threshold: float) -> dict[str, float]:
        """Returns percentages by metric name."""
        per_query = score_queries(locate_rows(self.answerable), self.truth, self.settings).queries
        recalls = {name: hits for name, hits in per_query.items() if name.startswith("R1@")}
        return rejection_metrics(*self.scores, recalls, threshold)

    def rows(self, threshold: float) -> list[dict[str, Any]]:
        """Returns the rows of predictions.jsonl, those with an answer first."""
        donors = {query.query_id: donor.query_id for query, donor in self.asked.donors.items()}
        unanswerable = [{**row, "sentence_of": donors[row["query_id"]]} for row in self.unanswerable]
        return [
            {**row, "rejected": row["answer_score"] < threshold} for row in (*self.answerable, *unanswerable)
        ]


def _predict(
    trainer: lightning.Trainer, method: Method, data: VMRDataModule, split: str
) -> list[dict[str, Any]]:
    """Returns the rows of a split with their answer scores."""
    scores: dict[str, float] = {}

    def collect(method: Method, outputs: Any, batch: Batch) -> None:
        found = method.answer_score(outputs, batch).detach().double().cpu().tolist()
        scores.update(
            (query, float(f"{score:.7g}")) for query, score in zip(batch["query_id"], found, strict=True)
        )

    rows = predict_rows(trainer, method, data, split, further=[collect])
    broken = [query for query, score in scores.items() if not math.isfinite(score)]
    if broken:
        raise VmrError(
            f"{type(method).__name__} gives queries an answer score that is no number: {abbreviate(broken)}. "
            "Check the run: training may have diverged."
        )
    return [{**row, "answer_score": scores[row["query_id"]]} for row in rows]
