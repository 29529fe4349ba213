"""The report as one HTML page that opens from disk: leaderboards, charts, and a browser of predictions.

Everything is in the page but the videos, which it plays from where they lie. Charts are matplotlib's SVG.
Text out of the data reaches the page escaped by the template, or as JSON that scripts show as text.
"""

from __future__ import annotations

import io
import itertools
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from vmr_zoo import run_dir
from vmr_zoo.files import atomic_write
from vmr_zoo.report import DROP, Leaderboard, Row
from vmr_zoo.score import read_rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

THRESHOLDS = tuple(round(0.05 * step, 2) for step in range(1, 20))
BINS = 6
_WINDOWS = 3
"""Moments of each run that the browser shows."""


def write_page(
    boards: Sequence[Leaderboard], out: Path, videos: Path | None = None, browse: int = 200
) -> None:
    """Writes the page.

    Args:
        boards: what `report.leaderboards` returned, compared or not.
        out: the HTML file.
        videos: folder of the videos, VIDEO_ID.mp4 or another suffix; None: the page shows none.
        browse: queries of each split that the browser holds, evenly spaced; 0: no browser.

    Raises:
        VmrError: if a run has no predictions.
    """
    files = {} if videos is None else _video_files(videos)
    template = Environment(loader=PackageLoader("vmr_zoo", "templates"), autoescape=True).get_template(
        "page.html"
    )
    atomic_write(
        out,
        template.render(
            boards=[
                {
                    "title": board.title,
                    "tables": [_table(board, metric) for metric in board.metrics],
                    "charts": _charts(board, listed),
                    "browser": _as_json(_browser(board, listed, files, browse)) if browse else None,
                }
                for board in boards
                for listed in [[read_rows(row.runs[0].path / run_dir.PREDICTIONS)[0] for row in board.rows]]
            ]
        ),
    )


def _table(board: Leaderboard, metric: str) -> dict[str, Any]:
    """Returns one metric's table: heads, and rows of (text, number to sort by)."""
    rows = []
    for row in board.rows:
        cells = [(row.name, row.name)]
        for column in board.columns:
            values = row.values.get((column, metric))
            cells.append((row.cell((column, metric)), str(statistics.fmean(values)) if values else ""))
        cells += [(text, text.replace(",", "")) for text in row.rest()]
        rows.append(cells)
    return {
        "metric": metric,
        "heads": ["run", *board.columns, "seeds", "parameters", "train s"],
        "rows": rows,
    }


# ------------------------------------------------------------------------------------------------ charts


