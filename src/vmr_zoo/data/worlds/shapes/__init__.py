"""The bundled data set: moving coloured shapes, rendered into real video files.

`world` samples scenes, `render` draws and encodes them, `sentences` writes queries, `narrator` narrates,
`weak` blurs the training moments, `encoder` turns decoded frames into features, `generate` runs these steps
once and caches the result, `features` serves it. This package imports neither torch nor the feature readers,
which would slow down every rendering process.
"""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

from vmr_zoo.data.annotations.records import GENERATED, Protocol, Query, Split
from vmr_zoo.data.worlds.shapes.answers import SceneAnswers
from vmr_zoo.data.worlds.shapes.encoder import GridEncoder
from vmr_zoo.data.worlds.shapes.generate import SPLITS, generate_world, verify
from vmr_zoo.data.worlds.shapes.narrator import SceneNarrator
from vmr_zoo.data.worlds.shapes.weak import WeakAlignment
from vmr_zoo.data.worlds.shapes.world import WorldSettings

__all__ = ["GridEncoder", "SceneNarrator", "WeakAlignment", "WorldSettings", "protocol"]

_VIDEOS = ("seed", "shortest", "longest", "time_bias")
"""Settings of a world on which it depends what a video with a given id shows."""

_NO_TEST = ("train_videos", "selection_videos", "wordings")
"""Settings that change no test split."""


def protocol(
    world: WorldSettings,
    cache: str | Path,
    processes: int | None = None,
    weak: WeakAlignment | None = None,
) -> Protocol:
    """Returns the protocol of shapes; renders its videos if the cache lacks them.

    Args:
        world: settings of the generated data.
        cache: `paths.cache`.
        processes: number of rendering processes; None: one per available core.
        weak: how badly the moments of train fit their sentences; None: they are exact.

    Returns:
        Splits train, selection, and the tests iid, ood_time, novel_word, novel_composition, paraphrase and
        complex.
    """
    folder = generate_world(world, cache, processes)
    files = {name: folder / "annotations" / f"{name}.jsonl" for name in SPLITS}
    verify(folder, files.values())
    splits = {name: _read(name, file) for name, file in files.items()}
    train, selection = splits.pop("train"), splits.pop("selection")
    if weak is not None:
        train = weak.weaken(train, world)
    changed = {
        one.name: getattr(world, one.name) for one in fields(world) if getattr(world, one.name) != one.default
    }
    settings = [f"{name}={value}" for name, value in changed.items() if name not in _NO_TEST]
    videos = [f"{name}={value}" for name, value in changed.items() if name in _VIDEOS]
    return Protocol(
        "shapes",
        train,
        selection,
        splits,
        GENERATED,
        pool=" ".join(["shapes", *videos]),
        settings=" ".join(settings),
        answers=SceneAnswers(world, tuple(files.values())),
    )


def _read(name: str, path: Path) -> Split:
    rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return Split(
        name,
        tuple(
            Query(
                row["query_id"],
                row["video_id"],
                row["query"],
                tuple((start, end) for start, end in row["moments"]),
                row["duration"],
            )
            for row in rows
        ),
    )
