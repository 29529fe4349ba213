"""Reads annotation files and checks their values.

Problems that the user can fix (wrong encoding, truncated file, missing key, invalid time) raise a `VmrError`
that names the file, the line or the video, what was expected and what to do.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from vmr_zoo.data.annotations.records import MAX_TIME
from vmr_zoo.errors import VmrError, abbreviate

CORRECT = "Correct the file, or fetch it again if it is a published one."
"""Advice about a value that no annotation file should hold."""


class MissingFile(VmrError):
    """An annotation file does not exist."""


# --- files


def read_annotation_text(path: Path) -> str:
    """Reads a UTF-8 file.

    Raises:
        MissingFile: if it does not exist.
        VmrError: if it cannot be read or is not UTF-8.
    """
    try:
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise MissingFile(
            f"No annotation file {path}. Annotations are not part of the package: set paths.annotations (or "
            "the environment variable VMR_ANNOTATIONS) to the folder with the published files, or fetch them "
            "with `vmr doctor data=NAME download=true`. docs/add_a_data_set.md lists them."
        ) from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise VmrError(
            f"{path}, line {line}: expected UTF-8 text, found byte 0x{error.object[error.start]:02x} at "
            f"offset {error.start}. Convert the file (iconv -t UTF-8) or fetch it again."
        ) from None
    except OSError as error:
        raise VmrError(
            f"Cannot read {path}: {error.strerror}. Check that it is a file, and its permissions."
        ) from None


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yields (line number, line) for each line that is not blank."""
    for number, line in enumerate(read_annotation_text(path).split("\n"), 1):
        if line.strip():
            yield number, line.rstrip("\r")


