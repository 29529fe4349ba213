"""Splits a sentence into the words of the Penn Treebank, as GloVe's and NLTK's are."""

from __future__ import annotations

import re
from typing import NamedTuple

_ALONE = r"""[;@#$%&?!*()\[\]{}<>"«»“”‘’„]"""
"""A character that is a word by itself, wherever it stands."""
_MARK = rf"`+|\.{{2,}}|--|''|[:,](?!\d)|{_ALONE}"
_FINAL_PERIOD = r"""(?<!\.)\.(?=[\])}>"'»”’\s]*$)"""
_END = rf"(?=\s|$|{_MARK}|{_FINAL_PERIOD})"
_SHORT = rf"(?<=[^\s'])(?:n't|'(?:s|m|d|ll|re|ve)?){_END}"
"""A short form or a possessive, at the end of a word."""
_WORD = re.compile(
    rf"""{_MARK}|{_FINAL_PERIOD}
    | {_SHORT}
    | '(?=\w)(?!(?:s|m|t|d|n|ll|re|ve)\b)  # an opening quotation mark
    | \S+?(?:(?={_SHORT})|{_END})""",
    re.IGNORECASE | re.VERBOSE,
)
_OPENING = re.compile(r"(?:^|[\s(\[{<])$")

_MERGED = {
    "cannot": 3,
    "gimme": 3,
    "gonna": 3,
    "gotta": 3,
    "lemme": 3,
    "wanna": 3,
    "d'ye": 1,
    "more'n": 4,
}
"""Two words written as one, and the length of the first."""


class Word(NamedTuple):
    """A word of a sentence.

    Attributes:
        text: the word; a double quotation mark is `` where it opens and '' where it closes.
        start: its first character in the sentence.
        end: the character after its last one.
    """

    text: str
    start: int
    end: int


def treebank_words(sentence: str) -> list[Word]:
    """Splits one sentence.

    Punctuation is a word. "doesn't" is "does", "n't"; "person's" is "person", "'s"; "walk-in" and "he/she"
    stay whole. A period is a word at the end of the sentence only, so "mr." stays whole.

    Args:
        sentence: the text; its case is kept.
    """
    words: list[Word] = []
    for match in _WORD.finditer(sentence):
        text, (start, end) = match.group(), match.span()
        if text in ('"', "''"):
            opening = _OPENING.search(sentence[:start]) is not None
            words.append(Word("``" if opening else "''", start, end))
        elif middle := _MERGED.get(text.lower()):
            words += [
                Word(text[:middle], start, start + middle),
                Word(text[middle:], start + middle, end),
            ]
        else:
            words.append(Word(text, start, end))
    return words
