"""The report as one HTML page that opens from disk: leaderboards, charts, and a browser of predictions.

The page contains everything except the videos, which it plays from their folder. Text from data is escaped by
the template, or stored as JSON that the script shows as text.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from vmr_zoo.report.caveats import legend, signs
from vmr_zoo.report.charts import COLOURS, draw_charts
from vmr_zoo.report.claim_tables import page_section
from vmr_zoo.report.conclusion import conclusion
from vmr_zoo.report.leaderboard import BEST, DROP, WORSE, Leaderboard, LeaderboardRow
from vmr_zoo.report.paper_tables import PaperTable
from vmr_zoo.report.query_curves import Curves, stored_curves
from vmr_zoo.report.query_scores import RowsBySplit, leaderboard_scores
from vmr_zoo.report.runs import Run, UnfinishedRun, summarize_unfinished
from vmr_zoo.report.significance import mark_significance
from vmr_zoo.report.study import StudyTable
from vmr_zoo.report.terminal import TEST
from vmr_zoo.report.verdicts import Answer
from vmr_zoo.runs.config_sections import rendered_videos
from vmr_zoo.utils.files import atomic_write

if TYPE_CHECKING:
    from vmr_zoo.engine.scoring import PredictionRow

ROWS = 20
"""Rows in charts and browser: the best of a longer table. More lines cannot be distinguished."""

_WINDOWS = 3
"""Moments per run and query in the browser."""

_ANSWERS = 20_000
"""Maximum number of answers in the browser, over all rows: about 10 MB."""


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
    return Browsing(queries, {} if videos is None else _video_uris(Path(videos)), said)


def write_page(
    boards: Sequence[Leaderboard],
    out: Path,
    paper_tables: Sequence[PaperTable] = (),
    unfinished: Sequence[UnfinishedRun] = (),
    shown_beside: Browsing | None = None,
    significance: bool = False,
    claims: Sequence[Answer] = (),
    study: StudyTable | None = None,
) -> None:
    """Writes the page. Holds the predictions of one run at a time.

    Args:
        boards: the leaderboards.
        out: the HTML file.
        paper_tables: the papers' tables to show.
        unfinished: run directories without results.
        shown_beside: how many queries the browser has, with which videos and narrations; None: the defaults.
        significance: whether to mark the best rows and those that are significantly worse.
        claims: answered claims, shown first.
        study: stored results of a study, shown after our own tables.

    Raises:
        VmrError: if a run has no predictions, or its stored details are broken.
    """
    sections = []
    for board in boards:
        shown = _best_rows(board)
        browser = _PredictionBrowser(board, shown, _with_videos(board, shown_beside or Browsing()))
        scores = leaderboard_scores(board, browser.add)
        if significance:
            mark_significance(board, scores)
        sections.append(
            {
                "heading": board.heading,
                "conclusion": conclusion(board, significance),
                "notes": _notes(board, significance),
                "seeds": board.seeds,
                "tables": [*(_metric_table(board, metric) for metric in board.metrics), _cost_table(board)],
                "charts": draw_charts(board, shown, scores, browser.moments),
                "legend": [(board.rows[n].label, COLOURS[i % len(COLOURS)]) for i, n in enumerate(shown)],
                "excluded": len(board.rows) - len(shown),
                "browser": _to_json(browser.data()) if browser.queries else None,
                "browsing": f"Up to {browser.browse} sentences of each split; browse=N changes that.",
            }
        )
    template = Environment(
        loader=PackageLoader("vmr_zoo.report", ""), autoescape=True, trim_blocks=True, lstrip_blocks=True
    ).get_template("page.html")
    text = template.render(
        claims=page_section(claims) if claims else None,
        boards=sections,
        paper_tables=paper_tables,
        study=study,
        unfinished=summarize_unfinished(unfinished, 10) if unfinished else "",
    )
    atomic_write(out, text)


def _with_videos(board: Leaderboard, beside: Browsing) -> Browsing:
    """Adds the videos that were rendered for the runs of a board, which share their data."""
    folder = None if beside.videos or not beside.queries else rendered_videos(board.rows[0].runs[0].directory)
    return beside if folder is None else replace(beside, videos=_video_uris(folder))


def _best_rows(board: Leaderboard) -> list[int]:
    """Returns the numbers of the rows in charts and browser."""
    key = board.columns[0], board.metrics[0]
    best = sorted(
        range(len(board.rows)), key=lambda n: -statistics.fmean(board.rows[n].values.get(key) or [-1])
    )
    return sorted(best[:ROWS])


def _notes(board: Leaderboard, significance: bool) -> list[str]:
    """Returns the sentences below the title of a table."""
    notes = [f"{board.conditions[:1].upper()}{board.conditions[1:]}."]
    if board.shared:
        notes.append(f"All rows: {board.shared}.")
    if DROP in board.columns:
        notes.append(f"{DROP}: {board.columns[0]} minus the mean of the other test splits, in points.")
    if significance:
        notes.append(f"{BEST} best, {WORSE} significantly worse ({TEST}).")
    marks = legend(board)
    return [*notes, f"{marks}."] if marks else notes


def _metric_table(board: Leaderboard, metric: str) -> dict[str, Any]:
    """Returns the table of one metric: titles, and rows of cells with text and the number to sort by."""
    best = {column: board.best((column, metric)) for column in board.columns}
    rows = []
    for row in board.rows:
        cells = [_name_cell(row)]
        for column in board.columns:
            mean = row.mean((column, metric))
            key = "" if mean is None else str(mean)
            text = row.cell((column, metric))
            cells.append({"text": text, "key": key, "best": row is best[column]})
        rows.append({"name": row.name, "cells": cells})
    return {"metric": metric, "titles": ["run", *board.columns], "rows": rows}


def _cost_table(board: Leaderboard) -> dict[str, Any]:
    titles, costs = board.cost()
    rows = [
        {
            "name": row.name,
            "cells": [_name_cell(row), *({"text": text, "key": text.replace(",", "")} for text in cost)],
        }
        for row, cost in zip(board.rows, costs, strict=True)
    ]
    return {"metric": "", "titles": ["run", *titles], "rows": rows}


def _name_cell(row: LeaderboardRow) -> dict[str, Any]:
    return {"text": f"{row.label}{signs(row)}", "key": row.label}


class _PredictionBrowser:
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
        scores = row.get("pred_saliency_scores")
        return {
            "windows": [
                [round(x, 2) for x in window[:2]] for window in row["pred_relevant_windows"][:_WINDOWS]
            ],
            "scores": None if scores is None else [round(x, 2) for x in scores],
            "curves": curves,
        }

    def data(self) -> dict[str, Any]:
        """Returns what the page's script reads."""
        names = [self.board.rows[number].label for number in self.shown]
        colours = [COLOURS[i % len(COLOURS)] for i in range(len(names))]
        videos = {query["video"] for query in self.queries.values()}
        said = {video: self.beside.narrations[video] for video in videos & self.beside.narrations.keys()}
        queries = list(self.queries.values())
        return {"runs": names, "colours": colours, "queries": queries, "narrations": said}


def _longest_moments(rows: Iterable[PredictionRow]) -> pd.DataFrame:
    """Returns length and position of each query's longest moment, by query id."""
    annotated = [row for row in rows if row["moments"]]
    longest = [max(row["moments"], key=lambda moment: moment[1] - moment[0]) for row in annotated]
    return pd.DataFrame(
        {
            "length": [end - start for start, end in longest],
            "position": [
                (m[0] + m[1]) / 2 / row["duration"] for m, row in zip(longest, annotated, strict=True)
            ],
        },
        index=[str(row["query_id"]) for row in annotated],
    )


def _video_uris(folder: Path) -> dict[str, str]:
    from vmr_zoo.video.files import find_videos

    return {video_id: path.resolve().as_uri() for video_id, path in find_videos(folder).items()}


def _to_json(value: Any) -> Markup:
    """Writes JSON for a script element; no text in it can close the element."""
    text = json.dumps(value, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))
