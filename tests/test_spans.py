import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from golden.find import golden_case
from naive import naive_nms
from vmr_zoo import spans

# A coarse grid, so that touching, nested, equal and empty spans are common.
points = st.integers(0, 12)
span = st.tuples(points, points).map(sorted)
span_lists = st.lists(span, min_size=1, max_size=6)


def tensor(rows):
    return torch.tensor(rows, dtype=torch.float64)


def cells(a):
    """The unit cells that a span of whole numbers covers."""
    return set(range(a[0], a[1]))


@settings(deadline=None)
@given(span_lists, span_lists)
def test_iou_counts_common_cells(a, b):
    got = spans.iou(spans.pairwise(tensor(a)), tensor(b))
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            union = len(cells(x) | cells(y))
            assert got[i, j].item() == pytest.approx(len(cells(x) & cells(y)) / union if union else 0.0)


@settings(deadline=None)
@given(span, span)
def test_giou_is_iou_less_the_empty_share_of_the_hull(a, b):
    hull = max(a[1], b[1]) - min(a[0], b[0])
    covered = len(cells(a) | cells(b))
    expected = spans.iou(tensor(a), tensor(b)).item() - ((hull - covered) / hull if hull else 0.0)
    assert spans.giou(tensor(a), tensor(b)).item() == pytest.approx(expected)


@pytest.mark.parametrize("function", [spans.iou, spans.giou])
@pytest.mark.parametrize("b", [[0.5, 0.5], [0.2, 0.2], [0.2, 0.8], [0.5, 0.8]])
def test_zero_length_spans_have_finite_values_and_gradients(function, b):
    a = torch.tensor([0.5, 0.5], requires_grad=True)
    value = function(a, torch.tensor(b))
    value.backward()
    assert value.isfinite()
    assert a.grad.isfinite().all()


@settings(deadline=None)
@given(span_lists)
def test_conversions_undo_each_other(rows):
    assert torch.equal(spans.to_start_end(spans.to_centre_width(tensor(rows))), tensor(rows))


scored = st.tuples(span, st.integers(1, 5)).map(lambda pair: [*pair[0], pair[1]])


@settings(deadline=None)
@given(
    st.lists(st.lists(scored, min_size=5, max_size=5), min_size=1, max_size=3),
    st.sampled_from([0.0, 0.5, 0.7, 1.0]),
    st.integers(1, 5),
)
def test_nms_equals_the_greedy_loop(rows, threshold, keep):
    given_ = tensor(rows)
    kept, scores = spans.nms(given_[..., :2], given_[..., 2], threshold, keep)
    assert kept.shape == (len(rows), keep, 2)
    for index, row in enumerate(rows):
        expected = naive_nms(row, threshold)[:keep]
        expected += [[0, 0, 0]] * (keep - len(expected))
        assert torch.cat((kept[index], scores[index, :, None]), 1).tolist() == expected


@pytest.mark.parametrize("case", ["hl", "charades"])
def test_nms_leaves_what_the_released_code_leaves(case):
    golden = json.loads(golden_case("bm_detr_eval.json").read_text())[case]
    rows = tensor([row["pred_relevant_windows"] for row in golden["submission"]])
    kept, scores = spans.nms(rows[..., :2], rows[..., 2], 0.7)
    assert (scores > 0).sum(1).tolist() == golden["nms_0p7_counts"]
    for index, expected in enumerate(golden["nms_0p7_first3"]):
        assert torch.cat((kept[index], scores[index, :, None]), 1)[: len(expected)].tolist() == expected
