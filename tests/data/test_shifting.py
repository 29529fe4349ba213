import numpy as np
import pytest
import torch

from golden.find import golden_case
from vmr_zoo.data.batches.shifting import TemporalShift
from vmr_zoo.errors import VmrError


def draw(shift, moments, clips, clip_seconds=1.0, duration=None, draws=0.5, mask=None):
    moments = torch.tensor(moments, dtype=torch.float64)
    moments = moments[:, None] if moments.ndim == 2 else moments
    rows = len(moments)
    clips = torch.full((rows,), clips)
    seconds = torch.full((rows,), float(clip_seconds), dtype=torch.float64)
    duration = clips * seconds if duration is None else torch.full((rows,), duration, dtype=torch.float64)
    mask = torch.ones(moments.shape[:2], dtype=torch.bool) if mask is None else torch.tensor(mask)
    draws = torch.as_tensor(draws, dtype=torch.float64).expand(rows)
    return shift.draw(moments, mask, clips, seconds, duration, draws)


def test_released_shift_reproduces_the_golden_case():
    case = np.load(golden_case("bm_detr_a.npz"), allow_pickle=False)
    moment = torch.from_numpy(case["input/windows_sec"][:, 0]).double()
    clips = torch.from_numpy(case["input/src_vid_mask"]).sum(1).long()
    seconds = torch.ones(len(clips), dtype=torch.float64)
    shift = TemporalShift(max_duration=None, spans="released")
    first, last = shift.window(moment, clips, seconds)
    order, moved = shift.move(
        moment,
        first,
        last,
        torch.from_numpy(case["input/shift_start"]),
        clips,
        seconds,
        torch.from_numpy(case["input/duration"]).double(),
    )
    video = torch.from_numpy(case["input/src_vid"])
    shifted = video.gather(1, order[..., None].expand_as(video))
    assert torch.equal(shifted, torch.from_numpy(case["input/shifted_vid"]))

    start, end = (moved / clips[:, None]).unbind(1)
    labels = torch.stack(((start + end) / 2, end - start), 1).float()
    torch.testing.assert_close(labels, torch.from_numpy(case["target/shift.span_labels"]))
    place = torch.arange(order.shape[1])
    inside = (order >= first[:, None]) & (order <= last[:, None]) & (place < clips[:, None])
    assert torch.equal(inside.long(), torch.from_numpy(case["target/shift.match_labels"]))


@pytest.mark.parametrize("spans", ["exact", "released"])
def test_every_place_is_equally_likely_and_the_rest_keeps_its_order(spans):
    shift = TemporalShift(spans=spans)
    grid = (np.arange(70) + 0.5) / 70
    order, moved = draw(shift, [(3.0, 6.0)] * 70, clips=10, draws=torch.from_numpy(grid))
    assert torch.equal(order.sort(1).values, torch.arange(10).expand(70, -1))
    is_moment = (order >= 3) & (order < 6)
    slot = is_moment.int().argmax(1)
    # 7 background clips leave 8 slots: "exact" skips the old one (3), "released" the last (7).
    places = [0, 1, 2, 4, 5, 6, 7] if spans == "exact" else [0, 1, 2, 3, 4, 5, 6]
    assert torch.bincount(slot, minlength=8)[places].tolist() == [10] * 7
    for row in range(70):
        assert order[row][is_moment[row]].tolist() == [3, 4, 5]
        assert order[row][~is_moment[row]].tolist() == [0, 1, 2, 6, 7, 8, 9]
    width = 3 if spans == "exact" else 2
    assert torch.equal(moved[:, 0, 0], slot.double())
    assert torch.equal(moved[:, 0, 1], slot.double() + width)


def test_exact_shift_keeps_the_width_and_the_offset_within_a_clip():
    order, moved = draw(TemporalShift(max_duration=None), [(5.0, 8.6)], clips=12, clip_seconds=2.0, draws=0.0)
    # Clips 2 to 4 (4 s to 10 s) go to the start.
    assert order.tolist() == [[2, 3, 4, 0, 1, 5, 6, 7, 8, 9, 10, 11]]
    torch.testing.assert_close(moved, torch.tensor([[[1.0, 4.6]]], dtype=torch.float64))


def test_padding_is_left_alone():
    shift = TemporalShift()
    order, _ = shift.draw(
        torch.tensor([[[0.0, 2.0]], [[0.0, 2.0]]], dtype=torch.float64),
        torch.ones(2, 1, dtype=torch.bool),
        torch.tensor([4, 6]),
        torch.ones(2, dtype=torch.float64),
        torch.tensor([4.0, 6.0], dtype=torch.float64),
        torch.full((2,), 0.999, dtype=torch.float64),
    )
    assert order.tolist() == [[2, 3, 0, 1, 4, 5], [2, 3, 4, 5, 0, 1]]


@pytest.mark.parametrize(
    ("options", "arguments"),
    [
        ({}, {"moments": [(0.0, 10.0)], "clips": 10}),  # nothing but the moment
        ({}, {"moments": [[(1.0, 2.0), (5.0, 6.0)]], "clips": 10}),  # two moments
        ({}, {"moments": [(1.0, 2.0)], "clips": 60}),  # not shorter than 60 s
        ({}, {"moments": [(12.0, 14.0)], "clips": 10, "duration": 15.0}),  # beyond the last clip
    ],
)
def test_rows_that_cannot_or_must_not_be_shifted_stay_as_they_are(options, arguments):
    order, moved = draw(TemporalShift(**options), draws=0.9, **arguments)
    assert torch.equal(order[0], torch.arange(arguments["clips"]))
    expected = torch.tensor(arguments["moments"], dtype=torch.float64).reshape(moved.shape)
    assert torch.equal(moved, expected)


def test_long_videos_are_shifted_without_a_limit():
    order, _ = draw(TemporalShift(max_duration=None), [(1.0, 2.0)], clips=60, draws=0.9)
    assert not torch.equal(order[0], torch.arange(60))


def test_unknown_spans_are_refused():
    with pytest.raises(VmrError, match="released"):
        TemporalShift(spans="release")
