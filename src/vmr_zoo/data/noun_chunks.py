"""Noun chunks of a sentence: a noun and the words that describe it (VDI, section 3.1).

VDI parses with spaCy, whose models are downloads. HanTa (Wartena 2019), a tagger that ships its English
model, with the chunker below needs none and is the default; it found every noun phrase of ten trial
sentences but reads the verb of "person drinks" as a noun. Which parser was used is part of the feature
manifest.
"""

from __future__ import annotations

import re
from functools import cached_property
from importlib.metadata import version
from typing import Any, Literal

import numpy as np

from vmr_zoo.data.cache import Array
from vmr_zoo.errors import VmrError, unknown

# Tags of the British National Corpus (C5): determiner, attribute, participle, noun, possessive, pronoun,
# the rest.
_KINDS = [
    ("AT0|DPS|DT0|DTQ", "d"),
    ("AJ.|CRD|ORD", "a"),
    ("VVG|VVN", "v"),
    ("NN.|NP0", "n"),
    ("POS", "s"),
    ("PN[PIX]", "p"),
]
_CHUNK = re.compile("(?:d[av]*|a*)(?:n+sa*)*n+|p")


class NounChunks:
    """Finds noun chunks, offline."""

    def __init__(self, parser: Literal["hanta", "spacy"] = "hanta", model: str = "en_core_web_sm") -> None:
        """Stores the choice; the parser is loaded with the first sentence.

        Args:
            parser: "hanta", or "spacy", as the paper.
            model: the spaCy model.

        Raises:
            VmrError: for another parser.
        """
        if parser not in ("hanta", "spacy"):
            raise unknown("noun chunk parser", parser, ("hanta", "spacy"))
        self.parser = parser
        self.model = model

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Returns the characters of each chunk, end exclusive, in order."""
        if self.parser == "spacy":
            return [(chunk.start_char, chunk.end_char) for chunk in self._spacy(text).noun_chunks]
        words = list(re.finditer(r"'\w+|\w+(?:-\w+)*|[^\w\s]", text))
        tags = [tag for _, _, tag in self._hanta.tag_sent([word.group() for word in words])]
        kinds = "".join(
            next((kind for tags_, kind in _KINDS if re.fullmatch(tags_, tag)), "o") for tag in tags
        )
        return [(words[m.start()].start(), words[m.end() - 1].end()) for m in _CHUNK.finditer(kinds)]

    def mask(self, text: str, offsets: Array) -> Array:
        """Says which tokens lie in a chunk.

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

    def manifest(self) -> dict[str, Any]:
        """Returns the parser and its version."""
        if self.parser == "spacy":
            return {"parser": "spacy", "model": f"{self.model} {self._spacy.meta['version']}"}
        return {"parser": "hanta", "version": version("HanTa")}

    @cached_property
    def _hanta(self) -> Any:
        from HanTa.HanoverTagger import HanoverTagger

        return HanoverTagger("morphmodel_en.pgz")

    @cached_property
    def _spacy(self) -> Any:
        try:
            import spacy

            return spacy.load(self.model, exclude=["ner"])
        except (ImportError, OSError) as error:
            raise VmrError(
                f"Noun chunks by spaCy need `pip install spacy` and `python -m spacy download {self.model}` "
                f"({error}). Without a download: features.query.nouns.parser=hanta."
            ) from error
