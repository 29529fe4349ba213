"""Query features from a text encoder and from a table of word vectors, and CLIP's token ids alone."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vmr_zoo.data.annotations.records import Protocol, Query
from vmr_zoo.data.features.problems import FeatureError, Problem
from vmr_zoo.data.features.source import QuerySource
from vmr_zoo.data.text.clip_tokenizer import BytePairs
from vmr_zoo.data.text.encoder import TextEncoder
from vmr_zoo.data.text.lost_words import LostWords, count_lost
from vmr_zoo.data.text.noun_chunks import NounChunks
from vmr_zoo.data.text.word_table import TableWord, WordTable
from vmr_zoo.errors import abbreviate
from vmr_zoo.utils.arrays import Array, l2_normalise
from vmr_zoo.utils.switches import check_switches


@check_switches
class WordVectorQueries(QuerySource):
    """One vector per word from a table such as GloVe.

    Words are split as `WordTable.split` does. Words that the table lacks are reported as a non-fatal problem.
    """

    encodes = True
    has_token_ids = True

    def __init__(
        self,
        file: str | Path,
        dim: int,
        normalise: bool,
        name: str = "glove",
        unknown: Literal["omitted", "zero"] = "omitted",
        max_tokens: int | None = None,
    ) -> None:
        """Stores the path; the table is read on first use.

        Args:
            file: GloVe's text file, or an npz with `words` (N,) and `vectors` (N, dim).
            dim: size of one vector.
            normalise: whether to L2-normalise each vector.
            name: the name of the vectors; part of the manifest.
            unknown: a word that the table lacks is "omitted", or has a vector of zeros, for which EMB may put
                a trained one.
            max_tokens: only the first words are kept; None: all.
        """
        self.file = Path(file).expanduser()
        self.dim = dim
        self.name = name
        self.normalise = normalise
        self.unknown = unknown
        self.max_tokens = max_tokens

    @cached_property
    def table(self) -> WordTable:
        """The table, read on first use."""
        try:
            return WordTable(self.file, self.dim)
        except Exception as error:  # a broken npz raises nearly anything
            raise FeatureError(
                "unreadable",
                f"Expected word vectors (GloVe's text file, or npz with words, vectors) of {self.dim} "
                f"numbers at {self.file}; {error}.",
            ) from error

    def split(self, query: Query) -> list[TableWord]:
        """Returns the words of a sentence, one per row of `load`.

        Raises:
            FeatureError: if none is left.
        """
        split = self.table.split(query.text)
        kept = [word for word in split if word.row is not None or self.unknown == "zero"]
        if not kept:
            raise FeatureError("empty", f"{self.file} knows no word of '{query.text}' ({query.query_id}).")
        return kept[: self.max_tokens]

    def token_ids(self, query: Query) -> Array:
        """Returns (L,) int64 rows of the table; the number of its rows for a word that it lacks.

        Raises:
            FeatureError: if no word is left.
        """
        size = self.table.size
        return np.array([size if word.row is None else word.row for word in self.split(query)], np.int64)

    def token_text(self, query: Query) -> list[str]:
        """Returns the words of `load`, in the sentence's own case."""
        written = [(word.text, query.text[word.start : word.end]) for word in self.split(query)]
        # A quotation mark is split off as `` or ''.
        return [own if own.lower() == text else text for text, own in written]

    def listed_id(self, token: str) -> int | None:
        """Returns the row of a word."""
        return self.table.rows.get(token)

    def load(self, query: Query) -> Array:
        """Returns (L, dim) float32, one row per word."""
        try:
            vectors = self.vectors(self.token_ids(query))
        except ValueError as error:
            raise FeatureError(
                "unreadable", f"{self.file} has no {self.dim} numbers for a word of '{query.text}' ({error})."
            ) from error
        if not np.isfinite(vectors).all():
            raise FeatureError(
                "not finite", f"{self.file} holds NaN or infinite numbers for a word of '{query.text}'."
            )
        return vectors

    def vectors(self, ids: Array) -> Array:
        """Returns (L, dim) float32 for ids as `token_ids` returns them.

        Raises:
            ValueError: as `WordTable.vectors`.
        """
        known = ids < self.table.size
        vectors = np.zeros((len(ids), self.dim), np.float32)
        vectors[known] = self.table.vectors(ids[known])
        return l2_normalise(vectors) if self.normalise else vectors

    def lost_words(self, sentences: Sequence[str]) -> LostWords:
        """Counts the words that the table lacks, and the words past `max_tokens`."""
        return self.table.lost_words(sentences, self.max_tokens)

    def missing(self, queries: Sequence[Query]) -> list[Problem]:
        """Finds queries with words that the table lacks."""
        try:
            table = self.table
        except FeatureError as error:
            return [Problem("query words", error.kind, tuple(q.query_id for q in queries), str(error))]
        unknown_words = {
            query.query_id: absent
            for query in queries
            if (absent := {word.text for word in table.split(query.text) if word.row is None})
        }
        if not unknown_words:
            return []
        lacking = sorted(set().union(*unknown_words.values()))
        outcome = "they are omitted" if self.unknown == "omitted" else "their vectors are zeros"
        detail = f"{self.file} lacks {abbreviate(lacking)}; {outcome}."
        return [Problem("query words", "missing", tuple(unknown_words), detail, fatal=False)]

    def manifest(self) -> dict[str, Any]:
        """Returns the name of the vectors, their size, and what becomes of the words."""
        return {
            "backbone": self.name,
            "dim": self.dim,
            "normalise": self.normalise,
            "unknown": self.unknown,
            "max_tokens": self.max_tokens,
        }


