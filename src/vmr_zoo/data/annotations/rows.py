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
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vmr_zoo.data.annotations.records import Dropped, Query, Split
from vmr_zoo.errors import VmrError

SLIVER = 0.01
"""Seconds given to an unanswerable moment of a scored split."""

NextId = Callable[[str], str]
"""Returns the query id of a video's next sentence."""


@dataclass(frozen=True, slots=True)
class AnnotationRow:
    """One published sentence.

    Attributes:
        query: the sentence; a `Dropped` if it has no usable moment.
        fixes: names of the fixes, one per affected moment.
    """

    query: Query | Dropped
    fixes: tuple[str, ...] = ()


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

    def __init__(self, path: Path, scored: bool) -> None:
        """Starts with no rows.

        Args:
            path: the file, for errors.
            scored: whether an unusable moment becomes a sliver (file that is scored) or is dropped (train).
        """
        self.path = path
        self.scored = scored
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
    ) -> None:
        """Adds a sentence with the fields of a `Query`, moments as published."""
        moments = tuple(moments)
        kept, fixes = _fix_moments(moments, duration, self.scored)
        if (key := (video_id, text, moments)) in self._seen:
            fixes.append("repeated")
        self._seen.add(key)
        query: Query | Dropped
        if kept:
            query = Query(query_id, video_id, text, kept, duration, saliency)
        else:
            query = Dropped(query_id, video_id, next(fix for fix in fixes if fix.startswith("dropped_")))
        self.rows.append(AnnotationRow(query, tuple(fixes)))

    def finish(self) -> list[AnnotationRow]:
        """Returns the rows.

        Raises:
            VmrError: if there are none.
        """
        if not self.rows:
            raise VmrError(f"{self.path} holds no sentence. Fetch it again.")
        return self.rows


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
