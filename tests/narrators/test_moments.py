"""Timed captions: the forms that models print, and what is refused instead of guessed."""

from __future__ import annotations

import time

import pytest

from vmr_zoo.narrators.moments import read_moments

SITS, UP = (0.0, 3.2, "A man sits."), (3.2, 8.0, "He stands up.")
JSON = '"start_time": "00:00.00", "end_time": "00:03.20", "description": "A man sits."'


@pytest.mark.parametrize(
    "answer",
    [
        f'```json\n[{{{JSON}}},\n{{"start": "00:03.2", "end": "00:08", "text": "He stands\\nup."}}]\n```',
        'Sure: {"events": [{"start": 0, "end": 3.2, "caption": "A man sits."}, [3.2, 8, "He stands up."]]} .',
        '[{"time": [0, "3.2s"], "text": "A man sits."}, {"Span": "00:03.2 - 8 s", "text": "He stands up."}]',
        "0.0 - 3.2 seconds, A man sits.  3.2 - 8.0 seconds, He stands up. ",
        "The list:\n\n1. **[00:00 - 00:03.2]** A man sits.\n2. **3.2s to 8s**: He stands up.\n\nThat is all.",
        "Events:\n<0.0 - 3.2> A man sits.\n<3.2 - 8.0> He stands\nup.",
        "<0.0><3.2> A man sits. <3.2 seconds><8 seconds> He stands up.",
        "Event 1 (0.0 - 3.2 seconds): A man sits.\nEvent 2 (3.2 - 8 sec): He stands up.",
        "From 0 to 3.2 seconds, A man sits. From 3.2 to 8.0 seconds: He stands up.",
        "1\n00:00:00,000 --> 00:00:03,200\nA man sits.\n\n2\n00:00:03,200 --> 00:00:08,000\nHe stands up.\n",
        "| 00:00 - 00:03.2 | A man sits. |\n| 00:03.2 – 00:08 | He stands up. |",
        "[3.2, 8] He stands up.\n[0.0, 3.2] A man sits.",
    ],
)
def test_the_forms_of_answers(answer: str) -> None:
    moments, left_out = read_moments(answer, 10.0, 1.0)
    assert [(one.start, one.end, one.text) for one in moments] == [SITS, UP]
    assert left_out == 0


@pytest.mark.parametrize(
    "answer",
    [
        "A man sits.",
        "From 00 to 31, a man sits. From 32 to 80, he stands up.",  # hundredths of the video
        "A man sits (0.0 - 3.2 seconds). He stands up (3.2 - 8.0 seconds).",  # times after the texts
        "A man sits.\n[00:00 - 00:03]\nHe stands up.\n[00:03 - 00:08]",
        "The event happens in 0.0 - 3.2 seconds.",
        "3 - 4 people sit, 2-3 of them eat.",
        f'[{{{JSON}}}, {{"start_time": "00:0',  # cut off
        '{"start": true, "end": 3, "text": "A man sits."}',
        '[{"start": NaN, "end": 1e999, "text": "A man sits."}]',
        '[{"start": "soon", "end": "later", "text": "A man sits."}]',
        '[{"start": 0, "end": 3}]',
    ],
)
def test_what_is_not_certain_is_not_guessed(answer: str) -> None:
    assert read_moments(answer, 10.0, 1.0)[0] == []


def test_moments_are_within_their_segment() -> None:
    answer = "\n".join(
        ["[00:05 - 00:02] back", "[00:08 - 00:11] rounded", "[00:08 - 00:12] late", "[00:10 - 00:11] after"]
    )
    moments, left_out = read_moments(answer, 10.0, 1.0)
    assert [(one.start, one.end, one.text) for one in moments] == [(8, 10, "rounded")]
    assert left_out == 3
    assert read_moments('[{"start": -1, "end": 2, "text": "x"}]', 10.0, 1.0) == ([], 1)


def test_hostile_answers_take_no_time() -> None:
    start = time.process_time()
    for answer in (
        "[" * 50_000,
        "1:1:1,1 " * 6_000,
        "1\n" * 25_000,
        "\n" * 15_000 + "1 - 2 s x",
        " " * 50_000 + "1 - 2 s",
        '{"a":' * 10_000,
        f"{'9' * 50_000} - 1 s x",
    ):
        read_moments(answer, 10.0, 1.0)
    assert time.process_time() - start < 3
