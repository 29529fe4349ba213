"""Draws scenes and writes them as H.264 in MP4."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from vmr_zoo.data.worlds.shapes.world import (
    ALPHA,
    ANGLE,
    ASPECT,
    COLOURS,
    LOG_SIZE,
    Background,
    Scene,
    X,
    Y,
    states,
)
from vmr_zoo.utils.files import atomic_path

OVERSAMPLE = 2
"""Factor by which frames are drawn larger and averaged down, for smooth edges and slow motion."""

FADE_SECONDS = 1.0


def _circle(radius: float) -> NDArray[np.float64]:
    angle = np.linspace(0, 2 * math.pi, 29)
    return radius * np.stack((np.cos(angle), np.sin(angle)), 1)


def _spokes(radii: tuple[float, ...], points: int) -> NDArray[np.float64]:
    angle = -math.pi / 2 + np.arange(points) * 2 * math.pi / points
    radius = np.resize(np.array(radii), points)
    return radius[:, None] * np.stack((np.cos(angle), np.sin(angle)), 1)


_ARM = 0.27
OUTLINES: dict[str, NDArray[np.float64]] = {
    "circle": _circle(1.0),
    "ring": np.concatenate((_circle(1.05), _circle(0.62)[::-1])),
    "square": np.array([(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)]),
    "triangle": _spokes((1.25,), 3),
    "star": _spokes((1.25, 0.5), 10),
    "cross": 1.1
    * np.array(
        [
            (-_ARM, -1),
            (_ARM, -1),
            (_ARM, -_ARM),
            (1, -_ARM),
            (1, _ARM),
            (_ARM, _ARM),
            (_ARM, 1),
            (-_ARM, 1),
            (-_ARM, _ARM),
            (-1, _ARM),
            (-1, -_ARM),
            (-_ARM, -_ARM),
        ]
    ),
    "bar": np.array([(-1.4, -0.45), (1.4, -0.45), (1.4, 0.45), (-1.4, 0.45)]),
}
"""Corners (n, 2) of each shape at size 1; y points down."""


def frames(scene: Scene, fps: int, height: int) -> Iterator[NDArray[np.uint8]]:
    """Draws a scene.

    Args:
        scene: the scene.
        fps: frames per second.
        height: height in pixels; the width is 4/3 of it.

    Yields:
        (height, width, 3) RGB frames, `duration * fps` of them.
    """
    times = np.arange(scene.duration * fps) / fps
    state = states(scene, times)
    pixels = height * OVERSAMPLE
    size = (round(pixels * ASPECT), pixels)
    paintings = [_Painting(background, size) for background in scene.backgrounds]
    corners = [_place(OUTLINES[thing.shape], state[:, i], pixels) for i, thing in enumerate(scene.things)]
    opacity = np.clip(np.rint(255 * state[:, :, ALPHA]), 0, 255).astype(int)
    for number, time in enumerate(times.tolist()):
        canvas = _behind(scene.backgrounds, paintings, time)
        draw = ImageDraw.Draw(canvas, "RGBA")
        for i, thing in enumerate(scene.things):
            if opacity[number, i]:
                draw.polygon(corners[i][number], fill=(*COLOURS[thing.colour], int(opacity[number, i])))
        yield np.asarray(canvas.reduce(OVERSAMPLE))


def write(scene: Scene, path: Path, fps: int, height: int) -> None:
    """Renders a scene into an MP4 file, atomically.

    One x264 thread and no creation time: the same scene yields the same bytes.

    Args:
        scene: the scene.
        path: the file to write.
        fps: frames per second.
        height: height in pixels; the width is 4/3 of it.
    """
    with (
        atomic_path(path) as partial,
        av.open(str(partial), "w", format="mp4", options={"fflags": "+bitexact"}) as container,
    ):
        stream = container.add_stream("libx264", rate=fps, options={"preset": "superfast", "crf": "23"})
        stream.width, stream.height, stream.pix_fmt = height * 4 // 3, height, "yuv420p"
        stream.thread_count = 1
        for array in frames(scene, fps, height):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(array, format="rgb24")))
        container.mux(stream.encode(None))


def _place(outline: NDArray[np.float64], state: NDArray[np.float64], pixels: int) -> list[list[float]]:
    """Transforms an outline (n, 2) by states (F, 5) into F flat lists of pixel coordinates."""
    cos, sin = np.cos(state[:, ANGLE]), np.sin(state[:, ANGLE])
    turn = np.stack((np.stack((cos, sin), -1), np.stack((-sin, cos), -1)), -2)
    placed = np.exp(state[:, LOG_SIZE])[:, None, None] * (outline @ turn) + state[:, None, X : Y + 1]
    flat: list[list[float]] = (placed * pixels).reshape(len(state), -1).tolist()
    return flat


class _Painting:
    """A background painted once, larger than the frame; a moving window of it is shown."""

    def __init__(self, background: Background, size: tuple[int, int]) -> None:
        self.size = size
        self.drift = [d * size[1] for d in background.drift]
        self.start = background.start
        self.period = max(8, 2 * round(background.scale * size[1] / 2))
        wide = tuple(s + 2 * self.period for s in size)
        first, second = (np.array(colour, dtype=np.float64) for colour in background.colours)
        x, y = np.meshgrid(np.arange(wide[0]), np.arange(wide[1]))
        half = self.period // 2
        if background.pattern == "plain":
            blend = np.zeros(x.shape)
        elif background.pattern == "gradient":
            blend = (x / wide[0] + y / wide[1]) / 2
        elif background.pattern == "stripes":
            blend = ((x + y) // half % 2).astype(np.float64)
        elif background.pattern == "checks":
            blend = ((x // half + y // half) % 2).astype(np.float64)
        else:
            blend = (np.hypot(x % self.period - half, y % self.period - half) < 0.45 * half).astype(
                np.float64
            )
        self.image = Image.fromarray((first + blend[..., None] * (second - first)).astype(np.uint8))

    def window(self, time: float) -> Image.Image:
        """Returns the visible part; every pattern but the gradient is periodic, so the drift may wrap."""
        left, top = (round(d * (time - self.start)) % self.period for d in self.drift)
        return self.image.crop((left, top, left + self.size[0], top + self.size[1]))


def _behind(backgrounds: tuple[Background, ...], paintings: list[_Painting], time: float) -> Image.Image:
    """Returns the background at a time, cross-faded after a change."""
    current = max(i for i, background in enumerate(backgrounds) if background.start <= time)
    image = paintings[current].window(time)
    share = (time - backgrounds[current].start) / FADE_SECONDS
    if current and share < 1:
        image = Image.blend(paintings[current - 1].window(time), image, share)
    return image
