"""Text from elsewhere, such as files, servers and models: it is shown on one line, as it is."""

from __future__ import annotations

import re
import unicodedata


def one_line(text: str) -> str:
    r"""Replaces line breaks, other control characters and halves of surrogate pairs by spaces.

    >>> one_line("a\r\nb\x1b[31m")
    'a b [31m'
    """
    unwanted = ("Cc", "Zl", "Zp", "Cf", "Cs")
    kept = "".join(" " if unicodedata.category(sign) in unwanted else sign for sign in text)
    return re.sub(r" {2,}", " ", kept)


def cut(text: str, most: int) -> str:
    """Shortens a text to `most` characters.

    >>> cut("a long name", 6), cut("a name", 6)
    ('a lon…', 'a name')
    """
    return text if len(text) <= most else f"{text[: most - 1]}…"
