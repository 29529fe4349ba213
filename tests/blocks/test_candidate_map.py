from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional

from vmr_zoo.blocks import candidate_map
from vmr_zoo.blocks.candidate_map import CandidateCells, MapConvolution, segment_means, supported_cells
from vmr_zoo.blocks.tiled_convolution import TiledConvolution, spectral_products
from vmr_zoo.errors import VmrError


@pytest.mark.parametrize(
    ("clips", "diagonals", "count"),
    [(16, [15], 136), (64, [15, 8, 8], 1104), (128, [15, 8, 8, 8], 2548)],
    ids=["charades", "activitynet", "tacos"],
)
def test_candidates_are_as_many_as_published(clips, diagonals, count):
    cells = supported_cells(clips, diagonals)
    assert len(cells.unique(dim=0)) == len(cells) == count
    assert (cells[:, 0] <= cells[:, 1]).all()
    assert cells.max() < clips


def test_diagonals_that_leave_the_map_are_refused():
    with pytest.raises(VmrError, match="moments of 12 clips"):
        supported_cells(11, [7, 2])


@pytest.mark.parametrize(("clips", "diagonals"), [(11, [10]), (16, [7, 4])])
def test_a_cell_holds_the_maximum_over_its_clips(clips, diagonals):
    cells = CandidateCells(clips, diagonals)
    x = torch.randn(2, 3, clips)
    pooled = cells.pool(x)
    for k, (first, last) in enumerate(cells.cells.tolist()):
        assert torch.equal(pooled[..., k], x[..., first : last + 1].amax(-1))
    assert torch.equal(cells.gather(cells.scatter(pooled)), pooled)
    assert cells.scatter(torch.ones(len(cells))).sum() == len(cells)


def whole_map(stack: MapConvolution, grid: torch.Tensor, support: torch.Tensor) -> torch.Tensor:
    """The same stack without any shortcut: every place of every layer, torch's own normalisation."""
    kernel, layers = stack.convolutions[0].kernel_size[0], len(stack.convolutions)
    for i, (convolution, norm) in enumerate(zip(stack.convolutions, stack.norms, strict=True)):
        padding = (kernel - 1) * layers // 2 if i == 0 else 0
        seen = functional.conv2d(support, torch.ones(1, 1, kernel, kernel), padding=padding)
        grid = functional.conv2d(grid, convolution.weight, convolution.bias, padding=padding)
        grid = nn.BatchNorm2d.forward(norm, grid).relu()
        grid = grid * torch.where(seen > 0, 1 / seen.clamp(min=1), 0.0)
        support = (seen > 0).float()
    return grid


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("kernel", "layers", "tiled"),
    [(3, 1, False), (3, 5, False), (5, 4, False), (5, 4, True), (7, 2, True)],
)
def test_skipping_what_is_known_changes_no_number(kernel, layers, tiled, training, monkeypatch):
    torch.manual_seed(0)
    cells = CandidateCells(8, [3, 2])
    stack = MapConvolution(cells, 4, 6, kernel, layers).train(training)
    for norm in stack.norms:
        nn.init.normal_(norm.weight), nn.init.normal_(norm.bias), nn.init.uniform_(norm.running_var, 0.5, 2)
    other = copy.deepcopy(stack)
    grid = cells.scatter(torch.randn(3, 4, len(cells)))
    support = cells.scatter(torch.ones(1, 1, len(cells)))
    computed = []
    convolve = functional.conv2d
    monkeypatch.setattr(
        functional, "conv2d", lambda *a, **k: computed.append(convolve(*a, **k)) or computed[-1]
    )
    if not tiled:
        monkeypatch.setattr(candidate_map, "_is_plain_float32", lambda x: False)
    out = stack(grid)
    monkeypatch.undo()
    expected = whole_map(other, grid, support)
    torch.testing.assert_close(out, expected, atol=2e-5, rtol=1e-5)
    direction = torch.randn_like(out)
    (out * direction).sum().backward()
    (expected * direction).sum().backward()
    for (name, a), b in zip(stack.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(
            a.grad, b.grad, atol=1e-3, rtol=1e-3, msg=lambda m, name=name: f"{name}: {m}"
        )
    for a, b in zip(stack.buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(a, b)
    assert bool(computed) is not tiled
    if layers > 1:  # or nothing was skipped
        places = sum(x.shape[-1] ** 2 for x in computed)
        assert places < sum((8 + (kernel - 1) * (layers - 1 - i)) ** 2 for i in range(layers))


@pytest.mark.parametrize(("kernel", "side", "padding"), [(5, 9, 4), (5, 10, 0), (9, 12, 5)])
def test_a_tiled_convolution_is_as_precise_as_a_direct_one(kernel, side, padding):
    torch.manual_seed(0)
    x = torch.rand(2, 6, side, side) + 3  # a mean that high frequencies must not see
    weight, bias = torch.randn(4, 6, kernel, kernel), torch.randn(4)
    exact = functional.conv2d(x.double(), weight.double(), bias.double(), padding=padding)
    direct = functional.conv2d(x, weight, bias, padding=padding)
    reached = torch.ones(exact.shape[2:], dtype=torch.bool)
    found = TiledConvolution(spectral_products(kernel), kernel, side, padding, reached)(x, weight, bias)
    scale = exact.abs().max()
    assert found.shape == exact.shape
    assert (found - exact).abs().max() / scale < 2e-6
    assert (found - exact).norm() < 10 * (direct - exact).norm()


@pytest.mark.parametrize("length", [3, 7, 40])
@pytest.mark.parametrize("last_frame", ["used", "dropped"])
def test_segments_average_their_frames(length, last_frame):
    frames = torch.randn(1, length + 5, 2)
    mask = torch.arange(length + 5)[None] < length
    means = segment_means(frames, mask, 8, last_frame)[0]
    top = length if last_frame == "used" else length - 1
    edges = [min(round(i * length / 8), top) for i in range(9)]
    for i, (start, end) in enumerate(itertools.pairwise(edges)):
        start = min(start, length - 1)
        expected = frames[0, start : max(end, start + 1)].mean(0)
        torch.testing.assert_close(means[i], expected)


def test_suppression_on_clips_is_exact_where_seconds_round():
    cells = CandidateCells(4, [3])
    scores = torch.full((2, len(cells)), 0.1)
    order = cells.cells.tolist()
    scores[:, order.index([0, 1])] = 0.9
    scores[:, order.index([0, 3])] = 0.8  # IoU with the first is exactly .5, which does not exceed .5
    duration = torch.tensor([8.0, 8.0])
    spans, kept = cells.rank(scores, duration, threshold=0.5, count=12, unit="clips")
    assert spans[0, :2].tolist() == [[0.0, 0.5], [0.0, 1.0]]
    assert kept[0, 1] == pytest.approx(0.8)
    assert kept.shape == (2, 12)
    assert (kept.diff(dim=1) <= 0).all()
    assert torch.equal(*spans)
