"""Generates the data set of shapes in parallel and caches it: videos, annotations, features.

    <cache>/shapes/<hash of the world>/
        videos/<video id>.mp4
        annotations/<split>.jsonl
        manifest.json
        features/<hash of the encoder>/     video.npy patches.npy index.json manifest.json
        narrations/<hash of the narrator>.jsonl and .manifest.json (written by `features`)

Every file is written under a temporary name and renamed, and a folder's manifest comes last: without one,
the folder is unfinished. An interrupted rendering continues with the videos that are missing.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from vmr_zoo.data.shapes import render
from vmr_zoo.data.shapes.encoder import GridEncoder
from vmr_zoo.data.shapes.sentences import Question, ask
from vmr_zoo.data.shapes.world import GROUPS, Scene, WorldSettings, sample_scene
from vmr_zoo.errors import VmrError
from vmr_zoo.files import atomic_path, atomic_write

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

Item = TypeVar("Item")
Result = TypeVar("Result")


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
    if (folder / "manifest.json").exists():
        return folder
    (folder / "videos").mkdir(parents=True, exist_ok=True)
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
    return folder


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


def extract(
    settings: WorldSettings, folder: Path, encoder: GridEncoder, processes: int | None = None
) -> Path:
    """Decodes and encodes every video of a world, unless that is done.

    Args:
        settings: the world's.
        folder: the world's, as `generate_world` returned it.
        encoder: what turns pixels into features.
        processes: how many encode at a time; None: one per available core.

    Returns:
        The features' folder: `video.npy` (clips of all videos, dim) float32, `patches.npy` (clips, patches,
        patch_dim) float16, `index.json` with [first row, one past the last] by video id.
    """
    out = folder / "features" / digest(encoder.manifest())
    if (out / "manifest.json").exists():
        return out
    ids = [scene.video_id for _, scene in scenes(settings)]
    jobs = [(encoder, video_path(folder, video_id)) for video_id in ids]
    video: list[np.ndarray[Any, Any]] = []
    patches: list[np.ndarray[Any, Any]] = []
    index: dict[str, tuple[int, int]] = {}
    total = 0
    for video_id, (clips, cells) in zip(
        ids, in_parallel(_encode, jobs, "Encoding videos", processes), strict=True
    ):
        video.append(clips)
        patches.append(cells)
        index[video_id] = (total, total := total + len(clips))
    for name, arrays in (("video", video), ("patches", patches)):
        with atomic_path(out / f"{name}.npy") as path:
            np.save(path, np.concatenate(arrays), allow_pickle=False)
    _write_json(out / "index.json", index)
    _write_json(out / "manifest.json", {**encoder.manifest(), "videos": len(ids), "clips": total})
    return out


def video_path(folder: Path, video_id: str) -> Path:
    """Returns where a video lies in a world's folder."""
    return folder / "videos" / f"{video_id}.mp4"


def in_parallel(
    work: Callable[[Item], Result], items: Sequence[Item], what: str, processes: int | None = None
) -> Iterator[Result]:
    """Maps a function over items in fresh processes, with progress, results in the order of the items.

    Args:
        work: a module-level function.
        items: what it is called with.
        what: shown beside the progress bar.
        processes: how many; None: one per available core; 1: no further process.

    Yields:
        The results.

    Raises:
        VmrError: if a process was killed, which usually means too little memory.
    """
    count = min(processes or _cores(), len(items))
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, transient=True, disable=len(items) < 2) as progress:
        if count <= 1:
            yield from progress.track(map(work, items), total=len(items), description=what)
            return
        # Spawned, not forked: the parent may already run torch's threads.
        context = multiprocessing.get_context("spawn")
        try:
            with ProcessPoolExecutor(count, mp_context=context) as pool:
                yield from progress.track(
                    pool.map(work, items, chunksize=4), total=len(items), description=what
                )
        except BrokenProcessPool as error:
            raise VmrError(
                f"{what}: a worker process died, probably for want of memory. Set data.protocol.processes=1 "
                "and run again; finished videos are kept."
            ) from error


def digest(settings: dict[str, Any]) -> str:
    """Returns a short name for settings: the first 12 digits of their SHA-256."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def _write_jsonl(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Writes JSON Lines, whole or not at all."""
    atomic_write(path, "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows))


def _cores() -> int:
    """Returns the cores that this process may use, where the system tells."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _render(job: tuple[Scene, Path, int, int]) -> None:
    render.write(*job)


def _encode(job: tuple[GridEncoder, Path]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    encoder, path = job
    clips, cells = encoder.encode(path)
    return clips, cells.astype(np.float16)


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
