"""The report as one HTML page that opens from disk: leaderboards, charts, and a browser of predictions.

Everything is in the page but the videos, which it plays from where they lie. Charts are matplotlib's SVG.
Text out of the data reaches the page escaped by the template, or as JSON that scripts show as text.
"""

from __future__ import annotations

import io
import json
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader
from markupsafe import Markup
from numpy.typing import NDArray

from vmr_zoo.report.leaderboard import DROP, Leaderboard, Row, Run, Unfinished, board_scores, compare, remark
from vmr_zoo.report.paper_tables import PrintedTable
from vmr_zoo.report.significance import FIRST_IOU, Scores
from vmr_zoo.runs.directory import curve
from vmr_zoo.utils.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from vmr_zoo.engine.scoring import Row as Prediction

THRESHOLDS = tuple(round(0.05 * step, 2) for step in range(1, 20))
BINS = 6
ROWS = 20
"""Rows that charts and browser show: the best of a longer table. More lines than that nobody tells apart."""

_WINDOWS = 3
"""Moments of each run that the browser shows."""

_ANSWERS = 20_000
"""Answers that the browser holds at most, all rows together: some 10 MB."""

_COLOURS = (
    *("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22"),
    *("#17becf", "#000000", "#6b6ecf", "#b5a000", "#ad494a", "#a55194", "#3182bd", "#e6550d", "#31a354"),
    *("#756bb1", "#636363"),
)
_MARKERS = "osD^vP*Xph"

Floats = NDArray[np.float64]


class Look(NamedTuple):
    """How a row is drawn in every chart and in the browser."""

    colour: str
    marker: str


def write_page(
    boards: Sequence[Leaderboard],
    out: Path,
    printed: Sequence[PrintedTable] = (),
    unfinished: Sequence[Unfinished] = (),
    videos: Path | None = None,
    browse: int = 200,
    significance: bool = False,
) -> None:
    """Writes the page. The predictions of each run are read once, and no two at a time.

    Args:
        boards: what `report.leaderboards` returned.
        out: the HTML file.
        printed: the papers' tables to show beside ours.
        unfinished: run directories without results.
        videos: folder of the videos, VIDEO_ID.mp4 or another suffix; None: the page shows none.
        browse: queries of each split that the browser holds, evenly spaced; 0: no browser.
        significance: whether to mark the best rows and those that are worse than them.

    Raises:
        VmrError: if a run has no predictions.
    """
    files = {} if videos is None else _video_files(videos)
    sections = []
    for board in boards:
        shown = _shown(board)
        browser = _Browser(board, shown, files, browse)
        scores = board_scores(board, browser.add)
        if significance:
            compare(board, scores)
        sections.append(
            {
                "title": board.title,
                "tables": [_table(board, metric) for metric in board.metrics],
                "charts": _charts(board, shown, scores, browser.moments),
                "left_out": len(board.rows) - len(shown),
                "browser": _as_json(browser.data()) if browser.queries else None,
            }
        )
    template = Environment(
        loader=PackageLoader("vmr_zoo.report", ""), autoescape=True, trim_blocks=True, lstrip_blocks=True
    ).get_template("page.html")
    text = template.render(
        boards=sections, printed=printed, unfinished=remark(unfinished, 10) if unfinished else ""
    )
    atomic_write(out, text)


def _shown(board: Leaderboard) -> list[int]:
    """Returns the numbers of the rows that charts and browser show."""
    key = board.columns[0], board.metrics[0]
    best = sorted(
        range(len(board.rows)), key=lambda n: -statistics.fmean(board.rows[n].values.get(key) or [-1])
    )
    return sorted(best[:ROWS])


