from __future__ import annotations

import math

import torch

from vmr_zoo.blocks.clips import WithinOne, clips_inside
from vmr_zoo.blocks.position import append_tef, sine_coordinates, sine_position


def inside(
    moments: list[list[float]],
    duration: float,
    clip: float,
    clips: int,
    padded: int,
    within_one: WithinOne = "own",
) -> list[int]:
    spans = torch.tensor([moments]) / duration
    mask = torch.arange(padded)[None] < clips
    marked = clips_inside(
        spans,
        torch.ones(1, len(moments), dtype=torch.bool),
        torch.tensor([duration]),
        torch.tensor([clip]),
        mask,
        within_one,
    )
    return marked[0].nonzero().flatten().tolist()


def test_clips_of_a_moment() -> None:
    assert inside([[2.9, 7.1]], 13.4, 1, 13, 15) == [2, 3, 4, 5, 6]
    assert inside([[3.3, 6.0]], 8.9, 1, 8, 8) == [3, 4, 5]  # 6.0 comes back from the fraction as 5.9999995
    assert inside([[4.0, 12.0], [18.0, 26.0]], 32, 2, 16, 20) == [2, 3, 4, 5, 9, 10, 11, 12]
    assert inside([[5.2, 5.4]], 10, 1, 10, 10) == [5]  # at least one
    assert inside([[9.9, 10.0]], 10, 1, 9, 12) == [8]  # never on padding
    assert inside([[0.0, 10.0]], 10, 1, 10, 12) == list(range(10))


def test_a_boundary_just_before_a_clip_is_not_rounded_into_it() -> None:
    assert inside([[100.0, 236.9999]], 700, 1, 700, 700)[-1] == 235
    assert inside([[100.0, 237.0]], 700, 1, 700, 700)[-1] == 236


def test_the_released_rule_for_moments_inside_one_clip_and_past_the_end() -> None:
    for within_one, expected in (("own", [5]), ("before", [4])):
        assert inside([[5.2, 5.4]], 10, 1, 10, 10, within_one) == expected
    assert inside([[0.2, 0.4]], 10, 1, 10, 10, "before") == [0]  # there is none before
    assert inside([[2.9, 7.1]], 13.4, 1, 13, 15, "before") == [2, 3, 4, 5, 6]
    for within_one in ("own", "before"):
        assert inside([[12.0, 14.5]], 10, 1, 10, 12, within_one) == [9]
        assert inside([[8.0, 14.5]], 10, 1, 10, 12, within_one) == [8, 9]


def test_tef_follows_the_valid_clips() -> None:
    mask = torch.tensor([[True] * 4, [True, True, False, False]])
    video = append_tef(torch.zeros(2, 4, 3), mask)
    assert video.shape == (2, 4, 5)
    torch.testing.assert_close(
        video[0, :, 3:], torch.tensor([[0, 0.25], [0.25, 0.5], [0.5, 0.75], [0.75, 1]])
    )
    torch.testing.assert_close(video[1, :, 3:], torch.tensor([[0, 0.5], [0.5, 1], [0, 0], [0, 0]]))


def test_sine_position_spans_one_turn() -> None:
    position = sine_position(torch.tensor([[True, True, True, False]]), 4)[0]
    step = 2 * math.pi / 3
    expected = [math.sin(step), math.cos(step), math.sin(step / 100), math.cos(step / 100)]
    torch.testing.assert_close(position[0], torch.tensor(expected), atol=1e-5, rtol=0)
    torch.testing.assert_close(position[2, :2], torch.tensor([0.0, 1.0]), atol=1e-5, rtol=0)


def test_sine_coordinates_gives_each_coordinate_its_share() -> None:
    both = sine_coordinates(torch.tensor([0.2, 0.7]), 8)
    torch.testing.assert_close(both[:4], sine_coordinates(torch.tensor([0.2]), 4))
    torch.testing.assert_close(both[4:], sine_coordinates(torch.tensor([0.7]), 4))
