"""Noun chunks of a sentence: a noun and the words that describe it (VDI, section 3.1).

VDI parses with spaCy, whose models must be downloaded. The default here is the tagger HanTa (Wartena 2019),
which ships its English model, with the chunker below. It found all noun phrases of ten trial sentences, but
tags the verb of "person drinks" as a noun. The parser is part of the feature manifest.
"""

from __future__ import annotations

import re

import numpy as np

from vmr_zoo.data.text.parsing import Parser
from vmr_zoo.utils.arrays import Array

# Tags of the British National Corpus (C5): determiner, attribute, participle, noun, possessive, pronoun.
_KINDS = [
    ("AT0|DPS|DT0|DTQ", "d"),
    ("AJ.|CRD|ORD", "a"),
    ("VVG|VVN", "v"),
    ("NN.|NP0", "n"),
    ("POS", "s"),
    ("PN[PIX]", "p"),
]
_CHUNK = re.compile("(?:d[av]*|a*)(?:n+sa*)*n+|p")


class NounChunks(Parser):
    """Finds noun chunks, offline."""

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Returns the characters of each chunk, end exclusive, in order."""
        if self.parser == "spacy":
            return [(chunk.start_char, chunk.end_char) for chunk in self._spacy(text).noun_chunks]
        words, kinds = self.tag(text, _KINDS, "o")
        return [(words[m.start()].start(), words[m.end() - 1].end()) for m in _CHUNK.finditer(kinds)]

    def mask(self, text: str, offsets: Array) -> Array:
        """Marks the tokens inside a chunk.

        Args:
            text: the sentence.
            offsets: (L, 2) characters of each token, end exclusive.

        Returns:
            (L,) bool.
        """
        inside = np.zeros(len(text) + 1, bool)
        for start, end in self.spans(text):
            inside[start:end] = True
        # A special token covers no character.
        return inside[offsets[:, 0]] & (offsets[:, 0] < offsets[:, 1])
