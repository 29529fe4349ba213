"""CLIP's own tokens beside CLIP's token features, for a method that trains CLIP's text encoder (VDI)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from vmr_zoo.data.annotations import Protocol, Query
from vmr_zoo.data.cache import Array
from vmr_zoo.data.features import FeatureError, Problem, QueryFiles, QuerySource
from vmr_zoo.data.noun_chunks import NounChunks


class ClipTokens(QuerySource):
    """Token features out of files, and the ids and noun chunks of the same tokens.

    Ids come from CLIP's byte pairs, which open_clip ships. Neither they nor the features served hold the
    start and the end token, which the files do.
    """

    has_token_ids = True
    has_noun_masks = True

    def __init__(self, source: QueryFiles, nouns: NounChunks, max_tokens: int | None = 32) -> None:
        """Stores the parts.

        Args:
            source: files with one row per token, start and end token included; not cut (`max_tokens: null`).
            nouns: what finds noun chunks.
            max_tokens: only the first ones are kept; None: all.
        """
        self.source = source
        self.dim = source.dim
        self.nouns = nouns
        self.max_tokens = max_tokens

    @cached_property
    def _tokenizer(self) -> Any:
        from open_clip.tokenizer import SimpleTokenizer

        return SimpleTokenizer()

    def tokenise(self, text: str) -> tuple[Array, Array, str]:
        """Splits a sentence as CLIP does.

        Returns:
            Ids (L,) int64, characters (L, 2) of the word that each is a piece of, end exclusive, and the
            text that these count in: cleaned and in lower case.
        """
        tokenizer = self._tokenizer
        cleaned = tokenizer.clean_fn(text)
        ids, offsets = [], []
        for word in tokenizer.pat.finditer(cleaned):
            symbols = "".join(tokenizer.byte_encoder[byte] for byte in word.group().encode())
            for piece in tokenizer.bpe(symbols).split(" "):
                ids.append(tokenizer.encoder[piece])
                offsets.append(word.span())
        cut = slice(self.max_tokens)
        return np.array(ids, np.int64)[cut], np.array(offsets, np.int64).reshape(-1, 2)[cut], cleaned

    def prepare(self, protocol: Protocol) -> None:
        """Prepares the files."""
        self.source.prepare(protocol)

    def load(self, query: Query) -> Array:
        """Returns (L, dim) float32, without the start and the end token.

        Raises:
            FeatureError: if the file has another number of tokens than the sentence.
        """
        count = len(self.token_ids(query))
        rows = self.source.load(query)
        if len(rows) < count + 2:
            raise FeatureError(
                "dimension",
                f"The file of '{query.query_id}' has {len(rows)} rows; expected at least {count + 2}: "
                f"start, the {count} tokens of '{query.text}', end.",
            )
        return rows[1 : count + 1]

    def token_ids(self, query: Query) -> Array:
        """Returns (L,) int64 tokenizer ids, one per row of `load`."""
        return self.tokenise(query.text)[0]

    def noun_mask(self, query: Query) -> Array:
        """Returns (L,) bool, which rows of `load` belong to a noun chunk."""
        _, offsets, cleaned = self.tokenise(query.text)
        return self.nouns.mask(cleaned, offsets)

    def missing(self, queries: Sequence[Query]) -> list[Problem]:
        """Finds queries without a file."""
        return self.source.missing(queries)

    def manifest(self) -> dict[str, Any]:
        """Returns the source, the tokens and the noun chunks."""
        return {
            **self.source.manifest(),
            "max_tokens": self.max_tokens,
            "tokens": "clip",
            "nouns": self.nouns.manifest(),
        }
