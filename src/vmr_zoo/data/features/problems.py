"""What can be wrong with features: the error of one array, and the problem that groups such errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vmr_zoo.errors import VmrError, abbreviate

SAMPLE = 32
"""Videos that a check reads if it does not read all."""


class FeatureError(VmrError):
    """One array cannot be used.

    Attributes:
        kind: "missing", "unreadable", "dimension", "not finite" or "empty".
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong with the features of a protocol.

    Attributes:
        part: the affected part, such as "video slowfast" or "query".
        kind: a `FeatureError` kind, or "length" (the number of clips contradicts duration and clip length,
            or another source).
        ids: all affected ids; video ids, or query ids for the part "query".
        detail: one of the underlying messages in full, with the file.
        fatal: whether training would fail.
    """

    part: str
    kind: str
    ids: tuple[str, ...]
    detail: str
    fatal: bool = True

    def __str__(self) -> str:
        count = f"{len(self.ids)} id{'s' * (len(self.ids) != 1)}"
        return f"{self.part}: {self.kind} for {count}: {abbreviate(self.ids)}. {self.detail}"


def sample(ids: Sequence[str]) -> Sequence[str]:
    """Returns at most `SAMPLE` ids at equal intervals."""
    return ids[:: max(1, -(-len(ids) // SAMPLE))]


def lengths_differ(found: float, expected: float) -> bool:
    """Returns whether a number of clips is off by more than two clips and more than 10 %."""
    return abs(found - expected) > max(2.0, 0.1 * expected)


def length_problem(details: Mapping[str, str], checked: int, advice: str) -> list[Problem]:
    """Groups videos with a wrong number of clips; fatal if most are: then the clips have another length.

    Args:
        details: what is wrong, a sentence by video id.
        checked: number of videos that were looked at.
        advice: what to do if most are wrong.

    Returns:
        One problem; none without details.
    """
    if not details:
        return []
    detail = next(iter(details.values()))
    systematic = len(details) > checked / 2
    if systematic:
        detail += f" Most videos differ: {advice}"
    return [Problem("video", "length", tuple(details), detail, fatal=systematic)]
