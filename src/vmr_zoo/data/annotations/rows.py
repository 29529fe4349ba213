"""Annotated sentences as read from a file, after fixing and counting what published files get wrong.

The fixes, by the names that `AnnotationRow.fixes` and `Split.counts` use:

- `clipped`: the moment ended after the video; it now ends with it.
- `swapped`: the moment ended before it started; start and end are exchanged.
- `dropped_zero_length`, `dropped_outside`: the moment has zero length, or starts at or after the end of the
  video. A train file loses the sentence (or only the moment, if the sentence has others).
- `unanswerable_zero_length`, `unanswerable_outside`: the same in a file that is scored. The sentence stays,
  because published numbers divide by it. Its moment becomes `SLIVER` seconds at its place (at the end of the
  video if it was outside), which no prediction of sensible length hits at any threshold: it counts as a miss
  for every method.
- `repeated`: the same sentence with the same moments on the same video occurs earlier in the file; kept.

`MomentRules` replaces the first four by what a released code does:

- `emptied`: the moment ended before it started; it now has zero length at its start.
- `dropped_whole_video`: the moment is as long as the video or longer; any file loses the sentence.
- `dropped_not_ordered`: the moment does not end after it starts; any file loses the sentence.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from vmr_zoo.data.annotations.records import MAX_TIME, Dropped, Query, Split
from vmr_zoo.errors import VmrError
from vmr_zoo.utils.switches import check_switches

SLIVER = 0.01
"""Seconds given to an unanswerable moment of a scored split."""

NextId = Callable[[str], str]
"""Returns the query id of a video's next sentence."""


@check_switches
@dataclass(frozen=True)
class MomentRules:
    """What readers do with moments that do not fit their video.

    Attributes:
        times: "fixed" makes every moment satisfy 0 <= start < end <= duration, as the fixes above do.
            "as_written" follows the released code of the Moment-DETR family: a moment may end or even start
            after the video and may have zero length; only one that ends before it starts gets zero length
            there. "cut" follows EMB's: start = max(start, 0), end = min(end, duration), whatever results.
            "ordered" follows MMN's: the same, but any file loses a sentence whose moment does not end after
            it starts. "swapped" follows MESM's on Charades: any file loses a sentence that starts after its
            video, an end before the start is exchanged with it, and end = min(end, duration). "forward"
            follows MESM's on TACoS: as "cut", but any file loses a sentence whose moment ends before it
            starts.
        whole_video: a sentence whose moment is as long as the video or longer is "kept", or "dropped" from
            any file, as in BM-DETR's released code, except on QVHighlights.
    """

    times: Literal["fixed", "as_written", "cut", "ordered", "swapped", "forward"] = "fixed"
    whole_video: Literal["kept", "dropped"] = "kept"

    @property
    def earliest(self) -> float:
        """The earliest time that a file may hold, in seconds."""
        return -MAX_TIME if self.times in ("cut", "ordered", "forward") else 0.0


FIXED = MomentRules()
"""The default."""


@dataclass(frozen=True, slots=True)
class AnnotationRow:
    """One published sentence.

    Attributes:
        query: the sentence; a `Dropped` if it has no usable moment.
        fixes: names of the fixes, one per affected moment.
    """

    query: Query | Dropped
    fixes: tuple[str, ...] = ()

    def renamed(self, prefix: str) -> AnnotationRow:
        """Returns the row with a prefix before its query id and those of its negatives."""
        query_id = f"{prefix}{self.query.query_id}"
        if isinstance(self.query, Dropped):
            return AnnotationRow(self.query._replace(query_id=query_id), self.fixes)
        negatives = tuple(f"{prefix}{negative}" for negative in self.query.negatives)
        return AnnotationRow(replace(self.query, query_id=query_id, negatives=negatives), self.fixes)


def split_of(name: str, rows: Iterable[AnnotationRow], source: str) -> Split:
    """Builds a split and counts its fixes."""
    rows = list(rows)
    return Split(
        name,
        tuple(row.query for row in rows if isinstance(row.query, Query)),
        Counter(fix for row in rows for fix in row.fixes),
        tuple(row.query for row in rows if isinstance(row.query, Dropped)),
        source,
    )


def numbered() -> NextId:
    """Returns a function that names the sentences of a video `<video>_0`, `<video>_1`, … in order of calls.

    Use one function for all files of a protocol, in their published order: ids then stay unique for a video
    that occurs in several files. TACoS feature stores name their text files like this.
    """
    seen: Counter[str] = Counter()

    def next_id(video_id: str) -> str:
        seen[video_id] += 1
        return f"{video_id}_{seen[video_id] - 1}"

    return next_id


