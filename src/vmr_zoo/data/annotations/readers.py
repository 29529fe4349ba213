"""From published annotation files to sentences: parsing, checking, and the mends that are counted.

Every function reads one file in place and returns `Row`s in the file's order. What a user can mend (a wrong
encoding, a truncated file, a missing key, a time that is no time) raises `VmrError` with the file, the line
or the video, what was expected and what to do. What the published files themselves get wrong is mended and
counted by `Row.mends`:

- `clipped`: the moment ends after the video; it now ends with it.
- `swapped`: the moment ends before it starts; start and end are exchanged.
- `dropped_zero_length`, `dropped_outside`: the moment has no extent, or starts at or after the end of the
  video. A train file loses the sentence (or only the moment, if the sentence has others).
- `unanswerable_zero_length`, `unanswerable_outside`: the same in a file that is scored. There the sentence
  stays, because published numbers divide by it, and its moment becomes `SLIVER` seconds at its place (at the
  very end of the video if it lies outside), which no prediction of sensible length hits at any threshold: a
  miss, as it is for everyone else.
- `repeated`: the same sentence with the same moments on the same video occurs earlier in the file; kept.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vmr_zoo.data.annotations.records import LONGEST, Dropped, Query, Split
from vmr_zoo.errors import VmrError, some

SLIVER = 0.01
"""Seconds that an unanswerable moment of a scored split is given."""

QVHIGHLIGHTS_CLIP_SECONDS = 2
"""QVHighlights rates clips of two seconds (Lei et al. 2021)."""

NextId = Callable[[str], str]
"""Gives a video's next sentence its query id."""


class MissingFile(VmrError):
    """An annotation file is not there."""


@dataclass(frozen=True, slots=True)
class Row:
    """One published sentence.

    Attributes:
        query: what became of it; a `Dropped` if nothing usable was left.
        mends: what had to be mended, one name per moment concerned.
    """

    query: Query | Dropped
    mends: tuple[str, ...] = ()


def split_of(name: str, rows: Iterable[Row], source: str) -> Split:
    """Assembles a split and sums up its mends."""
    rows = list(rows)
    return Split(
        name,
        tuple(row.query for row in rows if isinstance(row.query, Query)),
        Counter(mend for row in rows for mend in row.mends),
        tuple(row.query for row in rows if isinstance(row.query, Dropped)),
        source,
    )


def numbered() -> NextId:
    """Returns a function that names a video's sentences `<video>_0`, `<video>_1`, … in the order of asking.

    Use one for all files of a protocol, in their published order: a video that occurs in several of them then
    never yields the same id twice. TACoS feature stores name their text files like this.
    """
    seen: Counter[str] = Counter()

    def next_id(video_id: str) -> str:
        seen[video_id] += 1
        return f"{video_id}_{seen[video_id] - 1}"

    return next_id


# --- checking


def safe_id(value: Any, where: str) -> str:
    """Checks an id that will become part of a file name.

    Args:
        value: what the file holds as an id.
        where: the file and the place in it, for the error.

    Returns:
        The id.

    Raises:
        VmrError: if it is no string, empty, "." or "..", longer than 200 bytes in UTF-8, padded with blanks,
            or has a path separator, a control character or half a surrogate pair in it.
    """
    if (
        isinstance(value, str)
        and re.fullmatch(r"[^/\\\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+", value)
        and len(value.encode()) <= 200
        and value == value.strip()
        and value not in {".", ".."}
    ):
        return value
    raise VmrError(
        f"{where}: expected an id that can be part of a file name (no slash, backslash, line break or other "
        f"control character, at most 200 bytes), found {value!r:.80}. Rename it in the annotation file."
    )


def _number(value: Any, what: str, where: str) -> float:
    if type(value) in {int, float} and 0 <= value <= LONGEST:  # also false for NaN
        return float(value)
    raise VmrError(
        f"{where}: expected {what} as a number from 0 to {LONGEST:g}, found {value!r:.80}. "
        "Compare the line with the published file."
    )


def _positive(value: Any, what: str, where: str) -> float:
    if number := _number(value, what, where):
        return number
    raise VmrError(f"{where}: {what} is 0; a video has a length. Compare the line with the published file.")


def _sentence(value: Any, where: str) -> str:
    if isinstance(value, str) and (text := value.strip()) and not re.search(r"[\ud800-\udfff]", text):
        return text
    raise VmrError(
        f"{where}: expected a sentence, found {value!r:.80}. Give it words (no half of a surrogate pair, "
        "which is no character) or remove it with its moment."
    )


