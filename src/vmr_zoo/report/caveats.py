"""Marks on rows whose numbers need a caveat: which there are, and which rows have them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from vmr_zoo.data.annotations.records import selecting_split
from vmr_zoo.report.leaderboard import LEADING_METRIC, Leaderboard, LeaderboardRow
from vmr_zoo.report.runs import Run
from vmr_zoo.report.sentence_probe import LEAST_LOSS, probe_row


class Caveat(NamedTuple):
    """One kind of mark.

    Attributes:
        key: its column in CSV.
        sign: what stands after the name of a row.
        text: its explanation.
    """

    key: str
    sign: str
    text: str


RISING = Caveat("still_rising", "†", "still improving when training ended")
BLIND = Caveat(
    "ignores_sentence",
    "‡",
    f"loses less than {LEAST_LOSS:g} points of {LEADING_METRIC} with sentences about other videos",
)
UNSELECTED = Caveat("not_validated", "§", "no validation chose the weights")
DEBUG = Caveat("debugging", "¶", "debugging run on a part of the data, not a result")
CAVEATS = (RISING, BLIND, UNSELECTED, DEBUG)


def mark_caveats(boards: Iterable[Leaderboard]) -> None:
    """Sets the caveats of every row, in place."""
    for board in boards:
        for row in board.rows:
            row.caveats = find_caveats(row.runs)


def find_caveats(runs: Sequence[Run]) -> dict[str, bool]:
    """Returns which caveats the runs of one row have.

    Args:
        runs: one for each seed.

    Returns:
        True or False by key of `CAVEATS`; a key is absent if nobody measured it. One seed suffices for True.
    """
    found = {}
    plateaus = [run.header["plateau"] for run in runs if run.header.get("plateau") is not None]
    if plateaus:
        found[RISING.key] = not all(plateaus)
    probe = probe_row(runs)
    if probe is not None:
        found[BLIND.key] = not probe.reads_sentence
    found[UNSELECTED.key] = not all(selecting_split(str(run.header["selection"])) for run in runs)
    found[DEBUG.key] = any(bool(run.header.get("debug")) for run in runs)
    return found


def caveats_of(runs: Sequence[Run]) -> list[Caveat]:
    """Returns the kinds of marks that the runs of one row have."""
    found = find_caveats(runs)
    return [caveat for caveat in CAVEATS if found.get(caveat.key)]


def signs_of(runs: Sequence[Run]) -> str:
    """Returns the marks that the runs of one row have, for a table that is no leaderboard."""
    return "".join(caveat.sign for caveat in caveats_of(runs))


def signs(row: LeaderboardRow) -> str:
    """Returns the marks that follow the name of a row."""
    return "".join(caveat.sign for caveat in CAVEATS if row.caveats.get(caveat.key))


def marked_label(row: LeaderboardRow) -> str:
    """Returns the name of a row with its marks."""
    return f"{row.label}{signs(row)}"


def legend(board: Leaderboard) -> str:
    """Explains the marks of a table in one line; "" without marks."""
    used = [one for one in CAVEATS if any(row.caveats.get(one.key) for row in board.rows)]
    return "; ".join(f"{one.sign} {one.text}" for one in used)
