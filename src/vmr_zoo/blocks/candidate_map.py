"""2D map of candidate moments: cell (i, j) is the moment from clip i to clip j (2D-TAN, MMN).

Only the supported cells, a sparse subset of i <= j, are candidates. Pooling visits the supported cells only.
Each convolution computes only the bounding box that the support can have reached; the values outside are
known. Both shortcuts are exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from vmr_zoo.blocks.tiled_convolution import TiledConvolution, spectral_products
from vmr_zoo.errors import VmrError
from vmr_zoo.spans import iou, nms, pairwise
from vmr_zoo.utils.switches import check_switches

NmsUnit = Literal["clips", "seconds"]
LastFrame = Literal["used", "dropped"]


@check_switches
@dataclass(frozen=True)
class CandidateMap:
    """Sizes of the candidate map; a method builds its parts here.

    Attributes:
        segments: P, a multiple of `clips`; the frames of every video are averaged into P segments.
        clips: N, side of the map.
        diagonals: which cells are candidates, as the number of offsets in each group (`supported_cells`).
        dim: H, width of the pointwise linear layer before the clips are pooled; None omits the layer and
            its ReLU.
        map_dim: Hm, width of the convolutions over the map.
        kernel: their kernel size, odd.
        layers: number of convolutions.
        joint_dim: J, width of the two spaces in which moments and sentences are compared.
        last_frame: "used", or "dropped": the released code clamps the segment edges to the last index and
            excludes it, so the last frame counts only if its segment holds no other frame.
    """

    segments: int
    clips: int
    diagonals: Sequence[int]
    dim: int | None
    map_dim: int
    kernel: int
    layers: int
    joint_dim: int
    last_frame: LastFrame

    def __post_init__(self) -> None:
        """Checks that segments divide into clips.

        Raises:
            VmrError: if they do not.
        """
        if self.segments % self.clips:
            raise VmrError(
                "Expected method.network.segments to be a multiple of method.network.clips, "
                f"found {self.segments} and {self.clips}."
            )

    def cells(self) -> CandidateCells:
        """Builds the supported cells."""
        return CandidateCells(self.clips, self.diagonals)

    def clip_projection(self, video_dim: int) -> nn.Conv1d | None:
        """Builds the pointwise linear layer; None if `dim` is None."""
        return None if self.dim is None else nn.Conv1d(video_dim, self.dim, 1)

    def convolution(self, cells: CandidateCells, video_dim: int) -> MapConvolution:
        """Builds the convolutions over the map."""
        return MapConvolution(cells, self.dim or video_dim, self.map_dim, self.kernel, self.layers)

    def moment_head(self) -> nn.Conv2d:
        """Builds the projection of the cells into a joint space."""
        return nn.Conv2d(self.map_dim, self.joint_dim, 1)

    def segment_means(self, frames: Tensor, mask: Tensor) -> Tensor:
        """Averages the frames (B, T, D) of each video into P segments, (B, P, D)."""
        return segment_means(frames, mask, self.segments, self.last_frame)


def supported_cells(clips: int, counts: Sequence[int]) -> Tensor:
    """Lists the candidates: dense for short moments, sparser for longer ones (2D-TAN, section 3.3).

    Offsets j - i come in groups. The first group holds offset 0 (single clips) and the next `counts[0]`
    offsets, with every start. Each later group doubles the stride of both offsets and starts.

    Args:
        clips: N.
        counts: offsets in each group.

    Returns:
        (K, 2) int64, first and last clip, both inclusive, in row-major order of the map.

    Raises:
        VmrError: if there is no group, or an offset exceeds the map.
    """
    offsets, stride = [(0, 1)], 1
    for group, count in enumerate(counts):
        stride = 2**group
        offsets += [(offsets[-1][0] + stride * step, stride) for step in range(1, count + 1)]
    if not counts or offsets[-1][0] >= clips:
        raise VmrError(
            f"method.network.diagonals={list(counts)} reaches moments of {offsets[-1][0] + 1} clips, "
            f"but the map has method.network.clips={clips}. Reduce the offsets; their strides are 1, "
            "2, 4, …"
        )
    cells = [
        (start, start + offset) for offset, stride in offsets for start in range(0, clips - offset, stride)
    ]
    return torch.tensor(sorted(cells))


def segment_means(frames: Tensor, mask: Tensor, segments: int, last_frame: LastFrame) -> Tensor:
    """Averages the frames of each video into the same number of segments.

    Segment i covers frames round(i T / P) to round((i + 1) T / P) exclusive, and at least one frame.

    Args:
        frames: (B, T, D).
        mask: (B, T), True = valid; valid frames come first.
        segments: P.
        last_frame: whether the last frame counts.

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
    """The supported cells and their constants, which do not depend on the video.

    Attributes:
        clips: N.
        cells: (K, 2) first and last clip, inclusive.
        ends: (K, 2) float32, first clip and the clip after the last.
        spans: (K, 2) start and end as fractions of the duration.
        flat: (K,) index of each cell in the flattened N x N map.
    """

    cells: Tensor
    ends: Tensor
    spans: Tensor
    flat: Tensor
    _left: Tensor
    _right: Tensor

    def __init__(self, clips: int, diagonals: Sequence[int]) -> None:
        """Lists the cells of `supported_cells`."""
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
            # Sparse table of range maxima: a cell is the union of two runs of the same power-of-two length.
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
            # The zeros at the right end belong to runs beyond the map, which are never read.
            levels.append(torch.maximum(levels[-1], functional.pad(levels[-1][..., reach:], (0, reach))))
        table = torch.cat(levels, -1)
        return torch.maximum(table[..., self._left], table[..., self._right])

    def scatter(self, values: Tensor) -> Tensor:
        """Writes (…, K) into the map (…, N, N); unsupported cells are zero."""
        out = values.new_zeros(*values.shape[:-1], self.clips**2)
        return out.index_copy(-1, self.flat, values).unflatten(-1, (self.clips, self.clips))

    def gather(self, grid: Tensor) -> Tensor:
        """Reads the supported cells of a map: (…, N, N) to (…, K)."""
        return grid.flatten(-2)[..., self.flat]

    def overlap(self, spans: Tensor, mask: Tensor) -> Tensor:
        """Computes the largest IoU of each cell with any ground-truth moment of the row.

        Args:
            spans: (S, M, 2) fractions of the duration.
            mask: (S, M), True = valid.

        Returns:
            (S, K); zeros for a row without a moment.
        """
        return iou(pairwise(spans), self.spans).masked_fill(~mask.unsqueeze(2), 0.0).amax(1)

    def rank(
        self, scores: Tensor, duration: Tensor, *, threshold: float, count: int, unit: NmsUnit
    ) -> tuple[Tensor, Tensor]:
        """Ranks the cells of each row with greedy non-maximum suppression.

        Args:
            scores: (S, K), not negative.
            duration: (S,) seconds.
            threshold: IoU above which the cell with the lower score is removed.
            count: number of moments to return.
            unit: "clips" computes IoUs exactly, from integers. "seconds" (released code) first multiplies by
                the duration; rounding then lifts about a quarter of the pairs with an IoU of exactly .5 above
                the threshold.

        Returns:
            spans (S, count, 2) as fractions of the duration and scores (S, count), best first.
        """
        ends = self.ends.expand(len(scores), -1, -1)
        scale = torch.full_like(duration, self.clips) if unit == "clips" else duration
        if unit == "seconds":
            ends = ends * duration[:, None, None] / self.clips
        keep = min(count, len(self))
        picked, kept = nms(ends, scores, threshold, keep, overlap=_iou_of_hull)
        missing = count - keep
        picked, kept = functional.pad(picked, (0, 0, 0, missing)), functional.pad(kept, (0, missing))
        return (picked / scale[:, None, None]).clamp(0, 1), kept