def _pairs(value: Any, where: str) -> list[tuple[float, float]]:
    if not isinstance(value, list) or not value:
        raise VmrError(f"{where}: expected a list of [start, end] pairs, found {value!r:.80}.")
    return [_pair(pair, where) for pair in value]


def _pair(value: Any, where: str) -> tuple[float, float]:
    if not isinstance(value, list) or len(value) != 2:
        raise VmrError(f"{where}: expected a moment as [start, end], found {value!r:.80}.")
    return _number(value[0], "a moment's start", where), _number(value[1], "a moment's end", where)


def _fields(entry: Any, names: Iterable[str], where: str) -> list[Any]:
    if not isinstance(entry, dict):
        raise VmrError(f"{where}: expected an object with {', '.join(names)}, found {entry!r:.80}.")
    if missing := [name for name in names if name not in entry]:
        raise VmrError(
            f"{where}: expected the key {' and '.join(repr(name) for name in missing)}, found "
            f"{', '.join(map(repr, entry)) or 'none'}. Is this the file of another data set?"
        )
    return [entry[name] for name in names]


def read_text(path: Path) -> str:
    """Reads a UTF-8 file whole.

    Raises:
        MissingFile: if it is not there.
        VmrError: if it cannot be read or is not UTF-8.
    """
    try:
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise MissingFile(
            f"No annotation file {path}. Annotations are not part of the package: point paths.annotations "
            "(or the environment variable VMR_ANNOTATIONS) at the folder that holds the published files, or "
            "fetch them into it by `vmr doctor data=NAME download=true`. docs/add_a_data_set.md lists them."
        ) from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise VmrError(
            f"{path}, line {line}: expected UTF-8 text, found byte 0x{error.object[error.start]:02x} at "
            f"offset {error.start}. Convert the file (iconv -t UTF-8) or fetch it again."
        ) from None
    except OSError as error:
        raise VmrError(
            f"Cannot read {path}: {error.strerror}. Check that it is a file and its permissions."
        ) from None


class _RepeatedKeyError(Exception):
    pass


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
        raise _RepeatedKeyError(some(twice))
    return found


def _parse_json(text: str, path: Path, line: int | None = None) -> Any:
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
            f"{path}{at}: an object holds the same key twice: {error}. Each may occur once; "
            "remove or merge the others."
        ) from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of brackets
        raise VmrError(f"{path}: this is no annotation file ({error}). Fetch it again.") from None


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if line.strip():
            yield number, line.rstrip("\r")


# --- mending


def _mend(
    moments: Iterable[tuple[float, float]], duration: float, keep: bool
) -> tuple[tuple[tuple[float, float], ...], list[str]]:
    """Makes every moment satisfy 0 <= start < end <= duration, or removes it.

    Args:
        moments: (start, end) in seconds, as published, none negative.
        duration: of the video, in seconds.
        keep: whether a moment that cannot be mended becomes a sliver (a scored file) or goes (a train file).

    Returns:
        The moments that are left and what was mended (names as in the module's docstring).
    """
    left, mends = [], []
    for start, end in moments:
        if end < start:
            start, end = end, start
            mends.append("swapped")
        outside = start >= duration
        if outside or start == end:
            kind = "outside" if outside else "zero_length"
            mends.append(f"unanswerable_{kind}" if keep else f"dropped_{kind}")
            if keep:
                end = min(start + SLIVER, duration)
                left.append((max(end - SLIVER, 0.0), end))
            continue
        if end > duration:
            end = duration
            mends.append("clipped")
        left.append((start, end))
    return tuple(left), mends


class _Rows:
    """Collects the sentences of one file, with what is known about the whole file."""

    def __init__(self, path: Path, scored: bool) -> None:
        self.path = path
        self.scored = scored
        self.rows: list[Row] = []
        self._seen: set[Any] = set()

    def add(
        self,
        query_id: str,
        video_id: str,
        text: str,
        moments: Iterable[tuple[float, float]],
        duration: float,
        saliency: tuple[tuple[int, tuple[int, ...]], ...] = (),
    ) -> None:
        """Mends one sentence's moments and stores it."""
        moments = tuple(moments)
        kept, mends = _mend(moments, duration, self.scored)
        if (key := (video_id, text, moments)) in self._seen:
            mends.append("repeated")
        self._seen.add(key)
        query: Query | Dropped
        if kept:
            query = Query(query_id, video_id, text, kept, duration, saliency)
        else:
            query = Dropped(query_id, video_id, next(m for m in mends if m.startswith("dropped_")))
        self.rows.append(Row(query, tuple(mends)))

    def finish(self) -> list[Row]:
        """Returns the rows; an empty file is an error."""
        if not self.rows:
            raise VmrError(f"{self.path} holds no sentence. Fetch it again.")
        return self.rows


