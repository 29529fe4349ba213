"""One reader per file format: reads a published annotation file and returns its rows in file order."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vmr_zoo.data.annotations.rows import FIXED, AnnotationRow, MomentRules, NextId, RowCollector
from vmr_zoo.data.annotations.validation import (
    CORRECT,
    check_fields,
    check_moment,
    check_moments,
    check_parallel,
    check_positive,
    check_sentence,
    check_time,
    parse_float,
    parse_json,
    read_csv,
    read_lines,
    read_videos,
    safe_id,
)
from vmr_zoo.errors import VmrError, abbreviate

Saliency = tuple[tuple[int, tuple[int, ...]], ...]
"""As `Query.saliency`."""

QVHIGHLIGHTS_CLIP_SECONDS = 2
"""QVHighlights rates clips of two seconds (Lei et al. 2021)."""


def read_charades_lengths(*paths: Path) -> dict[str, float]:
    """Reads the columns `id` and `length` of `Charades_v1_{train,test}.csv`.

    Returns:
        The length of every listed video in seconds.
    """
    lengths: dict[str, float] = {}
    for path in paths:
        for number, entry in read_csv(path, ("id", "length")):
            where = f"{path}, line {number}"
            video_id = safe_id(entry["id"], where)
            if video_id in lengths:
                raise VmrError(f"{where}: the video '{video_id}' is listed twice. Keep one of the lines.")
            length = parse_float(entry["length"], where)
            lengths[video_id] = check_positive(length, "the video's length", where)
    return lengths


def read_charades_sta(
    path: Path, lengths: Mapping[str, float], next_id: NextId, scored: bool, rules: MomentRules = FIXED
) -> list[AnnotationRow]:
    """Reads a Charades-STA file: one `video start end##sentence` per line, in seconds.

    Args:
        path: `charades_sta_{train,test}.txt`.
        lengths: video lengths in seconds, from `read_charades_lengths`.
        next_id: names the sentences.
        scored: whether an unusable moment becomes a sliver instead of being dropped.
        rules: what is done with moments that do not fit.
    """
    found = RowCollector(path, scored, rules)
    unlisted: dict[str, None] = {}
    for number, line in read_lines(path):
        where = f"{path}, line {number}"
        left, separator, text = line.partition("##")
        parts = left.split()
        if not separator or len(parts) != 3:
            raise VmrError(f"{where}: expected 'video start end##sentence', found {line!r:.80}.")
        video_id = safe_id(parts[0], where)
        moment = (
            check_time(parse_float(parts[1], where), "a moment's start", where, rules.earliest),
            check_time(parse_float(parts[2], where), "a moment's end", where, rules.earliest),
        )
        if video_id not in lengths:
            unlisted[video_id] = None
            continue
        found.add(next_id(video_id), video_id, check_sentence(text, where), [moment], lengths[video_id])
    if unlisted:
        raise VmrError(
            f"{path}: the Charades_v1_*.csv files in its folder list no length for {abbreviate(unlisted)}. "
            "Fetch the published CSV files of Charades v1."
        )
    return found.finish()


def read_by_video(
    path: Path,
    next_id: NextId,
    scored: bool,
    duration_key: str = "duration",
    without: frozenset[str] = frozenset(),
    rules: MomentRules = FIXED,
    moments_key: str = "timestamps",
    sentences_key: str = "sentences",
) -> list[AnnotationRow]:
    """Reads a JSON object of videos with parallel lists of sentences and of moments in seconds.

    This is the format of ActivityNet Captions, Charades-CD, ActivityNet-CD, Charades-CG, ActivityNet-CG and,
    with other keys, TimeLens-Bench.

    Args:
        path: the file.
        next_id: names the sentences.
        scored: whether an unusable moment becomes a sliver instead of being dropped.
        duration_key: key of the video length in seconds.
        without: videos to leave out.
        rules: what is done with moments that do not fit.
        moments_key: key of the list of moments.
        sentences_key: key of the list of sentences.
    """
    found = RowCollector(path, scored, rules)
    for video_id, entry in read_videos(path):
        if video_id in without:
            continue
        where = f"{path}, video '{video_id}'"
        keys = (duration_key, moments_key, sentences_key)
        length, moments, sentences = check_fields(entry, keys, where)
        duration = check_positive(length, f"'{duration_key}'", where)
        for text, moment, at in check_parallel(sentences, moments, where):
            found.add(
                next_id(video_id),
                video_id,
                check_sentence(text, at),
                [check_moment(moment, at, rules.earliest)],
                duration,
            )
    return found.finish()


def read_tacos(path: Path, next_id: NextId, scored: bool, rules: MomentRules = FIXED) -> list[AnnotationRow]:
    """Reads a TACoS file: as `read_by_video`, but with times in frames, `fps` and `num_frames`.

    Args:
        path: `{train,val,test}.json`.
        next_id: names the sentences.
        scored: whether an unusable moment becomes a sliver instead of being dropped.
        rules: what is done with moments that do not fit.

    Returns:
        Rows with video ids without ".avi": feature stores add that suffix, another one or none.
    """
    found = RowCollector(path, scored, rules)
    for published_id, entry in read_videos(path):
        where = f"{path}, video '{published_id}'"
        video_id = safe_id(published_id.removesuffix(".avi"), where)
        rate, frames, moments, sentences = check_fields(
            entry, ("fps", "num_frames", "timestamps", "sentences"), where
        )
        fps = check_positive(rate, "'fps'", where)
        seconds = check_positive(frames, "'num_frames'", where) / fps
        duration = check_positive(seconds, "'num_frames' / 'fps'", where)
        for text, moment, at in check_parallel(sentences, moments, where):
            times = check_moment(
                [frame / fps for frame in check_moment(moment, at, rules.earliest)], at, rules.earliest
            )
            found.add(next_id(video_id), video_id, check_sentence(text, at), [times], duration)
    return found.finish()


def read_qvhighlights(
    path: Path,
    scored: bool,
    rules: MomentRules = FIXED,
    next_id: NextId | None = None,
    rated: bool = True,
) -> list[AnnotationRow]:
    """Reads a QVHighlights file: one JSON object per line, with several windows.

    Args:
        path: `highlight_*.jsonl` with ground truth, or a file of another data set in this format.
        scored: whether an unusable moment becomes a sliver instead of being dropped.
        rules: what is done with moments that do not fit.
        next_id: names the sentences without a `qid`; None: a `qid` is required.
        rated: whether ratings of clips are read; either every line has them or none has.

    Returns:
        Rows with the published `qid`s, as text, as query ids.
    """
    found = RowCollector(path, scored, rules)
    first_line: dict[str, int] = {}
    raters: int | None = None
    for number, line in read_lines(path):
        where = f"{path}, line {number}"
        entry = parse_json(line, path, number)
        text, vid, length, windows = check_fields(
            entry, ("query", "vid", "duration", "relevant_windows"), where
        )
        video_id = safe_id(vid, where)
        if next_id is not None and "qid" not in entry:
            query_id = next_id(video_id)
        else:
            query_id = _qid(check_fields(entry, ("qid",), where)[0], where)
        if query_id in first_line:
            raise VmrError(
                f"{where}: qid {query_id} was already used on line {first_line[query_id]}. Keep one of them."
            )
        first_line[query_id] = number
        duration = check_positive(length, "'duration'", where)
        saliency = _saliency(entry, math.ceil(duration / QVHIGHLIGHTS_CLIP_SECONDS), where) if rated else ()
        raters = _check_raters(saliency, raters, where) if rated else None
        found.add(
            query_id,
            video_id,
            check_sentence(text, where),
            check_moments(windows, where),
            duration,
            saliency,
            _negatives(entry, where),
        )
    return found.finish()


def _check_raters(saliency: Saliency, raters: int | None, where: str) -> int:
    """Returns the number of ratings of each clip, 0 in a file without ratings.

    Args:
        saliency: of this line.
        raters: of the lines before; None: this is the first.
        where: the line, for errors.

    Raises:
        VmrError: if it differs from line to line.
    """
    counts = {len(ratings) for _, ratings in saliency} or {0}
    expected = max(counts) if raters is None else raters
    if counts != {expected}:
        differing = next(iter(counts - {expected}))
        raise VmrError(
            f"{where}: expected {expected} ratings of each clip, as earlier in the file, found {differing}. "
            f"{CORRECT}"
        )
    return expected


def _qid(value: Any, where: str) -> str:
    return safe_id(str(value) if type(value) is int else value, where)


def _negatives(entry: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """Returns the optional `neg_query_ids`, which BM-DETR's released code reads."""
    listed = entry.get("neg_query_ids", [])
    if not isinstance(listed, list):
        raise VmrError(f"{where}: expected 'neg_query_ids' as a list of qids, found {listed!r:.80}.")
    return tuple(_qid(qid, where) for qid in listed)


