"""`vmr predict`: find moments in your own videos with a trained run."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import DictConfig, ListConfig
from rich.console import Console
from rich.progress import track
from rich.table import Table
from rich.text import Text

from vmr_zoo.engine.retriever import Answer, EncodedVideo, Retriever
from vmr_zoo.engine.timeline import draw
from vmr_zoo.errors import VmrError
from vmr_zoo.runs import directory
from vmr_zoo.video.decode import VideoError


def main(cfg: DictConfig) -> int:
    """Answers the sentences of the command line, or those of a CSV file.

    Args:
        cfg: what `conf/predict.yaml` composes.

    Returns:
        0, or 1 if some videos of the CSV file could not be used.

    Raises:
        VmrError: for contradicting arguments, or whatever `Retriever` and its encoders refuse.
    """
    if (cfg.csv is None) == (cfg.video is None):
        raise VmrError(
            "Expected either video=FILE with query=SENTENCE, or csv=FILE with the columns video, query."
        )
    if cfg.csv is not None:
        return _batch(cfg)
    if not cfg.query:
        raise VmrError('Expected a sentence to look for: query="a person opens the door".')
    queries = [str(text) for text in (cfg.query if isinstance(cfg.query, ListConfig) else [cfg.query])]
    video = _retriever(cfg).encode(cfg.video, cfg.narrations)
    answers = video.answer(queries, cfg.top_k)
    if cfg.json:
        print(json.dumps(_as_json(cfg.run, video, answers), ensure_ascii=False, indent=2))
    else:
        Console().print(_table(video, answers))
    if cfg.picture:
        draw(video, answers, cfg.picture)
        if not cfg.json:
            print(cfg.picture)
    return 0


def _retriever(cfg: DictConfig) -> Retriever:
    return Retriever.from_run(cfg.run, device=cfg.device, window_seconds=cfg.window, cache=cfg.paths.cache)


def _batch(cfg: DictConfig) -> int:
    """Answers every row of a CSV file; each video is encoded once."""
    if cfg.query or cfg.picture:
        raise VmrError("csv=FILE holds the sentences and draws no pictures: leave query and picture out.")
    if cfg.out is None:
        raise VmrError("Expected out=FILE.jsonl, where the answers to the rows of the CSV file go.")
    rows = _read(Path(cfg.csv))
    retriever = _retriever(cfg)
    answered: dict[int, dict[str, Any]] = {}
    failed: dict[str, str] = {}
    for name, group in track(rows.groupby("video", sort=False), "Searching", transient=True):
        path = Path(cfg.csv).parent / str(name)
        try:
            video = retriever.encode(path, cfg.narrations)
        except VideoError as error:
            failed[str(name)] = str(error)
            continue
        for (number, row), answer in zip(
            group.iterrows(), video.answer(list(group["query"]), cfg.top_k), strict=True
        ):
            answered[int(str(number))] = {
                "query_id": row["query_id"],
                "video_id": path.stem,
                "video": str(name),
                "query": answer.query,
                "duration": round(video.duration, 3),
                "pred_relevant_windows": [[m.start, m.end, m.score] for m in answer.moments],
                **(
                    {}
                    if answer.clip_scores is None
                    else {"pred_saliency_scores": answer.clip_scores.tolist()}
                ),
            }
    directory.write_rows(Path(cfg.out), [answered[number] for number in sorted(answered)])
    print(f"{cfg.out}: {len(answered)} of {len(rows)} sentences answered")
    if failed:
        table = Table("video", "why", title="Left out", title_justify="left")
        for name, why in failed.items():
            table.add_row(Text(name), Text(why))
        Console(stderr=True).print(table)
    return 1 if failed else 0


def _read(path: Path) -> pd.DataFrame:
    """Reads the rows of a CSV file: video, query and, if there is one, query_id; else rows are counted."""
    # Not by pandas, which takes the first column of too long a row for an index: a sentence with a comma that
    # is not quoted would move by one column and be cut.
    rows: list[dict[str, str]] = []
    first_line: dict[str, int] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, [])
            lacking = [name for name in ("video", "query") if name not in header]
            if lacking:
                raise VmrError(
                    f"{path} lacks the column{'s' * (len(lacking) > 1)} {', '.join(lacking)}; its first line "
                    f"names {', '.join(header) or 'nothing'}. Expected video, query and optionally query_id."
                )
            for fields in reader:
                if not fields:
                    continue
                where = f"{path}, line {reader.line_num}"
                if len(fields) != len(header):
                    raise VmrError(
                        f"{where}: expected {len(header)} fields, found {len(fields)}. Put a sentence with a "
                        'comma into quotes: clip.mp4,"first, a dog runs".'
                    )
                row = {"query_id": str(len(rows) + 1), **dict(zip(header, fields, strict=True))}
                if not (row["video"].strip() and row["query"].strip()):
                    raise VmrError(f"{where}: expected a video and a sentence, found an empty field.")
                if (earlier := first_line.setdefault(row["query_id"], reader.line_num)) != reader.line_num:
                    raise VmrError(
                        f"{where}: the query_id '{row['query_id']}' was already used on line {earlier}. "
                        "Give each sentence its own."
                    )
                rows.append(row)
    except (OSError, UnicodeError, csv.Error) as error:
        raise VmrError(
            f"Expected a CSV file in UTF-8 with the columns video, query at {path}; {error}."
        ) from error
    if not rows:
        raise VmrError(f"{path} holds no sentence below its first line. Give each a line: video,query.")
    return pd.DataFrame(rows)


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


def _table(video: EncodedVideo, answers: Sequence[Answer]) -> Table:
    table = Table(title=Text(f"{video.path.name}, {_clock(video.duration)}"), title_justify="left")
    table.add_column("query", overflow="fold")
    for name in ("rank", "start", "end", "score"):
        table.add_column(name, justify="right")
    for answer in answers:
        for rank, moment in enumerate(answer.moments, 1):
            text = Text(answer.query) if rank == 1 else ""
            table.add_row(text, str(rank), _clock(moment.start), _clock(moment.end), f"{moment.score:.4g}")
        table.add_section()
    return table


def _clock(seconds: float) -> str:
    """Formats seconds as 1:02:03.4, hours only where there are some."""
    tenths = round(seconds * 10)
    hours, minutes, rest = tenths // 36000, tenths // 600 % 60, tenths % 600 / 10
    return f"{hours}:{minutes:02d}:{rest:04.1f}" if hours else f"{minutes}:{rest:04.1f}"
