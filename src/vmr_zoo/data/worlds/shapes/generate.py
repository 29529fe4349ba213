"""Generates the data set of shapes, videos and annotations, in parallel and caches it.

    <cache>/shapes/<hash of the world>/
        videos/<video id>.mp4
        annotations/<split>.jsonl
        checksums.json                      of videos and annotations
        manifest.json
        features/<hash of the encoder>/     <video id>.npz and manifest.json (written by `vmr_zoo.video`)
        narrations/<hash of the narrator>.jsonl, .manifest.json and .checksums.json (written by `features`)

Files are written atomically, and the manifest of a folder is written last: a folder without one is
incomplete. An interrupted rendering continues with the missing videos.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from vmr_zoo.data.worlds.shapes import render
from vmr_zoo.data.worlds.shapes.sentences import Question, ask
from vmr_zoo.data.worlds.shapes.world import GROUPS, Scene, WorldSettings, sample_scene
from vmr_zoo.utils.checksums import verify_checksums, write_checksums
from vmr_zoo.utils.files import lock_folder, write_json, write_rows
from vmr_zoo.utils.parallel import in_parallel

CHECKSUMS = "checksums.json"
VERSION = "2"
"""Must be raised with every change of world, rendering or grammar; part of the cache path."""

SPLITS = {
    "train": "train",
    "selection": "selection",
    "iid": "test",
    "ood_time": "exchanged",
    "novel_word": "test",
    "novel_composition": "pairs",
    "paraphrase": "test",
    "complex": "test",
}
"""Group of videos by split. iid, novel_word, paraphrase and complex share their videos."""


def world_folder(settings: WorldSettings, cache: str | Path) -> Path:
    """Returns the folder of a world, which may not exist yet."""
    return Path(cache).expanduser() / "shapes" / digest({"version": VERSION, **asdict(settings)})


def scenes(settings: WorldSettings) -> Iterator[tuple[str, Scene]]:
    """Yields every (group, scene) of a world, in the order of `GROUPS`."""
    for group in GROUPS:
        for index in range(settings.size(group)):
            yield group, sample_scene(settings, group, index)


def generate_world(settings: WorldSettings, cache: str | Path, processes: int | None = None) -> Path:
    """Renders the videos and writes the annotations, unless they exist.

    Args:
        settings: settings of the world.
        cache: `paths.cache`.
        processes: number of rendering processes; None: one per available core.

    Returns:
        The folder of the world.
    """
    folder = world_folder(settings, cache)
    if not _is_complete(folder):
        with lock_folder(folder):
            if not _is_complete(folder):
                _generate(settings, folder, processes)
    return folder


def _is_complete(folder: Path) -> bool:
    return (folder / "manifest.json").exists() and (folder / CHECKSUMS).exists()


def verify(folder: Path, files: Iterable[Path]) -> None:
    """Compares generated files with their checksums.

    Args:
        folder: of the world.
        files: videos or annotations in it.

    Raises:
        VmrError: names the first file that has changed.
    """
    verify_checksums(
        folder / CHECKSUMS, files, f"Delete it and {folder / CHECKSUMS}; they are generated again."
    )


def _generate(settings: WorldSettings, folder: Path, processes: int | None) -> None:
    """Renders missing videos and writes annotations and manifest."""
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
        write_rows(folder / "annotations" / f"{split}.jsonl", listed)
    files = [*sorted((folder / "videos").glob("*.mp4")), *sorted((folder / "annotations").glob("*.jsonl"))]
    write_checksums(folder / CHECKSUMS, files)
    sizes = {
        split: {"videos": len({row["video_id"] for row in listed}), "sentences": len(listed)}
        for split, listed in rows.items()
    }
    write_json(folder / "manifest.json", {"version": VERSION, "world": asdict(settings), "splits": sizes})


def annotate(settings: WorldSettings) -> dict[str, list[dict[str, Any]]]:
    """Generates every sentence of a world.

    Args:
        settings: settings of the world.

    Returns:
        Rows by split: "query_id", "video_id", "query", "duration" and "moments" in seconds, and the meaning:
        "clauses" (action, colour, shape) and their "relations" (`sentences.Question`).
    """
    rows: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
    for group, scene in scenes(settings):
        for split in (split for split, source in SPLITS.items() if source == group):
            texts: set[str] = set()
            for wording in range(settings.wordings if split == "train" else 1):
                # Equal generators for splits on the same videos: novel_word repeats the questions of iid.
                rng = np.random.default_rng((*scene.seed[:3], 2 + wording))
                for question in ask(scene, split, rng, settings.complex_share):
                    if question.text not in texts:
                        texts.add(question.text)
                        rows[split].append(_row(scene, split, len(texts), question))
    return rows


def video_path(folder: Path, video_id: str) -> Path:
    """Returns the path of a video in the folder of a world."""
    return folder / "videos" / f"{video_id}.mp4"


def digest(settings: dict[str, Any]) -> str:
    """Returns a short name for settings: the first 12 hex digits of their SHA-256."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


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