# --- formats


def charades_lengths(*paths: Path) -> dict[str, float]:
    """Reads the columns `id` and `length` of `Charades_v1_{train,test}.csv`.

    Returns:
        The length of every listed video in seconds.
    """
    lengths: dict[str, float] = {}
    for path in paths:
        for number, entry in _csv_rows(path, ("id", "length")):
            where = f"{path}, line {number}"
            video_id = safe_id(entry["id"], where)
            if video_id in lengths:
                raise VmrError(f"{where}: the video '{video_id}' is listed twice. Keep one of the lines.")
            lengths[video_id] = _positive(_float(entry["length"], where), "the video's length", where)
    return lengths


def _csv_rows(path: Path, columns: Iterable[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields the line and the fields of every row of a CSV file that has to have certain columns."""
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""), strict=True)
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


def _float(text: str | None, where: str) -> float:
    try:
        return float(text or "")
    except ValueError:
        raise VmrError(f"{where}: expected a number, found {text!r:.80}. Fetch the file again.") from None


def charades_sta(path: Path, lengths: Mapping[str, float], next_id: NextId, scored: bool) -> list[Row]:
    """Reads a Charades-STA file: one `video start end##sentence` a line, seconds.

    Args:
        path: `charades_sta_{train,test}.txt`.
        lengths: of the videos in seconds, from `charades_lengths`.
        next_id: names the sentences.
        scored: whether a moment that cannot be mended stays as a sliver.
    """
    found = _Rows(path, scored)
    unlisted: dict[str, None] = {}
    for number, line in _lines(path):
        where = f"{path}, line {number}"
        left, separator, text = line.partition("##")
        parts = left.split()
        if not separator or len(parts) != 3:
            raise VmrError(f"{where}: expected 'video start end##sentence', found {line!r:.80}.")
        video_id = safe_id(parts[0], where)
        moment = (
            _number(_float(parts[1], where), "a moment's start", where),
            _number(_float(parts[2], where), "a moment's end", where),
        )
        if video_id not in lengths:
            unlisted[video_id] = None
            continue
        found.add(next_id(video_id), video_id, _sentence(text, where), [moment], lengths[video_id])
    if unlisted:
        raise VmrError(
            f"{path}: the Charades_v1_*.csv files beside it list no length for {some(unlisted)}. "
            "Fetch the published CSV files of Charades v1."
        )
    return found.finish()


def by_video(
    path: Path,
    next_id: NextId,
    scored: bool,
    duration_key: str = "duration",
    without: frozenset[str] = frozenset(),
) -> list[Row]:
    """Reads a JSON object of videos with parallel lists `sentences` and `timestamps` in seconds.

    ActivityNet Captions, Charades-CD, ActivityNet-CD, Charades-CG and ActivityNet-CG come like this.

    Args:
        path: the file.
        next_id: names the sentences.
        scored: whether a moment that cannot be mended stays as a sliver.
        duration_key: what the file calls the video's length in seconds.
        without: videos to leave out.
    """
    found = _Rows(path, scored)
    for video_id, entry in _videos(path):
        if video_id in without:
            continue
        where = f"{path}, video '{video_id}'"
        length, moments, sentences = _fields(entry, (duration_key, "timestamps", "sentences"), where)
        duration = _positive(length, f"'{duration_key}'", where)
        for text, moment, at in _parallel(sentences, moments, where):
            found.add(next_id(video_id), video_id, _sentence(text, at), [_pair(moment, at)], duration)
    return found.finish()


def tacos(path: Path, next_id: NextId, scored: bool) -> list[Row]:
    """Reads a TACoS file: as `by_video`, but times in frames, with `fps` and `num_frames`.

    Args:
        path: `{train,val,test}.json`.
        next_id: names the sentences.
        scored: whether a moment that cannot be mended stays as a sliver.

    Returns:
        Rows whose video ids have lost their ".avi": feature stores add it, or something else, or nothing.
    """
    found = _Rows(path, scored)
    for published_id, entry in _videos(path):
        where = f"{path}, video '{published_id}'"
        video_id = safe_id(published_id.removesuffix(".avi"), where)
        rate, frames, moments, sentences = _fields(
            entry, ("fps", "num_frames", "timestamps", "sentences"), where
        )
        fps = _positive(rate, "'fps'", where)
        duration = _positive(_positive(frames, "'num_frames'", where) / fps, "'num_frames' / 'fps'", where)
        for text, moment, at in _parallel(sentences, moments, where):
            seconds = [frame / fps for frame in _pair(moment, at)]
            found.add(next_id(video_id), video_id, _sentence(text, at), [_pair(seconds, at)], duration)
    return found.finish()


def _videos(path: Path) -> Iterator[tuple[str, Any]]:
    entries = _parse_json(read_text(path), path)
    if not isinstance(entries, dict):
        raise VmrError(f"{path}: expected a JSON object of videos, found a {type(entries).__name__}.")
    for video_id, entry in entries.items():
        yield safe_id(video_id, str(path)), entry


def _parallel(sentences: Any, moments: Any, where: str) -> Iterator[tuple[Any, Any, str]]:
    if not isinstance(sentences, list) or not isinstance(moments, list) or len(sentences) != len(moments):
        counts = [len(x) if isinstance(x, list) else f"a {type(x).__name__}" for x in (sentences, moments)]
        raise VmrError(
            f"{where}: expected as many 'sentences' as 'timestamps', found {counts[0]} and {counts[1]}. "
            "Fetch the file again."
        )
    for index, (text, moment) in enumerate(zip(sentences, moments, strict=True)):
        yield text, moment, f"{where}, sentence {index}"


def qvhighlights(path: Path, scored: bool) -> list[Row]:
    """Reads a QVHighlights file: one JSON object a line, several windows per sentence, ratings per clip.

    Args:
        path: `highlight_*.jsonl` with ground truth.
        scored: whether a moment that cannot be mended stays as a sliver.

    Returns:
        Rows whose query ids are the published `qid`s as text.
    """
    found = _Rows(path, scored)
    first_line: dict[str, int] = {}
    raters = 0
    names = ("qid", "query", "vid", "duration", "relevant_windows", "relevant_clip_ids", "saliency_scores")
    for number, line in _lines(path):
        where = f"{path}, line {number}"
        entry = _parse_json(line, path, number)
        qid, text, vid, length, windows, clips, ratings = _fields(entry, names, where)
        query_id = safe_id(str(qid) if type(qid) is int else qid, where)
        if query_id in first_line:
            raise VmrError(
                f"{where}: qid {query_id} was already used on line {first_line[query_id]}. Keep one of them."
            )
        first_line[query_id] = number
        duration = _positive(length, "'duration'", where)
        saliency = _saliency(clips, ratings, math.ceil(duration / QVHIGHLIGHTS_CLIP_SECONDS), where)
        raters = raters or len(saliency[0][1]) if saliency else raters
        if odd := [len(rated) for _, rated in saliency if len(rated) != raters]:
            raise VmrError(
                f"{where}: expected {raters} ratings of each clip, as before in the file, found {odd[0]}. "
                "Compare the line with the published file."
            )
        found.add(
            query_id,
            safe_id(vid, where),
            _sentence(text, where),
            _pairs(windows, where),
            duration,
            saliency,
        )
    return found.finish()


def _saliency(clips: Any, ratings: Any, count: int, where: str) -> tuple[tuple[int, tuple[int, ...]], ...]:
    if not isinstance(clips, list) or not isinstance(ratings, list) or len(clips) != len(ratings):
        raise VmrError(
            f"{where}: expected as many 'saliency_scores' as 'relevant_clip_ids'. Fetch the file again."
        )
    if wrong := [clip for clip in clips if type(clip) is not int or not 0 <= clip < count]:
        raise VmrError(
            f"{where}: expected 'relevant_clip_ids' from 0 to {count - 1} ({QVHIGHLIGHTS_CLIP_SECONDS} s "
            f"clips), found {some(map(repr, wrong))}."
        )
    for rating in ratings:
        if not (isinstance(rating, list) and rating and all(type(r) is int and 0 <= r <= 4 for r in rating)):
            raise VmrError(
                f"{where}: expected each of 'saliency_scores' as a list of ratings from 0 to 4, found "
                f"{rating!r:.80}. Compare the line with the published file."
            )
    if len(set(clips)) < len(clips):
        raise VmrError(f"{where}: 'relevant_clip_ids' names a clip twice.")
    return tuple((clip, tuple(rating)) for clip, rating in zip(clips, ratings, strict=True))