def _charts(board: Leaderboard, listed: Sequence[Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Draws what the numbers of a table, and each row's predictions, allow."""
    from matplotlib.figure import Figure

    splits = [column for column in board.columns if column not in (DROP, "selection")]
    answers = {row.name: _answers(lines) for row, lines in zip(board.rows, listed, strict=True)}
    charts = []

    def add(title: str, width: int, draw: Any) -> None:
        figure = Figure(figsize=(width, 3.6), layout="constrained")
        if draw(figure):
            text = io.StringIO()
            figure.savefig(text, format="svg")
            charts.append({"title": title, "svg": Markup(text.getvalue()[text.getvalue().index("<svg") :])})

    metric = board.metrics[0]
    if DROP in board.columns:
        add(
            f"In and out of distribution, {metric}",
            9,
            lambda figure: _in_and_out(figure, board, splits, metric),
        )
    add(
        "Recall of the best moment against the IoU asked for",
        max(6, round(2.4 * len(splits))),
        lambda f: _recall(f, answers, splits),
    )
    add(
        f"{splits[0]}: mean IoU against the moment's length and place, seconds and share of the video",
        9,
        lambda figure: _by_moment(figure, answers, splits[0]),
    )
    add("Learning curves on the selection split", 9, lambda figure: _learning(figure, board.rows))
    return charts


def _in_and_out(figure: Figure, board: Leaderboard, splits: Sequence[str], metric: str) -> bool:
    left, right = figure.subplots(1, 2)
    for row in board.rows:
        values = [row.values.get((split, metric)) for split in splits]
        if any(value is None for value in values):
            continue
        means = [statistics.fmean(value) for value in values if value]
        left.scatter(means[0], statistics.fmean(means[1:]), label=row.name)
        left.annotate(row.name, (means[0], statistics.fmean(means[1:])), fontsize=7)
    low, high = min(left.get_xlim()[0], left.get_ylim()[0]), max(left.get_xlim()[1], left.get_ylim()[1])
    left.plot([low, high], [low, high], color="grey", linewidth=0.8, linestyle="--")
    left.set_xlabel(splits[0])
    left.set_ylabel("mean of the others")
    drops = {row.name: row.values[DROP, metric] for row in board.rows if (DROP, metric) in row.values}
    names = sorted(drops, key=lambda name: statistics.fmean(drops[name]))
    right.barh(names, [statistics.fmean(drops[name]) for name in names])
    right.set_xlabel("drop, points")
    right.tick_params(labelsize=7)
    return bool(drops)


def _recall(figure: Figure, answers: Mapping[str, pd.DataFrame], splits: Sequence[str]) -> bool:
    axes: Sequence[Axes] = figure.subplots(1, len(splits), sharey=True, squeeze=False)[0]
    for axis, split in zip(axes, splits, strict=True):
        for name, frame in answers.items():
            iou = frame.loc[frame["split"] == split, "iou"].to_numpy()
            if len(iou):
                axis.plot(THRESHOLDS, [100 * (iou >= t).mean() for t in THRESHOLDS], label=name, linewidth=1)
        axis.set_title(split, fontsize=9)
        axis.set_xlabel("IoU")
    axes[0].set_ylabel("R1, per cent")
    axes[-1].legend(fontsize=6)
    return True


def _by_moment(figure: Figure, answers: Mapping[str, pd.DataFrame], split: str) -> bool:
    axes: Sequence[Axes] = figure.subplots(1, 2, sharey=True)
    for axis, key in zip(axes, ("length", "place"), strict=True):
        for name, frame in answers.items():
            own = frame[frame["split"] == split]
            bins = pd.qcut(own[key], BINS, duplicates="drop")
            groups = own.groupby(bins, observed=True)
            axis.plot(groups[key].mean(), 100 * groups["iou"].mean(), marker=".", label=name, linewidth=1)
        axis.set_xlabel({"length": "length, s", "place": "middle, share of the video"}[key])
    axes[0].set_ylabel("mIoU")
    axes[1].legend(fontsize=6)
    return True


def _learning(figure: Figure, rows: Sequence[Row]) -> bool:
    axis = figure.subplots()
    drawn = False
    for row in rows:
        run = row.runs[0]
        path = run.path / "metrics.csv"
        if not path.is_file():
            continue
        frame = pd.read_csv(path)
        column = run.header.get("selection_metric", "")
        if f"selection/{column}" in frame:
            curve = frame.dropna(subset=[f"selection/{column}"])
            axis.plot(
                curve["epoch"] + 1, curve[f"selection/{column}"], marker=".", label=row.name, linewidth=1
            )
            axis.set_ylabel(column)
            drawn = True
    axis.set_xlabel("epoch")
    if drawn:
        axis.legend(fontsize=6)
    return drawn


def _answers(lines: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Reads split, query id, IoU of the first moment, and length and place of the moment nearest to it."""
    rows = []
    for row in lines:
        if not row["moments"] or not row["pred_relevant_windows"]:
            continue
        start, end = row["pred_relevant_windows"][0][:2]
        truths = np.array(row["moments"], float)
        inter = np.clip(np.minimum(end, truths[:, 1]) - np.maximum(start, truths[:, 0]), 0, None)
        hull = np.maximum(end, truths[:, 1]) - np.minimum(start, truths[:, 0])
        iou = np.divide(inter, hull, out=np.zeros_like(inter), where=hull > 0)
        best = truths[int(iou.argmax())]
        rows.append(
            {
                "split": row["split"],
                "query_id": str(row["query_id"]),
                "iou": float(iou.max()),
                "length": float(best[1] - best[0]),
                "place": float(best.mean() / row["duration"]),
            }
        )
    return pd.DataFrame(rows)


# ------------------------------------------------------------------------------------------------ browser


def _browser(
    board: Leaderboard, listed: Sequence[Sequence[Mapping[str, Any]]], files: Mapping[str, str], browse: int
) -> dict[str, Any]:
    """Gathers the queries that the page shows, with the answers of the first seed of each run."""
    queries: dict[tuple[str, str], dict[str, Any]] = {}
    wanted: set[tuple[str, str]] = set()
    for number, lines in enumerate(listed):
        if not number:
            for _, group in itertools.groupby(lines, key=lambda line: line["split"]):
                own = list(group)
                wanted |= {(q["split"], str(q["query_id"])) for q in own[:: max(1, -(-len(own) // browse))]}
        for line in lines:
            key = (line["split"], str(line["query_id"]))
            if key not in wanted:
                continue
            query = queries.setdefault(
                key,
                {
                    "split": key[0],
                    "id": key[1],
                    "video": line["video_id"],
                    "file": files.get(line["video_id"]),
                    "text": line["query"],
                    "duration": line["duration"],
                    "moments": line["moments"],
                    "answers": [None] * len(board.rows),
                },
            )
            scores = line.get("pred_saliency_scores")
            query["answers"][number] = {
                "windows": [[round(x, 2) for x in w[:2]] for w in line["pred_relevant_windows"][:_WINDOWS]],
                "scores": None if scores is None else [round(x, 2) for x in scores],
            }
    return {"runs": [row.name for row in board.rows], "queries": list(queries.values())}


def _video_files(folder: Path) -> dict[str, str]:
    from vmr_zoo.video.files import find_videos

    return {video_id: path.resolve().as_uri() for video_id, path in find_videos(folder).items()}


def _as_json(value: Any) -> Markup:
    """Writes JSON for a script element, which no text in it can end."""
    return Markup(json.dumps(value).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))
