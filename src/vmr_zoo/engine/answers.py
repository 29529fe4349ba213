"""Reads the moments that a language model answers with: free text, or JSON within text.

    The event happens in 3.2 - 7.1 seconds.      from 3.2 to 7 seconds       between 00:12 and 00:20
    3.2s-7.1s, and again 9s-12s                  [3.2, 7.1]                  <3.2><7.1>
    starts at 00:00:12 and ends at 00:00:20      1 min 5 s to 1 min 20 s     {"start": 3.2, "end": 7.1}

Reads no number that is not meant as a time: per cent, frame numbers, "2-3 people" beside a time with a unit.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from vmr_zoo.utils.answers import CLOCK, DASH, plain_keys, seconds, times_of, without_thoughts

Span = tuple[float, float]

LONGEST_ANSWER = 50_000
"""Characters of an answer that are read, the last ones: a model concludes at the end."""

MOST_SPANS = 100
"""Moments of an answer that are read; metrics use the first ten."""

_FACTORS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}

_NUMBER = r"\d{1,6}(?:\.\d{1,6})?"
_UNIT = r"milliseconds?|ms|seconds?|secs?|s|minutes?|mins?|m|hours?|hrs?|h"
_COMPOUND = (
    r"(?:\d{1,3}\s?(?:hours?|hrs?|h)[\s,]{0,2})?\d{1,4}\s?(?:minutes?|mins?|m)[\s,]{0,2}(?:and\s)?"
    r"\d{1,2}(?:\.\d{1,6})?\s?(?:seconds?|secs?|s)\b"
)
_AMOUNT = rf"(?:{_COMPOUND}|{CLOCK}|{_NUMBER})"
_OTHER = r"\s?(?:%|per\s?cent|frames?\b|clips?\b|fps\b|hundredths?\b)|[\d:]|[.,]\d"
"""What follows a number that is no time."""
_BEFORE = r"(?<![\w.:\-−])(?<!\d,)"
"""Precedes a number that is whole and not negative."""


def _timed(name: str) -> str:
    """Returns the pattern of a time with its unit, as groups NAME and NAME_unit."""
    return rf"(?P<{name}>{_AMOUNT})(?:[\s-]?(?P<{name}_unit>{_UNIT})\b(?:\smark\b)?)?(?!{_OTHER})"


_END = rf"(?:the\s|seconds?\s|at\s){{0,2}}{_timed('end')}(?![-–]\d)"  # a third number: a date
_BETWEEN = re.compile(
    rf"(?P<open>[\[(<]\s?)?{_BEFORE}{_timed('start')}"
    rf"(?P<between>\s?>?\s?(?:{DASH}|until\b|till?\b|through\b|and\b|,|><|>\s<)\s?<?\s?)"
    rf"{_END}(?:\s?(?P<close>[\])>]))?",
    re.IGNORECASE,
)
_NAMED = re.compile(
    rf"\b(?:start|begin)[a-z_]{{0,10}}\b[^\d\n]{{0,40}}?{_BEFORE}{_timed('start')}"
    rf"[^\d]{{0,80}}?\b(?:end|stop|finish|conclud)[a-z_]{{0,10}}\b[^\d\n]{{0,40}}?{_BEFORE}{_timed('end')}",
    re.IGNORECASE,
)
_ALONE = re.compile(rf"\W{{0,9}}{_timed('start')}\s?[,;\s]\s?{_timed('end')}\W{{0,9}}", re.IGNORECASE)
_ANSWER_TAG = re.compile(r"<answer>(.*?)(?:</answer>|\Z)", re.IGNORECASE | re.DOTALL)
_CLOSING = {"[": "]", "(": ")", "<": ">"}
_MOST_BRACKETS = 200


def read_spans(answer: str) -> list[Span]:
    """Reads the moments that an answer states.

    Of an answer with `<answer>` tags only the content of the last one counts, and nothing that a reasoning
    model prints before its answer.

    Args:
        answer: what the model printed.

    Returns:
        (start, end) in seconds in the order of the answer, without repetitions; a moment that ends before it
        starts is left out. Empty: the answer states no moment.
    """
    text = without_thoughts(answer[-LONGEST_ANSWER:])
    if tagged := _ANSWER_TAG.findall(text):
        text = tagged[-1]
    for read in (_from_json, _from_text):
        found = [(start, end) for start, end in read(text) if 0 <= start <= end]
        if found:
            return list(dict.fromkeys(found))[:MOST_SPANS]
    return []


def spans_in(value: Any) -> list[Span]:
    """Returns the moments in a JSON value: two times, an object with start and end, or a list of them."""
    if isinstance(value, dict):
        start, end = times_of(plain_keys(value))
        if start is not None and end is not None:
            return [(start, end)]
        inner = [one for one in value.values() if isinstance(one, list)]
        return spans_in(inner[0]) if len(inner) == 1 else []
    if not isinstance(value, list):
        return []
    if len(value) == 2:
        start, end = map(seconds, value)
        if start is not None and end is not None:
            return [(start, end)]
    return [span for one in value[:MOST_SPANS] for span in spans_in(one)]


def _from_json(text: str) -> list[Span]:
    """Reads the JSON values within a text."""
    decode = json.JSONDecoder().raw_decode
    found: list[Span] = []
    end = 0
    for bracket in list(re.finditer(r"[\[{]", text))[:_MOST_BRACKETS]:
        if bracket.start() >= end:
            try:
                value, end = decode(text, bracket.start())
            except (ValueError, RecursionError):
                continue
            found += spans_in(value)
    return found


def _from_text(text: str) -> list[Span]:
    """Reads times in text: those that are surely times if there are any, else pairs of bare numbers."""
    pairs = list(_BETWEEN.finditer(text))
    readings: tuple[Callable[[], list[re.Match[str]]], ...] = (
        lambda: [pair for pair in pairs if _is_certain(pair)],
        lambda: list(_NAMED.finditer(text)),
        lambda: [pair for pair in pairs if _joins(pair)],
        lambda: [match for match in (_ALONE.fullmatch(text.strip()),) if match],
    )
    return next((list(map(_span, found)) for reading in readings if (found := reading())), [])


def _is_certain(pair: re.Match[str]) -> bool:
    """Whether two numbers are surely times: in brackets, with a unit, or written as clock times."""
    opened, closed = (pair["open"] or "").strip(), pair["close"] or ""
    bracketed = bool(opened) and _CLOSING[opened] == closed
    if "," in pair["between"]:
        return bracketed
    timed = bool(pair["end_unit"] or pair["start_unit"]) or all(
        not re.fullmatch(_NUMBER, pair[name]) for name in ("start", "end")
    )
    return (bracketed or timed) and _joins(pair)


def _joins(pair: re.Match[str]) -> bool:
    """Whether the word between two numbers makes them an interval: "and" does after "between" alone."""
    word = pair["between"].strip(" <>").lower()
    if word == "and":
        return bool(
            re.search(r"\b(?:between|from)\W{1,3}$", pair.string[: pair.start()][-20:], re.IGNORECASE)
        )
    return word != ","


def _span(match: re.Match[str]) -> Span:
    """Returns start and end in seconds; a unit that only one of them has is that of both."""
    first, last = match["start_unit"], match["end_unit"]
    return _in_seconds(match["start"], first or last), _in_seconds(match["end"], last or first)


def _in_seconds(amount: str, unit: str | None) -> float:
    text = amount.lower()
    if re.search("[a-z]", text):  # 1 min 5 s
        parts = re.findall(r"([\d.]+)\s?([hms])", text)
        return sum(float(number) * _FACTORS[letter] for number, letter in parts)
    value = seconds(amount)
    assert value is not None, amount
    if unit is None or ":" in amount:
        return value
    return value * _FACTORS["ms" if unit.lower().startswith(("ms", "milli")) else unit[0].lower()]
