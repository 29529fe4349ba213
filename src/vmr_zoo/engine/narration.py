"""Narrates many videos into one JSON Lines file, resumably and in shards (docs/narrate.md).

    OUT.jsonl.parts/manifest.json    the narrator's settings; another narrator is refused
    OUT.jsonl.parts/VIDEO.part       one finished video: its narrations, or why it could not be decoded
    OUT.jsonl, OUT.manifest.json     all parts merged, written by the process that finishes the last one
    OUT.videos.jsonl                 per video its length, its stream, and what is odd about it

Files are written atomically: every existing part is complete.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from vmr_zoo.data.narrations import Narration, write_narrations
from vmr_zoo.errors import VmrError
from vmr_zoo.narrators import Narrated, Narrator
from vmr_zoo.utils.files import atomic_write, write_rows
from vmr_zoo.video.files import shard


@dataclass(frozen=True, slots=True)
class Part:
    """Stored result of one video.

    Attributes:
        narrations: in order of time.
        empty: number of empty answers of the narrator.
        error: why the video could not be decoded; None: it could.
        video: length, stream and notes of the file, as `Timeline.as_json`; None: it was not opened.
    """

    narrations: tuple[Narration, ...]
    empty: int
    error: str | None
    video: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Summary:
    """Result of a run. Counts and ids are those of all shards.

    Attributes:
        videos: number of requested videos.
        unfinished: number of videos left to other shards.
        sentences: number of narrations.
        empty: number of empty answers of the narrator.
        failed: reason by id of each video that could not be decoded.
        silent: decoded videos without a narration.
        notes: what is odd about the videos: by id, the text by kind.
        merged: whether the file was written.
    """

    videos: int
    unfinished: int
    sentences: int
    empty: int
    failed: dict[str, str]
    silent: tuple[str, ...]
    notes: dict[str, dict[str, str]]
    merged: bool


def narrate(
    narrator: Narrator, videos: Mapping[str, Path], out: str | Path, share: str | None = None
) -> Summary:
    """Narrates videos into a file; resumes what an earlier or another process began.

    Args:
        narrator: the narrator.
        videos: path by video id, of all shards.
        out: the .jsonl file.
        share: "i/n": this process narrates every n-th video only; None: all.

    Raises:
        VmrError: if `out` holds narrations with other settings, or cannot be written.
    """
    out = Path(out).expanduser()
    parts = out.with_name(f"{out.name}.parts")
    mine = shard(list(videos), share or "1/1")
    manifest = _claim(out, parts, narrator.manifest())
    # Failed videos are retried: their files may have been fixed.
    todo = [video for video in mine if (part := _read(parts, video)) is None or part.error is not None]
    results = narrator.stream((video, videos[video]) for video in todo)
    for narrated in track(results, "Narrating", len(todo), console=Console(stderr=True), transient=True):
        _write(parts, narrated)

    failed: dict[str, str] = {}
    opened: dict[str, dict[str, Any]] = {}
    silent = []
    unfinished = sentences = empty = 0
    for video in videos:
        part = _read(parts, video)
        if part is None:
            unfinished += 1
        elif part.error is not None:
            failed[video] = part.error
        else:
            sentences += len(part.narrations)
            empty += part.empty
            if not part.narrations:
                silent.append(video)
            if part.video is not None:
                opened[video] = part.video
    merged = not unfinished and sentences > 0
    if merged:
        # Another process may have started with other settings at the same time.
        _claim(out, parts, narrator.manifest())
        write_narrations(out, _all(parts, videos), manifest)
        if opened:
            rows = ({"video_id": video, **row} for video, row in opened.items())
            write_rows(out.with_suffix(".videos.jsonl"), rows)
    notes = {video: row["notes"] for video, row in opened.items()}
    return Summary(len(videos), unfinished, sentences, empty, failed, tuple(silent), notes, merged)


def _claim(out: Path, parts: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    """Writes the manifest of an empty folder of parts; compares that of a filled one.

    Returns:
        The manifest of the folder: the narrator's, and the date of the first narration.
    """
    if out.suffix != ".jsonl":
        raise VmrError(f"Expected out=FILE.jsonl, found out={out}.")
    file = parts / "manifest.json"
    # A JSON round trip turns tuples into lists.
    manifest = json.loads(json.dumps({"date": date.today().isoformat(), **manifest}))
    if not file.exists():
        if out.exists():
            raise VmrError(
                f"{out} exists, but not {parts}, which is required to continue it. Choose another out= or "
                "delete it."
            )
        try:
            atomic_write(file, json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")
        except OSError as error:
            raise VmrError(f"Cannot write {file}: {error.strerror}. Choose another out=.") from error
    try:
        stored: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise VmrError(f"{file} cannot be read ({error}). Delete {parts} to start again.") from error
    differing = [
        f"{key}: {json.dumps(stored.get(key))} there, {json.dumps(manifest.get(key))} now"
        for key in sorted(stored.keys() | manifest.keys())
        if key != "date" and stored.get(key) != manifest.get(key)
    ]
    if differing:
        raise VmrError(
            f"{parts} holds narrations with other settings:\n  " + "\n  ".join(differing) + "\n"
            "Choose another out= or restore those settings."
        )
    return stored


def _part(parts: Path, video_id: str) -> Path:
    """Returns the path of a part; a video id is the stem of a file and contains no separator."""
    return parts / f"{video_id}.part"


def _write(parts: Path, narrated: Narrated) -> None:
    error = None if narrated.error is None else str(narrated.error)
    video = None if narrated.timeline is None else narrated.timeline.as_json()
    part = Part(narrated.narrations, narrated.empty, error, video)
    atomic_write(_part(parts, narrated.video_id), json.dumps(asdict(part), ensure_ascii=False) + "\n")


def _read(parts: Path, video_id: str) -> Part | None:
    """Reads the part of a video; None: it has none."""
    path = _part(parts, video_id)
    try:
        part = json.loads(path.read_text(encoding="utf-8"))
        narrations = tuple(Narration(**row) for row in part["narrations"])
        return Part(narrations, part["empty"], part["error"], part.get("video"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise VmrError(f"{path} cannot be read ({error}). Delete it to narrate the video again.") from error


def _all(parts: Path, videos: Iterable[str]) -> Iterator[Narration]:
    for video in videos:
        part = _read(parts, video)
        yield from part.narrations if part is not None else ()
