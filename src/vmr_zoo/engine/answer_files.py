"""Reads files with the answers of other programs. Nothing in a file is executed or unpickled.

| form | written by |
|---|---|
| JSON Lines: `qid` or `query_id`, `pred_relevant_windows` | Moment-DETR and its successors, `vmr train` |
| `{"VIDEO>>>SENTENCE>>>TRUTH": ANSWER}`, JSON or JSON Lines | lmms-eval (charades_sta), TimeLens |
| JSON Lines of samples, with such an object as one of the values | lmms-eval `--log_samples` |
| rows with video, sentence and answer: JSON, JSON Lines, .csv, .tsv | VLMEvalKit (.tsv), one's own script |
| `{"QUERY ID": ANSWER}` | one's own script |
| lines `VIDEO>>>SENTENCE>>>ANSWER` | one's own script |

An answer is text, `[start, end]`, `[start, end, score]`, a list of those, or an object with one of them.
"""

from __future__ import annotations

import csv
import json
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vmr_zoo.engine.answers import Span, read_spans
from vmr_zoo.engine.submission import (
    MAX_LINE,
    WINDOWS,
    LocatedRow,
    PredictionRow,
    RowLocation,
    read_prediction_rows,
)
from vmr_zoo.errors import VmrError, abbreviate
from vmr_zoo.utils.files import read_text

SEPARATOR = ">>>"

IDS = ("query_id", "qid")
_VIDEO = ("video_id", "vid", "video", "video_name", "video_path")
_SENTENCE = ("query", "sentence", "question", "caption")
_ANSWER = (
    WINDOWS,
    "timestamps",
    "prediction",
    "pred",
    "response",
    "output",
    "answers",
    "filtered_resps",
    "answer",
)
"""Keys of a row, the first that occurs counts: `answer` is VLMEvalKit's ground truth, beside `prediction`."""

_LARGEST_JSON = 512 << 20
"""Bytes of a file that is one JSON value, and so is held in memory at once."""


@dataclass(frozen=True, slots=True)
class ForeignAnswer:
    """What a file says about one sentence.

    Attributes:
        location: where.
        row: the row as it is in the file; {} for a form without rows.
        own: whether the row has Moment-DETR's form.
        query_id: our id of the query, if the file has one.
        split: the split that the row names.
        video: the video as the file names it: an id, a file name or a path.
        sentence: the sentence.
        truth: the annotated moment that the file states, (start, end) in seconds.
        windows: [start, end] or [start, end, score] each, unchecked; None: the answer is text.
        text: what the model printed.
    """

    location: RowLocation
    row: PredictionRow
    own: bool = False
    query_id: str | None = None
    split: str | None = None
    video: str | None = None
    sentence: str | None = None
    truth: Span | None = None
    windows: Sequence[Any] | None = None
    text: str | None = None


def read_answers(path: Path, split: str = "") -> Iterator[ForeignAnswer]:
    """Reads a file of any of the forms, row by row where the form allows it.

    Args:
        path: the file.
        split: chooses among the files of an archive by their names.

    Raises:
        VmrError: if there is no such file, or a row has no answer, with its line and keys; while reading, as
            `read_prediction_rows` raises.
    """
    if path.suffix.lower() in (".xlsx", ".xls"):
        raise VmrError(
            f"{path} is a spreadsheet. Save it as .tsv or .csv; VLMEvalKit writes .tsv with PRED_FORMAT=tsv."
        )
    rows = read_prediction_rows(path, split)  # refuses a missing file at once
    if path.suffix.lower() in (".csv", ".tsv"):
        rows = _table(path)
    elif not zipfile.is_zipfile(path):
        first = _first_line(path)
        if first[:1] not in (b"{", b"[") and SEPARATOR.encode() in first:
            rows = _lines(path)
        elif first and not _is_object(first):
            rows = iter(_whole(path) or rows)
    for row, location in rows:
        yield from _answers_of(row, location)


def _first_line(path: Path) -> bytes:
    with path.open("rb") as file:
        while line := file.readline(MAX_LINE):
            if line.strip():
                return line.strip()
    return b""


def _is_object(text: bytes) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _table(path: Path) -> Iterator[LocatedRow]:
    """Reads rows of comma- or tab-separated values."""
    csv.field_size_limit(MAX_LINE)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
            for row in reader:
                yield {str(key): value for key, value in row.items()}, RowLocation(str(path), reader.line_num)
    except (csv.Error, UnicodeDecodeError) as error:
        raise VmrError(
            f"{path} is not a table of values ({error}). Write UTF-8 text, a header first."
        ) from error


def _lines(path: Path) -> Iterator[LocatedRow]:
    """Reads lines VIDEO>>>SENTENCE>>>ANSWER."""
    for number, line in enumerate(read_text(path, _LARGEST_JSON).splitlines(), start=1):
        if line.strip():
            video, _, rest = line.strip().partition(SEPARATOR)
            sentence, mark, answer = rest.rpartition(SEPARATOR)
            location = RowLocation(str(path), number)
            if not mark:
                location.refuse("VIDEO>>>SENTENCE>>>ANSWER", f"{line!r:.80}", "Write one answer per line.")
            yield {"video": video, "query": sentence, "answer": answer}, location


