"""Narrates many videos into one JSON Lines file, resumably and in shards (docs/narrate.md).

    OUT.jsonl.parts/manifest.json    the narrator's settings; another narrator is refused
    OUT.jsonl.parts/VIDEO.part       one finished video: its narrations
    OUT.jsonl.parts/VIDEO.failed     why a video could not be decoded or narrated; it is tried again
    OUT.jsonl, OUT.manifest.json     all parts merged, written by the process that finishes the last one
    OUT.videos.jsonl                 per video its length, its stream, and what is odd about it

Files are written atomically: every existing part is complete. A list of the files shows what is finished, and
the parts are merged one after the other.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from vmr_zoo.data.narrations import Narration, write_narrations
from vmr_zoo.errors import VmrError, printable
from vmr_zoo.narrators import Narrated, Narrator
from vmr_zoo.utils.console import progress
from vmr_zoo.utils.files import atomic_write, write_json, write_rows
from vmr_zoo.utils.trees import differing, through_json
from vmr_zoo.video.files import shard


@dataclass(frozen=True, slots=True)
class Part:
    """Stored result of a finished video.

    Attributes:
        narrations: in order of time.
        answers: number of answers of the model.
        empty: number of empty answers.
        unread: beginnings of answers in which no times were found.
        left_out: number of moments without a text or with times outside of the video.
        video: length, stream and notes of the file, as `Timeline.as_json`; None: it was not opened.
    """

    narrations: tuple[Narration, ...]
    answers: int
    empty: int
    unread: tuple[str, ...]
    left_out: int
    video: dict[str, Any] | None


@dataclass(slots=True)
class Summary:
    """Result of a run, of all shards.

    Attributes:
        videos: number of requested videos.
        unfinished: number of videos left to other shards. The rest is counted once there are none.
        failed: reason by id of each video that could not be decoded or narrated.
        sentences: number of narrations.
        answers: number of answers of the model.
        empty: number of empty answers.
        unread: number of answers in which no times were found.
        example: the beginning of one of these.
        left_out: number of moments without a text or with times outside of the video.
        silent: finished videos without a narration.
        notes: what is odd about the videos: by id, the text by kind.
    """

    videos: int
    unfinished: int
    failed: dict[str, str]
    sentences: int = 0
    answers: int = 0
    empty: int = 0
    unread: int = 0
    example: str | None = None
    left_out: int = 0
    silent: list[str] = field(default_factory=list)
    notes: dict[str, dict[str, str]] = field(default_factory=dict)

    @property
    def merged(self) -> bool:
        """Whether the file was written."""
        return not self.unfinished and self.sentences > 0

    def add(self, video: str, part: Part) -> None:
        """Adds a finished video."""
        self.sentences += len(part.narrations)
        self.answers += part.answers
        self.empty += part.empty
        self.unread += len(part.unread)
        self.left_out += part.left_out
        if part.unread and self.example is None:
            self.example = f"{video}, {part.unread[0]}"
        if not part.narrations:
            self.silent.append(video)
        if part.video is not None and part.video["notes"]:
            self.notes[video] = part.video["notes"]


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
    # Failed videos are tried again: their files may have been fixed.
    finished = _names(parts, ".part")
    todo = [video for video in mine if video not in finished]
    results = narrator.stream((video, videos[video]) for video in todo)
    for narrated in progress(results, "Narrating", shown_from=1, total=len(todo)):
        _write(parts, narrated)

    finished, failed = _names(parts, ".part"), _names(parts, ".failed")
    missing = [video for video in videos if video not in finished]
    reasons = {video: _reason(parts, video) for video in missing if video in failed}
    summary = Summary(len(videos), len(missing) - len(reasons), reasons)
    if not summary.unfinished:
        # Another process may have started with other settings at the same time.
        _claim(out, parts, narrator.manifest())
        _merge(out, parts, [video for video in videos if video in finished], manifest, summary)
    return summary


def _merge(out: Path, parts: Path, videos: Sequence[str], manifest: dict[str, Any], summary: Summary) -> None:
    """Counts the parts and writes their narrations, one part after the other."""
    rows = []
    for video in videos:
        part = _read(parts, video)
        summary.add(video, part)
        if part.video is not None:
            rows.append({"video_id": video, **part.video})
    if not summary.merged:
        return
    counts = {}
    if summary.answers:
        of_them = {key: getattr(summary, key) for key in ("empty", "unread", "left_out")}
        counts = {"answers": {"total": summary.answers, **of_them}}
    narrations = (narration for video in videos for narration in _read(parts, video).narrations)
    write_narrations(out, narrations, manifest | counts)
    if rows:
        write_rows(out.with_suffix(".videos.jsonl"), rows)


def _claim(out: Path, parts: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    """Writes the manifest of an empty folder of parts; compares that of a filled one.

    Returns:
        The manifest of the folder: the narrator's, and the date of the first narration.
    """
    if out.suffix != ".jsonl":
        raise VmrError(f"Expected out=FILE.jsonl, found out={out}.")
    file = parts / "manifest.json"
    manifest = through_json({"date": date.today().isoformat(), **manifest})
    if not file.exists():
        if out.exists():
            raise VmrError(
                f"{out} exists, but not {parts}, which is required to continue it. Choose another out= or "
                "delete it."
            )
        write_json(file, manifest)
    try:
        stored: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise VmrError(f"{file} cannot be read ({error}). Delete {parts} to start again.") from error
    changed = [
        f"{key}: {json.dumps(stored.get(key))} there, {json.dumps(manifest.get(key))} now"
        for key in sorted(differing(stored, manifest))
        if key != "date"
    ]
    if changed:
        raise VmrError(
            f"{parts} holds narrations with other settings:\n  " + "\n  ".join(changed) + "\n"
            "Choose another out= or restore those settings."
        )
    return stored


def _names(parts: Path, suffix: str) -> set[str]:
    """Returns the videos that have a file with this suffix; a listing is faster than a look at every file."""
    with os.scandir(parts) as entries:
        return {entry.name.removesuffix(suffix) for entry in entries if entry.name.endswith(suffix)}


def _write(parts: Path, narrated: Narrated) -> None:
    # A video id is the stem of a file and contains no separator.
    part, failed = (parts / f"{narrated.video_id}{suffix}" for suffix in (".part", ".failed"))
    if narrated.error is not None:
        atomic_write(failed, json.dumps(printable(narrated.error), ensure_ascii=False) + "\n")
        return
    row = Part(
        narrated.narrations,
        narrated.answers,
        narrated.empty,
        narrated.unread,
        narrated.left_out,
        None if narrated.timeline is None else narrated.timeline.as_json(),
    )
    atomic_write(part, json.dumps(asdict(row), ensure_ascii=False) + "\n")
    failed.unlink(missing_ok=True)


def _read(parts: Path, video_id: str) -> Part:
    path = parts / f"{video_id}.part"
    try:
        row = json.loads(path.read_text(encoding="utf-8"))
        return Part(**row | {"narrations": tuple(Narration(**narration) for narration in row["narrations"])})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise VmrError(f"{path} cannot be read ({error}). Delete it to narrate the video again.") from error


def _reason(parts: Path, video_id: str) -> str:
    """Returns why a video failed; another process may be narrating it again."""
    try:
        return str(json.loads((parts / f"{video_id}.failed").read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        return str(error)
