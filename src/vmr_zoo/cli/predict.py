"""`vmr predict`: finds moments in your own videos with a trained run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig
from rich.console import Console
from rich.table import Table
from rich.text import Text

from vmr_zoo.engine.query_file import answer_file, read_query_file
from vmr_zoo.engine.retriever import Answer, EncodedVideo, Retriever
from vmr_zoo.engine.timeline import draw
from vmr_zoo.errors import VmrError


def main(cfg: DictConfig) -> int:
    """Answers the queries of the command line or of a CSV file.

    Args:
        cfg: composed from `conf/predict.yaml`.

    Returns:
        0, or 1 if some videos of the CSV file could not be decoded.

    Raises:
        VmrError: for contradicting arguments, and as `Retriever` and its encoders raise.
    """
    if (cfg.csv is None) == (cfg.video is None):
        raise VmrError(
            "Expected either video=FILE with query=SENTENCE, or csv=FILE with the columns video, query."
        )
    if cfg.csv is not None:
        return _answer_csv(cfg)
    if not cfg.query:
        raise VmrError('Expected a sentence to search for: query="a person opens the door".')
    queries = [str(text) for text in (cfg.query if isinstance(cfg.query, ListConfig) else [cfg.query])]
    video = _retriever(cfg).encode(cfg.video, cfg.narrations)
    answers = video.answer(queries, cfg.top_k)
    if cfg.json:
        print(json.dumps(_as_json(cfg.run, video, answers), ensure_ascii=False, indent=2))
    else:
        Console().print(_answer_table(video, answers))
    if cfg.picture:
        draw(video, answers, cfg.picture)
        if not cfg.json:
            print(cfg.picture)
    return 0


def _retriever(cfg: DictConfig) -> Retriever:
    return Retriever.from_run(cfg.run, device=cfg.device, window_seconds=cfg.window, cache=cfg.paths.cache)


def _answer_csv(cfg: DictConfig) -> int:
    if cfg.query or cfg.picture:
        raise VmrError("csv=FILE holds the sentences and draws no pictures: leave out query and picture.")
    if cfg.out is None:
        raise VmrError("Expected out=FILE.jsonl for the answers to the rows of the CSV file.")
    file = Path(cfg.csv)
    queries = read_query_file(file)
    failed = answer_file(_retriever(cfg), queries, file.parent, Path(cfg.out), cfg.narrations, cfg.top_k)
    answered = sum(row["video"] not in failed for row in queries)
    print(f"{cfg.out}: {answered} of {len(queries)} sentences answered")
    if failed:
        Console(stderr=True).print(_failure_table(failed))
    return 1 if failed else 0


def _failure_table(failed: Mapping[str, str]) -> Table:
    table = Table("video", "reason", title="Not decoded", title_justify="left")
    for name, reason in failed.items():
        table.add_row(Text(name), Text(reason))
    return table


def _as_json(run: str, video: EncodedVideo, answers: Sequence[Answer]) -> dict[str, Any]:
    return {
        "run": str(run),
        "video": str(video.path),
        "duration": video.duration,
        "answers": [
            {
                "query": answer.query,
                "moments": [asdict(moment) for moment in answer.moments],
                "clip_scores": None if answer.clip_scores is None else answer.clip_scores.tolist(),
            }
            for answer in answers
        ],
    }


def _answer_table(video: EncodedVideo, answers: Sequence[Answer]) -> Table:
    table = Table(title=Text(f"{video.path.name}, {_clock_time(video.duration)}"), title_justify="left")
    table.add_column("query", overflow="fold")
    for name in ("rank", "start", "end", "score"):
        table.add_column(name, justify="right")
    for answer in answers:
        for rank, moment in enumerate(answer.moments, 1):
            text = Text(answer.query) if rank == 1 else ""
            times = _clock_time(moment.start), _clock_time(moment.end)
            table.add_row(text, str(rank), *times, f"{moment.score:.4g}")
        table.add_section()
    return table


def _clock_time(seconds: float) -> str:
    """Formats seconds as 1:02:03.4, without hours below one hour."""
    tenths = round(seconds * 10)
    hours, minutes, rest = tenths // 36000, tenths // 600 % 60, tenths % 600 / 10
    return f"{hours}:{minutes:02d}:{rest:04.1f}" if hours else f"{minutes}:{rest:04.1f}"
