"""Reads files of predictions: JSON Lines, or a zip archive that holds one. Imports no torch."""

from __future__ import annotations

import contextlib
import json
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn

from vmr_zoo.data.annotations.records import Query
from vmr_zoo.errors import VmrError, abbreviate

PredictionRow = Mapping[str, Any]

WINDOWS = "pred_relevant_windows"
SALIENCY = "pred_saliency_scores"
"""Keys of a row."""

MAX_UNPACKED = 4 << 30
"""Bytes that are read of a file of predictions; 1,550 queries of QVHighlights take 3 MB."""

MAX_LINE = 64 << 20
"""Bytes of its longest line."""


@dataclass(frozen=True, slots=True)
class RowLocation:
    """The location of a row, for errors: file, line or entry of a list from 1, and query id once known."""

    source: str
    line: int
    query_id: str | None = None
    unit: str = "line"

    def refuse(self, expected: str, found: str, remedy: str) -> NoReturn:
        """Raises an error about this row."""
        query = f" (query {self.query_id})" if self.query_id is not None else ""
        raise VmrError(
            f"{self.source}, {self.unit} {self.line}{query}: expected {expected}, found {found}. {remedy}"
        )


LocatedRow = tuple[PredictionRow, RowLocation]


def truth_row(split: str, query: Query) -> dict[str, Any]:
    """Returns what a row of predictions.jsonl has beside the prediction: the query and its ground truth."""
    return {
        "split": split,
        "query_id": query.query_id,
        "video_id": query.video_id,
        "query": query.text,
        "duration": query.duration,
        "moments": [list(moment) for moment in query.moments],
    }


def read_prediction_rows(path: Path, split: str = "") -> Iterator[LocatedRow]:
    """Reads a JSON Lines file, or the one in a zip archive, lazily, line by line.

    Nothing is extracted: no path in an archive is ever used, and it takes no space on the disk.

    Args:
        path: one JSON object per line, blank lines are skipped; or a zip archive of such files, as
            QVHighlights' benchmark takes them.
        split: the requested split, which chooses among the files of an archive by their names.

    Returns:
        The objects, each with its location.

    Raises:
        VmrError: if there is no such file; while reading: if it is empty, a line is not a JSON object, or an
            archive is broken, encrypted, holds several files for the split, or is larger than `MAX_UNPACKED`.
    """
    if not path.is_file():
        raise VmrError(
            f"No predictions file at '{path}'. Name one with predictions=FILE.jsonl, or a .zip with one."
        )
    return _iterate_rows(path, split)


def _iterate_rows(path: Path, split: str) -> Iterator[LocatedRow]:
    empty, source = True, str(path)
    try:
        with contextlib.ExitStack() as stack:
            if zipfile.is_zipfile(path):
                archive = stack.enter_context(zipfile.ZipFile(path))
                member = _choose_member(archive, path, split)
                file: IO[bytes] = stack.enter_context(archive.open(member))
                source = f"{path}, {member.filename!r:.80}"
            else:
                file = stack.enter_context(path.open("rb"))
            for line, text in enumerate(_bounded_lines(file, source), start=1):
                if text.strip():
                    empty = False
                    location = RowLocation(source, line)
                    yield _parse_row(text, location), location
    except OSError as error:
        raise VmrError(f"Cannot read '{path}': {error.strerror}. Check its permissions.") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
        raise VmrError(f"Cannot unpack '{path}': {error}. Zip the file of predictions again.") from error
    if empty:
        raise VmrError(
            f"'{source}' is empty: expected one JSON object per query. Write the predictions again."
        )


def _choose_member(archive: zipfile.ZipFile, path: Path, split: str) -> zipfile.ZipInfo:
    """Returns the one file of predictions in an archive, or the one whose name contains the split."""
    found = [
        member
        for member in archive.infolist()
        if member.filename.lower().endswith((".jsonl", ".json"))
        and not member.filename.split("/")[-1].startswith(".")  # macOS adds such files to every archive
    ]
    words = {"selection": ("val", "selection"), "val": ("val", "selection")}.get(split, (split,))
    named = [
        member for member in found if any(word in member.filename.split("/")[-1].lower() for word in words)
    ]
    chosen = found if len(found) == 1 else named
    if len(chosen) == 1:
        return chosen[0]
    listed = abbreviate((repr(member.filename)[:80] for member in found), 5) or "none"
    raise VmrError(
        f"Expected one .jsonl file in '{path}', or one whose name contains '{words[0]}'; found: {listed}. "
        "Unpack the archive and name the file with predictions=FILE.jsonl."
    )


def _bounded_lines(file: IO[bytes], source: str) -> Iterator[bytes]:
    """Yields the lines of a file, whatever size an archive declares, up to `MAX_UNPACKED` bytes in all."""
    left = MAX_UNPACKED
    while text := file.readline(min(left, MAX_LINE) + 1):
        left -= len(text)
        if left < 0 or len(text) > MAX_LINE:
            raise VmrError(
                f"'{source}' holds a line of more than {MAX_LINE >> 20} MiB, or more than "
                f"{MAX_UNPACKED >> 30} GiB in all; it is no file of predictions."
            )
        yield text


def locate_rows(rows: Iterable[PredictionRow], source: str = "predictions") -> Iterator[LocatedRow]:
    """Numbers rows as the lines of `source`, from 1."""
    return ((row, RowLocation(source, line)) for line, row in enumerate(rows, start=1))


def _parse_row(text: bytes, location: RowLocation) -> PredictionRow:
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        location.refuse("one JSON object", f"invalid JSON ({error})", "Write one object per line.")
    if not isinstance(row, dict):
        location.refuse("one JSON object", f"a JSON {type(row).__name__}", "Write one object per line.")
    return row
