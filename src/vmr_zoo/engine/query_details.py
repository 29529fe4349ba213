"""Predicts one query of a run with its details, also with an edited sentence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from vmr_zoo.data.annotations.records import SELECTION, TRAIN, Protocol, Query, Split
from vmr_zoo.data.batches.datamodule import TRAINING_ONLY
from vmr_zoo.engine.evaluation import annotations_differ, rebuild
from vmr_zoo.engine.prediction import predict_rows, prediction_trainer
from vmr_zoo.errors import VmrError, nearest
from vmr_zoo.runs import directory
from vmr_zoo.runs.directory import HEADER
from vmr_zoo.runs.resume import changed_annotations, split_digests
from vmr_zoo.utils.arrays import Array

if TYPE_CHECKING:
    from vmr_zoo.data.batches.datamodule import VMRDataModule
    from vmr_zoo.data.features.feature_set import FeatureSet


@dataclass(frozen=True, slots=True)
class QueryDetails:
    """What a run computes for one query.

    Attributes:
        run: name of the run.
        query: the query with the sentence that was asked.
        annotated: the sentence of the annotations.
        row: its row of predictions.jsonl.
        details: arrays by name, without padding (`types.DETAILS`).
        words: the words of the word axis; empty if the features do not know them.
        clips_end: seconds at which the last clip ends.
        narrations: (start, end, sentence) in seconds; empty if the method reads none, or none in words.
    """

    run: str
    query: Query
    annotated: str
    row: Mapping[str, Any]
    details: Mapping[str, Array]
    words: list[str]
    clips_end: float
    narrations: list[tuple[float, float, str]]


def query_details(
    run: Path, query_id: str, sentence: str | None = None, paths: Mapping[str, Any] | None = None
) -> QueryDetails:
    """Predicts one query of the selection split or a test split, together with all queries on its video.

    Args:
        run: the run directory.
        query_id: the query.
        sentence: asked instead of the annotated sentence; None: that one.
        paths: folders that replace those of the run; None or a value None: those of the run.

    Raises:
        VmrError: for an unknown query, a sentence that the features cannot encode, or as `vmr eval` raises.
    """
    stored = directory.load_config(run, paths=paths or {})
    header = directory.read_json(run / directory.METRICS)[HEADER]
    method, data = rebuild(stored, run, TRAINING_ONLY)
    split, query = _find_query(data.protocol, query_id)
    if changed := changed_annotations(run, split_digests({split: data.protocol.splits[split]}), [split]):
        raise annotations_differ(run, changed)
    asked = query if sentence is None else _ask(query, sentence, data.features, data.needs)
    whole = data.protocol
    data.protocol = _one_video(whole, split, asked)
    data.prepare_data()
    data.protocol = replace(data.protocol, train=whole.train)  # the ranks of words count its sentences

    details: dict[str, Tensor] = {}
    rows = predict_rows(prediction_trainer(stored.trainer, run), method, data, split, details)
    number = next(i for i, row in enumerate(rows) if row["query_id"] == query_id)
    own = {
        key.partition("/")[2]: value.numpy()
        for key, value in details.items()
        if key.partition("/")[0] == str(number)
    }
    served = data.dataset(split, details=True)
    return QueryDetails(
        run=str(header["name"]),
        query=asked,
        annotated=query.text,
        row=rows[number],
        details=own,
        words=_words(data.features, asked),
        clips_end=float(served.clips[number] * served.clip_seconds[number]),
        narrations=_narrations(data, query.video_id),
    )


def _find_query(protocol: Protocol, query_id: str) -> tuple[str, Query]:
    """Returns a query and the name of its split.

    Raises:
        VmrError: if there is none, with the most similar ids, or if it is a training query.
    """
    splits = {**protocol.tests, SELECTION: protocol.selection}
    for name, split in splits.items():
        for query in split.queries:
            if query.query_id == query_id:
                return name, query
    if any(query.query_id == query_id for query in protocol.train.queries):
        raise VmrError(
            f"Query {query_id} belongs to the training split of {protocol.name}. Expected a query of "
            f"{', '.join(splits)}: the run has seen the answer to the others."
        )
    known = [query.query_id for split in splits.values() for query in split.queries]
    close = " or ".join(nearest(query_id, known)) or known[0]
    raise VmrError(
        f"Expected the id of a query of {', '.join(splits)} in {protocol.name}, found query={query_id}. Did "
        f"you mean {close}? Each line of RUN/predictions.jsonl has a query_id."
    )


def _ask(query: Query, sentence: str, features: FeatureSet, needs: Any) -> Query:
    """Replaces the sentence of a query.

    Raises:
        VmrError: if it is blank, or if the sentences' features are stored files.
    """
    if not sentence.strip():
        raise VmrError('Expected a sentence, such as sentence="a person opens the door"; found a blank one.')
    read = [features.query, features.narration_query if "narration_query" in needs else None]
    if not all(source.encodes for source in read if source is not None):
        raise VmrError(
            f"features={features.name} reads the sentences' features from files, which hold those of the "
            "annotated sentences alone. Leave out sentence=…, or use a run whose features encode sentences "
            "(features/query=minilm, =clip or =glove)."
        )
    return replace(query, text=sentence.strip())


def _one_video(protocol: Protocol, split: str, asked: Query) -> Protocol:
    """Returns a protocol of the queries on one video, which stand in for the other splits, too."""
    queries = tuple(
        asked if query.query_id == asked.query_id else query
        for query in protocol.splits[split].queries
        if query.video_id == asked.video_id
    )
    train, selection = Split(TRAIN, queries), Split(SELECTION, queries)
    tests = {} if split == SELECTION else {split: Split(split, queries)}
    return replace(protocol, train=train, selection=selection, tests=tests, published_train=None)


def _words(features: FeatureSet, query: Query) -> list[str]:
    try:
        return features.query.token_text(query)
    except VmrError:  # stored vectors: the axis shows numbers
        return []


def _narrations(data: VMRDataModule, video_id: str) -> list[tuple[float, float, str]]:
    """Returns the narrations that the method reads, if their texts are known."""
    source = data.features.narration
    if source is None or "narration" not in data.needs:
        return []
    texts = source.texts(video_id)
    times = np.asarray(source.load(video_id)[1], float).tolist() if texts else []
    return [(start, end, text) for (start, end), text in zip(times, texts, strict=True)]