def _table(board: Leaderboard, metric: str) -> dict[str, Any]:
    """Returns one metric's table: heads, and rows of (text, number to sort by)."""
    rows = []
    heads, costs = board.cost()
    for row, cost in zip(board.rows, costs, strict=True):
        cells = [(text, text) for text in (row.name, *row.kind)]
        for column in board.columns:
            values = row.values.get((column, metric))
            cells.append((row.cell((column, metric)), str(statistics.fmean(values)) if values else ""))
        cells += [(text, text.replace(",", "")) for text in cost]
        rows.append(cells)
    return {"metric": metric, "heads": ["run", "method", "variant", *board.columns, *heads], "rows": rows}


# ------------------------------------------------------------------------------------------------ charts


def _charts(
    board: Leaderboard,
    shown: Sequence[int],
    scores: Sequence[Sequence[Scores]],
    moments: Mapping[str, pd.DataFrame],
) -> list[dict[str, Any]]:
    """Draws what the numbers of a table, and each row's predictions, allow."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    splits = [split for split in board.splits if split != "selection"]
    rows = [board.rows[number] for number in shown]
    seeds = [scores[number] for number in shown]
    looks = [Look(_COLOURS[i % len(_COLOURS)], _MARKERS[i % len(_MARKERS)]) for i in range(len(rows))]
    charts = []

    def add(title: str, height: float, draw: Callable[[Figure], bool]) -> None:
        figure = Figure(figsize=(11, height), layout="constrained")
        if not draw(figure):
            return
        _legend(figure, rows, looks)
        text = io.StringIO()
        figure.savefig(text, format="svg")
        charts.append({"title": title, "svg": Markup(text.getvalue()[text.getvalue().index("<svg") :])})

    metric = board.metrics[0]
    # Text stays text: smaller, searchable, and escaped by matplotlib.
    with rc_context(
        {"svg.fonttype": "none", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    ):
        if DROP in board.columns:
            add(
                f"In and out of distribution, {metric}",
                max(3.6, 0.3 * len(rows)),
                lambda figure: _in_and_out(figure, rows, looks, splits, metric),
            )
        if splits:
            add(
                "Recall of the first moment against the IoU asked for",
                2.8 * -(-len(splits) // 3),
                lambda figure: _recall(figure, seeds, looks, splits),
            )
        for split in splits[:2]:
            add(
                f"{split}: mean IoU of the first moment against the moment's length and place",
                3.6,
                lambda figure, split=split: _by_moment(figure, seeds, looks, moments.get(split), split),  # type: ignore[misc]
            )
        add("Learning curves on the selection split", 3.6, lambda figure: _learning(figure, rows, looks))
    return charts


def _legend(figure: Figure, rows: Sequence[Row], looks: Sequence[Look]) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=look.colour, marker=look.marker, markersize=4) for look in looks]
    figure.legend(handles, [_label(row.name) for row in rows], loc="outside right upper", frameon=False)


def _label(text: str) -> str:
    """Keeps matplotlib from reading a name as a formula, and the legend from eating the chart."""
    text = text.removesuffix("-paper").lstrip("_").replace("$", r"\$")
    return text if len(text) <= 40 else f"{text[:39]}…"


def _band(axis: Axes, x: Any, curves: Sequence[Any], look: Look, marker: bool = False) -> None:
    """Draws the mean of the seeds' curves, and one sample standard deviation about it."""
    mean = np.nanmean(curves, axis=0)
    axis.plot(
        x, mean, color=look.colour, linewidth=1.2, marker=look.marker if marker else None, markersize=3.5
    )
    if len(curves) > 1:
        deviation = np.nanstd(curves, axis=0, ddof=1)
        axis.fill_between(x, mean - deviation, mean + deviation, color=look.colour, alpha=0.15, linewidth=0)


