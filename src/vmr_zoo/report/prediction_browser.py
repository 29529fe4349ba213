"""The data of the page's browser of predictions: sentences, and the moments that each row predicts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from vmr_zoo.engine.submission import SALIENCY, WINDOWS
from vmr_zoo.report.breakdown import longest_moment
from vmr_zoo.report.caveats import marked_label
from vmr_zoo.report.charts import LineStyle
from vmr_zoo.report.leaderboard import Leaderboard
from vmr_zoo.report.query_curves import Curves, stored_curves
from vmr_zoo.report.query_scores import RowsBySplit, query_index
from vmr_zoo.report.runs import Run

if TYPE_CHECKING:
    from vmr_zoo.engine.scoring import PredictionRow

_WINDOWS = 3
"""Moments per run and query."""

_ANSWERS = 20_000
"""Maximum number of answers, over all rows: about 10 MB."""


@dataclass(frozen=True, slots=True)
class Browsing:
    """What the browser of predictions shows.

    Attributes:
        queries: queries of each split, evenly spaced; 0: no browser.
        videos: addresses of the videos by id; empty: the videos that this machine rendered for the runs.
        narrations: (start, end, sentence) in seconds by video id.
    """

    queries: int = 200
    videos: Mapping[str, str] = field(default_factory=dict)
    narrations: Mapping[str, list[tuple[float, float, str]]] = field(default_factory=dict)


def browsing(queries: int, videos: str | Path | None, narrations: str | Path | None) -> Browsing:
    """Finds what the browser shows beside predictions.

    Args:
        queries: queries of each split; 0: no browser.
        videos: folder of the videos, VIDEO_ID.mp4 or another suffix; None: the page shows none.
        narrations: file of `vmr narrate`; None: the page shows none.

    Raises:
        VmrError: if there is no video, or the narrations are missing or broken.
    """
    said: dict[str, list[tuple[float, float, str]]] = {}
    if narrations is not None:
        from vmr_zoo.data.narrations import read_narrations

        by_video, _ = read_narrations(narrations)
        said = {video: [(one.start, one.end, one.text) for one in own] for video, own in by_video.items()}
    return Browsing(queries, {} if videos is None else video_uris(Path(videos)), said)


class PredictionBrowser:
    """Selects queries, and collects the answers of the first seed of each row.

    Attributes:
        queries: the selected queries by split and query id.
        moments: length in seconds and position (centre as a fraction of the video) of each query's longest
            moment, by split.
    """

    def __init__(self, board: Leaderboard, shown: Sequence[int], beside: Browsing) -> None:
        self.board = board
        self.shown = {number: i for i, number in enumerate(shown)}
        self.beside = beside
        self.browse = min(beside.queries, _ANSWERS // max(1, len(shown) * len(board.splits)))
        self.queries: dict[tuple[str, str], dict[str, Any]] = {}
        self.moments: dict[str, pd.DataFrame] = {}

    def add(self, number: int, run: Run, rows: RowsBySplit) -> None:
        """Adds the answers of a run to the selected queries.

        Args:
            number: of the run's row in the table.
            run: the run.
            rows: its predictions by split.
        """
        position = self.shown.get(number)
        if position is None or run is not self.board.rows[number].runs[0]:
            return
        for split in self.board.splits:
            predictions = rows.get(split, ())
            if predictions and split not in self.moments:
                self._select_queries(split, predictions)
            own = {query_id for name, query_id in self.queries if name == split}
            curves = stored_curves(run, split, own) if own else {}
            for row in predictions:
                query = self.queries.get((split, str(row["query_id"])))
                if query is not None:
                    query["answers"][position] = self._answer(row, curves.get(query["id"], {}))

    def _select_queries(self, split: str, rows: Sequence[PredictionRow]) -> None:
        """Selects evenly spaced queries of a split."""
        self.moments[split] = _longest_moments(rows)
        step = max(1, -(-len(rows) // self.browse)) if self.browse else len(rows)
        for row in rows[::step] if self.browse else ():
            self.queries[split, str(row["query_id"])] = {
                "split": split,
                "id": str(row["query_id"]),
                "video": row["video_id"],
                "file": self.beside.videos.get(row["video_id"]),
                "text": row["query"],
                "duration": row["duration"],
                "moments": row["moments"],
                "answers": [None] * len(self.shown),
            }

    def _answer(self, row: PredictionRow, curves: Curves) -> dict[str, Any]:
        scores = row.get(SALIENCY)
        return {
            "windows": [[round(x, 2) for x in window[:2]] for window in row[WINDOWS][:_WINDOWS]],
            "scores": None if scores is None else [round(x, 2) for x in scores],
            "curves": curves,
            **({"text": _answer_text(row)} if row.get("answer") else {}),
        }

    def data(self, styles: Iterable[LineStyle]) -> dict[str, Any]:
        """Returns what the page's script reads, given the styles of the rows."""
        names = [marked_label(self.board.rows[number]) for number in self.shown]
        colours = [f"var(--series-{style.series})" for style in styles]
        videos = {query["video"] for query in self.queries.values()}
        said = {video: self.beside.narrations[video] for video in videos & self.beside.narrations.keys()}
        queries = list(self.queries.values())
        return {"runs": names, "colours": colours, "queries": queries, "narrations": said}


def _answer_text(row: PredictionRow) -> str:
    """Returns what a model of another software answered in words, and whether that named no times."""
    text = str(row["answer"])
    return f"no times in the answer: {text}" if row.get("unparsed") else text


def _longest_moments(rows: Iterable[PredictionRow]) -> pd.DataFrame:
    """Returns length and position of each query's longest moment."""
    annotated = [row for row in rows if row["moments"]]
    longest = [longest_moment(row) for row in annotated]
    return pd.DataFrame(
        {
            "length": [end - start for start, end in longest],
            "position": [
                (m[0] + m[1]) / 2 / row["duration"] for m, row in zip(longest, annotated, strict=True)
            ],
        },
        index=query_index(annotated),
    )


def video_uris(folder: Path) -> dict[str, str]:
    """Returns the address of each video of a folder by id."""
    from vmr_zoo.video.files import find_videos

    return {video_id: path.resolve().as_uri() for video_id, path in find_videos(folder).items()}
