"""What `vmr predict` prints: tables, JSON and failures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from vmr_zoo.errors import printable

if TYPE_CHECKING:
    from vmr_zoo.engine.retriever import Answer, EncodedVideo
    from vmr_zoo.engine.video_search import VideoSearch

_OF_A_RUN = "Scores rank moments within one run."
_ZERO_SHOT = "The score of the best moment of a video is its mean cosine similarity with the sentence."
_NO_PROOF = "A high score does not mean that the sentence occurs."

Clips = Sequence[Sequence[Path | None]] | None
"""A path per sentence and rank, None for a moment without a picture; None: no clips were requested."""


def as_json(answer: Mapping[str, Any]) -> str:
    """Formats the JSON of a command."""
    return json.dumps(answer, ensure_ascii=False, indent=2)


def video_json(video: EncodedVideo, answers: Sequence[Answer], clips: Clips) -> dict[str, Any]:
    """Returns the answers about one video."""
    return {
        "video": printable(video.path),
        "duration": video.duration,
        "notes": dict(video.notes),
        "answers": [
            {
                "query": answer.query,
                "moments": [
                    asdict(moment) | _clip(clips, number, rank) for rank, moment in enumerate(answer.moments)
                ],
                "clip_scores": None if answer.clip_scores is None else answer.clip_scores.tolist(),
            }
            for number, answer in enumerate(answers)
        ],
    }


def search_json(count: int, queries: Sequence[str], search: VideoSearch, clips: Clips) -> dict[str, Any]:
    """Returns the answers about several videos."""
    return {
        "videos": count,
        "notes": {printable(path): notes for path, notes in search.notes.items()},
        "failed": {printable(path): printable(reason) for path, reason in search.failed.items()},
        "answers": [
            {
                "query": query,
                "moments": [
                    {"video": printable(one.video)} | asdict(one.moment) | _clip(clips, number, rank)
                    for rank, one in enumerate(moments)
                ],
            }
            for number, (query, moments) in enumerate(zip(queries, search.moments, strict=True))
        ],
    }


def _clip(clips: Clips, number: int, rank: int) -> dict[str, str | None]:
    path = None if clips is None else clips[number][rank]
    return {} if clips is None else {"clip": None if path is None else printable(path)}


def video_table(video: EncodedVideo, answers: Sequence[Answer], zero_shot: bool) -> Table:
    """Returns the moments of one video."""
    table = _table(f"{video.path.name}, {_clock_time(video.duration)}", zero_shot, ())
    for answer in answers:
        for rank, moment in enumerate(answer.moments, 1):
            text = Text(answer.query) if rank == 1 else ""
            times = _clock_time(moment.start), _clock_time(moment.end)
            table.add_row(text, str(rank), *times, f"{moment.score:.4g}")
        table.add_section()
    return table


def search_table(count: int, queries: Sequence[str], search: VideoSearch, zero_shot: bool) -> Table:
    """Returns the moments of several videos."""
    table = _table(f"{count - len(search.failed)} videos", zero_shot, ("video",))
    for query, moments in zip(queries, search.moments, strict=True):
        for rank, (video, moment) in enumerate(moments, 1):
            text = Text(query) if rank == 1 else ""
            times = _clock_time(moment.start), _clock_time(moment.end)
            table.add_row(text, str(rank), Text(printable(video)), *times, f"{moment.score:.4g}")
        table.add_section()
    return table


def _table(title: str, zero_shot: bool, more: Sequence[str]) -> Table:
    table = Table(
        title=Text(printable(title)),
        caption=f"{_ZERO_SHOT if zero_shot else _OF_A_RUN} {_NO_PROOF}",
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("query", overflow="fold")
    table.add_column("rank", justify="right")
    for name in more:
        table.add_column(name, overflow="fold")
    for name in ("start", "end", "score"):
        table.add_column(name, justify="right")
    return table


def failure_table(failed: Mapping[str, str]) -> Table:
    """Returns the videos without an answer, and why."""
    table = Table("video", "reason", title="Not decoded", title_justify="left")
    for name, reason in failed.items():
        table.add_row(Text(printable(name)), Text(printable(reason)))
    return table


def _clock_time(seconds: float) -> str:
    """Formats seconds as 1:02:03.4, without hours below one hour."""
    tenths = round(seconds * 10)
    hours, minutes, rest = tenths // 36000, tenths // 600 % 60, tenths % 600 / 10
    return f"{hours}:{minutes:02d}:{rest:04.1f}" if hours else f"{minutes}:{rest:04.1f}"