def read_csv(path: Path, columns: Iterable[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (line number, fields by column) for each row of a CSV file with the given columns."""
    reader = csv.DictReader(io.StringIO(read_annotation_text(path), newline=""), strict=True)
    try:
        if missing := set(columns) - set(reader.fieldnames or ()):
            raise VmrError(
                f"{path}, line 1: expected the column {' and '.join(sorted(missing))}; found "
                f"{reader.fieldnames}. Is this the CSV file of Charades v1?"
            )
        for entry in reader:
            yield reader.line_num, entry
    except csv.Error as error:
        raise VmrError(
            f"{path}, line {reader.reader.line_num}: not valid CSV ({error}). Fetch the file again."
        ) from None


def read_videos(path: Path) -> Iterator[tuple[str, Any]]:
    """Yields (video id, entry) of a JSON object of videos."""
    entries = parse_json(read_annotation_text(path), path)
    if not isinstance(entries, dict):
        raise VmrError(f"{path}: expected a JSON object of videos, found a {type(entries).__name__}.")
    for video_id, entry in entries.items():
        yield safe_id(video_id, str(path)), entry


class _RepeatedKeyError(Exception):
    pass


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        repeated = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
        raise _RepeatedKeyError(abbreviate(repeated))
    return found


def parse_json(text: str, path: Path, line: int | None = None) -> Any:
    """Parses JSON in which no object repeats a key.

    Args:
        text: the JSON.
        path: its file, for errors.
        line: its line in the file, for errors; None: it is the whole file.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique_keys)
    except json.JSONDecodeError as error:
        at = f"line {line or error.lineno}, column {error.colno}"
        cut = error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated string")
        hint = " It seems to be cut short: fetch it again." if cut else ""
        raise VmrError(f"{path}, {at}: not valid JSON ({error.msg}).{hint}") from None
    except _RepeatedKeyError as error:
        at = f", line {line}" if line else ""
        raise VmrError(
            f"{path}{at}: an object holds the same key twice: {error}. Remove or merge the repetitions."
        ) from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of brackets
        raise VmrError(f"{path}: not an annotation file ({error}). Fetch it again.") from None


# --- values; `where` is the file and the place in it, for errors


def safe_id(value: Any, where: str) -> str:
    """Checks an id that will become part of a file name.

    Returns:
        The id.

    Raises:
        VmrError: if it is not a string, is empty, "." or "..", is longer than 200 bytes in UTF-8, starts or
            ends with whitespace, or contains a path separator, a control character or a lone surrogate.
    """
    if (
        isinstance(value, str)
        and re.fullmatch(r"[^/\\\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+", value)
        and len(value.encode()) <= 200
        and value == value.strip()
        and value not in {".", ".."}
    ):
        return value
    text = isinstance(value, str)
    raise VmrError(
        f"{where}: expected an id that can be part of a file name (text without slash, backslash or control "
        "character, without white space at either end, at most 200 bytes), found "
        f"{value!r:.80}{'' if text else ', no text'}. Change it in the annotation file."
    )


def parse_float(text: str | None, where: str) -> float:
    """Parses a number from a text file."""
    try:
        return float(text or "")
    except ValueError:
        raise VmrError(f"{where}: expected a number, found {text!r:.80}. {CORRECT}") from None


def check_time(value: Any, what: str, where: str, earliest: float = 0.0) -> float:
    """Returns a number from `earliest` to `MAX_TIME` as float."""
    if type(value) in {int, float} and earliest <= value <= MAX_TIME:  # also false for NaN
        return float(value)
    raise VmrError(
        f"{where}: expected {what} as a number from {earliest:g} to {MAX_TIME:g}, found {value!r:.80}. "
        f"{CORRECT}"
    )


def check_positive(value: Any, what: str, where: str) -> float:
    """Returns a number above 0, at most `MAX_TIME`, as float."""
    if number := check_time(value, what, where):
        return number
    raise VmrError(f"{where}: expected {what} above 0, found {value!r:.80}. {CORRECT}")


def check_sentence(value: Any, where: str) -> str:
    """Returns a sentence, stripped."""
    if isinstance(value, str) and (text := value.strip()) and not re.search(r"[\ud800-\udfff]", text):
        return text
    raise VmrError(
        f"{where}: expected a sentence, found {value!r:.80}. Give it words (without lone surrogates, which "
        "are no characters) or remove it with its moment."
    )


def check_moment(value: Any, where: str, earliest: float = 0.0) -> tuple[float, float]:
    """Returns a moment (start, end) of times from `earliest` on."""
    if not isinstance(value, list) or len(value) != 2:
        raise VmrError(f"{where}: expected a moment as [start, end], found {value!r:.80}.")
    start = check_time(value[0], "a moment's start", where, earliest)
    return start, check_time(value[1], "a moment's end", where, earliest)


def check_moments(value: Any, where: str) -> list[tuple[float, float]]:
    """Returns the moments of a non-empty list."""
    if not isinstance(value, list) or not value:
        raise VmrError(f"{where}: expected a list of [start, end] pairs, found {value!r:.80}.")
    return [check_moment(pair, where) for pair in value]


def check_fields(entry: Any, names: Iterable[str], where: str) -> list[Any]:
    """Returns the named values of an object."""
    if not isinstance(entry, dict):
        raise VmrError(f"{where}: expected an object with {', '.join(names)}, found {entry!r:.80}.")
    if missing := [name for name in names if name not in entry]:
        raise VmrError(
            f"{where}: expected the key {' and '.join(repr(name) for name in missing)}, found "
            f"{', '.join(map(repr, entry)) or 'none'}. Is this the file of another data set?"
        )
    return [entry[name] for name in names]


def check_parallel(sentences: Any, moments: Any, where: str) -> Iterator[tuple[Any, Any, str]]:
    """Yields (sentence, moment, place) of two lists of equal length."""
    if not isinstance(sentences, list) or not isinstance(moments, list) or len(sentences) != len(moments):
        counts = [len(x) if isinstance(x, list) else f"a {type(x).__name__}" for x in (sentences, moments)]
        raise VmrError(
            f"{where}: expected as many sentences as moments, found {counts[0]} and {counts[1]}. "
            "Fetch the file again."
        )
    for index, (text, moment) in enumerate(zip(sentences, moments, strict=True)):
        yield text, moment, f"{where}, sentence {index}"
