"""The grid encoder: clip and patch features from decoded pixels, with no learned weight.

Every clip is sampled at a few moments in time. A frame becomes soft masks, one per hue (how much of that hue
each pixel is; grey belongs to none), and a luma image. Of every hue's mask the encoder takes

- colour and layout: mass, centroid, RMS radius;
- form: the moduli of the complex moments c_k = sum of w (z - centroid)^k / (mass radius^k), k = 2 .. 5,
  which do not change when a shape turns (2 is large for bars, 3 for triangles, 4 for squares and crosses, 5
  for stars), and the kurtosis of the radius, small for rings;
- motion: change of mass, centroid and log radius from sample to sample, and how far each c_k itself moved,
  which is what turning changes.

Summed over all hues, the products of form and motion say which form does what; luma adds brightness, texture
and change.

It reads any video that PyAV decodes; that its hues suit the world of shapes is a matter of that world.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from vmr_zoo.errors import VmrError

VERSION = "1"
"""To be raised with every change of what the encoder computes; part of the manifest, names the cache."""

Array = NDArray[np.float32]

_ORDERS = (2, 3, 4, 5)
_PER_HUE = 17
_FORMS = 6
_MOTIONS = 11
_LUMA_GRID = (3, 4)
_STILL = np.array([0.02, 0.4, 0.16, 0.1, 0.07, 0.2, 0.25, 0.4, 0.5, 0.35])
_SIGNED = np.array([0.005, 0.004, 0.008, 0.04])
_UNSIGNED = np.array([0.15, 0.013, 0.45])
"""Units in which quantities deviate by about 1 over the world of shapes: rounded, and fixed once."""
_PRESENT = np.array([1.0, 0.75, 0.7, 0.7, 1.7, 0.3])
"""Units in which a form counts about 1: any; bar; triangle; square, cross, bar; star; kurtosis."""
_LIMIT = 5.0
_CHUNK = 32
"""Frames at a time: bounds the memory of one worker to some 30 MB."""


@dataclass(frozen=True, slots=True)
class GridEncoder:
    """What the encoder computes; its numbers decide the features and are part of their manifest.

    Attributes:
        clip_seconds: length of a clip.
        samples: frames looked at per clip, evenly spaced in time.
        hues: number of hue bins around the chroma plane.
        rows: patches down.
        columns: patches across.
    """

    clip_seconds: float = 1.0
    samples: int = 4
    hues: int = 16
    rows: int = 6
    columns: int = 8

    def __post_init__(self) -> None:
        """Refuses settings that do not divide the working size of 48 x 64 pixels."""
        if 48 % self.rows or 64 % self.columns or self.samples < 2 or self.hues < 3 or self.clip_seconds <= 0:
            raise VmrError(
                "Expected rows that divide 48, columns that divide 64, at least 2 samples, 3 hues and clips "
                f"longer than 0 s, found {self}. Change features.video.encoder."
            )

    @property
    def dim(self) -> int:
        """Size of a clip vector."""
        return self.hues * _PER_HUE + _FORMS * (1 + _MOTIONS) + 4 + math.prod(_LUMA_GRID)

    @property
    def patch_dim(self) -> int:
        """Size of a patch vector."""
        return 2 * self.hues + 8

    @property
    def patches(self) -> int:
        """Patches per clip."""
        return self.rows * self.columns

    def encode(self, path: Path) -> tuple[Array, Array]:
        """Encodes one video file.

        Args:
            path: any video that PyAV decodes.

        Returns:
            Clip features (T, dim) and patch features (T, rows * columns, patch_dim), T = duration /
            clip_seconds rounded up.

        Raises:
            VmrError: if the file cannot be decoded or holds no picture.
        """
        luma, chroma = _sample(path, self.clip_seconds / self.samples)
        clips = math.ceil(len(luma) / self.samples)
        # A last clip that the video does not fill repeats its last frame.
        index = np.minimum(np.arange(clips * self.samples), len(luma) - 1)
        hue = _hue_table(self.hues)
        # One more frame in front, so that the first sample of a clip has a predecessor too.
        index = np.concatenate(([0], index))
        stats, cells = [], []
        for first in range(1, len(index), _CHUNK * self.samples):
            part = index[first - 1 : first + _CHUNK * self.samples]
            masks = hue[chroma[part]]
            stats.append(self._clips(masks, luma[part]))
            cells.append(self._patches(masks, luma[part]))
        return np.concatenate(stats), np.concatenate(cells)

    def manifest(self) -> dict[str, Any]:
        """Returns everything that decides the features."""
        return {
            "backbone": f"grid encoder {VERSION}",
            "clip_seconds": self.clip_seconds,
            "samples": self.samples,
            "hues": self.hues,
            "grid": [self.rows, self.columns],
        }

    def _clips(self, masks: Array, luma: Array) -> Array:
        """Computes clip features of T clips from masks (1 + T samples, pixels, hues) and luma (…, 48, 64)."""
        mass, centroid, radius, form, kurtosis = _moments(masks)
        there = mass**2 / (mass**2 + 0.003**2)  # fades out what stray pixels would make of an absent hue
        both = np.minimum(there[1:], there[:-1])
        forms = [np.abs(form[..., k]) * there for k in range(len(_ORDERS))]
        still = self._mean(
            np.stack(
                [
                    mass,
                    there,
                    centroid.real * there,
                    centroid.imag * there,
                    radius * there,
                    *forms,
                    (kurtosis - 1.3) * there,
                ],
                -1,
            )[1:]
        )
        step = np.diff(centroid, axis=0) * both
        growth = np.diff(np.log(radius + 0.02), axis=0) * both
        flow = np.diff(np.log(mass + 0.002), axis=0)
        turning = np.abs(np.diff(form, axis=0)).sum(-1) * both
        signed = self._mean(np.stack([step.real, step.imag, growth, flow], -1)) / _SIGNED
        unsigned = self._mean(np.stack([np.abs(flow), np.abs(step), turning], -1)) / _UNSIGNED
        by_hue = np.concatenate((still / _STILL, signed, unsigned), -1)
        # Which form does what, whatever its hue.
        presence = np.concatenate((still[..., 1:2], still[..., 5:]), -1) / _PRESENT
        motion = np.concatenate((np.maximum(signed, 0), np.maximum(-signed, 0), unsigned), -1)
        by_form = np.einsum("thp,thm->tpm", presence, motion) / 4
        everything = [by_hue, presence.sum(1) / 2, by_form, *self._luma(luma)]
        clips = np.concatenate([part.reshape(len(part), -1) for part in everything], -1)
        return np.clip(clips, -_LIMIT, _LIMIT).astype(np.float32)

    def _luma(self, luma: Array) -> list[Array]:
        """Computes brightness, contrast, change and texture (T, 4), and change by place (T, cells)."""
        change = 20 * np.abs(np.diff(luma, axis=0))
        texture = 20 * np.abs(np.diff(luma[1:], axis=2))
        brightness, contrast = 8 * (luma[1:].mean((1, 2)) - 0.5), 40 * (luma[1:].std((1, 2)) - 0.07)
        overall = [brightness, contrast, change.mean((1, 2)), texture.mean((1, 2))]
        return [self._mean(np.stack(overall, -1)), self._mean(_cells(change[..., None], *_LUMA_GRID))]

    def _patches(self, masks: Array, luma: Array) -> Array:
        """Computes patch features of T clips, (T, rows * columns, patch_dim)."""
        images = masks.reshape(-1, 48, 64, self.hues)
        across = np.diff(luma[1:], axis=2, append=luma[1:, :, -1:])
        down = np.diff(luma[1:], axis=1, append=luma[1:, -1:])
        angle = np.arctan2(down, across)
        strength = np.hypot(across, down)
        textures = [luma[1:], luma[1:] ** 2, np.diff(luma, axis=0), np.abs(np.diff(luma, axis=0))]
        textures += [strength * np.cos(angle - k * math.pi / 4) ** 2 for k in range(4)]
        grid = (self.rows, self.columns)
        colour = _cells(images, *grid)
        texture = _cells(np.stack(textures, -1), *grid)
        texture[..., 1] = np.sqrt(np.maximum(texture[..., 1] - texture[..., 0] ** 2, 0))
        texture[..., 1:] *= 10
        everything = np.concatenate((4 * colour[1:], 10 * np.abs(np.diff(colour, axis=0)), texture), -1)
        return np.clip(self._mean(everything), -_LIMIT, _LIMIT).astype(np.float32)

    def _mean(self, samples: Array) -> Array:
        """Averages over the samples of each clip: (T * samples, …) to (T, …)."""
        return samples.reshape(-1, self.samples, *samples.shape[1:]).mean(1)


def _sample(path: Path, seconds: float) -> tuple[Array, NDArray[np.uint16]]:
    """Decodes a file and samples it by time.

    Args:
        path: the file.
        seconds: from one sample to the next; samples lie in the middle of their stretch of time, and each
            shows
            the latest frame that is not later.

    Returns:
        Luma (S, 48, 64) in [0, 1], and chroma (S, 48 * 64), the upper 6 bits of U and of V in one number.
    """
    luma: list[Array] = []
    chroma: list[NDArray[np.uint16]] = []
    reformatter = VideoReformatter()
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            stream.thread_type = "NONE"
            shown: av.VideoFrame | None = None
            end = 0.0
            for frame in container.decode(stream):
                start = float((frame.pts or 0) * frame.time_base) if frame.time_base else end
                length = (
                    float(frame.duration * frame.time_base) if frame.duration and frame.time_base else 0.0
                )
                while shown is not None and (len(luma) + 0.5) * seconds < start:
                    _append(shown, reformatter, luma, chroma)
                shown, end = frame, start + length
            while shown is not None and (len(luma) + 0.5) * seconds < end:
                _append(shown, reformatter, luma, chroma)
    except (av.FFmpegError, IndexError) as error:
        raise VmrError(
            f"{path} cannot be decoded as a video ({error}). Delete it to have it made anew."
        ) from error
    if not luma:
        raise VmrError(f"Expected a video of at least {seconds / 2:g} s at {path}, found no picture in it.")
    return np.stack(luma), np.stack(chroma)


def _append(
    frame: av.VideoFrame, reformatter: VideoReformatter, luma: list[Array], chroma: list[NDArray[np.uint16]]
) -> None:
    """Takes luma and chroma planes apart; only frames of another size or format are converted."""
    if (frame.width, frame.height, frame.format.name) != (128, 96, "yuv420p"):
        frame = reformatter.reformat(frame, width=128, height=96, format="yuv420p")
    planes = frame.to_ndarray()
    y = planes[:96].reshape(48, 2, 64, 2).mean((1, 3), dtype=np.float32) / 255
    u, v = planes[96:].reshape(2, 48 * 64).astype(np.uint16) >> 2
    luma.append(y)
    chroma.append(u << 6 | v)


def _hue_table(hues: int) -> Array:
    """Computes (4096, hues): how much of each hue a chroma value is; a row sums to 0 for grey, 1 at most."""
    u, v = np.meshgrid(np.arange(64) * 4 + 2 - 128, np.arange(64) * 4 + 2 - 128, indexing="ij")
    chroma = np.clip((np.hypot(u, v) - 18) / 30, 0, 1)
    position = np.arctan2(v, u) / (2 * math.pi) * hues
    distance = np.abs((position[..., None] - np.arange(hues) + hues / 2) % hues - hues / 2)
    table: Array = (np.clip(1 - distance, 0, 1) * chroma[..., None]).reshape(4096, hues).astype(np.float32)
    return table


def _moments(masks: Array) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Computes moments of masks (F, 48 * 64, hues), lengths in frame heights, angles in the image plane.

    Returns:
        Mass (F, hues), the share of the frame; centroid (F, hues), complex, from the middle; RMS radius (F,
        hues); normalised complex moments c_k (F, hues, orders), their moduli cut at 2; kurtosis of the
        radius (F, hues).
    """
    y, x = np.meshgrid((np.arange(48) + 0.5) / 48 - 0.5, (np.arange(64) + 0.5) / 48 - 64 / 96, indexing="ij")
    z = (x + 1j * y).ravel()
    square = np.abs(z) ** 2
    powers = [z**k for k in range(1, 6)]
    mixed = [square.astype(complex), square * z, (square**2).astype(complex)]
    basis = np.stack([np.ones(len(z)), *(part for w in (*powers, *mixed) for part in (w.real, w.imag))], 0)
    sums = (basis.astype(np.float32) @ masks).astype(np.float64)  # (F, 17, hues)
    total = np.maximum(sums[:, 0], 1e-3)
    raw = (sums[:, 1::2] + 1j * sums[:, 2::2]) / total[:, None]
    m = np.concatenate((np.ones_like(raw[:, :1]), raw[:, :5]), 1)  # m[k] = mean of z^k
    centre = m[:, 1]
    zz, zzz, zzzz = raw[:, 5].real, raw[:, 6], raw[:, 7].real
    variance = np.maximum(zz - np.abs(centre) ** 2, 1e-6)
    radius = np.sqrt(variance)
    form = []
    for k in _ORDERS:
        central = sum(math.comb(k, j) * (-centre) ** (k - j) * m[:, j] for j in range(k + 1))
        form.append(central / radius**k)
    forms = np.stack(form, -1)
    cc = np.abs(centre) ** 2
    # The mean of |z - c|^4, expanded by |z - c|^2 = |z|^2 - 2 Re(z conj(c)) + |c|^2.
    fourth = (
        zzzz
        - 4 * (zzz * centre.conj()).real
        + 2 * (m[:, 2] * centre.conj() ** 2).real
        + 4 * zz * cc
        - 3 * cc**2
    )
    kurtosis = np.clip(fourth / variance**2, 0, 4)
    return sums[:, 0] / len(z), centre, radius, forms / np.maximum(1, np.abs(forms) / 2), kurtosis


def _cells(images: Array, rows: int, columns: int) -> Array:
    """Averages images (F, 48, 64, C) over a grid: (F, rows * columns, C)."""
    frames, height, width, channels = images.shape
    split = images.reshape(frames, rows, height // rows, columns, width // columns, channels)
    return split.mean((2, 4)).reshape(frames, rows * columns, channels)