class RowCollector:
    """Collects the sentences of one file and fixes their moments."""

    def __init__(self, path: Path, scored: bool, rules: MomentRules = FIXED) -> None:
        """Starts with no rows.

        Args:
            path: the file, for errors.
            scored: whether an unusable moment becomes a sliver (file that is scored) or is dropped (train).
            rules: what is done with moments that do not fit.
        """
        self.path = path
        self.scored = scored
        self.rules = rules
        self.rows: list[AnnotationRow] = []
        self._seen: set[Any] = set()

    def add(
        self,
        query_id: str,
        video_id: str,
        text: str,
        moments: Iterable[tuple[float, float]],
        duration: float,
        saliency: tuple[tuple[int, tuple[int, ...]], ...] = (),
        negatives: tuple[str, ...] = (),
    ) -> None:
        """Adds a sentence with the fields of a `Query`, moments as published."""
        moments = tuple(moments)
        kept, fixes = self._apply_rules(moments, duration)
        if (key := (video_id, text, moments)) in self._seen:
            fixes.append("repeated")
        self._seen.add(key)
        query: Query | Dropped
        if kept:
            query = Query(query_id, video_id, text, kept, duration, saliency, negatives)
        else:
            query = Dropped(query_id, video_id, next(fix for fix in fixes if fix.startswith("dropped_")))
        self.rows.append(AnnotationRow(query, tuple(fixes)))

    def _apply_rules(
        self, moments: tuple[tuple[float, float], ...], duration: float
    ) -> tuple[tuple[tuple[float, float], ...], list[str]]:
        """Returns the moments that are kept, and the names of the fixes."""
        if self.rules.whole_video == "dropped" and abs(moments[0][1] - moments[0][0]) >= duration:
            return (), ["dropped_whole_video"]
        if self.rules.times == "fixed":
            return _fix_moments(moments, duration, self.scored)
        if self.rules.times in ("cut", "ordered", "forward"):
            return self._cut(moments, duration)
        if self.rules.times == "swapped":
            return _swap(moments, duration)
        fixes = ["emptied" for start, end in moments if end < start]
        return tuple((start, max(start, end)) for start, end in moments), fixes

    def _cut(
        self, moments: tuple[tuple[float, float], ...], duration: float
    ) -> tuple[tuple[tuple[float, float], ...], list[str]]:
        """Cuts both ends of every moment to the video; see `MomentRules.times`."""
        if self.rules.times == "ordered" and any(end <= start for start, end in moments):
            return (), ["dropped_not_ordered"]
        if self.rules.times == "forward" and any(end < start for start, end in moments):
            return (), ["dropped_not_ordered"]
        cut = tuple((max(start, 0.0), min(end, duration)) for start, end in moments)
        return cut, ["clipped" for before, after in zip(moments, cut, strict=True) if before != after]

    def finish(self) -> list[AnnotationRow]:
        """Returns the rows.

        Raises:
            VmrError: if there are none.
        """
        if not self.rows:
            raise VmrError(f"{self.path} holds no sentence. Fetch it again.")
        return self.rows


def _swap(
    moments: tuple[tuple[float, float], ...], duration: float
) -> tuple[tuple[tuple[float, float], ...], list[str]]:
    """Applies the rule "swapped" of `MomentRules.times`."""
    if any(start > duration for start, _ in moments):
        return (), ["dropped_outside"]
    ordered = [(min(times), max(times)) for times in moments]
    fixes = ["swapped" for start, end in moments if end < start]
    fixes += ["clipped" for _, end in ordered if end > duration]
    return tuple((start, min(end, duration)) for start, end in ordered), fixes


def _fix_moments(
    moments: Iterable[tuple[float, float]], duration: float, keep: bool
) -> tuple[tuple[tuple[float, float], ...], list[str]]:
    """Makes every moment satisfy 0 <= start < end <= duration, or removes it.

    Args:
        moments: (start, end) in seconds, as published, none negative.
        duration: length of the video in seconds.
        keep: whether an unusable moment becomes a sliver (scored file) or is removed (train file).

    Returns:
        The remaining moments and the names of the fixes.
    """
    fixed, fixes = [], []
    for start, end in moments:
        if end < start:
            start, end = end, start
            fixes.append("swapped")
        outside = start >= duration
        if outside or start == end:
            kind = "outside" if outside else "zero_length"
            fixes.append(f"unanswerable_{kind}" if keep else f"dropped_{kind}")
            if keep:
                end = min(start + SLIVER, duration)
                fixed.append((max(end - SLIVER, 0.0), end))
            continue
        if end > duration:
            end = duration
            fixes.append("clipped")
        fixed.append((start, end))
    return tuple(fixed), fixes
