"""A map of candidate moments: cell (i, j) is the moment from clip i to clip j (2D-TAN, MMN).

Only supported cells, a sparse subset of i <= j, are candidates. What one can skip without changing a number
is skipped: pooling visits supported cells only, and each convolution runs on the bounding box that support
can have reached, the rest of the map being known.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from vmr_zoo.errors import VmrError, unknown
from vmr_zoo.spans import iou, nms, pairwise

NmsUnit = Literal["clips", "seconds"]
LastFrame = Literal["used", "dropped"]


def supported_cells(clips: int, counts: Sequence[int]) -> Tensor:
    """Lists the candidates: all short moments, and the longer the sparser (2D-TAN, section 3.3).

    Offsets j - i come in groups. The first one holds 0 (single clips) and the next `counts[0]` offsets,
    every start. Each later group continues with twice the stride, in the offsets as in the starts.

    Args:
        clips: N.
        counts: offsets in each group.

    Returns:
        (K, 2) int64, first and last clip, both inclusive, row by row of the map.

    Raises:
        VmrError: if there is no group, or an offset does not fit into the map.
    """
    offsets, stride = [(0, 1)], 1
    for group, count in enumerate(counts):
        stride = 2**group
        offsets += [(offsets[-1][0] + stride * step, stride) for step in range(1, count + 1)]
    if not counts or offsets[-1][0] >= clips:
        raise VmrError(
            f"method.diagonals={list(counts)} reaches moments of {offsets[-1][0] + 1} clips, but the map has "
            f"method.clips={clips}. Groups of offsets with strides 1, 2, 4, … have to fit."
        )
    cells = [
        (start, start + offset) for offset, stride in offsets for start in range(0, clips - offset, stride)
    ]
    return torch.tensor(sorted(cells))


def segment_means(frames: Tensor, mask: Tensor, segments: int, last_frame: LastFrame) -> Tensor:
    """Averages each video's frames into the same number of segments.

    Segment i covers frames round(i T / P) to round((i + 1) T / P), and one frame where that is none.

    Args:
        frames: (B, T, D).
        mask: (B, T), True = valid; valid frames come first.
        segments: P.
        last_frame: "used", or "dropped": the released code clamps the edges to the last index, exclusively,
            so that the last frame takes no part unless it is alone in its segment.

    Returns:
        (B, P, D).
    """
    length = mask.sum(1, keepdim=True)
    edges = torch.arange(segments + 1, device=frames.device, dtype=torch.float32) / segments * length
    last = length - 1
    edges = edges.round().long().minimum(length if last_frame == "used" else last)
    start = edges[:, :-1].minimum(last)
    end = edges[:, 1:].maximum(start + 1)
    place = torch.arange(frames.shape[1], device=frames.device)
    inside = (place >= start.unsqueeze(2)) & (place < end.unsqueeze(2))
    weights = inside / (end - start).unsqueeze(2).to(frames.dtype)
    return weights @ frames.masked_fill(~mask.unsqueeze(2), 0.0)


class CandidateCells(nn.Module):
    """The supported cells, and everything about them that depends on no video.

    Attributes:
        clips: N.
        cells: (K, 2) first and last clip, inclusive.
        ends: (K, 2) the same in float32, the last clip exclusive.
        spans: (K, 2) start and end as fractions of the duration.
        flat: (K,) index of each cell into the N x N map, row by row.
    """

    cells: Tensor
    ends: Tensor
    spans: Tensor
    flat: Tensor
    _left: Tensor
    _right: Tensor

    def __init__(self, clips: int, diagonals: Sequence[int]) -> None:
        """Lists the cells; see `supported_cells`."""
        super().__init__()
        self.clips = clips
        cells = supported_cells(clips, diagonals)
        ends = cells + torch.tensor([0, 1])
        level = (ends[:, 1] - ends[:, 0]).float().log2().floor().long()
        self._levels = int(level.max()) + 1
        for name, value in {
            "cells": cells,
            "ends": ends.float(),
            "spans": ends / clips,
            "flat": cells[:, 0] * clips + cells[:, 1],
            # Range maxima: a run of clips is the union of two runs whose length is the same power of two.
            "_left": level * clips + cells[:, 0],
            "_right": level * clips + ends[:, 1] - 2**level,
        }.items():
            self.register_buffer(name, value, persistent=False)

    def __len__(self) -> int:
        """Counts the cells, K."""
        return len(self.cells)

    def pool(self, clips: Tensor) -> Tensor:
        """Takes the element-wise maximum over the clips of each cell.

        Args:
            clips: (B, D, N).

        Returns:
            (B, D, K).
        """
        levels = [clips]
        for level in range(1, self._levels):
            reach = 2 ** (level - 1)
            # Zeros at the right end: those runs would leave the map, and are never read.
            levels.append(torch.maximum(levels[-1], functional.pad(levels[-1][..., reach:], (0, reach))))
        table = torch.cat(levels, -1)
        return torch.maximum(table[..., self._left], table[..., self._right])

    def spread(self, values: Tensor) -> Tensor:
        """Lays (…, K) out as the map (…, N, N), zero where no cell is supported."""
        out = values.new_zeros(*values.shape[:-1], self.clips**2)
        return out.index_copy(-1, self.flat, values).unflatten(-1, (self.clips, self.clips))

    def gather(self, grid: Tensor) -> Tensor:
        """Reads the supported cells of a map: (…, N, N) to (…, K)."""
        return grid.flatten(-2)[..., self.flat]

    def overlap(self, spans: Tensor, mask: Tensor) -> Tensor:
        """Computes the IoU of each cell with the best of a row's moments.

        Args:
            spans: (S, M, 2) fractions of the duration.
            mask: (S, M), True = valid.

        Returns:
            (S, K); zeros for a row without a moment.
        """
        return iou(pairwise(spans), self.spans).masked_fill(~mask.unsqueeze(2), 0.0).amax(1)

    def rank(
        self, scores: Tensor, duration: Tensor, *, threshold: float, answers: int, unit: NmsUnit
    ) -> tuple[Tensor, Tensor]:
        """Ranks the cells of each row with greedy non-maximum suppression.

        Args:
            scores: (S, K), not negative.
            duration: (S,) seconds.
            threshold: IoU above which the worse of two cells goes.
            answers: how many to return.
            unit: "clips" compares whole numbers, exactly. "seconds" (released code) does so after
                multiplying with the duration, whose rounding puts about a quarter of the pairs at a
                threshold of .5 beyond it.

        Returns:
            spans (S, answers, 2) as fractions of the duration and scores (S, answers), best first.
        """
        if unit not in ("clips", "seconds"):
            raise unknown("nms_unit", unit, ("clips", "seconds"))
        ends = self.ends.expand(len(scores), -1, -1)
        scale = torch.full_like(duration, self.clips) if unit == "clips" else duration
        if unit == "seconds":
            ends = ends * duration[:, None, None] / self.clips
        keep = min(answers, len(self))
        picked, kept = nms(ends, scores, threshold, keep, overlap=_iou_of_hull)
        missing = answers - keep
        picked, kept = functional.pad(picked, (0, 0, 0, missing)), functional.pad(kept, (0, missing))
        return (picked / scale[:, None, None]).clamp(0, 1), kept


def _iou_of_hull(a: Tensor, b: Tensor) -> Tensor:
    """IoU with the enclosing span as union, as the released code divides: the same, but for rounding."""
    inter = torch.minimum(a[..., 1], b[..., 1]) - torch.maximum(a[..., 0], b[..., 0])
    hull = torch.maximum(a[..., 1], b[..., 1]) - torch.minimum(a[..., 0], b[..., 0])
    return inter.clamp(min=0) / hull


class MapNorm(nn.BatchNorm2d):
    """Batch normalisation of a map of which only a window is given; around it, `around` is everywhere.

    Equals `BatchNorm2d` on the whole map, statistics included.
    """

    def forward(self, window: Tensor, around: Tensor, side: int) -> Tensor:  # type: ignore[override]
        """Normalises the window.

        Args:
            window: (B, C, n, n).
            around: (C,), the value of every other place of the map.
            side: of the whole map, at least n.

        Returns:
            (B, C, n, n).
        """
        if not self.training or side == window.shape[-1]:
            return super().forward(window)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        x = window.to(self.weight.dtype)
        around = around.to(x.dtype)
        total = x.shape[0] * side**2
        outside = x.shape[0] * (side**2 - x.shape[-1] ** 2)
        mean = (x.sum((0, 2, 3)) + outside * around) / total
        centred = x - mean[:, None, None]
        variance = (centred.square().sum((0, 2, 3)) + outside * (around - mean).square()) / total
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (total / (total - 1)), self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        return centred * scale[:, None, None] + self.bias[:, None, None]


class MapConvolution(nn.Module):
    """Convolutions over the map; each cell is divided by how many supported cells its kernel saw (2D-TAN).

    The first layer pads for all of them, so that the map swells and shrinks back: layer l of L leaves N +
        (k - 1) (L -
    l) places a side. Support spreads by (k - 1) / 2 a layer, and beyond its reach a convolution gives its
    bias, so that only min(N + (k - 1) l, N + (k - 1) (L - l)) places are computed.
    """

    def __init__(self, cells: CandidateCells, in_dim: int, dim: int, kernel: int, layers: int) -> None:
        """Builds the stack.

        Args:
            cells: which cells are supported.
            in_dim: width of the cells.
            dim: width of every layer.
            kernel: k, odd.
            layers: L.

        Raises:
            VmrError: for an even kernel or no layer.
        """
        super().__init__()
        if kernel % 2 == 0 or layers < 1:
            raise VmrError(
                f"Expected method.map_kernel odd and method.map_layers > 0, found {kernel} and {layers}."
            )
        self.convolutions = nn.ModuleList(
            nn.Conv2d(in_dim if layer == 0 else dim, dim, kernel) for layer in range(layers)
        )
        self.norms = nn.ModuleList(MapNorm(dim) for _ in range(layers))
        grow = kernel - 1
        self.sides = [cells.clips + grow * (layers - 1 - layer) for layer in range(layers)]
        windows = [min(cells.clips + grow * (layer + 1), side) for layer, side in enumerate(self.sides)]
        before = [cells.clips, *windows]
        self.paddings = [(n - m + grow) // 2 for m, n in zip(before, windows, strict=False)]

        support = cells.spread(torch.ones(1, 1, len(cells)))
        ones = torch.ones(1, 1, kernel, kernel)
        for layer, padding in enumerate(self.paddings):
            seen = functional.conv2d(support, ones, padding=padding)
            support = (seen > 0).float()
            weights = torch.where(seen > 0, 1 / seen.clamp(min=1), 0.0)[0, 0]
            self.register_buffer(f"weights{layer}", weights, persistent=False)

    def forward(self, grid: Tensor) -> Tensor:
        """Convolves (B, in_dim, N, N), zero where nothing is supported, to (B, dim, N, N)."""
        return self.layers(grid)[-1]

    def layers(self, grid: Tensor) -> list[Tensor]:
        """Returns every layer's output on its window of the map, (B, dim, n, n); outside, it is zero."""
        outputs = []
        for layer, (convolution, norm) in enumerate(zip(self.convolutions, self.norms, strict=True)):
            assert isinstance(convolution, nn.Conv2d)
            assert convolution.bias is not None
            grid = functional.conv2d(grid, convolution.weight, convolution.bias, padding=self.paddings[layer])
            grid = norm(grid, convolution.bias, self.sides[layer]).relu() * self.weights(layer)
            outputs.append(grid)
        return outputs

    def weights(self, layer: int) -> Tensor:
        """Returns one over the number of supported cells that a layer's kernel saw, (n, n), 0 where none."""
        return self.get_buffer(f"weights{layer}")
