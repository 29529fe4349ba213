"""The grid encoder: clip and patch features from decoded pixels, without learned weights.

A few frames of each clip are sampled. A frame becomes one soft mask per hue (how much each pixel has that
hue; grey has none) and a luma image. From the mask of each hue the encoder computes

- colour and layout: mass, centroid, RMS radius; - form: the moduli of the complex moments c_k = sum of w (z -
  centroid)^k / (mass radius^k), k = 2 .. 5, which are invariant to rotation (2 is large for bars, 3 for
  triangles, 4 for squares and crosses, 5 for stars), and the kurtosis of the radius, which is small for
  rings;
- motion: changes of mass, centroid and log radius between samples, and changes of each c_k, which indicate
  rotation.

Products of form and motion, summed over all hues, encode which form does what; luma adds brightness, texture
and change.

The encoder reads any video that PyAV decodes, but its hues are chosen for the world of shapes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from vmr_zoo.errors import VmrError
from vmr_zoo.utils.switches import check_switches
from vmr_zoo.video.decode import sample
from vmr_zoo.video.encoder import VideoEncoder

VERSION = "1"
"""Must be raised with every change of the features; part of the manifest and of the cache path."""

Array = NDArray[np.float32]
Rows = NDArray[np.intp]

_ORDERS = (2, 3, 4, 5)
_PER_HUE = 17
_FORMS = 6
_FORM_COLUMNS = slice(5, 10)
"""Of the numbers per hue, those that depend on the form: moduli of the moments and the kurtosis."""
_MOTIONS = 11
_LUMA_GRID = (3, 4)
_STILL = np.array([0.02, 0.4, 0.16, 0.1, 0.07, 0.2, 0.25, 0.4, 0.5, 0.35])
_SIGNED = np.array([0.005, 0.004, 0.008, 0.04])
_UNSIGNED = np.array([0.15, 0.013, 0.45])
"""Rounded, fixed units in which quantities vary by about 1 over the world of shapes."""
_PRESENT = np.array([1.0, 0.75, 0.7, 0.7, 1.7, 0.3])
"""Units in which a form is about 1: any; bar; triangle; square, cross, bar; star; kurtosis."""
_LIMIT = 5.0


class Picture(NamedTuple):
    """What the encoder uses of one frame.

    Attributes:
        luma: (48, 64) in [0, 1].
        chroma: (48 * 64,) the upper 6 bits of U and of V, packed into one number.
    """

    luma: Array
    chroma: NDArray[np.uint16]


@check_switches
@dataclass(frozen=True)
class GridEncoder(VideoEncoder):
    """Settings of the encoder, which determine the features and are part of their manifest.

    Attributes:
        clip_seconds: length of a clip.
        samples: frames per clip, evenly spaced in time.
        hues: number of hue bins around the chroma plane.
        rows: number of patch rows.
        columns: number of patch columns.
        blind: what the features do not show: "colour", "form" or "both". The numbers that show it are 0; the
            others of a clip are scaled, so that its norm stays about the same: some methods read features as
            they are.
    """

    clip_seconds: float = 1.0
    samples: int = 4
    hues: int = 16
    rows: int = 6
    columns: int = 8
    blind: Literal["colour", "form", "both", None] = None

    one_process_per_core = True

    def __post_init__(self) -> None:
        """Rejects settings that do not divide the working size of 48 x 64 pixels."""
        if 48 % self.rows or 64 % self.columns or self.samples < 2 or self.hues < 3 or self.clip_seconds <= 0:
            raise VmrError(
                "Expected rows that divide 48, columns that divide 64, at least 2 samples, 3 hues and clips "
                f"longer than 0 s, found {self}. Change features.video.encoder (vmr extract: encoder)."
            )

    @property
    def dim(self) -> int:  # type: ignore[override]
        """Size of a clip vector."""
        return self.hues * _PER_HUE + _FORMS * (1 + _MOTIONS) + 4 + math.prod(_LUMA_GRID)

    @property
    def blind_scale(self) -> float:
        """What the numbers of a clip that do not show the hidden property are multiplied by."""
        forms = _FORM_COLUMNS.stop - _FORM_COLUMNS.start
        pooled = (_FORMS - 1) * (1 + _MOTIONS)  # forms of all hues together
        hidden = {
            None: 0,
            "colour": self.hues * _PER_HUE,
            "form": self.hues * forms + pooled,
            "both": self.hues * _PER_HUE + pooled,
        }
        return math.sqrt(self.dim / (self.dim - hidden[self.blind]))

    @property
    def patch_dim(self) -> int:  # type: ignore[override]
        """Size of a patch vector."""
        return 2 * self.hues + 8

    @property
    def patches(self) -> int:  # type: ignore[override]
        """Number of patches per clip."""
        return self.rows * self.columns

    def clips(self, path: Path) -> Iterator[tuple[Picture, ...]]:
        """Decodes one video file.

        Args:
            path: any video that PyAV decodes.

        Yields:
            For each clip the preceding sample (in the first clip, its own first) followed by its `samples`;
            neighbouring clips share one picture. The number of clips is duration / clip_seconds rounded up; a
            partial last clip repeats its last picture.

        Raises:
            VideoError: if the file cannot be decoded or holds no frame.
        """
        pictures: list[Picture] = []
        reformatter = VideoReformatter()
        for frame in sample(path, self.clip_seconds / self.samples):
            picture = _picture(frame, reformatter)
            pictures += [picture] if pictures else [picture, picture]
            if len(pictures) > self.samples:
                yield tuple(pictures)
                pictures = pictures[-1:]
        if len(pictures) > 1:
            yield (*pictures, *pictures[-1:] * (1 + self.samples - len(pictures)))

    def encode(self, clips: Sequence[tuple[Picture, ...]]) -> tuple[Array, Array]:
        """Encodes clips.

        Args:
            clips: N items of `clips`.

        Returns:
            Clip features (N, dim) and patch features (N, rows * columns, patch_dim).
        """
        # A picture shared by neighbouring clips is processed once.
        pictures = {id(picture): picture for clip in clips for picture in clip}
        rows = {name: row for row, name in enumerate(pictures)}
        index = np.array([[rows[id(picture)] for picture in clip] for clip in clips])
        now, before = index[:, 1:].ravel(), index[:, :-1].ravel()
        luma = np.stack([picture.luma for picture in pictures.values()])
        masks = _hue_table(self.hues)[np.stack([picture.chroma for picture in pictures.values()])]
        # The last bits of a product depend on the number of threads: always one.
        with threadpool_limits(1, user_api="blas"):
            return self._clips(masks, luma, now, before), self._patches(masks, luma, now, before)

    def node(self) -> dict[str, Any]:
        """Returns the configuration node that rebuilds the encoder."""
        return {"_target_": "vmr_zoo.data.worlds.shapes.GridEncoder", **asdict(self)}

    def manifest(self) -> dict[str, Any]:
        """Returns everything that determines the features."""
        return {
            "backbone": f"grid encoder {VERSION}",
            "clip_seconds": self.clip_seconds,
            "samples": self.samples,
            "hues": self.hues,
            "grid": [self.rows, self.columns],
            "blind": self.blind and f"{self.blind}, others times {self.blind_scale:.3f}",
        }

    def _clips(self, masks: Array, luma: Array, now: Rows, before: Rows) -> Array:
        """Computes the features of T clips.

        Args:
            masks: (F, pixels, hues) of F pictures.
            luma: (F, 48, 64).
            now: (T * samples,) indices of the sampled pictures.
            before: (T * samples,) indices of their predecessors.

        Returns:
            (T, dim).
        """
        mass, centroid, radius, form, kurtosis = _moments(masks)
        there = mass**2 / (mass**2 + 0.003**2)  # suppresses stray pixels of an absent hue
        both = np.minimum(there[now], there[before])
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
            )[now]
        )
        step = (centroid[now] - centroid[before]) * both
        size, amount = np.log(radius + 0.02), np.log(mass + 0.002)
        growth = (size[now] - size[before]) * both
        flow = amount[now] - amount[before]
        turning = np.abs(form[now] - form[before]).sum(-1) * both
        signed = self._mean(np.stack([step.real, step.imag, growth, flow], -1)) / _SIGNED
        unsigned = self._mean(np.stack([np.abs(flow), np.abs(step), turning], -1)) / _UNSIGNED
        by_hue = np.concatenate((still / _STILL, signed, unsigned), -1)
        # Which form does what, independent of hue.
        presence = np.concatenate((still[..., 1:2], still[..., 5:]), -1) / _PRESENT
        motion = np.concatenate((np.maximum(signed, 0), np.maximum(-signed, 0), unsigned), -1)
        by_form = np.einsum("thp,thm->tpm", presence, motion) / 4
        if self.blind in ("colour", "both"):
            by_hue[:] = 0
        if self.blind in ("form", "both"):
            by_hue[..., _FORM_COLUMNS] = 0
            presence[..., 1:] = 0
            by_form[:, 1:] = 0
        everything = [by_hue, presence.sum(1) / 2, by_form, *self._luma(luma[now], luma[before])]
        clips = np.concatenate([part.reshape(len(part), -1) for part in everything], -1)
        return (np.clip(clips, -_LIMIT, _LIMIT) * self.blind_scale).astype(np.float32)

    def _luma(self, luma: Array, before: Array) -> list[Array]:
        """Computes brightness, contrast, change and texture (T, 4), and change per cell (T, cells)."""
        change = 20 * np.abs(luma - before)
        texture = 20 * np.abs(np.diff(luma, axis=2))
        brightness, contrast = 8 * (luma.mean((1, 2)) - 0.5), 40 * (luma.std((1, 2)) - 0.07)
        overall = [brightness, contrast, change.mean((1, 2)), texture.mean((1, 2))]
        return [self._mean(np.stack(overall, -1)), self._mean(_cells(change[..., None], *_LUMA_GRID))]

    def _patches(self, masks: Array, luma: Array, now: Rows, before: Rows) -> Array:
        """Computes patch features (T, rows * columns, patch_dim); arguments as in `_clips`."""
        images = masks.reshape(-1, 48, 64, self.hues)
        shown, change = luma[now], luma[now] - luma[before]
        across = np.diff(shown, axis=2, append=shown[:, :, -1:])
        down = np.diff(shown, axis=1, append=shown[:, -1:])
        angle = np.arctan2(down, across)
        strength = np.hypot(across, down)
        textures = [shown, shown**2, change, np.abs(change)]
        textures += [strength * np.cos(angle - k * math.pi / 4) ** 2 for k in range(4)]
        grid = (self.rows, self.columns)
        colour = _cells(images, *grid)
        texture = _cells(np.stack(textures, -1), *grid)
        texture[..., 1] = np.sqrt(np.maximum(texture[..., 1] - texture[..., 0] ** 2, 0))
        texture[..., 1:] *= 10
        if self.blind in ("colour", "both"):
            colour = np.concatenate((colour.sum(-1, keepdims=True), np.zeros_like(colour[..., 1:])), -1)
        if self.blind in ("form", "both"):
            texture[..., 4:] = 0
        moved = np.abs(colour[now] - colour[before])
        everything = np.concatenate((4 * colour[now], 10 * moved, texture), -1)
        return np.clip(self._mean(everything), -_LIMIT, _LIMIT).astype(np.float32)

    def _mean(self, samples: Array) -> Array:
        """Averages the samples of each clip: (T * samples, …) to (T, …)."""
        return samples.reshape(-1, self.samples, *samples.shape[1:]).mean(1)


def _picture(frame: av.VideoFrame, reformatter: VideoReformatter) -> Picture:
    """Splits luma and chroma planes; converts frames of another size or format first."""
    if (frame.width, frame.height, frame.format.name) != (128, 96, "yuv420p"):
        frame = reformatter.reformat(frame, width=128, height=96, format="yuv420p")
    planes = frame.to_ndarray()
    y = planes[:96].reshape(48, 2, 64, 2).mean((1, 3), dtype=np.float32) / 255
    u, v = planes[96:].reshape(2, 48 * 64).astype(np.uint16) >> 2
    return Picture(y, u << 6 | v)


@cache
def _hue_table(hues: int) -> Array:
    """Returns (4096, hues), the share of each hue in a chroma value; rows sum to 0 (grey) up to 1."""
    u, v = np.meshgrid(np.arange(64) * 4 + 2 - 128, np.arange(64) * 4 + 2 - 128, indexing="ij")
    chroma = np.clip((np.hypot(u, v) - 18) / 30, 0, 1)
    position = np.arctan2(v, u) / (2 * math.pi) * hues
    distance = np.abs((position[..., None] - np.arange(hues) + hues / 2) % hues - hues / 2)
    table: Array = (np.clip(1 - distance, 0, 1) * chroma[..., None]).reshape(4096, hues).astype(np.float32)
    return table


def _moments(masks: Array) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Computes moments of masks (F, 48 * 64, hues); the unit of length is the frame height.

    Returns:
        Mass (F, hues) as a share of the frame; complex centroid (F, hues) relative to the frame centre; RMS
        radius (F, hues); normalised complex moments c_k (F, hues, orders) with moduli clipped to 2; kurtosis
        of the radius (F, hues).
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
