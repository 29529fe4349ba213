"""Times as language models print them, and what surrounds an answer. Shared by narrators and by `vmr score`.

A time is a number of seconds, with or without a unit, or a clock time: "3.2", "3.2 s", "01:23.4", "1:02:03".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

START = ("start", "start_time", "start_timestamp", "begin", "from")
END = ("end", "end_time", "end_timestamp", "stop", "to")
SPAN = ("timestamp", "timestamps", "time", "time_range", "interval", "span", "segment")
"""Keys of the times of an object, the first that occurs counts."""

CLOCK = r"\d{1,3}:\d{1,2}(?::\d{1,2})?(?:[.,]\d{1,3})?"
TIME = rf"(?:{CLOCK}|\d{{1,6}}(?:\.\d{{1,6}})?)"
UNIT = r"(?:\s?s(?:ec(?:ond)?s?)?\b)"
DASH = r"(?:-->|->|[-–—~]|to\b)"
INTERVAL = re.compile(
    rf"(?:(?P<open>[\[(<])\s?)?(?<![\d.,:])(?P<start>{TIME}){UNIT}?\s?"
    rf"(?P<between>>\s?{DASH}?\s?<|{DASH}|,)\s?"
    rf"(?P<end>{TIME})(?P<unit>{UNIT}?)\s?(?P<close>[\])>]?)",
    re.IGNORECASE,
)
"""Two times in text. Whether they are meant as times, `is_interval` decides."""

_PAIRS = {"[": "]", "(": ")", "<": ">"}


def is_interval(match: re.Match[str]) -> bool:
    """Returns whether two numbers are times: in brackets, with a unit, or written as clock times.

    Args:
        match: of `INTERVAL`.
    """
    bracketed = bool(match["open"]) and _PAIRS[match["open"]] == match["close"]
    if "<" in match["between"]:
        return bracketed and match["open"] == "<"
    if match["between"] == ",":
        return bracketed
    return bracketed or bool(match["unit"]) or (":" in match["start"] and ":" in match["end"])


def seconds(value: Any) -> float | None:
    """Returns a time in seconds; None: it is no time.

    >>> [seconds(one) for one in (3, "3.2", "3.2 s", "01:23.4", "1:02:03", "soon", True)]
    [3.0, 3.2, 3.2, 83.4, 3723.0, None, None]
    """
    if isinstance(value, str):
        text = re.sub(rf"{UNIT}$", "", value.strip(), flags=re.IGNORECASE)
        if not re.fullmatch(TIME, text):
            return None
        total = 0.0
        for field in text.replace(",", ".").split(":"):
            total = 60 * total + float(field)
        return total
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9:
        return float(value)
    return None


def times_of(entry: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """Returns start and end of an object such as {"start_time": "00:03", "end_time": 7.1}; None: no time."""
    start, end, span = (
        next((entry[key] for key in keys if key in entry), None) for keys in (START, END, SPAN)
    )
    if start is None and isinstance(span, list) and len(span) == 2:
        start, end = span
    elif start is None and isinstance(span, str) and (match := INTERVAL.fullmatch(f"[{span.strip()}]")):
        start, end = match["start"], match["end"]
    return seconds(start), seconds(end)


def plain_keys(entry: Mapping[Any, Any]) -> dict[str, Any]:
    """Returns an object with its keys in lower case and with underscores."""
    return {str(key).lower().replace(" ", "_"): value for key, value in entry.items()}


def without_thoughts(answer: str) -> str:
    """Removes what a reasoning model prints before its answer; "" if it was cut off before the answer."""
    _, mark, after = answer.rpartition("</think>")
    return after if mark else "" if answer.lstrip().startswith("<think>") else answer
