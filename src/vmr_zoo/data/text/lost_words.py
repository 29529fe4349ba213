"""Counts what features leave out of sentences: words without a vector, and tokens past the longest query."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field


@dataclass(slots=True)
class LostWords:
    """Counts over sentences. A mark of punctuation without a vector is no loss.

    Attributes:
        sentences: number of sentences.
        tokens: number of their tokens, before anything is left out.
        unknown: how often each word without a vector occurs.
        sentences_with_unknown: sentences with such a word.
        cut: known tokens past the longest query.
        sentences_cut: sentences with such tokens.
    """

    sentences: int = 0
    tokens: int = 0
    unknown: Counter[str] = field(default_factory=Counter)
    sentences_with_unknown: int = 0
    cut: int = 0
    sentences_cut: int = 0

    def add(self, tokens: Sequence[str | None], max_tokens: int | None) -> None:
        """Counts one sentence.

        Args:
            tokens: for each token the word, if it has no vector; None if it has one.
            max_tokens: only the first tokens with a vector are kept; None: all.
        """
        unknown = [word for word in tokens if word is not None and any(map(str.isalnum, word))]
        known = sum(word is None for word in tokens)
        cut = 0 if max_tokens is None else max(0, known - max_tokens)
        self.sentences += 1
        self.tokens += known + len(unknown)
        self.unknown.update(unknown)
        self.sentences_with_unknown += bool(unknown)
        self.cut += cut
        self.sentences_cut += bool(cut)


def count_lost(sentences: Iterable[Sequence[str | None]], max_tokens: int | None = None) -> LostWords:
    """Counts the losses of sentences, each as `LostWords.add` reads it."""
    lost = LostWords()
    for tokens in sentences:
        lost.add(tokens, max_tokens)
    return lost
