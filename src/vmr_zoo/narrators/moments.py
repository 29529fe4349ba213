"""Reads timed captions: answers of a model that state several moments, each with a start, an end and a text.

Models print them in different forms, all of which are read:

    [{"start_time": "00:00.00", "end_time": "00:03.20", "description": "A man sits."}, …]   Qwen-VL
    0.0 - 3.2 seconds, A man sits.  3.2 - 8.0 seconds, He stands up.              TimeChat, VTG-LLM
    <0.0 - 3.2> A man sits.                                                       Marlin
    <0.0><3.2> A man sits.
    [00:00 - 00:03] A man sits.

A number without a unit, brackets or a colon is no time: VTimeLLM's "From 00 to 09" counts hundredths of the
video. An answer whose times cannot be matched with its texts beyond doubt has no moments.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from vmr_zoo.utils.answers import INTERVAL, is_interval, plain_keys, seconds, times_of
from vmr_zoo.utils.text import one_line

_TEXT = ("description", "caption", "text", "event", "sentence", "narration", "content", "label")

_LABEL = re.compile(
    r"(?:^|\n|(?<=[.!?;:])[ \t]+)"
    r"(?:[ \t]*\d{1,4}[ \t]*\n)?"  # the number of a subtitle
    r"[\s>*#|•\-–_\"]{0,9}(?:\d{1,3}[.):][ \t]*)?[*_]{0,3}"
    r"(?:(?:event|scene|moment|segment|clip|step|shot)[ \t]*\d{0,3}[ \t:*\-–]{0,4})?"
    r"(?:from|between|time|timestamp)?[ \t:*|]{0,4}$",
    re.IGNORECASE,
)
"""What may precede a time: the start of a line or the end of a sentence, then a bullet or a number."""
_EMPTY_LINE = re.compile(r"\n\s*\n")


@dataclass(frozen=True, slots=True)
class TimedSentence:
    """A description of a part of a segment.

    Attributes:
        start: seconds after the start of the segment.
        end: seconds after the start of the segment.
        text: one line.
    """

    start: float
    end: float
    text: str


def read_moments(answer: str, length: float, slack: float) -> tuple[list[TimedSentence], int]:
    """Reads the moments of an answer.

    Args:
        answer: what the model printed.
        length: length of the segment that the model saw, in seconds.
        slack: by how many seconds an end may lie after the segment, because the model rounds; it is moved to
            the end of the segment.

    Returns:
        The moments within the segment, in order of time, and the number of those left out, because they have
        no text, end before they start, or lie outside of the segment. No moments at all: the answer could not
        be read.
    """
    found = _read_json(answer) or _read_lines(answer)
    moments = [
        TimedSentence(moment.start, min(moment.end, length), moment.text)
        for moment in found
        if moment is not None
        and 0 <= moment.start <= moment.end <= length + slack
        and moment.start < length
        and moment.text
    ]
    return sorted(moments, key=lambda moment: (moment.start, moment.end)), len(found) - len(moments)


def _read_json(answer: str) -> list[TimedSentence | None]:
    """Reads a JSON list of moments, also within other text; None for an entry that is no moment."""
    begin = re.search(r"[\[{]\s*[\[{\"]", answer)
    if begin is None:
        return []
    try:
        value, _ = json.JSONDecoder().raw_decode(answer, begin.start())
    except (ValueError, RecursionError):
        return []
    if isinstance(value, dict) and len(value) == 1 and isinstance(inner := next(iter(value.values())), list):
        value = inner  # {"events": [...]}
    entries = value if isinstance(value, list) else [value]
    moments = [_from_entry(entry) for entry in entries]
    return moments if any(moments) else []


def _from_entry(entry: Any) -> TimedSentence | None:
    """Reads an object with times and text, or a list [start, end, text]."""
    if isinstance(entry, list) and len(entry) == 3:
        start, end, text = entry
    elif isinstance(entry, dict):
        lower = plain_keys(entry)
        start, end = times_of(lower)
        text = next((lower[key] for key in _TEXT if key in lower), None)
    else:
        return None
    first, last = seconds(start), seconds(end)
    if first is None or last is None or not isinstance(text, str):
        return None
    return TimedSentence(first, last, _clean(text))


def _read_lines(answer: str) -> list[TimedSentence | None]:
    """Reads times in text, each before its description."""
    times = [match for match in INTERVAL.finditer(answer) if is_interval(match)]
    spans, texts, before = [], [], 0
    for match in times:
        gap = answer[before : match.start()]
        label = _LABEL.search(gap)
        if label is None:  # within a sentence: its text may stand before or after it
            return []
        texts.append(gap[: label.start()])
        spans.append((seconds(match["start"]), seconds(match["end"])))
        before = match.end()
    # What stands before the first time introduces the list; an empty line ends a description.
    described = [text.lstrip(" \t\r\n:,.*|_-–—") for text in [*texts[1:], answer[before:]]]
    texts = [_clean(_EMPTY_LINE.split(text)[0]) for text in described]
    if not times or not all(texts):
        return []
    return [
        TimedSentence(start, end, text) if start is not None and end is not None else None
        for (start, end), text in zip(spans, texts, strict=True)
    ]


def _clean(text: str) -> str:
    return one_line(text).strip(" \"'*|_")
