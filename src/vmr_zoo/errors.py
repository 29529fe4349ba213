"""The project's own error type, and the one way to suggest a nearest valid name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class VmrError(Exception):
    """Something the user can mend.

    The message says what was expected, what was found, where, and what to do. The command line prints it
    without a traceback and exits with code 2 (`HYDRA_FULL_ERROR=1` shows the traceback).
    """


def nearest(name: str, valid: Iterable[str], count: int = 3) -> list[str]:
    """Returns up to `count` of the `valid` names that look most like `name`, best first."""
    return difflib.get_close_matches(name, list(valid), n=count, cutoff=0.4)


def unknown(kind: str, name: str, valid: Iterable[str]) -> VmrError:
    """Builds the error for a name that is not one of the `valid` ones.

    Args:
        kind: what the name should have been, such as "method" or "split".
        name: what was given.
        valid: every name that would have worked.

    Returns:
        An error whose message lists the nearest valid names first and then all of them.
    """
    names = sorted(valid)
    close = nearest(name, names)
    hint = f" Did you mean {' or '.join(close)}?" if close else ""
    return VmrError(f"Unknown {kind} '{name}'.{hint} Valid: {', '.join(names)}.")


def some(ids: Iterable[str], count: int = 10) -> str:
    """Formats a list of ids for an error: the first `count` of them and how many there are."""
    listed = list(ids)
    tail = f", … ({len(listed)} in all)" if len(listed) > count else ""
    return ", ".join(listed[:count]) + tail
