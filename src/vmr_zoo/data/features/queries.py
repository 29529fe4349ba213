"""Query features from a text encoder, from stored CLIP states, and from a table of word vectors."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from vmr_zoo.data.annotations.records import Protocol, Query
from vmr_zoo.data.features.files import QueryFiles
from vmr_zoo.data.features.problems import FeatureError, Problem
from vmr_zoo.data.features.source import QuerySource
from vmr_zoo.data.text.clip import clip_tokens
from vmr_zoo.data.text.encoder import TextEncoder
from vmr_zoo.data.text.noun_chunks import NounChunks
from vmr_zoo.data.text.word_table import WordTable, words
from vmr_zoo.errors import abbreviate
from vmr_zoo.utils.arrays import Array, l2_normalise


class WordVectorQueries(QuerySource):
    """One vector per word from a table such as GloVe.

    A word is a lower-cased run of letters, digits and apostrophes. Words that the table lacks are omitted and
    reported as a non-fatal problem; a sentence without a known word is an error.
    """

    encodes = True
    has_token_ids = True

    def __init__(self, file: str | Path, dim: int, name: str = "glove", normalise: bool = True) -> None:
        """Stores the path; the table is read on first use.

        Args:
            file: GloVe's text file, or an npz with `words` (N,) and `vectors` (N, dim).
            dim: size of one vector.
            name: the name of the vectors; part of the manifest.
            normalise: whether to L2-normalise each vector.
        """
        self.file = Path(file).expanduser()
        self.dim = dim
        self.name = name
        self.normalise = normalise

    @cached_property
    def _table(self) -> WordTable:
        try:
            table = WordTable(self.file, self.dim)
        except Exception as error:  # a broken npz raises nearly anything
            raise FeatureError(
                "unreadable",
                f"Expected word vectors (GloVe's text file, or npz with words, vectors) of {self.dim} "
                f"numbers at {self.file}; {error}.",
            ) from error
        if table.dim != self.dim:
            raise FeatureError(
                "dimension", f"{self.file} has vectors of {table.dim} numbers; expected {self.dim}."
            )
        return table

    @staticmethod
    def words(text: str) -> list[str]:
        """Splits a sentence into lower-case words."""
        return [word for word, _ in words(text)]

    def token_ids(self, query: Query) -> Array:
        """Returns (L,) int64 rows of the table, known words only.

        Raises:
            FeatureError: if the table knows none of the words.
        """
        rows = self._table.rows
        ids = [rows[word] for word in self.words(query.text) if word in rows]
        if not ids:
            raise FeatureError("empty", f"{self.file} knows no word of '{query.text}' ({query.query_id}).")
        return np.array(ids, dtype=np.int64)

    def load(self, query: Query) -> Array:
        """Returns (L, dim) float32, one row per known word."""
        try:
            vectors = self._table.vectors(self.token_ids(query))
        except ValueError as error:
            raise FeatureError(
                "unreadable", f"{self.file} has no {self.dim} numbers for a word of '{query.text}' ({error})."
            ) from error
        if not np.isfinite(vectors).all():
            raise FeatureError(
                "not finite", f"{self.file} holds NaN or infinite numbers for a word of '{query.text}'."
            )
        return l2_normalise(vectors) if self.normalise else vectors

    def missing(self, queries: Sequence[Query]) -> list[Problem]:
        """Finds queries with words that the table lacks."""
        try:
            rows = self._table.rows
        except FeatureError as error:
            return [Problem("query words", error.kind, tuple(q.query_id for q in queries), str(error))]
        unknown_words = {
            query.query_id: absent
            for query in queries
            if (absent := set(self.words(query.text)) - rows.keys())
        }
        if not unknown_words:
            return []
        lacking = sorted(set().union(*unknown_words.values()))
        detail = f"{self.file} lacks {abbreviate(lacking)}; they are omitted."
        return [Problem("query words", "missing", tuple(unknown_words), detail, fatal=False)]

    def manifest(self) -> dict[str, Any]:
        """Returns the name of the vectors and their size."""
        return {"backbone": self.name, "dim": self.dim, "normalise": self.normalise}


class EncodedQueries(QuerySource):
    """Token features computed from the sentence by a text encoder."""

    computed = True
    encodes = True
    has_token_ids = True

    def __init__(
        self,
        encoder: TextEncoder,
        max_tokens: int | None = 32,
        normalise: bool = True,
        nouns: NounChunks | None = None,
    ) -> None:
        """Stores the encoder.

        Args:
            encoder: the text encoder.
            max_tokens: only the first tokens are kept; None: all.
            normalise: whether to L2-normalise each token vector.
            nouns: the parser that finds noun chunks; None: no noun masks.
        """
        self.encoder = encoder
        self.nouns = nouns
        self.has_noun_masks = nouns is not None
        self.dim = encoder.token_dim
        self.max_tokens = max_tokens
        self.normalise = normalise

    def prepare(self, protocol: Protocol) -> None:
        """Embeds all sentences of the protocol that are not cached yet."""
        self.encode([query.text for split in protocol.splits.values() for query in split.queries])

    def encode(self, texts: Sequence[str]) -> None:
        """Embeds the sentences that are not cached yet."""
        self.encoder.embed(texts)

    def load(self, query: Query) -> Array:
        """Returns (L, dim) float32."""
        tokens = self.encoder.tokens([query.text])[0][: self.max_tokens]
        return l2_normalise(tokens) if self.normalise else tokens

    def token_ids(self, query: Query) -> Array:
        """Returns (L,) int64 tokenizer ids, one per row of `load`."""
        return self.encoder.tokenise([query.text])[0].ids[: self.max_tokens]

    def noun_mask(self, query: Query) -> Array:
        """Returns (L,) bool, which rows of `load` belong to a noun chunk."""
        if self.nouns is None:
            return super().noun_mask(query)
        tokens = self.encoder.tokenise([query.text])[0]
        return self.nouns.mask(tokens.text, tokens.offsets[: self.max_tokens])

    def manifest(self) -> dict[str, Any]:
        """Returns the encoder, the maximum number of tokens and the normalisation."""
        manifest = {**self.encoder.manifest(), "max_tokens": self.max_tokens, "normalise": self.normalise}
        return manifest if self.nouns is None else {**manifest, "nouns": self.nouns.manifest()}


class ClipTokenFiles(QuerySource):
    """CLIP token states from files, with the ids and noun chunks of the same tokens.

    The ids are CLIP's byte pairs, which open_clip ships. The files hold the start and the end token; the ids
    and the loaded features do not.
    """

    has_token_ids = True
    has_noun_masks = True

    def __init__(self, source: QueryFiles, nouns: NounChunks, max_tokens: int | None = 32) -> None:
        """Stores the parts.

        Args:
            source: files with one row per token, including the start and the end token; not cut
                (`max_tokens: null`).
            nouns: the parser that finds noun chunks.
            max_tokens: only the first tokens are kept; None: all.
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
            Ids (L,) int64; for each id the characters (L, 2) of its word, end exclusive; and the text that
            these characters index: cleaned and in lower case.
        """
        tokens = clip_tokens(self._tokenizer, text)
        cut = slice(self.max_tokens)
        return tokens.ids[cut], tokens.offsets[cut], tokens.text

    def prepare(self, protocol: Protocol) -> None:
        """Prepares the files."""
        self.source.prepare(protocol)

    def load(self, query: Query) -> Array:
        """Returns (L, dim) float32, without the start and the end token.

        Raises:
            FeatureError: if the file has fewer tokens than the sentence.
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
