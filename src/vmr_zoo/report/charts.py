"""Charts of the report page, as SVG. Bands and whiskers are one sample standard deviation over seeds."""

from __future__ import annotations

import functools
import io
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from markupsafe import Markup

from vmr_zoo.report.leaderboard import DROP, Leaderboard, LeaderboardRow
from vmr_zoo.report.query_scores import FIRST_IOU, QueryScores
from vmr_zoo.report.runs import Run
from vmr_zoo.runs.status import selection_curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

THRESHOLDS = tuple(round(0.05 * step, 2) for step in range(1, 20))
BINS = 6

COLOURS = (
    *("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22"),
    *("#17becf", "#a0a0a0", "#6b6ecf", "#b5a000", "#ad494a", "#a55194", "#3182bd", "#e6550d", "#31a354"),
    *("#756bb1", "#636363"),
)
_INK = "#010203"
"""Stands for the colour of the page's text, which depends on the reader's settings."""

_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), _INK),
}

_NAME_HEIGHT = 0.075
"""Height of a name beside a panel, as a fraction of the panel."""

_MARKERS = "osD^vP*Xph"


class LineStyle(NamedTuple):
    """How a row is drawn in every chart."""

    colour: str
    marker: str


@dataclass(frozen=True)
class _Charted:
    """What the charts of one table show.

    Attributes:
        rows: the rows that are drawn.
        seeds: scores of single queries by row and seed.
        styles: one for each row.
        splits: the test splits.
        metric: the metric of the charts that show one.
    """

    rows: Sequence[LeaderboardRow]
    seeds: Sequence[Sequence[QueryScores]]
    styles: Sequence[LineStyle]
    splits: Sequence[str]
    metric: str


