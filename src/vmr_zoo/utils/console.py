"""Consoles for tables."""

from __future__ import annotations

from rich.console import Console


def wide_console() -> Console:
    """Returns a console for standard output; into a file or a pipe it truncates no table."""
    console = Console()
    return console if console.is_terminal else Console(width=1000)