def _iou_of_hull(a: Tensor, b: Tensor) -> Tensor:
    """Divides by the enclosing span, as the released code does; differs from `iou` in rounding only."""
    inter = torch.minimum(a[..., 1], b[..., 1]) - torch.maximum(a[..., 0], b[..., 0])
    hull = torch.maximum(a[..., 1], b[..., 1]) - torch.minimum(a[..., 0], b[..., 0])
    return inter.clamp(min=0) / hull


class MapNorm(nn.BatchNorm2d):
    """Batch normalisation of a window of a map whose remaining cells all hold one value per channel.

    Equals `BatchNorm2d` on the whole map, including its running statistics.
    """

    def forward(self, window: Tensor, around: Tensor, side: int) -> Tensor:  # type: ignore[override]
        """Normalises the window.

        Args:
            window: (B, C, n, n).
            around: (C,), value of every cell outside the window.
            side: side of the whole map, at least n.

        Returns:
            (B, C, n, n).
        """
        # With the channels last, torch's own kernel adds up the cells one by one and loses three digits.
        if not self.training or (side == window.shape[-1] and window.stride(1) != 1):
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
    """Convolutions over the map; each divides by the number of supported cells in its kernel (2D-TAN).

    The first layer pads for all layers, so the map grows and then shrinks back: after layer l of L, its side
    is N + (k - 1) (L - l). Support grows by (k - 1) / 2 cells per layer in each direction, and a convolution
    outside its reach returns the bias. Only min(N + (k - 1) l, N + (k - 1) (L - l)) cells per side are
    computed.
    """

    def __init__(self, cells: CandidateCells, in_dim: int, dim: int, kernel: int, layers: int) -> None:
        """Builds the stack.

        Args:
            cells: the supported cells.
            in_dim: width of the input.
            dim: width of every layer.
            kernel: k, odd.
            layers: L.

        Raises:
            VmrError: for an even kernel or no layer.
        """
        super().__init__()
        if kernel % 2 == 0 or layers < 1:
            raise VmrError(
                "Expected method.network.kernel to be odd and method.network.layers to be at "
                f"least 1, found {kernel} and {layers}."
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

        support = cells.scatter(torch.ones(1, 1, len(cells)))
        ones = torch.ones(1, 1, kernel, kernel)
        # With a 3 x 3 kernel the transforms cost more than they save.
        products = spectral_products(kernel) if kernel > 3 else None
        self.tiled = nn.ModuleList()
        for layer, padding in enumerate(self.paddings):
            seen = functional.conv2d(support, ones, padding=padding)
            support = (seen > 0).to(seen.dtype)
            weights = torch.where(seen > 0, 1 / seen.clamp(min=1), 0.0)[0, 0]
            self.register_buffer(f"weights{layer}", weights, persistent=False)
            if products is not None:
                side = before[layer]
                self.tiled.append(TiledConvolution(products, kernel, side, padding, seen[0, 0] > 0))

    def forward(self, grid: Tensor) -> Tensor:
        """Convolves (B, in_dim, N, N), zero in unsupported cells, to (B, dim, N, N)."""
        return self.layers(grid)[-1]

    def layers(self, grid: Tensor) -> list[Tensor]:
        """Returns the output of every layer within its window, (B, dim, n, n); it is zero outside."""
        outputs = []
        tiled = bool(self.tiled) and _is_plain_float32(grid)
        for layer, (convolution, norm) in enumerate(zip(self.convolutions, self.norms, strict=True)):
            assert isinstance(convolution, nn.Conv2d)
            assert convolution.bias is not None
            weight, bias = convolution.weight, convolution.bias
            if tiled:
                grid = self.tiled[layer](grid, weight, bias)
            else:
                grid = functional.conv2d(grid, weight, bias, padding=self.paddings[layer])
            grid = norm(grid, bias, self.sides[layer]).relu() * self.weights(layer)
            outputs.append(grid)
        return outputs

    def weights(self, layer: int) -> Tensor:
        """Returns 1 / (supported cells in the kernel) of a layer, (n, n); 0 where there are none."""
        return self.get_buffer(f"weights{layer}")


def _is_plain_float32(x: Tensor) -> bool:
    """Returns whether x is computed on the CPU in float32: sums over frequencies need its precision."""
    return x.device.type == "cpu" and x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
