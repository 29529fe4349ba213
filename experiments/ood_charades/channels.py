"""Measures how well features and narrations separate the clips of a moment from the others, without training.

    python experiments/ood_charades/channels.py [OVERRIDE …]      # such as paths.annotations=DIR

Clips are ranked by the cosine of their vector and the sentence's, averaged over five clips. Prints the AUROC
of clips inside against clips outside of the moment, in per cent, mean over queries; 50 is chance.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vmr_zoo.config.compose import build, compose
from vmr_zoo.data.annotations.records import Protocol, Query
from vmr_zoo.metrics.rejection import auroc

WINDOW = 5
WEIGHTS = (0.25, 0.5, 1.0)
"""Weights of the narrations in the sum of both."""

Floats = NDArray[np.floating[Any]]


def smooth(scores: Floats) -> Floats:
    """Averages over `WINDOW` clips, with zero mean and unit deviation."""
    mean = np.convolve(scores, np.ones(WINDOW) / WINDOW, "same")
    return (mean - mean.mean()) / (mean.std() + 1e-9)


def rankings(query: Query, sentence: Floats, clips: Floats, narration: tuple[Floats, Floats]) -> list[float]:
    """Returns the AUROC of features, of narrations, and of both with each of `WEIGHTS`."""
    centres = (np.arange(len(clips)) + 0.5) * query.duration / len(clips)
    inside = np.zeros(len(clips), bool)
    for start, end in query.moments:
        inside |= (centres >= start) & (centres <= end)
    if inside.all() or not inside.any():
        return []
    vectors, times = narration
    sentence_of = np.searchsorted(times[:, 0], centres, "right") - 1
    seen, said = smooth(clips @ sentence), smooth((vectors @ sentence)[sentence_of])
    scores = [seen, said, *(seen + weight * said for weight in WEIGHTS)]
    return [auroc(one[inside], one[~inside]) for one in scores]


def main(overrides: Sequence[str]) -> None:
    """Prints a table with a row per source and a column per split."""
    cfg = compose("train", ["method=tea", "data=charades_cd", "features=action_labels", *overrides])
    protocol: Protocol = build(cfg.data.protocol)
    video, narration = build(cfg.features.video), build(cfg.features.narration)
    encoder = build(cfg.features.query.encoder)
    load, narrate = cache(video.load), cache(narration.load)
    columns = {}
    for name, split in protocol.tests.items():
        sentences = encoder.sentences([query.text for query in split.queries])
        found = [
            rankings(query, sentence, load(query.video_id), narrate(query.video_id))
            for query, sentence in zip(split.queries, sentences, strict=True)
        ]
        columns[name] = 100 * np.array([row for row in found if row]).mean(0)
    print(f"| ranked by | {' | '.join(columns)} |\n|{' --- |' * (len(columns) + 1)}")
    labels = ["features", "narrations", *(f"features + {weight:g} narrations" for weight in WEIGHTS)]
    for number, label in enumerate(labels):
        print(f"| {label} | {' | '.join(f'{column[number]:.1f}' for column in columns.values())} |")


if __name__ == "__main__":
    main(sys.argv[1:])
