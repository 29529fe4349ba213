"""The console of tables, notes, and progress bars."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sized
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

Item = TypeVar("Item")

_NARROWEST = 60
"""Columns of a terminal below which rows wrap rather than lose digits."""


def wide_console(fitted: bool = False) -> Console:
    """Returns a console as wide as the terminal; a pipe or a file has any width.

    Args:
        fitted: tables are laid out for the width, so a pipe has that of COLUMNS, if it is set.
    """
    console = Console(highlight=False)
    known = console.is_terminal or (fitted and os.environ.get("COLUMNS", "").isdigit())
    return Console(width=max(console.width, _NARROWEST) if known else 1000, highlight=False)


def print_notes(lines: Iterable[str]) -> None:
    """Prints notes to standard error: standard output holds the results only."""
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    for line in lines:
        console.print(f"Note: {line}", markup=False)


def progress(
    items: Iterable[Item], what: str, shown_from: int = 2, total: int | None = None
) -> Iterable[Item]:
    """Shows a bar on standard error while items are used; it disappears at the end.

    Args:
        items: what is iterated.
        what: label of the bar.
        shown_from: the fewest items that have a bar.
        total: number of the items; None: they have a length.
    """
    if total is None:
        assert isinstance(items, Sized)
        total = len(items)
    return _with_bar(items, what, total) if total >= shown_from else items


def _with_bar(items: Iterable[Item], what: str, total: int) -> Iterable[Item]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        yield from bar.track(items, total=total, description=what)
