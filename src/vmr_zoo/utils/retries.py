"""Repeats requests to servers that are busy or out of reach for the moment."""

from __future__ import annotations

from typing import Any

from urllib3.exceptions import InvalidHeader, MaxRetryError
from urllib3.util.retry import Retry

LATER = (408, 425, 429, 500, 502, 503, 504, 529)
"""Statuses after which the same request may succeed."""

_LONGEST_WAIT = 600
"""Seconds that a server may have us wait before the next try."""


def retries(count: int, backoff: float = 1.0) -> Retry:
    """Returns the state of a request that is repeated up to `count` times.

    Args:
        count: tries after the first.
        backoff: the first retry comes at once, the second after about twice these seconds, each further one
            after twice as long as the one before.
    """
    return Retry(
        count,
        allowed_methods=None,
        status_forcelist=LATER,
        backoff_factor=backoff,
        backoff_jitter=backoff,
        retry_after_max=_LONGEST_WAIT,
    )


def wait(state: Retry, response: Any = None) -> Retry | None:
    """Waits before the next try, for as long as the server says (Retry-After) if it does.

    Args:
        state: from `retries`, or from the call before.
        response: urllib3's response with one of the statuses `LATER`; None: the connection broke.

    Returns:
        The new state; None without waiting if that was the last try.
    """
    try:
        state = state.increment(response=response, error=None if response else OSError())
    except MaxRetryError:
        return None
    try:
        state.sleep(response)
    except InvalidHeader:  # Retry-After: nonsense
        state.sleep()
    return state
