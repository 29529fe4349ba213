"""The error type for user-fixable errors, and helpers for its messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator


class VmrError(Exception):
    """A user-fixable error.

    The message says what was expected, what was found, where, and how to fix it. The command line prints it
    without a traceback and exits with `exit_code` (`HYDRA_FULL_ERROR=1` shows the traceback).
    """

    exit_code = 2


def causes(error: BaseException) -> Iterator[BaseException]:
    """Yields the error and the errors that it was raised from, outermost first.

    OmegaConf raises the same object again inside of its own handler, so the errors can form a circle.
    """
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's text, or the name of its class."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def nearest(name: str, valid: Iterable[str], count: int = 3) -> list[str]:
    """Returns up to `count` of the `valid` names that are most similar to `name`, best first."""
    return difflib.get_close_matches(name, list(valid), n=count, cutoff=0.4)


def did_you_mean(names: Iterable[object]) -> str:
    """Returns the question, after a space, whether one of some similar names was meant; "" for none.

    >>> did_you_mean(["mmn", "emb"])
    ' Did you mean mmn or emb?'
    """
    listed = " or ".join(map(str, names))
    return f" Did you mean {listed}?" if listed else ""


def unknown(kind: str, name: str, valid: Iterable[str]) -> VmrError:
    """Builds the error for a name that is not among the `valid` ones.

    Args:
        kind: what is named, such as "method" or "split".
        name: the invalid name.
        valid: all valid names.

    Returns:
        An error whose message lists the most similar valid names first and then all of them.
    """
    names = sorted(valid)
    hint = did_you_mean(nearest(name, names))
    return VmrError(f"Unknown {kind} '{name}'.{hint} Valid: {', '.join(names)}.")


def abbreviate(ids: Iterable[str], count: int = 10) -> str:
    """Formats a list of ids for a message: the first `count` ids, and the total if there are more."""
    listed = list(ids)
    tail = f", … ({len(listed)} in all)" if len(listed) > count else ""
    return ", ".join(listed[:count]) + tail


def printable(name: object) -> str:
    """Returns a file name as text that can be printed: bytes that are not UTF-8 are escaped."""
    return str(name).encode("utf-8", "backslashreplace").decode()
