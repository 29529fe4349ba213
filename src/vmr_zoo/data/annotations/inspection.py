"""Statistics of a protocol's annotations, and the videos that it shares with other protocols."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from vmr_zoo.data.annotations.building import pool_of, without_warnings
from vmr_zoo.data.annotations.protocols import PUBLISHED_PROTOCOLS
from vmr_zoo.data.annotations.records import HELD_OUT, SELECTION, TRAIN, Protocol, Split, shared_videos
from vmr_zoo.data.annotations.validation import MissingFile
from vmr_zoo.data.text.treebank import treebank_words
from vmr_zoo.errors import VmrError

BINS = 10
"""Bins of the histograms."""


def inspect_protocol(protocol: Protocol, annotations: str | Path | None) -> dict[str, Any]:
    """Measures the annotations of a protocol.

    Args:
        protocol: the protocol.
        annotations: directory of published files with other protocols on the same videos; None: no
            comparison.

    Returns:
        JSON-able: `protocol`, `selection_origin`, `vocabulary` (distinct words and punctuation of all splits,
        in lower case), `splits` (statistics by name, sizes as published), `shared_videos` (with splits of
        other protocols), `protocols_not_compared` (reasons by name), `warnings` (about doubts and leaks).
    """
    vocabularies = {name: _vocabulary(split) for name, split in protocol.published.items()}
    splits = {
        name: _measure(split) | {"vocabulary": len(vocabularies[name])}
        for name, split in protocol.published.items()
    }
    splits[TRAIN]["trained_on"] = {
        "videos": len({query.video_id for query in protocol.train.queries}),
        "sentences": len(protocol.train.queries),
    }
    shared, skipped = _other_protocols(protocol, annotations)
    return {
        "protocol": protocol.name,
        "selection_origin": protocol.selection_origin,
        "vocabulary": len(set().union(*vocabularies.values())),
        "splits": splits,
        "shared_videos": shared,
        "protocols_not_compared": skipped,
        "warnings": [*_leaks_within(protocol), *_leaks_between(protocol.name, shared)],
    }


def _measure(split: Split) -> dict[str, Any]:
    """Returns the sizes of a split and statistics of its durations and moments."""
    durations = np.array(list({query.video_id: query.duration for query in split.queries}.values()))
    bounds = np.array([moment for query in split.queries for moment in query.moments]).reshape(-1, 2)
    lengths_of_video = np.array([query.duration for query in split.queries for _ in query.moments])
    shares = bounds / lengths_of_video[:, None]
    words = np.array([len(query.text.split()) for query in split.queries])
    return {
        "source": split.source,
        "videos": split.videos,
        "sentences": split.sentences,
        "moments": len(bounds),
        "words_per_sentence": _mean(words),
        "duration_seconds": {
            "min": float(durations.min()) if durations.size else None,
            "median": float(np.median(durations)) if durations.size else None,
            "mean": _mean(durations),
            "max": float(durations.max()) if durations.size else None,
        },
        "moment": {
            "mean_seconds": _mean(bounds[:, 1] - bounds[:, 0]),
            "mean_share": _mean(shares[:, 1] - shares[:, 0]),
            "mean_start": _mean(shares[:, 0]),
            "mean_centre": _mean(shares.mean(1)),
            "start_histogram": _histogram(shares[:, 0]),
            "centre_histogram": _histogram(shares.mean(1)),
            "share_histogram": _histogram(shares[:, 1] - shares[:, 0]),
        },
        "counts": dict(sorted(split.counts.items())),
        "dropped": [row._asdict() for row in split.dropped],
    }


def _vocabulary(split: Split) -> set[str]:
    """Returns the distinct words of the sentences, in lower case, split as GloVe's."""
    return {word.text for query in split.queries for word in treebank_words(query.text.lower())}


def _mean(values: np.ndarray[Any, Any]) -> float | None:
    return float(values.mean()) if values.size else None


def _histogram(shares: np.ndarray[Any, Any]) -> list[int]:
    return [int(count) for count in np.histogram(shares, bins=BINS, range=(0, 1))[0]]


def _other_protocols(
    protocol: Protocol, annotations: str | Path | None
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Counts the videos shared with each split of the other protocols on the same data set.

    Returns:
        Rows, and by name of a protocol why it could not be compared.
    """
    rows: list[dict[str, Any]] = []
    skipped: dict[str, str] = {}
    for read in PUBLISHED_PROTOCOLS if annotations is not None else ():
        name = read.__name__
        if name == protocol.name or pool_of(name) != protocol.pool:
            continue
        try:
            with without_warnings():
                other = read(annotations)
        except VmrError as error:
            skipped[name] = "its files do not exist" if isinstance(error, MissingFile) else str(error)
            continue
        for mine, split in _without_held_out(protocol).items():
            for theirs, their_split in _without_held_out(other).items():
                if count := len(shared_videos([split], [their_split])):
                    row = {"split": mine, "protocol": name, "other_split": theirs, "videos": count}
                    rows.append(row | {"of": split.videos, "of_other": their_split.videos})
    return rows, skipped


def _without_held_out(protocol: Protocol) -> dict[str, Split]:
    """Returns the published splits without a selection split that is part of another one."""
    splits = protocol.published
    if protocol.selection_origin == HELD_OUT or protocol.selected_on_test:
        del splits[SELECTION]
    return splits


def _leaks_within(protocol: Protocol) -> list[str]:
    warnings = list(protocol.doubts)
    if protocol.selected_on_test:
        warnings.append(
            f"Checkpoints are selected on test data ({protocol.selection_origin}); every number is marked."
        )
    for name, split in protocol.tests.items():
        if not protocol.selected_on_test and (count := len(shared_videos([protocol.selection], [split]))):
            asked = {(query.video_id, query.text) for query in protocol.selection.queries}
            sentences = sum((query.video_id, query.text) in asked for query in split.queries)
            warnings.append(
                f"selection and {name} share {count:,} videos and {sentences:,} sentences about them."
            )
    return warnings


def _leaks_between(name: str, shared: list[dict[str, Any]]) -> list[str]:
    seen: dict[tuple[str, str], list[str]] = {}
    for row in shared:
        ends = (name, row["split"], row["of"]), (row["protocol"], row["other_split"], row["of_other"])
        for (trained, split, _), (requested, test, size) in (ends, ends[::-1]):
            if split == TRAIN and test not in (TRAIN, SELECTION):
                seen.setdefault((trained, requested), []).append(f"{test} {row['videos']:,} of {size:,}")
    return [
        f"A checkpoint of {trained} is refused under {requested}: trained on test videos "
        f"({', '.join(counts)})."
        for (trained, requested), counts in seen.items()
    ]
