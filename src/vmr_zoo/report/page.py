"""The report as one HTML page that opens from disk: leaderboards, charts, and a browser of predictions.

The page contains everything except the videos, which it plays from their folder. Text from data is escaped by
the template, or stored as JSON that the script shows as text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from vmr_zoo.metrics.calibration import CALIBRATION_METRICS
from vmr_zoo.report.caveats import marked_label, signs
from vmr_zoo.report.charts import Palette, draw_charts, legend_entries
from vmr_zoo.report.claim_tables import page_section
from vmr_zoo.report.conclusion import conclusion
from vmr_zoo.report.families import family_order
from vmr_zoo.report.leaderboard import DROP, TIED, Leaderboard, LeaderboardRow, best_first
from vmr_zoo.report.notes import table_notes
from vmr_zoo.report.paper_tables import PaperTable
from vmr_zoo.report.prediction_browser import Browsing, PredictionBrowser, video_uris
from vmr_zoo.report.query_scores import RowsBySplit, leaderboard_scores
from vmr_zoo.report.reliability import Reliability
from vmr_zoo.report.runs import Run, UnfinishedRun, summarize_unfinished
from vmr_zoo.report.significance import mark_significance
from vmr_zoo.report.study import StudyTable
from vmr_zoo.report.verdicts import ClaimAnswer
from vmr_zoo.runs.config_sections import rendered_videos
from vmr_zoo.utils.files import atomic_write

ROWS = 20
"""Rows in charts and browser: the best of a longer table. More lines cannot be distinguished."""

_COST = "cost"
"""The view of the table that shows parameters, times and memory."""


def write_page(
    boards: Sequence[Leaderboard],
    out: Path,
    paper_tables: Sequence[PaperTable] = (),
    unfinished: Sequence[UnfinishedRun] = (),
    shown_beside: Browsing | None = None,
    significance: bool = False,
    claims: Sequence[ClaimAnswer] = (),
    study: Sequence[StudyTable] = (),
    transfers: Sequence[Leaderboard] = (),
    breakdowns: Sequence[Mapping[str, Any]] = (),
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
        study: tables of the stored results of a study, shown after our own tables.
        transfers: tables of runs that were tested on other data; they have neither charts nor browser.
        breakdowns: tables by kind of query: `title`, `note`, `columns` and `rows`.

    Raises:
        VmrError: if a run has no predictions, or its stored details are broken.
    """
    beside = shown_beside or Browsing()
    palette = Palette()
    sections = [_board_section(board, beside, significance, palette) for board in boards]
    sections += [_table_section(board) for board in transfers]
    template = Environment(
        loader=PackageLoader("vmr_zoo.report", ""), autoescape=True, trim_blocks=True, lstrip_blocks=True
    ).get_template("page.html")
    text = template.render(
        claims=page_section(claims) if claims else None,
        boards=sections,
        paper_tables=paper_tables,
        study=study,
        breakdowns=breakdowns,
        unfinished=summarize_unfinished(unfinished, 10) if unfinished else "",
    )
    atomic_write(out, text)


def _board_section(
    board: Leaderboard, beside: Browsing, significance: bool, palette: Palette
) -> dict[str, Any]:
    """Returns what the template shows of one leaderboard; marks its rows if significance is wanted."""
    shown = _best_rows(board)
    styles = palette.styles([board.rows[number] for number in shown])
    browser = PredictionBrowser(board, shown, _with_videos(board, beside))
    diagram = Reliability(board)

    def visit(number: int, run: Run, rows: RowsBySplit) -> None:
        browser.add(number, run, rows)
        diagram.add(number, run, rows)

    # Without a comparison only charts and browser need predictions.
    scores = leaderboard_scores(board, visit, None if significance else set(shown))
    if significance:
        mark_significance(board, scores)
    return {
        **_table_section(board),
        "conclusion": conclusion(board, significance),
        "charts": [
            *draw_charts(board, shown, styles, scores, browser.moments),
            *diagram.charts(dict(zip(shown, styles, strict=True))),
        ],
        "legend": legend_entries([marked_label(board.rows[number]) for number in shown], styles),
        "excluded": len(board.rows) - len(shown),
        "browser": _to_json(browser.data(styles)) if browser.queries else None,
        "browsing": f"Up to {browser.browse} sentences of each split; browse=N changes that.",
    }