def _whole(path: Path) -> list[LocatedRow]:
    """Reads a file that is one JSON value; [] if it is none, which the reader of lines explains."""
    try:
        value = json.loads(read_text(path, _LARGEST_JSON))
    except (ValueError, RecursionError, VmrError):
        return []
    entries = value if isinstance(value, list) else [value]
    located = [(one, RowLocation(str(path), number, unit="entry")) for number, one in enumerate(entries, 1)]
    for entry, location in located:
        if not isinstance(entry, dict):
            location.refuse("a JSON object", f"a JSON {type(entry).__name__}", "Write one object per query.")
    return located


def _answers_of(row: PredictionRow, location: RowLocation) -> Iterator[ForeignAnswer]:
    """Yields the answers of one row: usually one; an object of a whole file holds many."""
    keyed = _keyed_by_sentence(row)
    if keyed is not None:
        for key, value in keyed.items():
            video, sentence, truth = _parts(key)
            yield _with_value(ForeignAnswer(location, {}, video=video, sentence=sentence, truth=truth), value)
        return
    query_id = next((row[key] for key in IDS if key in row), None)
    if isinstance(query_id, str | int):
        location = replace(location, query_id=str(query_id))
    if row and not set(row) & {*_ANSWER, *IDS, *_VIDEO, *_SENTENCE}:
        for key, value in row.items():
            yield _with_value(ForeignAnswer(replace(location, query_id=key), {}, query_id=key), value)
        return
    found = _answer_key(row, location)
    names = [
        next((str(row[key]) for key in keys if isinstance(row.get(key), str | int)), None)
        for keys in (_VIDEO, _SENTENCE)
    ]
    answer = ForeignAnswer(
        location,
        row,
        own=found == WINDOWS,
        query_id=None if query_id is None else str(query_id),
        split=None if row.get("split") is None else str(row["split"]),
        video=names[0],
        sentence=names[1],
    )
    yield replace(answer, windows=row[WINDOWS]) if answer.own else _with_value(answer, row)


def _answer_key(row: Mapping[str, Any], location: RowLocation) -> str:
    """Returns the key of the answer; refuses a row without one."""
    for key in _ANSWER:
        if key in row:
            return key
    location.refuse(
        f"an answer under one of {', '.join(map(repr, _ANSWER))}",
        f"the keys {abbreviate(map(repr, row))}",
        "Rename the key of the answer.",
    )


def _keyed_by_sentence(row: PredictionRow) -> Mapping[str, Any] | None:
    """Returns the object whose keys are VIDEO>>>SENTENCE>>>TRUTH: the row, or one of its values."""
    for candidate in (row, *row.values()):
        if isinstance(candidate, dict) and candidate and all(SEPARATOR in str(key) for key in candidate):
            return candidate
    return None


def _parts(key: str) -> tuple[str, str, Span | None]:
    """Splits VIDEO>>>SENTENCE>>>TRUTH, or VIDEO>>>SENTENCE."""
    video, _, rest = key.partition(SEPARATOR)
    sentence, mark, truth = rest.rpartition(SEPARATOR)
    numbers = re.match(r"[\[(\s]{0,4}(\d{1,6}(?:\.\d{1,9})?)\s*,\s*(\d{1,6}(?:\.\d{1,9})?)\s*[\])]", truth)
    if not mark:
        return video, rest, None
    return video, sentence, None if numbers is None else (float(numbers[1]), float(numbers[2]))


def _with_value(answer: ForeignAnswer, value: Any) -> ForeignAnswer:
    """Adds the answer itself, in any of its forms.

    Raises:
        VmrError: if it is none of them.
    """
    text: str | None = None
    given = value
    if isinstance(value, dict):
        given = value[_answer_key(value, answer.location)]
        printed = value.get("answers")
        if isinstance(printed, str) and _is_placeholder(given, value.get("duration"), printed):
            given = printed
        text = printed if isinstance(printed, str) else None
    while (
        isinstance(given, list) and len(given) == 1 and isinstance(given[0], str | list) and _nests(given[0])
    ):
        given = given[0]  # ["text"] or [["text"]], as lmms-eval stores responses
    if given is None:
        given = ""
    if isinstance(given, str):
        return replace(answer, text=given)
    if not isinstance(given, list):
        answer.location.refuse(
            "text or a list of [start, end] as answer", f"{given!r:.60}", "Write what the model answered."
        )
    if any(isinstance(one, str) for window in (given, *given) if isinstance(window, list) for one in window):
        return replace(answer, text=json.dumps(given))  # clock times
    flat = len(given) in (2, 3) and not any(isinstance(one, list) for one in given)
    return replace(answer, windows=[given] if flat else given, text=text)


def _nests(value: Any) -> bool:
    """Whether a value within a list is an answer by itself: text, or a list that holds text alone."""
    return isinstance(value, str) or (len(value) == 1 and isinstance(value[0], str))


def _is_placeholder(windows: Any, duration: Any, text: str) -> bool:
    """Whether TimeLens' evaluation read no time in an answer: it then notes one after the video."""
    try:
        return bool(windows[0][0] >= duration) and not read_spans(text)
    except (TypeError, IndexError, KeyError):
        return False
