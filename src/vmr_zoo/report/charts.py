"""Charts of the report page, as SVG. Bands and whiskers are one sample standard deviation over seeds."""

from __future__ import annotations

import functools
import io
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from markupsafe import Markup

from vmr_zoo.report.caveats import BLIND
from vmr_zoo.report.leaderboard import DROP, Leaderboard, LeaderboardRow
from vmr_zoo.report.query_scores import FIRST_IOU, QueryScores
from vmr_zoo.report.runs import Run
from vmr_zoo.runs.status import selection_curve
from vmr_zoo.utils.text import cut

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

THRESHOLDS = tuple(round(0.05 * step, 2) for step in range(1, 20))
BINS = 6

COLOURS = ("#0a0b00", "#0a0b01", "#0a0b02", "#0a0b03", "#0a0b04", "#0a0b05", "#0a0b06")
"""Stand for the page's `--series-0` to `--series-6`: Okabe and Ito's colours, which colour-blind readers
distinguish, in tones for a light and a dark page."""

_MARKERS = "osD^vPX<>phd*H"
_DASHES = ("solid", (0, (5, 2)), (0, (1.2, 1.5)))
_FILLS = (1.0, 0.0, 0.35)
"""Opacity of markers and bars: full, hollow, pale."""

_SVG_DASHES = ("none", "7 3", "2 2")

_INK = "#010203"
"""Stands for the colour of the page's text, which depends on the reader's settings."""

STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), _INK),
}


class LineStyle(NamedTuple):
    """How a row is drawn in every chart, and in the legend that all charts share.

    Attributes:
        number: number of the row.
        method: number of its method, which has a colour and a shape of marker on the whole page.
        variant: number of the row among those of its method: how far markers are filled.
    """

    number: int
    method: int
    variant: int

    @property
    def series(self) -> int:
        """Number of its colour."""
        return self.method % len(COLOURS)

    @property
    def marker(self) -> str:
        """Matplotlib's name of its marker."""
        return _MARKERS[self.method % len(_MARKERS)]

    @property
    def dash(self) -> int:
        """Number of its dash pattern, of which 0 is a solid line; methods of one colour differ."""
        return (self.method // len(COLOURS) + self.variant) % len(_DASHES)

    @property
    def fill(self) -> float:
        """Opacity of its markers and bars."""
        return _FILLS[self.variant]

    @property
    def line(self) -> dict[str, Any]:
        """Matplotlib's options for its lines."""
        colour = COLOURS[self.series]
        return {
            "color": colour,
            "marker": self.marker,
            "markerfacecolor": (colour, self.fill),
            "linestyle": _DASHES[self.dash],
            "gid": f"row-{self.number}",
        }


class Palette:
    """Gives each method a colour and a marker for a whole page, in the order in which it meets them."""

    def __init__(self) -> None:
        self._methods: dict[tuple[str, int], int] = {}

    def styles(self, rows: Sequence[LeaderboardRow]) -> list[LineStyle]:
        """Returns the styles of the rows of a table: three each of 14 methods on a page are distinct.

        Three rows of a method share colour and marker. Further ones have those of a method of their own.
        """
        counts: Counter[str] = Counter()
        found = []
        for number, row in enumerate(rows):
            method = str(row.runs[0].header["method"])
            group, variant = divmod(counts[method], len(_FILLS))
            counts[method] += 1
            found.append(
                LineStyle(number, self._methods.setdefault((method, group), len(self._methods)), variant)
            )
        return found


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


def legend_entries(names: Sequence[str], styles: Sequence[LineStyle]) -> list[dict[str, Any]]:
    """Returns name, colour, dash pattern and marker (an SVG path) of each row, for the legend of the page."""
    return [
        {
            "name": name,
            "series": style.series,
            "dash": _SVG_DASHES[style.dash],
            "fill": style.fill,
            "marker": _svg_marker(style.marker),
        }
        for name, style in zip(names, styles, strict=True)
    ]


def _svg_marker(marker: str) -> str:
    """Returns the outline of a marker at the centre of the legend's 30 by 12 picture, as an SVG path."""
    from matplotlib.markers import MarkerStyle

    style = MarkerStyle(marker)
    outline: Any = style.get_path().transformed(style.get_transform()).to_polygons()[0]
    return " ".join(
        "ML"[bool(place)] + f"{15 + 8.5 * x:.1f} {6 - 8.5 * y:.1f}" for place, (x, y) in enumerate(outline)
    )


def draw_charts(
    board: Leaderboard,
    shown: Sequence[int],
    styles: Sequence[LineStyle],
    scores: Sequence[Sequence[QueryScores]],
    moments: Mapping[str, pd.DataFrame],
) -> list[dict[str, Any]]:
    """Draws every chart that the data of a table allows.

    Args:
        board: the table.
        shown: numbers of the rows to draw.
        styles: one for each of them.
        scores: scores of single queries by row and run.
        moments: `length` in seconds and `position` of each query's longest moment, by split.

    Returns:
        `title` and `svg` of each chart.
    """
    from matplotlib import rc_context

    data = _Charted(
        [board.rows[number] for number in shown],
        [scores[number] for number in shown],
        styles,
        board.test_splits,
        board.leading_metric,
    )
    charts: list[dict[str, Any] | None] = []
    # Text stays text: smaller, searchable, and escaped by matplotlib.
    with rc_context(STYLE):  # type: ignore[arg-type]
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
    return {"title": title, "svg": to_svg(figure, title)} if draw(figure, data) else None


def to_svg(figure: Figure, title: str) -> Markup:
    """Returns a figure for the page, in the colours of the page's theme."""
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True)
    text = file.getvalue()[file.getvalue().index("<svg") :].replace(_INK, "currentColor")
    for number, colour in enumerate(COLOURS):
        text = text.replace(colour, f"var(--series-{number})")
    text = re.sub(r'<g id="row-(\d+)">', r'<g data-row="\1">', text)  # several charts have the same rows
    named = Markup('<svg role="img" aria-label="{0}"').format(title) + Markup(text.removeprefix("<svg"))
    head, _, rest = named.partition(Markup(">"))
    return head + Markup("><title>{0}</title>").format(title) + rest


