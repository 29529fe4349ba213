"""GloVe and other tables of word vectors as a text encoder."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from vmr_zoo.data.text.encoder import TextEncoder, Tokens
from vmr_zoo.data.text.lost_words import LostWords
from vmr_zoo.data.text.word_table import WordTable
from vmr_zoo.errors import VmrError
from vmr_zoo.utils.arrays import Array
from vmr_zoo.utils.hashing import content_hash, file_hash


class WordVectorEncoder(TextEncoder):
    """One vector per word, as stored; a sentence is the mean of its words (TEA, equation 3).

    Words are split as `WordTable.split` does. Words that the table lacks are omitted.
    """

    def __init__(self, cache: str | Path, file: str | Path, name: str, dim: int = 300) -> None:
        """Stores the path; the table is read on first use.

        Args:
            cache: the project's cache folder (`paths.cache`).
            file: GloVe's published text file, or an npz with `words` and `vectors`.
            name: name of the vectors, such as "glove_6b_300d".
            dim: size of one vector.
        """
        super().__init__(cache, batch_size=256, workers=1)
        self.file = Path(file).expanduser()
        self.name = name
        self.dim = self.token_dim = dim

    @cached_property
    def revision(self) -> str:
        """The hash of the table; a file of 5 GB takes several seconds, once per process."""
        try:
            return content_hash("treebank words", file_hash(self.file)).hex()
        except OSError as error:
            raise self._unusable(error) from error

    @cached_property
    def _model(self) -> WordTable:
        try:
            return WordTable(self.file, self.dim)
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise self._unusable(error) from error

    def _unusable(self, error: Exception) -> VmrError:
        return VmrError(
            f"Expected word vectors of {self.dim} numbers at {self.file} (GloVe's text file, or npz with "
            f"words and vectors): {error}. Set text_encoder.file and text_encoder.dim."
        )

    def tokenise(self, texts: Sequence[str]) -> list[Tokens]:
        """Splits sentences into words that the table has; ids are rows of the table.

        Args:
            texts: N sentences.

        Returns:
            N token lists.
        """
        split = []
        for text in texts:
            known = [word for word in self._model.split(text) if word.row is not None]
            ids = np.array([word.row for word in known], np.int64)
            spans = np.array([(word.start, word.end) for word in known], np.int64).reshape(-1, 2)
            split.append(Tokens(ids, spans, text.lower()))
        return split

    def lost_words(self, texts: Sequence[str], max_tokens: int | None = None) -> LostWords:
        """Counts the words that the table lacks, and the tokens past the longest query."""
        return self._model.lost_words(texts, max_tokens)

    def _inputs(self, texts: Sequence[str]) -> list[list[int]]:
        return [tokens.ids.tolist() for tokens in self.tokenise(texts)]

    def _forward(self, ids: list[list[int]]) -> tuple[Array, Array]:
        rows = np.array(ids)
        vectors = self._model.vectors(rows.ravel()).reshape(*rows.shape, self.dim)
        return vectors, vectors.mean(1)
