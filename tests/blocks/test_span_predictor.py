from __future__ import annotations

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from vmr_zoo.blocks.attention_unit import SpanNetwork, running_maxima
from vmr_zoo.blocks.span_predictor import (
    BidirectionalLSTM,
    ProposalBranch,
    SpanRanking,
    block_maxima,
    neighbours_of,
)
from vmr_zoo.errors import VmrError
from vmr_zoo.spans import iou

MASK = torch.arange(9) < torch.tensor([[9], [4], [1]])


def test_the_lstm_equals_a_packed_one():
    torch.manual_seed(0)
    ours, theirs = BidirectionalLSTM(6), torch.nn.LSTM(6, 6, batch_first=True, bidirectional=True)
    ours.forth.load_state_dict({k: v for k, v in theirs.state_dict().items() if "reverse" not in k})
    ours.back.load_state_dict(
        {k.removesuffix("_reverse"): v for k, v in theirs.state_dict().items() if "reverse" in k}
    )
    x = torch.randn(3, 9, 6)
    packed = pack_padded_sequence(x, MASK.sum(1), batch_first=True, enforce_sorted=False)
    expected, _ = pad_packed_sequence(theirs(packed)[0], batch_first=True, total_length=9)
    torch.testing.assert_close(ours(x, MASK), expected)


def test_spans_are_ranked_as_by_a_plain_loop():
    torch.manual_seed(1)
    start, end = torch.rand(3, 9) * MASK, torch.rand(3, 9) * MASK
    spans, scores = SpanRanking(answers=6, nms_iou=0.5)(start, end, MASK)
    for index in range(3):
        length = int(MASK[index].sum())
        cells = [
            (float(start[index, s] * end[index, e]), s, e + 1)
            for s in range(length)
            for e in range(s, length)
        ]
        kept: list[tuple[float, int, int]] = []
        for cell in sorted(cells, reverse=True):
            if all(iou(torch.tensor(cell[1:]).float(), torch.tensor(k[1:]).float()) <= 0.5 for k in kept):
                kept.append(cell)
        kept = (kept + [(0.0, 0, 0)] * 6)[:6]
        expected = torch.tensor(kept)
        torch.testing.assert_close(scores[index], expected[:, 0])
        torch.testing.assert_close(spans[index], expected[:, 1:] / length)


@pytest.mark.parametrize("maxima", ["inclusive", "strict"])
def test_guides_are_maxima_over_each_side(maxima):
    torch.manual_seed(2)
    states = torch.randn(3, 9, 5)
    left, right = running_maxima(states, MASK, maxima)
    here = 1 if maxima == "inclusive" else 0
    for row, length in enumerate(MASK.sum(1).tolist()):
        for t in range(9):
            before = states[row, : t + here]
            after = states[row, t + 1 - here : length]
            if t >= length:
                before = after = states[row, :0]
            for got, part in ((left[row, t], before), (right[row, t], after)):
                assert torch.equal(got, part.max(0).values if len(part) else torch.zeros(5))


def test_blocks_ignore_padding_unless_it_counts():
    x = torch.full((1, 9, 1), -2.0)
    x[0, 4:] = 5.0
    assert block_maxima(x, MASK[1:2], 4, None).flatten().tolist() == [-2.0, 0.0, 0.0]
    assert block_maxima(x, None, 4, -1e-30).flatten().tolist() == [-2.0, 5.0, 5.0]
    assert block_maxima(x[:, :5] * 0 - 2, None, 4, -1e-30).flatten().tolist() == pytest.approx([-2.0, 0.0])


def network(unit: str, scale: str = "head") -> SpanNetwork:
    return SpanNetwork(
        dim=8,
        heads=2,
        attention_scale=scale,
        dropout=0.0,
        unit=unit,
        order="sequential",
        final_self_attention=False,
        guide_placement=None,
        similarity="bilinear",
        unknown_word="given",
    )


@pytest.mark.parametrize(("scale", "width"), [("head", 4), ("model", 8)])
def test_equation_6_is_what_the_unit_computes(scale, width):
    torch.manual_seed(3)
    unit = network("equation_6", scale).attention_unit()
    target, reference = torch.randn(2, 3, 8), torch.randn(2, 5, 8)
    a = unit.attention
    q, k, v = (
        x.unflatten(2, (2, 4)).transpose(1, 2)
        for x in (a.query(target), a.key(reference), a.value(reference))
    )
    context = ((q @ k.transpose(2, 3) / width**0.5).softmax(-1) @ v).transpose(1, 2).flatten(2)
    expected = unit.norm(unit.output(target + context))
    torch.testing.assert_close(unit(target, reference, torch.ones(2, 5, dtype=torch.bool)), expected)
    with pytest.raises(VmrError, match="Did you mean equation_6"):
        network("equation6")


def test_neighbouring_proposals_are_mixed_as_by_a_convolution_of_the_grid():
    torch.manual_seed(4)
    count = 5
    branch = ProposalBranch(network("equation_6"), block=2, block_padding="masked")
    first, last = torch.triu_indices(count, count)
    present = (last < torch.tensor([[5], [3]])).float().unsqueeze(-1)
    x = torch.randn(2, len(first), 8) * present
    grid, existing = torch.zeros(2, 8, count, count), torch.zeros(2, 1, count, count)
    grid[:, :, first, last], existing[:, :, first, last] = x.mT, present.mT
    number = torch.nn.functional.conv2d(existing, torch.ones(1, 1, 3, 3), padding=1).clamp(min=1)
    expected = (branch.neighbours(grid).relu() / number)[:, :, first, last].mT
    mixed = branch._mix_neighbours(x, present, neighbours_of(first, last, count))
    torch.testing.assert_close(mixed, expected)