def _table_section(board: Leaderboard) -> dict[str, Any]:
    """Returns what the template shows of one leaderboard, without charts and predictions."""
    return {
        "heading": board.heading,
        "notes": [f"{board.conditions[:1].upper()}{board.conditions[1:]}.", *table_notes(board)],
        "views": [*board.metrics, _COST],
        "leading": board.leading_metric,
        "families": len(board.families) > 1,
        "rows": _to_json(_table_data(board)),
    }


def _with_videos(board: Leaderboard, beside: Browsing) -> Browsing:
    """Adds the videos that were rendered for the runs of a board, which share their data."""
    folder = None if beside.videos or not beside.queries else rendered_videos(board.rows[0].runs[0].directory)
    return beside if folder is None else replace(beside, videos=video_uris(folder))


def _best_rows(board: Leaderboard) -> list[int]:
    """Returns the numbers of the rows in charts and browser."""
    key = board.columns[0], board.leading_metric
    best = sorted(range(len(board.rows)), key=lambda number: best_first(board.rows[number], key))
    return sorted(best[:ROWS])


def _table_data(board: Leaderboard) -> dict[str, Any]:
    """Returns what the script draws the table from: numbers by row, metric and column."""
    numbers = {row.name: number for number, row in enumerate(board.rows)}
    best = [[board.best((column, metric)) for column in board.columns] for metric in board.metrics]
    families = list(board.families)
    titles, costs = board.cost_values()
    return {
        "metrics": board.metrics,
        "view": board.metrics.index(board.leading_metric),
        "columns": board.columns,
        "drop": DROP,
        "low": [metric in CALIBRATION_METRICS for metric in board.metrics],
        "costs": titles,
        "sort": _sort_state(board),
        "compared": board.compared,
        "several": any(len(row.runs) > 1 for row in board.rows),
        "families": [{"name": name, "last": family_order(name)} for name in families],
        "best": [[None if row is None else numbers[row.name] for row in rows] for rows in best],
        "rows": [
            _row_data(board, row, number, families.index(row.family)) | {"costs": cost}
            for number, (row, cost) in enumerate(zip(board.rows, costs, strict=True))
        ],
    }


def _sort_state(board: Leaderboard) -> dict[str, Any] | None:
    """Returns the column that sorts the rows; None if that is one of another metric than the first view."""
    if board.sorted_by is None:
        return {"column": -1, "reversed": False}
    column, metric = board.sorted_by
    shown = column in board.columns and metric == board.leading_metric
    return {"column": board.columns.index(column), "reversed": False} if shown else None


def _row_data(board: Leaderboard, row: LeaderboardRow, number: int, family: int) -> dict[str, Any]:
    keys = [[(column, metric) for column in board.columns] for metric in board.metrics]
    deviations = [[_two_decimals(row.deviation(key)) for key in own] for own in keys]
    tied = [[place for place, key in enumerate(own) if row.marks.get(key) == TIED] for own in keys]
    return {
        "number": number,
        "label": row.label,
        "name": row.name,
        "signs": signs(row),
        "family": family,
        "means": [[_two_decimals(row.mean(key)) for key in own] for own in keys],
        **({"deviations": deviations} if any(map(any, deviations)) else {}),
        **({"tied": tied} if any(tied) else {}),
    }


def _two_decimals(value: float | None) -> float | None:
    return None if value is None else round(value, 2)


def _to_json(value: Any) -> Markup:
    """Writes JSON for a script element; no text in it can close the element."""
    text = json.dumps(value, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))