def _in_and_out(
    figure: Figure, rows: Sequence[Row], looks: Sequence[Look], splits: Sequence[str], metric: str
) -> bool:
    left, right = figure.subplots(1, 2)
    drops = []
    for row, look in zip(rows, looks, strict=True):
        values = [row.values.get((split, metric)) for split in splits]
        if (DROP, metric) not in row.values or any(not value for value in values):
            continue
        inside = np.array(values[0])
        outside = np.mean([np.mean(value or [np.nan]) for value in values[1:]])
        drop = row.values[DROP, metric]
        error = [np.std(inside, ddof=1)] if len(inside) > 1 else None
        left.errorbar(
            inside.mean(),
            outside,
            xerr=error,
            color=look.colour,
            marker=look.marker,
            markersize=6,
            linewidth=0.8,
        )
        drops.append(
            (statistics.fmean(drop), statistics.stdev(drop) if len(drop) > 1 else 0.0, row.name, look)
        )
    low, high = min(left.get_xlim()[0], left.get_ylim()[0]), max(left.get_xlim()[1], left.get_ylim()[1])
    left.plot([low, high], [low, high], color="grey", linewidth=0.8, linestyle="--")
    left.set_xlabel(f"{_label(splits[0])}, per cent")
    left.set_ylabel("mean of the other splits, per cent")
    drops.sort(key=lambda drop: drop[0])
    right.barh(
        range(len(drops)),
        [drop[0] for drop in drops],
        xerr=[drop[1] for drop in drops],
        color=[drop[3].colour for drop in drops],
        error_kw={"linewidth": 0.8},
    )
    right.set_yticks(range(len(drops)), [_label(drop[2]) for drop in drops])
    right.axvline(0, color="grey", linewidth=0.8)
    right.set_xlabel("drop out of distribution, points")
    return bool(drops)


