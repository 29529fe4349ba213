"""Answers the queries of a CSV file with a trained run, and goes on where an earlier command was stopped.

OUT             the answers, in the order of the queries, written when all videos were tried
OUT.partial     the settings, then the answers so far; removed once every query is answered
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from vmr_zoo.data.features.problems import FeatureError
from vmr_zoo.engine.retriever import Answer, EncodedVideo, Retriever
from vmr_zoo.engine.submission import SALIENCY, WINDOWS
from vmr_zoo.errors import VmrError
from vmr_zoo.utils.console import progress
from vmr_zoo.utils.files import append_row, file_state, read_appended, write_rows
from vmr_zoo.utils.trees import differing, through_json
from vmr_zoo.video.decode import VideoError

_CHUNK = 256
"""Sentences that are answered before their answers are written."""


def answer_file(
    retriever: Retriever,
    queries: list[dict[str, str]],
    folder: Path,
    out: Path,
    narrations: str | None = None,
    top_k: int = 5,
    settings: Mapping[str, Any] | None = None,
) -> dict[str, str]:
    """Answers every row of a query file and writes the answers as JSON Lines; encodes each video once.

    Args:
        retriever: a trained run.
        queries: from `read_query_file`.
        folder: video paths are relative to it.
        out: the file of answers, in the order of the queries.
        narrations: as for `Retriever.encode`.
        top_k: moments per query.
        settings: what else determines the answers; answers of other settings are not continued.

    Returns:
        For each video and each sentence that cannot be answered, the reason.

    Raises:
        VmrError: if answers with other settings were begun in this place.
    """
    partial = Partial(out.with_name(f"{out.name}.partial"), {**(settings or {}), "top_k": top_k})
    by_video: dict[str, list[int]] = defaultdict(list)
    answered: dict[int, dict[str, Any]] = {}
    for number, row in enumerate(queries):
        earlier = partial.answer(row, folder / row["video"])
        if earlier is None:
            by_video[row["video"]].append(number)
        else:
            answered[number] = earlier
    failed: dict[str, str] = {}
    for name, numbers in progress(by_video.items(), "Searching", shown_from=1):
        try:
            video = retriever.encode(folder / name, narrations)
        except (VideoError, FeatureError) as error:
            failed[name] = str(error)
            continue
        for first in range(0, len(numbers), _CHUNK):
            chunk = [queries[number] for number in numbers[first : first + _CHUNK]]
            answers, unanswered = _answers(video, chunk, top_k)
            failed |= unanswered
            for number in numbers[first : first + _CHUNK]:
                if answer := answers.get(queries[number]["query_id"]):
                    answered[number] = _answer_row(queries[number], video, answer)
                    partial.add(answered[number], video.path)
    write_rows(out, [answered[number] for number in sorted(answered)])
    if not failed:
        partial.path.unlink(missing_ok=True)
    return failed


def _answers(
    video: EncodedVideo, rows: Sequence[Mapping[str, str]], top_k: int
) -> tuple[dict[str, Answer], dict[str, str]]:
    """Answers sentences about a video, one by one if one of them cannot be read.

    Returns:
        The answers by query_id, and the reasons by the names of the sentences without one.
    """
    try:
        found = video.answer([row["query"] for row in rows], top_k)
        return {row["query_id"]: answer for row, answer in zip(rows, found, strict=True)}, {}
    except VmrError as error:
        if len(rows) == 1:
            return {}, {f"{rows[0]['video']}, query_id {rows[0]['query_id']}": str(error)}
    answers: dict[str, Answer] = {}
    failed: dict[str, str] = {}
    for row in rows:
        own, reasons = _answers(video, [row], top_k)
        answers |= own
        failed |= reasons
    return answers, failed


class Partial:
    """The answers to a query file so far, on disk.

    Attributes:
        path: the file.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        """Reads the answers of a command that was stopped; begins a file if there are none.

        Raises:
            VmrError: if they were made with other settings.
        """
        self.path = path
        self._answers: dict[str, tuple[list[int], dict[str, Any]]] = {}
        own: dict[str, Any] = through_json(settings)
        rows = read_appended(path)
        if not path.is_file() or not path.stat().st_size:
            append_row(path, own)
        elif not rows or not isinstance(rows[0], dict):
            raise VmrError(f"{path} is no file of answers. Delete it to start again.")
        elif changed := differing(own, rows[0]):
            raise VmrError(
                f"{path} holds answers that were begun with other settings ({', '.join(changed)}). Restore "
                "them to go on, choose another out=, or delete that file to start again."
            )
        for entry in rows[1:]:
            with suppress(ValueError, TypeError, KeyError):  # another program's line
                state, row = entry
                self._answers[row["query_id"]] = state, row

    def answer(self, query: Mapping[str, str], video: Path) -> dict[str, Any] | None:
        """Returns the answer to a query, if it was given for this sentence and this file."""
        state, row = self._answers.get(query["query_id"], ([], {}))
        same = all(row.get(key) == query[key] for key in ("query_id", "video", "query"))
        return row if same and state == file_state(video) else None

    def add(self, row: Mapping[str, Any], video: Path) -> None:
        """Writes an answer."""
        append_row(self.path, [file_state(video), row])


def _answer_row(row: dict[str, str], video: EncodedVideo, answer: Answer) -> dict[str, Any]:
    scores = {} if answer.clip_scores is None else {SALIENCY: answer.clip_scores.tolist()}
    return {
        "query_id": row["query_id"],
        "video_id": video.path.stem,
        "video": row["video"],
        "query": answer.query,
        "duration": round(video.duration, 3),
        WINDOWS: [[m.start, m.end, m.score] for m in answer.moments],
        **({"notes": dict(video.notes)} if video.notes else {}),
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
    if path.exists() and not path.is_file():
        raise VmrError(f"Expected a CSV file at {path}, found a folder, pipe or device.")
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
    if len(set(header)) < len(header):
        raise VmrError(f"Expected each column of {path} once, found {', '.join(header)}.")
    ids = [
        name for name in header if name.strip().lower() in ("id", "qid", "query_id") and name != "query_id"
    ]
    if ids and "query_id" not in header:
        raise VmrError(
            f"Expected the ids of {path} in the column query_id, found {ids[0]}. Rename the column."
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
    if not row["query_id"].strip():
        raise VmrError(f"{place}: expected a query_id, found an empty field. Give each sentence its own.")
    return row