def draw_charts(
    board: Leaderboard,
    shown: Sequence[int],
    scores: Sequence[Sequence[QueryScores]],
    moments: Mapping[str, pd.DataFrame],
) -> list[dict[str, Any]]:
    """Draws every chart that the data of a table allows.

    Args:
        board: the table.
        shown: numbers of the rows to draw.
        scores: scores of single queries by row and run.
        moments: `length` in seconds and `position` of each query's longest moment, by split.

    Returns:
        `title` and `svg` of each chart.
    """
    from matplotlib import rc_context

    data = _Charted(
        [board.rows[number] for number in shown],
        [scores[number] for number in shown],
        [LineStyle(COLOURS[i % len(COLOURS)], _MARKERS[i % len(_MARKERS)]) for i in range(len(shown))],
        [split for split in board.splits if split != "selection"],
        board.metrics[0],
    )
    charts: list[dict[str, Any] | None] = []
    # Text stays text: smaller, searchable, and escaped by matplotlib.
    with rc_context(_STYLE):  # type: ignore[arg-type]
        if DROP in board.columns:
            title = f"In and out of distribution, {data.metric}"
            charts.append(_chart(title, max(3.6, 0.3 * len(data.rows)), data, _draw_in_and_out))
        if data.splits:
            title = "Recall of the first moment against the IoU threshold"
            charts.append(_chart(title, 2.8 * -(-len(data.splits) // 3), data, _draw_recall))
        for split in data.splits[:2]:
            title = f"{split}: mean IoU of the first moment against length and position of the ground truth"
            draw = functools.partial(_draw_by_moment, moments=moments.get(split), split=split)
            charts.append(_chart(title, 3.6, data, draw))
        charts.append(_chart("Learning curves on the selection split", 3.6, data, _draw_learning_curves))
    return [chart for chart in charts if chart is not None]


def _chart(
    title: str, height: float, data: _Charted, draw: Callable[[Figure, _Charted], bool]
) -> dict[str, Any] | None:
    """Draws one chart; None if there is nothing to draw."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, height), layout="constrained")
    if not draw(figure, data):
        return None
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True)
    text = file.getvalue()[file.getvalue().index("<svg") :].replace(_INK, "currentColor")
    named = Markup('<svg role="img" aria-label="{0}"').format(title) + Markup(text.removeprefix("<svg"))
    head, _, rest = named.partition(Markup(">"))
    return {"title": title, "svg": head + Markup("><title>{0}</title>").format(title) + rest}


def _label(text: str) -> str:
    """Prevents matplotlib from parsing a name as a formula, and shortens it for the legend."""
    text = text.removesuffix("-paper").lstrip("_").replace("$", r"\$")
    return text if len(text) <= 40 else f"{text[:39]}…"


def _name_lines(axis: Axes, data: _Charted, leaders: bool = True) -> None:
    """Writes the name of each line to the right of a panel, in the order in which the lines end.

    Args:
        axis: the panel.
        data: the rows and their styles.
        leaders: whether to connect names and lines; lines that end in one point have none.
    """
    rows = {style.colour: row for row, style in zip(data.rows, data.styles, strict=True)}
    low, high = axis.get_ylim()
    ends = []
    for line in axis.lines:
        values = np.asarray(line.get_ydata(), dtype=float)
        values = values[np.isfinite(values)]
        if len(values):
            ends.append(((values[-1] - low) / (high - low), str(line.get_color())))
    ends.sort(reverse=True)
    places: list[float] = []
    for end, _ in ends:
        places.append(min(end, places[-1] - _NAME_HEIGHT) if places else end)
    up = max(0.0, -places[-1]) if places else 0.0
    for (end, colour), place in zip(ends, places, strict=True):
        axis.annotate(
            _label(rows[colour].label),
            xy=(1, end),
            xytext=(1.08, place + up),
            xycoords="axes fraction",
            textcoords="axes fraction",
            va="center",
            fontsize=8,
            color=colour,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.6} if leaders else None,
            annotation_clip=False,
        )


def _draw_band(axis: Axes, x: Any, curves: Sequence[Any], style: LineStyle, marker: bool = False) -> None:
    """Draws the mean of the seeds' curves, and a band of one sample standard deviation around it."""
    mean = np.nanmean(curves, axis=0)
    axis.plot(
        x, mean, color=style.colour, linewidth=1.2, marker=style.marker if marker else None, markersize=3.5
    )
    if len(curves) > 1:
        deviation = np.nanstd(curves, axis=0, ddof=1)
        axis.fill_between(x, mean - deviation, mean + deviation, color=style.colour, alpha=0.15, linewidth=0)


def _draw_in_and_out(figure: Figure, data: _Charted) -> bool:
    """Draws the reference split against the other splits, and the drop of each row."""
    left, right = figure.subplots(1, 2)
    drops = []
    for row, style in zip(data.rows, data.styles, strict=True):
        values = [row.values.get((split, data.metric)) for split in data.splits]
        if (DROP, data.metric) not in row.values or any(not value for value in values):
            continue
        inside = np.array(values[0])
        outside = np.mean([np.mean(value or [np.nan]) for value in values[1:]])
        drop = row.values[DROP, data.metric]
        error = [np.std(inside, ddof=1)] if len(inside) > 1 else None
        options: dict[str, Any] = {
            "color": style.colour,
            "marker": style.marker,
            "markersize": 6,
            "linewidth": 0.8,
        }
        left.errorbar(inside.mean(), outside, xerr=error, **options)
        left.annotate(
            _label(row.label),
            (float(inside.mean()), float(outside)),
            textcoords="offset points",
            xytext=(6, 4),
            fontsize=8,
            color=style.colour,
        )
        deviation = statistics.stdev(drop) if len(drop) > 1 else 0.0
        drops.append((statistics.fmean(drop), deviation, row.label, style))
    low, high = min(left.get_xlim()[0], left.get_ylim()[0]), max(left.get_xlim()[1], left.get_ylim()[1])
    left.plot([low, high], [low, high], color="grey", linewidth=0.8, linestyle="--")
    left.set_xlabel(f"{_label(data.splits[0])}, per cent")
    left.set_ylabel("mean of the other splits, per cent")
    drops.sort(key=lambda drop: drop[0])
    right.barh(
        range(len(drops)),
        [drop[0] for drop in drops],
        xerr=[drop[1] for drop in drops],
        color=[drop[3].colour for drop in drops],
        error_kw={"linewidth": 0.8, "ecolor": _INK},
    )
    right.set_yticks(range(len(drops)), [_label(drop[2]) for drop in drops])
    right.axvline(0, color="grey", linewidth=0.8)
    right.set_xlabel("drop out of distribution, points")
    return bool(drops)


def _draw_recall(figure: Figure, data: _Charted) -> bool:
    """Draws R1 over IoU thresholds, one panel per split."""
    columns = min(3, len(data.splits))
    axes = figure.subplots(-(-len(data.splits) // columns), columns, sharey=True, squeeze=False).ravel()
    for axis, split in zip(axes, data.splits, strict=False):
        for runs, style in zip(data.seeds, data.styles, strict=True):
            firsts = [run[split][FIRST_IOU].to_numpy() for run in runs if split in run]
            if firsts:
                curves = [[100 * np.mean(iou >= t) for t in THRESHOLDS] for iou in firsts]
                _draw_band(axis, THRESHOLDS, curves, style)
        axis.set_title(_label(split), fontsize=9)
        axis.set_xlabel("IoU")
    for axis in axes[len(data.splits) :]:
        axis.remove()
    for number in range(len(data.splits)):
        if number % columns == columns - 1 or number == len(data.splits) - 1:
            _name_lines(axes[number], data, leaders=False)
    axes[0].set_ylabel("R1, per cent")
    return True


def _draw_by_moment(figure: Figure, data: _Charted, moments: pd.DataFrame | None, split: str) -> bool:
    """Draws mean IoU over quantiles of the ground truth's length and position."""
    if moments is None or moments.empty:
        return False
    axes: Sequence[Axes] = figure.subplots(1, 2, sharey=True)
    for axis, key in zip(axes, ("length", "position"), strict=True):
        bins = pd.qcut(moments[key], BINS, duplicates="drop")
        centres = moments.groupby(bins, observed=True)[key].mean()
        for runs, style in zip(data.seeds, data.styles, strict=True):
            curves = [
                100 * run[split][FIRST_IOU].groupby(bins, observed=True).mean().reindex(centres.index)
                for run in runs
                if split in run
            ]
            if curves:
                _draw_band(axis, centres, curves, style, marker=True)
        axis.set_xlabel({"length": "length, s", "position": "centre, fraction of the video"}[key])
    _name_lines(axes[-1], data)
    axes[0].set_ylabel("mIoU, per cent")
    return True


def _draw_learning_curves(figure: Figure, data: _Charted) -> bool:
    """Draws the selection metric over epochs, one panel per metric."""
    curves: dict[str, list[tuple[LineStyle, list[pd.Series]]]] = {}
    for row, style in zip(data.rows, data.styles, strict=True):
        metric = str(row.runs[0].header.get("selection_metric", ""))
        found = [line for run in row.runs if (line := _learning_curve(run, metric)) is not None]
        if found:
            curves.setdefault(metric, []).append((style, found))
    if not curves:
        return False
    axes = figure.subplots(1, len(curves), squeeze=False)[0]
    for axis, (metric, lines) in zip(axes, curves.items(), strict=True):
        for style, found in lines:
            frame = pd.concat(found, axis=1)
            if len(frame) > 1:
                _draw_band(axis, frame.index, list(frame.to_numpy().T), style, marker=len(frame) <= 30)
            else:
                axis.plot(
                    frame.index, frame.mean(axis=1), color=style.colour, marker=style.marker, markersize=4
                )
        axis.set_xlabel("epoch")
        axis.set_ylabel(f"{_label(metric)}, per cent")
        _name_lines(axis, data)
    return True


def _learning_curve(run: Run, metric: str) -> pd.Series | None:
    """Reads a metric of the selection split by epoch, counted from 1."""
    found = selection_curve(run.directory, metric)
    return pd.Series({epoch + 1: value for epoch, value in found.items()}) if found else None