def _recall(
    figure: Figure, seeds: Sequence[Sequence[Scores]], looks: Sequence[Look], splits: Sequence[str]
) -> bool:
    columns = min(3, len(splits))
    axes = figure.subplots(-(-len(splits) // columns), columns, sharey=True, squeeze=False).ravel()
    for axis, split in zip(axes, splits, strict=False):
        for runs, look in zip(seeds, looks, strict=True):
            firsts = [run[split][FIRST_IOU].to_numpy() for run in runs if split in run]
            if firsts:
                curves = [[100 * np.mean(iou >= t) for t in THRESHOLDS] for iou in firsts]
                _band(axis, THRESHOLDS, curves, look)
        axis.set_title(_label(split), fontsize=9)
        axis.set_xlabel("IoU")
    for axis in axes[len(splits) :]:
        axis.remove()
    axes[0].set_ylabel("R1, per cent")
    return True


def _by_moment(
    figure: Figure,
    seeds: Sequence[Sequence[Scores]],
    looks: Sequence[Look],
    moments: pd.DataFrame | None,
    split: str,
) -> bool:
    if moments is None or moments.empty:
        return False
    axes: Sequence[Axes] = figure.subplots(1, 2, sharey=True)
    for axis, key in zip(axes, ("length", "place"), strict=True):
        bins = pd.qcut(moments[key], BINS, duplicates="drop")
        centres = moments.groupby(bins, observed=True)[key].mean()
        for runs, look in zip(seeds, looks, strict=True):
            curves = [
                100 * run[split][FIRST_IOU].groupby(bins, observed=True).mean().reindex(centres.index)
                for run in runs
                if split in run
            ]
            if curves:
                _band(axis, centres, curves, look, marker=True)
        axis.set_xlabel({"length": "length, s", "place": "middle, share of the video"}[key])
    axes[0].set_ylabel("mIoU, per cent")
    return True


def _learning(figure: Figure, rows: Sequence[Row], looks: Sequence[Look]) -> bool:
    curves: dict[str, list[tuple[Look, list[pd.Series]]]] = {}
    for row, look in zip(rows, looks, strict=True):
        metric = str(row.runs[0].header.get("selection_metric", ""))
        found = [line for run in row.runs if (line := _curve(run, metric)) is not None]
        if found:
            curves.setdefault(metric, []).append((look, found))
    if not curves:
        return False
    axes = figure.subplots(1, len(curves), squeeze=False)[0]
    for axis, (metric, lines) in zip(axes, curves.items(), strict=True):
        for look, found in lines:
            frame = pd.concat(found, axis=1)
            if len(frame) > 1:
                _band(axis, frame.index, list(frame.to_numpy().T), look, marker=len(frame) <= 30)
            else:
                axis.plot(
                    frame.index, frame.mean(axis=1), color=look.colour, marker=look.marker, markersize=4
                )
        axis.set_xlabel("epoch")
        axis.set_ylabel(f"{_label(metric)}, per cent")
    return True


def _curve(run: Run, metric: str) -> pd.Series | None:
    """Reads a metric of the selection split by epoch, from 1."""
    found = curve(run.directory, metric)
    return pd.Series({epoch + 1: value for epoch, value in found.items()}) if found else None


# ------------------------------------------------------------------------------------------------ browser


class _Browser:
    """Gathers the queries that the page shows, with the answers of the first seed of each row shown.

    Attributes:
        queries: by split and query id.
        moments: by split, length in seconds and place (middle as a share of the video) of each query's
            longest moment, by query id.
    """

    def __init__(
        self, board: Leaderboard, shown: Sequence[int], files: Mapping[str, str], browse: int
    ) -> None:
        self.board = board
        self.shown = {number: i for i, number in enumerate(shown)}
        self.files = files
        self.browse = min(browse, _ANSWERS // max(1, len(shown) * len(board.splits)))
        self.queries: dict[tuple[str, str], dict[str, Any]] = {}
        self.moments: dict[str, pd.DataFrame] = {}

    def add(self, number: int, run: Run, rows: Mapping[str, Sequence[Prediction]]) -> None:
        """Takes what is shown out of the predictions of a run, by split."""
        place = self.shown.get(number)
        if place is None or run is not self.board.rows[number].runs[0]:
            return
        for split in self.board.splits:
            lines = rows.get(split, ())
            if lines and split not in self.moments:
                self._choose(split, lines)
            for line in lines:
                query = self.queries.get((split, str(line["query_id"])))
                if query is not None:
                    query["answers"][place] = self._answer(line)

    def _choose(self, split: str, lines: Sequence[Prediction]) -> None:
        """Picks the queries of a split, evenly spaced."""
        self.moments[split] = _moments(lines)
        step = max(1, -(-len(lines) // self.browse)) if self.browse else len(lines)
        for line in lines[::step] if self.browse else ():
            self.queries[split, str(line["query_id"])] = {
                "split": split,
                "id": str(line["query_id"]),
                "video": line["video_id"],
                "file": self.files.get(line["video_id"]),
                "text": line["query"],
                "duration": line["duration"],
                "moments": line["moments"],
                "answers": [None] * len(self.shown),
            }

    def _answer(self, line: Prediction) -> dict[str, Any]:
        scores = line.get("pred_saliency_scores")
        return {
            "windows": [
                [round(x, 2) for x in window[:2]] for window in line["pred_relevant_windows"][:_WINDOWS]
            ],
            "scores": None if scores is None else [round(x, 2) for x in scores],
        }

    def data(self) -> dict[str, Any]:
        """Returns what the page's script reads."""
        names = [self.board.rows[number].name for number in self.shown]
        colours = [_COLOURS[i % len(_COLOURS)] for i in range(len(names))]
        return {"runs": names, "colours": colours, "queries": list(self.queries.values())}


def _moments(lines: Iterable[Prediction]) -> pd.DataFrame:
    known = [line for line in lines if line["moments"]]
    longest = [max(line["moments"], key=lambda moment: moment[1] - moment[0]) for line in known]
    return pd.DataFrame(
        {
            "length": [end - start for start, end in longest],
            "place": [(m[0] + m[1]) / 2 / line["duration"] for m, line in zip(longest, known, strict=True)],
        },
        index=[str(line["query_id"]) for line in known],
    )


def _video_files(folder: Path) -> dict[str, str]:
    from vmr_zoo.video.files import find_videos

    return {video_id: path.resolve().as_uri() for video_id, path in find_videos(folder).items()}


def _as_json(value: Any) -> Markup:
    """Writes JSON for a script element, which no text in it can end."""
    text = json.dumps(value, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))