class EncodedQueries(QuerySource):
    """Token features computed from the sentence by a text encoder."""

    computed = True
    encodes = True
    has_token_ids = True

    def __init__(
        self,
        encoder: TextEncoder,
        normalise: bool,
        max_tokens: int | None = 32,
        nouns: NounChunks | None = None,
    ) -> None:
        """Stores the encoder.

        Args:
            encoder: the text encoder.
            normalise: whether to L2-normalise each token vector.
            max_tokens: only the first tokens are kept; None: all.
            nouns: the parser that finds noun chunks; None: no noun masks.
        """
        self.encoder = encoder
        self.nouns = nouns
        self.has_noun_masks = nouns is not None
        self.dim = encoder.token_dim
        self.sentence_dim = encoder.dim
        self.max_tokens = max_tokens
        self.normalise = normalise

    def prepare(self, protocol: Protocol) -> None:
        """Embeds all sentences of the protocol that are not cached yet."""
        self.encode([query.text for query in protocol.queries])

    def encode(self, texts: Sequence[str]) -> None:
        """Embeds the sentences that are not cached yet."""
        self.encoder.embed(texts)

    def load(self, query: Query) -> Array:
        """Returns (L, dim) float32."""
        tokens = self.encoder.tokens([query.text])[0][: self.max_tokens]
        return l2_normalise(tokens) if self.normalise else tokens

    def sentence(self, query: Query) -> Array:
        """Returns (sentence_dim,) float32 of the whole sentence, not normalised."""
        return self.encoder.pooled([query.text])[0]

    def token_ids(self, query: Query) -> Array:
        """Returns (L,) int64 tokenizer ids, one per row of `load`."""
        return self.encoder.tokenise([query.text])[0].ids[: self.max_tokens]

    @property
    def end_ids(self) -> tuple[int, ...]:  # type: ignore[override]
        """Ids of the start and the end token, if `load` has rows for them."""
        return self.encoder.end_ids

    def token_text(self, query: Query) -> list[str]:
        """Returns the text of each row of `load`."""
        return self.encoder.token_text(query.text)[: self.max_tokens]

    def listed_id(self, token: str) -> int | None:
        """Returns a tokenizer id, which a file of counts writes as a number."""
        return int(token)

    def noun_mask(self, query: Query) -> Array:
        """Returns (L,) bool, which rows of `load` belong to a noun chunk."""
        if self.nouns is None:
            return super().noun_mask(query)
        tokens = self.encoder.tokenise([query.text])[0]
        return self.nouns.mask(tokens.text, tokens.offsets[: self.max_tokens])

    def lost_words(self, sentences: Sequence[str]) -> LostWords:
        """Counts the words without a vector, and the tokens past `max_tokens`."""
        return self.encoder.lost_words(sentences, self.max_tokens)

    def manifest(self) -> dict[str, Any]:
        """Returns the encoder, the maximum number of tokens and the normalisation."""
        manifest = {**self.encoder.manifest(), "max_tokens": self.max_tokens, "normalise": self.normalise}
        return manifest if self.nouns is None else {**manifest, "nouns": self.nouns.manifest()}


class ClipTokens(QuerySource):
    """CLIP's token ids and their noun chunks, without vectors: for a method that embeds tokens itself.

    The ids are CLIP's byte pairs, which open_clip ships, without start and end token.
    """

    dim = 0
    computed = True
    encodes = True
    has_token_ids = True
    has_noun_masks = True

    def __init__(self, nouns: NounChunks, max_tokens: int | None = 32) -> None:
        """Stores the parts.

        Args:
            nouns: the parser that finds noun chunks.
            max_tokens: only the first tokens are kept; None: all.
        """
        self.nouns = nouns
        self.max_tokens = max_tokens

    @cached_property
    def _tokenizer(self) -> BytePairs:
        return BytePairs()

    def load(self, query: Query) -> Array:
        """Returns (L, 0) float32: as many rows as tokens, without numbers."""
        return np.zeros((len(self.token_ids(query)), 0), np.float32)

    def token_ids(self, query: Query) -> Array:
        """Returns (L,) int64 tokenizer ids, one per row of `load`."""
        return self._tokenizer.split(query.text).ids[: self.max_tokens]

    def noun_mask(self, query: Query) -> Array:
        """Returns (L,) bool, which rows of `load` belong to a noun chunk."""
        tokens = self._tokenizer.split(query.text)
        return self.nouns.mask(tokens.text, tokens.offsets[: self.max_tokens])

    def lost_words(self, sentences: Sequence[str]) -> LostWords:
        """Counts the tokens past `max_tokens`."""
        lengths = (len(self._tokenizer.split(text).ids) for text in sentences)
        return count_lost(([None] * length for length in lengths), self.max_tokens)

    def manifest(self) -> dict[str, Any]:
        """Returns the tokens and the noun chunks."""
        return {"tokens": "clip", "max_tokens": self.max_tokens, "nouns": self.nouns.manifest()}
