"""Draws what a run computes for one query, as the papers' figures show it.

Panels over time share one axis in seconds: frames, moments, narrations, curves and attention over clips.
Below them follow the panels over words, candidates, patches and singular vectors.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vmr_zoo.engine.query_details import QueryDetails
from vmr_zoo.engine.submission import SALIENCY, WINDOWS
from vmr_zoo.engine.timeline import draw_ranked, filmstrip, save_figure
from vmr_zoo.types import DETAILS
from vmr_zoo.utils.arrays import Array
from vmr_zoo.utils.text import cut
from vmr_zoo.video.decode import sample

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WIDTH = 11.0
"""Inches."""
_LABELS = 0.35
"""Inches for the title and the labels of a panel."""
MOMENTS, NARRATIONS, WORDS = 5, 40, 40
"""The most that a picture shows of each; its title says so where there are more."""
_RANKS = ("text_in_segment", "text_in_enhanced_segment", "enhanced_text_in_enhanced_segment")
"""Details whose word axis counts singular vectors (MESM, Figure 5)."""


@dataclass(frozen=True, slots=True)
class _Panel:
    """One panel: how high it is, in inches, and what draws it."""

    height: float
    draw: Callable[[Axes], None]


def draw_query(found: QueryDetails, out: str | Path, video: Path | None = None) -> list[str]:
    """Draws the details of a query.

    Args:
        found: from `query_details`.
        out: the picture; its suffix selects the format (.png, .pdf, .svg).
        video: the video file, for frames; None: the picture shows none.

    Returns:
        The names of what is drawn.

    Raises:
        VideoError: if the video cannot be decoded.
        VmrError: for an unknown suffix, or a path that cannot be written.
    """
    from matplotlib.figure import Figure  # without pyplot: no window, no state

    timed, others = _timed_panels(found, video), _other_panels(found, video)
    heights = [sum(panel.height + _LABELS for panel in part.values()) for part in (timed, others)]
    figure = Figure(figsize=(_WIDTH, sum(heights) + 1.0), layout="constrained")
    parts: Any = figure.subfigures(2, 1, height_ratios=heights) if others else [figure]
    for part, panels in zip(parts, (timed, others), strict=False):
        axes = part.subplots(
            len(panels),
            1,
            squeeze=False,
            sharex=panels is timed,
            height_ratios=[panel.height for panel in panels.values()],
        )[:, 0]
        for axis, (name, panel) in zip(axes, panels.items(), strict=True):
            panel.draw(axis)
            axis.set_title(name, loc="left", fontsize=9, parse_math=False)
        if panels is timed:
            axes[-1].set_xlim(0, max(found.query.duration, found.clips_end))
            axes[-1].set_xlabel("seconds")
    asked = f"“{found.query.text}”"
    if found.query.text != found.annotated:
        asked += f"\nannotated for these moments: “{found.annotated}”"
    figure.suptitle(
        f"{asked}\n{found.run}, video {found.query.video_id}, query {found.query.query_id}",
        fontsize=10,
        parse_math=False,
        wrap=True,
    )
    save_figure(figure, out, "out", 110)
    return [*timed, *others]


def _timed_panels(found: QueryDetails, video: Path | None) -> dict[str, _Panel]:
    """Returns the panels over seconds by title."""
    panels: dict[str, _Panel] = {}
    if video is not None:
        panels["frames"] = _Panel(0.6, lambda axis: filmstrip(axis, video, found.query.duration))
    panels["moments: annotated (green), retrieved with their ranks"] = _Panel(
        0.9, lambda axis: _draw_moments(axis, found)
    )
    if found.narrations:
        kept = _evenly(found.narrations, NARRATIONS)
        title = "narrations" + _of(kept, found.narrations)
        panels[title] = _Panel(0.16 * len(kept), lambda axis: _draw_narrations(axis, kept))
    curves = {name: x for name, x in found.details.items() if DETAILS[name] == ("clip",)}
    saliency = found.row.get(SALIENCY)
    if saliency is not None and "highlight" not in curves:  # EMB's and TEA's saliency is their highlight
        curves["saliency"] = np.array(saliency)
    for names in _together(sorted(curves)):
        own = {name: curves[name] for name in names}
        panels[", ".join(own)] = _Panel(0.7, partial(_draw_curves, curves=own, end=found.clips_end))
    if "decoder_attention" in found.details:
        attention = found.details["decoder_attention"]
        rows = attention[:MOMENTS]
        labels = [str(rank + 1) for rank in range(len(rows))]
        panels[f"decoder_attention of the moments, by rank{_of(rows, attention)}"] = _Panel(
            0.8, lambda axis: _draw_rows(axis, rows, labels, found.clips_end)
        )
    if "frame_word_attention" in found.details:
        weights = found.details["frame_word_attention"].T
        words = _word_labels(found, len(weights))
        shown = min(len(weights), WORDS)
        panels["frame_word_attention: from each clip to each word"] = _Panel(
            0.17 * shown, lambda axis: _draw_rows(axis, weights[:shown], words[:shown], found.clips_end)
        )
    return panels


def _other_panels(found: QueryDetails, video: Path | None) -> dict[str, _Panel]:
    """Returns the panels without a time axis by title."""
    details = found.details
    panels: dict[str, _Panel] = {}
    if "decoder_word_attention" in details:
        rows = details["decoder_word_attention"][:MOMENTS]
        panels["decoder_word_attention of the moments, by rank"] = _Panel(
            0.9, lambda axis: _draw_words(axis, rows, _word_labels(found, rows.shape[1]))
        )
    if "word_probability" in details:
        values = details["word_probability"]
        panels["word_probability: of each word when it is masked (Eq. 2)"] = _Panel(
            0.9, lambda axis: _draw_bars(axis, values, _word_labels(found, len(values)))
        )
    lines = {name: details[name] for name in _RANKS if name in details}
    if lines:
        panels["similarity of subspaces by number of singular vectors (Figure 5)"] = _Panel(
            2.2, lambda axis: _draw_ranks(axis, lines)
        )
    if "score_map" in details:
        panels["score_map: score of the moment from a start to an end"] = _Panel(
            3.4, lambda axis: _draw_map(axis, details["score_map"], found)
        )
    if "heatmap" in details:
        frames = None if video is None else _sampled(video, found.clips_end, len(details["heatmap"]))
        panels["heatmap: M of Eq. 3 for the sampled frames, in order"] = _Panel(
            1.3 * -(-len(details["heatmap"]) // 8), lambda axis: _draw_grids(axis, details["heatmap"], frames)
        )
    return panels


def _evenly(values: Sequence[Any], most: int) -> list[Any]:
    """Returns at most `most` of the values, evenly spaced."""
    return [values[i] for i in np.unique(np.linspace(0, len(values) - 1, min(most, len(values))).astype(int))]


def _of(shown: Sequence[Any] | Array, among: Sequence[Any] | Array) -> str:
    return "" if len(shown) == len(among) else f" ({len(shown)} of {len(among)})"


def _together(names: Sequence[str]) -> list[list[str]]:
    """Groups the curves that share a panel: start and end, p and its softmax have a panel each."""
    pair = [name for name in names if name in ("start_probability", "end_probability")]
    return ([pair[::-1]] if pair else []) + [[name] for name in names if name not in pair]


def _word_labels(found: QueryDetails, count: int) -> list[str]:
    """Returns the words of a word axis, or their numbers if the features know no words."""
    words = found.words if len(found.words) >= count else [str(i + 1) for i in range(count)]
    return [word or "·" for word in words[:count]]


def _draw_moments(axis: Axes, found: QueryDetails) -> None:
    for start, end in found.query.moments:
        axis.barh(1, end - start, left=start, height=0.8, color="tab:green")
    draw_ranked(axis, [window[:2] for window in found.row[WINDOWS][:MOMENTS]], top=1.6)


def _draw_narrations(axis: Axes, narrations: Sequence[tuple[float, float, str]]) -> None:
    """Draws a bar for each narration, from top to bottom, with its text beside it."""
    last = max(end for _, end, _ in narrations)
    for i, (start, end, text) in enumerate(narrations):
        axis.barh(-i, max(end - start, 0.005 * last), left=start, height=0.7, color="tab:orange", alpha=0.5)
        short = cut(text, 90)
        right = (start + end) / 2 > last / 2
        beside = axis.text(
            start if right else end,
            -i,
            f"{short} " if right else f" {short}",
            va="center",
            ha="right" if right else "left",
            fontsize=6.5,
            parse_math=False,
            clip_on=True,
        )
        beside.set_in_layout(False)  # a text past the end would leave no room for the panels
    axis.set_yticks([])
    axis.set_ylim(-len(narrations) + 0.4, 0.6)


def _draw_curves(axis: Axes, curves: dict[str, Array], end: float) -> None:
    for (name, values), colour in zip(curves.items(), ("tab:purple", "tab:red"), strict=False):
        axis.stairs(values, np.linspace(0, end, len(values) + 1), baseline=None, color=colour, label=name)
    axis.tick_params(labelsize=7)
    if len(curves) > 1:
        axis.legend(fontsize=7, frameon=False, loc="upper left")


def _draw_rows(axis: Axes, rows: Array, labels: Sequence[str], end: float) -> None:
    """Draws one row of colours per label over time."""
    axis.imshow(
        rows, aspect="auto", cmap="viridis", extent=(0, end, len(rows) - 0.5, -0.5), interpolation="none"
    )
    axis.set_yticks(range(len(labels)), labels, fontsize=7, parse_math=False)


def _draw_words(axis: Axes, rows: Array, words: Sequence[str]) -> None:
    axis.imshow(rows, aspect="auto", cmap="viridis", interpolation="none")
    axis.set_yticks(range(len(rows)), [str(rank + 1) for rank in range(len(rows))], fontsize=7)
    axis.set_xticks(range(len(words)), words, fontsize=7, rotation=30, ha="right", parse_math=False)


def _draw_bars(axis: Axes, values: Array, words: Sequence[str]) -> None:
    axis.bar(range(len(values)), values, color="tab:purple")
    axis.set_xticks(range(len(words)), words, fontsize=7, rotation=30, ha="right", parse_math=False)
    axis.tick_params(axis="y", labelsize=7)


def _draw_ranks(axis: Axes, lines: dict[str, Array]) -> None:
    for name, values in lines.items():
        axis.plot(range(1, len(values) + 1), values, marker="o", markersize=3, label=name)
    axis.legend(fontsize=7, frameon=False)
    axis.set_xlabel("singular vectors", fontsize=8)
    axis.tick_params(labelsize=7)


def _draw_map(axis: Axes, scores: Array, found: QueryDetails) -> None:
    """Draws the score of each candidate; the annotated moments are rings, the best retrieved one a cross."""
    end = found.clips_end
    masked = np.ma.masked_equal(scores, 0)
    image = axis.imshow(masked, cmap="viridis", origin="lower", extent=(0, end, 0, end), interpolation="none")
    axis.set_anchor("W")
    bar = axis.inset_axes((1.03, 0, 0.04, 1))
    axis.figure.colorbar(image, cax=bar).ax.tick_params(labelsize=7)
    bar.yaxis.get_offset_text().set_fontsize(7)
    for start, stop in found.query.moments:
        axis.plot(stop, start, "o", markerfacecolor="none", color="tab:green", markersize=9)
    start, stop, _ = found.row[WINDOWS][0]
    axis.plot(stop, start, "x", color="tab:red")
    axis.set_xlabel("end, seconds", fontsize=8)
    axis.set_ylabel("start, seconds", fontsize=8)
    axis.tick_params(labelsize=7)


def _sampled(video: Path, end: float, count: int) -> list[Array]:
    """Returns the middle frame of each of `count` segments as RGB."""
    return [frame.to_ndarray(format="rgb24") for frame in itertools.islice(sample(video, end / count), count)]


def _draw_grids(axis: Axes, maps: Array, frames: Sequence[Array] | None) -> None:
    """Draws the patches of each frame as a grid, over the frame if there is one; all share one scale.

    Features declare the number of patches alone: the grid is the one nearest to a square, wider than high.
    """
    axis.set_axis_off()
    count = maps.shape[1]
    rows = max(side for side in range(1, math.isqrt(count) + 1) if count % side == 0)
    scale: dict[str, Any] = {
        "vmin": float(maps.min()),
        "vmax": float(maps.max()),
        "interpolation": "none",
        "aspect": "auto",
    }
    columns = min(8, len(maps))
    lines = -(-len(maps) // columns)
    for i, patches in enumerate(maps):
        column, line = i % columns, lines - 1 - i // columns
        place = axis.inset_axes((column / columns, line / lines, 0.94 / columns, 0.94 / lines))
        place.set_axis_off()
        grid = patches.reshape(rows, -1)
        if frames is not None and i < len(frames):
            height, width = frames[i].shape[:2]
            place.imshow(frames[i], aspect="auto")
            place.imshow(grid, cmap="inferno", alpha=0.55, extent=(0, width, height, 0), **scale)
        else:
            place.imshow(grid, cmap="inferno", **scale)
