"""Generates the data set of shapes in parallel and caches it: videos and annotations.

    <cache>/shapes/<hash of the world>/
        videos/<video id>.mp4
        annotations/<split>.jsonl
        manifest.json
        features/<hash of the encoder>/     <video id>.npz and manifest.json (written by `vmr_zoo.video`)
        narrations/<hash of the narrator>.jsonl and .manifest.json (written by `features`)

Every file is written under a temporary name and renamed, and a folder's manifest comes last: without one,
the folder is unfinished. An interrupted rendering continues with the videos that are missing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from vmr_zoo.data.worlds.shapes import render
from vmr_zoo.data.worlds.shapes.sentences import Question, ask
from vmr_zoo.data.worlds.shapes.world import GROUPS, Scene, WorldSettings, sample_scene
from vmr_zoo.utils.files import alone_in, atomic_write
from vmr_zoo.utils.parallel import in_parallel

VERSION = "1"
"""To be raised with every change of world, rendering or grammar; part of the cache's name."""

SPLITS = {
    "train": "train",
    "selection": "selection",
    "iid": "test",
    "ood_time": "late",
    "novel_word": "test",
    "novel_composition": "pairs",
    "complex": "test",
}
"""Group of videos by split. iid, novel_word and complex ask about the same videos."""


def world_folder(settings: WorldSettings, cache: str | Path) -> Path:
    """Returns where a world lies, generated or not."""
    return Path(cache).expanduser() / "shapes" / digest({"version": VERSION, **asdict(settings)})


def scenes(settings: WorldSettings) -> Iterator[tuple[str, Scene]]:
    """Yields every (group, scene) of a world, in the order of `GROUPS`."""
    for group in GROUPS:
        for index in range(settings.size(group)):
            yield group, sample_scene(settings, group, index)


def generate_world(settings: WorldSettings, cache: str | Path, processes: int | None = None) -> Path:
    """Renders the videos and writes the annotations, unless that is done.

    Args:
        settings: the world's.
        cache: `paths.cache`.
        processes: how many render at a time; None: one per available core.

    Returns:
        The world's folder.
    """
    folder = world_folder(settings, cache)
    if not (folder / "manifest.json").exists():
        with alone_in(folder):
            if not (folder / "manifest.json").exists():
                _generate(settings, folder, processes)
    return folder


def _generate(settings: WorldSettings, folder: Path, processes: int | None) -> None:
    """Does the work of `generate_world`."""
    (folder / "videos").mkdir(exist_ok=True)
    jobs = [
        (scene, path, settings.fps, settings.height)
        for _, scene in scenes(settings)
        if not (path := video_path(folder, scene.video_id)).exists()
    ]
    for _ in in_parallel(_render, jobs, "Rendering videos", processes):
        pass
    rows = annotate(settings)
    for split, listed in rows.items():
        _write_jsonl(folder / "annotations" / f"{split}.jsonl", listed)
    sizes = {
        split: {"videos": len({row["video_id"] for row in listed}), "sentences": len(listed)}
        for split, listed in rows.items()
    }
    _write_json(folder / "manifest.json", {"version": VERSION, "world": asdict(settings), "splits": sizes})


def annotate(settings: WorldSettings) -> dict[str, list[dict[str, Any]]]:
    """Writes every sentence of a world.

    Args:
        settings: the world's.

    Returns:
        Rows by split: "query_id", "video_id", "query", "duration" and "moments" in seconds, and the meaning:
        "clauses" (action, colour, shape) and their "relations", see `sentences.Question`.
    """
    rows: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
    for group, scene in scenes(settings):
        for split in (split for split, source in SPLITS.items() if source == group):
            texts: set[str] = set()
            for wording in range(settings.wordings if split == "train" else 1):
                # Equal generators for splits about the same videos: novel_word repeats iid's questions.
                rng = np.random.default_rng((*scene.seed[:3], 2 + wording))
                for question in ask(scene, split, rng, settings.complex_share):
                    if question.text not in texts:
                        texts.add(question.text)
                        rows[split].append(_row(scene, split, len(texts), question))
    return rows


def video_path(folder: Path, video_id: str) -> Path:
    """Returns where a video lies in a world's folder."""
    return folder / "videos" / f"{video_id}.mp4"


def digest(settings: dict[str, Any]) -> str:
    """Returns a short name for settings: the first 12 digits of their SHA-256."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def _write_jsonl(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Writes JSON Lines, whole or not at all."""
    atomic_write(path, "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows))


def _render(job: tuple[Scene, Path, int, int]) -> None:
    render.write(*job)


def _row(scene: Scene, split: str, number: int, question: Question) -> dict[str, Any]:
    return {
        "query_id": f"{split}-{scene.video_id}-{number}",
        "video_id": scene.video_id,
        "query": question.text,
        "duration": float(scene.duration),
        "moments": [list(moment) for moment in question.moments],
        "clauses": [asdict(clause) for clause in question.clauses],
        "relations": list(question.relations),
    }


def _write_json(path: Path, value: Any) -> None:
    atomic_write(path, f"{json.dumps(value, indent=1)}\n")