def _saliency(entry: Any, count: int, where: str) -> Saliency:
    """Returns the checked ratings of a line; empty if it has none."""
    if "relevant_clip_ids" not in entry and "saliency_scores" not in entry:
        return ()
    clips, ratings = check_fields(entry, ("relevant_clip_ids", "saliency_scores"), where)
    if not isinstance(clips, list) or not isinstance(ratings, list) or len(clips) != len(ratings):
        raise VmrError(f"{where}: expected as many 'saliency_scores' as 'relevant_clip_ids'. {CORRECT}")
    if wrong := [clip for clip in clips if type(clip) is not int or not 0 <= clip < count]:
        raise VmrError(
            f"{where}: expected 'relevant_clip_ids' from 0 to {count - 1} ({QVHIGHLIGHTS_CLIP_SECONDS} s "
            f"clips), found {abbreviate(map(repr, wrong))}."
        )
    for rating in ratings:
        if not (isinstance(rating, list) and rating and all(type(r) is int and 0 <= r <= 4 for r in rating)):
            raise VmrError(
                f"{where}: expected each of 'saliency_scores' as a list of ratings from 0 to 4, found "
                f"{rating!r:.80}. {CORRECT}"
            )
    if len(set(clips)) < len(clips):
        raise VmrError(f"{where}: 'relevant_clip_ids' names a clip twice. Keep one of them.")
    return tuple((clip, tuple(rating)) for clip, rating in zip(clips, ratings, strict=True))