def plain_label(text: str) -> str:
    """Prevents matplotlib from parsing a name as a formula, and shortens it."""
    text = text.removesuffix("-paper").lstrip("_").replace("$", r"\$")
    return cut(text, 40)


def _draw_band(axis: Axes, x: Any, curves: Sequence[Any], style: LineStyle) -> None:
    """Draws the mean of the seeds' curves, and a band of one sample standard deviation around it."""
    mean = np.nanmean(curves, axis=0)
    # At most about six markers a line, shifted from row to row: they name the lines, and must not hide them.
    step = max(1, len(mean) // 6)
    axis.plot(x, mean, linewidth=1.4, markersize=4.5, markevery=(style.number % step, step), **style.line)
    if len(curves) > 1:
        deviation = np.nanstd(curves, axis=0, ddof=1)
        colour = COLOURS[style.series]
        band = axis.fill_between(x, mean - deviation, mean + deviation, color=colour, alpha=0.15, linewidth=0)
        band.set_gid(style.line["gid"])


def _spread(values: Any) -> tuple[float, float | None]:
    """Returns mean and sample standard deviation; None with one value."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None


def _draw_in_and_out(figure: Figure, data: _Charted) -> bool:
    """Draws the reference split against the other splits, and the drop of each row."""
    left, right = figure.subplots(1, 2)
    drops = []
    for row, style in zip(data.rows, data.styles, strict=True):
        by_seed = [[run.metrics.get(split, {}).get(data.metric) for split in data.splits] for run in row.runs]
        complete = np.array([own for own in by_seed if None not in own], float)
        if not len(complete):
            continue
        inside, outside = complete[:, 0], complete[:, 1:].mean(1)
        x, y, drop = map(_spread, (inside, outside, inside - outside))
        look = {"markersize": 8, "elinewidth": 0.8, **style.line}
        point = left.errorbar(x[0], y[0], xerr=x[1], yerr=y[1], **look)
        for artist in point.get_children():
            artist.set_gid(style.line["gid"])
        drops.append((bool(row.caveats.get(BLIND.key)), *drop, row.label, style))
    low, high = min(left.get_xlim()[0], left.get_ylim()[0]), max(left.get_xlim()[1], left.get_ylim()[1])
    left.plot([low, high], [low, high], color="grey", linewidth=0.8, linestyle="--")
    left.set_xlabel(f"{plain_label(data.splits[0])}, per cent")
    left.set_ylabel("mean of the other splits, per cent")
    drops.sort(key=lambda drop: (not drop[0], -drop[1]))
    for place, (_, mean, deviation, _, style) in enumerate(drops):
        colour = COLOURS[style.series]
        (bar,) = right.barh([place], [mean], color=(colour, style.fill), edgecolor=colour, height=0.6)
        bar.set_gid(style.line["gid"])
        if deviation:
            right.errorbar(mean, place, xerr=deviation, ecolor=_INK, elinewidth=0.8)
    right.set_yticks(range(len(drops)), [plain_label(drop[3]) + BLIND.sign * drop[0] for drop in drops])
    right.tick_params(axis="y", length=0)
    right.axvline(0, color="grey", linewidth=0.8)
    last = f"\na weaker row has less to lose:\nthose that hardly read sentences ({BLIND.sign}) are last"
    right.set_xlabel("drop out of distribution, points" + last * any(drop[0] for drop in drops))
    return bool(drops)


def split_panels(figure: Figure, splits: Sequence[str], sharex: bool = False) -> list[Axes]:
    """Makes a panel per split, three in a row, with its name as title."""
    columns = min(3, len(splits))
    grid = figure.subplots(-(-len(splits) // columns), columns, sharex=sharex, sharey=True, squeeze=False)
    axes = list(grid.ravel())
    for axis in axes[len(splits) :]:
        axis.remove()
    for axis, split in zip(axes, splits, strict=False):
        axis.set_title(plain_label(split), fontsize=9)
    return axes[: len(splits)]


def _draw_recall(figure: Figure, data: _Charted) -> bool:
    """Draws R1 over IoU thresholds, one panel per split."""
    axes = split_panels(figure, data.splits)
    for axis, split in zip(axes, data.splits, strict=True):
        for runs, style in zip(data.seeds, data.styles, strict=True):
            firsts = [run[split][FIRST_IOU].to_numpy() for run in runs if split in run]
            if firsts:
                curves = [[100 * np.mean(iou >= t) for t in THRESHOLDS] for iou in firsts]
                _draw_band(axis, THRESHOLDS, curves, style)
        axis.set_xlabel("IoU")
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
                _draw_band(axis, centres, curves, style)
        axis.set_xlabel({"length": "length, s", "position": "centre, fraction of the video"}[key])
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
            _draw_band(axis, frame.index, list(frame.to_numpy().T), style)
        axis.set_xlabel("epoch")
        axis.set_ylabel(f"{plain_label(metric)}, per cent")
    return True


def _learning_curve(run: Run, metric: str) -> pd.Series | None:
    """Reads a metric of the selection split by epoch, counted from 1."""
    found = selection_curve(run.directory, metric)
    return pd.Series({epoch + 1: value for epoch, value in found.items()}) if found else None
