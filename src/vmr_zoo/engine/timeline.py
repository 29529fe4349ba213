"""Draws retrieved moments on a timeline with thumbnails and clip scores."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vmr_zoo.utils.arrays import Array
from vmr_zoo.utils.files import atomic_path, check_picture
from vmr_zoo.video.decode import sample

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from vmr_zoo.engine.retriever import Answer, EncodedVideo

THUMBNAILS = 10
_WIDTH = 12.0
"""Inches."""


def draw(video: EncodedVideo, answers: Sequence[Answer], out: str | Path) -> None:
    """Draws the answers to one or several sentences about a video.

    Args:
        video: the searched video.
        answers: one panel each; the best moment is the darkest, and each bar shows its rank.
        out: the picture; its suffix selects the format (.png, .pdf, .svg).

    Raises:
        VideoError: if the file has disappeared.
        VmrError: for an unknown suffix, or a path that cannot be written.
    """
    from matplotlib.figure import Figure  # without pyplot: no window, no state

    strip, strip_end = _thumbnails(video.path, video.duration)
    strip_height = _WIDTH * strip.shape[0] / strip.shape[1]
    figure = Figure(figsize=(_WIDTH, strip_height + 1.5 * len(answers) + 0.6), layout="constrained")
    axes = figure.subplots(
        1 + len(answers), 1, sharex=True, squeeze=False, height_ratios=[strip_height] + [1.5] * len(answers)
    )[:, 0]
    _draw_strip(axes[0], strip, strip_end)
    for axis, answer in zip(axes[1:], answers, strict=True):
        axis.set_title(answer.query, loc="left", fontsize=10, parse_math=False, wrap=True)
        draw_ranked(axis, [(moment.start, moment.end) for moment in answer.moments])
        if answer.clip_scores is not None:
            edges = np.linspace(0, video.duration, len(answer.clip_scores) + 1)
            scores = axis.twinx()
            scores.stairs(answer.clip_scores, edges, color="tab:orange", baseline=None)
            scores.set_yticks([])
            scores.set_ylabel("clip score", color="tab:orange", fontsize=8)
    axes[-1].set_xlim(0, video.duration)
    axes[-1].set_xlabel("seconds")
    save_figure(figure, out, "picture", 120)


def draw_ranked(axis: Axes, moments: Sequence[Sequence[float]], top: float = 0.6) -> None:
    """Draws moments as bars below each other, the best one at the top and the darkest, with their ranks.

    Args:
        axis: where to draw.
        moments: start and end in seconds, best first.
        top: upper end of the axis; the bar of the best moment ends at 0.4.
    """
    for rank, (start, end) in reversed(list(enumerate(moments))):
        axis.barh(-rank, end - start, left=start, height=0.8, color="tab:blue", alpha=1 / (1 + 0.6 * rank))
        axis.text(end, -rank, f" {rank + 1}", va="center", fontsize=8)
    axis.set_yticks([])
    axis.set_ylim(-max(1, len(moments)) + 0.4, top)


def save_figure(figure: Figure, out: str | Path, key: str, dpi: int) -> None:
    """Writes a figure, under a temporary name first.

    Args:
        figure: the figure.
        out: the picture; its suffix selects the format (.png, .pdf, .svg).
        key: the key that named it, for the error.
        dpi: dots per inch of a .png.

    Raises:
        VmrError: for an unknown suffix, or a path that cannot be written.
    """
    check_picture(out, key)
    with atomic_path(out) as temporary:
        figure.savefig(temporary, dpi=dpi)


def filmstrip(axis: Axes, video: Path, duration: float) -> None:
    """Draws frames of a video along an axis in seconds.

    Args:
        axis: where to draw.
        video: the file.
        duration: its length in seconds.

    Raises:
        VideoError: if it cannot be decoded.
    """
    _draw_strip(axis, *_thumbnails(video, duration))


def _thumbnails(video: Path, duration: float) -> tuple[Array, float]:
    """Returns frames side by side as RGB, and the second at which the last one ends."""
    frames = list(itertools.islice(sample(video, duration / THUMBNAILS), THUMBNAILS))
    pictures = [frame.reformat(height=120, width=round(120 * frame.width / frame.height)) for frame in frames]
    strip = np.concatenate([picture.to_ndarray(format="rgb24") for picture in pictures], axis=1)
    # The last frame may be missing: a file can be slightly shorter than its stated duration.
    return strip, duration * len(frames) / THUMBNAILS


def _draw_strip(axis: Axes, strip: Array, end: float) -> None:
    axis.imshow(strip, extent=(0, end, 0, 1), aspect="auto")
    axis.set_yticks([])
