"""Answers the queries of a CSV file with a trained run."""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path
from typing import Any

from rich.progress import track

from vmr_zoo.engine.retriever import Answer, EncodedVideo, Retriever
from vmr_zoo.errors import VmrError
from vmr_zoo.utils.files import write_rows
from vmr_zoo.video.decode import VideoError


def answer_file(
    retriever: Retriever,
    queries: list[dict[str, str]],
    folder: Path,
    out: Path,
    narrations: str | None = None,
    top_k: int = 5,
) -> dict[str, str]:
    """Answers every row of a query file and writes the answers as JSON Lines; encodes each video once.

    Args:
        retriever: a trained run.
        queries: from `read_query_file`.
        folder: video paths are relative to it.
        out: the file of answers, in the order of the queries.
        narrations: as for `Retriever.encode`.
        top_k: moments per query.

    Returns:
        For each video that cannot be decoded, the reason.
    """
    by_video: dict[str, list[int]] = defaultdict(list)
    for number, row in enumerate(queries):
        by_video[row["video"]].append(number)
    answered: dict[int, dict[str, Any]] = {}
    failed: dict[str, str] = {}
    for name, numbers in track(by_video.items(), "Searching", transient=True):
        try:
            video = retriever.encode(folder / name, narrations)
        except VideoError as error:
            failed[name] = str(error)
            continue
        answers = video.answer([queries[number]["query"] for number in numbers], top_k)
        for number, answer in zip(numbers, answers, strict=True):
            answered[number] = _answer_row(queries[number], video, answer)
    write_rows(out, [answered[number] for number in sorted(answered)])
    return failed


def _answer_row(row: dict[str, str], video: EncodedVideo, answer: Answer) -> dict[str, Any]:
    scores = {} if answer.clip_scores is None else {"pred_saliency_scores": answer.clip_scores.tolist()}
    return {
        "query_id": row["query_id"],
        "video_id": video.path.stem,
        "video": row["video"],
        "query": answer.query,
        "duration": round(video.duration, 3),
        "pred_relevant_windows": [[m.start, m.end, m.score] for m in answer.moments],
        **scores,
    }


def read_query_file(path: Path) -> list[dict[str, str]]:
    """Reads a CSV file with the columns video, query and optionally query_id (default: the row's number).

    Raises:
        VmrError: for a missing column, an incomplete or ambiguous row, or a file without rows.
    """
    # pandas would take the first column of a too long row for an index: an unquoted comma in a sentence would
    # shift the row by one column and cut the sentence.
    rows: list[dict[str, str]] = []
    first_line: dict[str, int] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, [])
            _check_header(header, path)
            for fields in reader:
                if fields:
                    place = f"{path}, line {reader.line_num}"
                    row = _checked_row(fields, header, str(len(rows) + 1), place)
                    earlier = first_line.setdefault(row["query_id"], reader.line_num)
                    if earlier != reader.line_num:
                        raise VmrError(
                            f"{place}: the query_id '{row['query_id']}' was already used on line {earlier}. "
                            "Give each sentence its own."
                        )
                    rows.append(row)
    except (OSError, UnicodeError, csv.Error) as error:
        raise VmrError(
            f"Expected a CSV file in UTF-8 with the columns video, query at {path}; {error}."
        ) from error
    if not rows:
        raise VmrError(f"{path} holds no sentence below its first line. Add a line for each: video,query.")
    return rows


def _check_header(header: list[str], path: Path) -> None:
    missing = [name for name in ("video", "query") if name not in header]
    if missing:
        raise VmrError(
            f"{path} lacks the column{'s' * (len(missing) > 1)} {', '.join(missing)}; its first line "
            f"names {', '.join(header) or 'nothing'}. Expected video, query and optionally query_id."
        )


def _checked_row(fields: list[str], header: list[str], number: str, place: str) -> dict[str, str]:
    if len(fields) != len(header):
        raise VmrError(
            f"{place}: expected {len(header)} fields, found {len(fields)}. Quote a sentence that contains a "
            'comma: clip.mp4,"first, a dog runs".'
        )
    row = {"query_id": number, **dict(zip(header, fields, strict=True))}
    if not (row["video"].strip() and row["query"].strip()):
        raise VmrError(f"{place}: expected a video and a sentence, found an empty field.")
    return row
