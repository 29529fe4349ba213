"""Tables of word vectors: text files in GloVe's format and npz files."""

from __future__ import annotations

import codecs
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vmr_zoo.data.text.lost_words import LostWords, count_lost
from vmr_zoo.data.text.treebank import treebank_words
from vmr_zoo.utils.arrays import Array


class TableWord(NamedTuple):
    """A word of a sentence, looked up in a table.

    Attributes:
        text: the word in lower case.
        start: its first character in the sentence.
        end: the character after its last one.
        row: its row; None if the table lacks it.
    """

    text: str
    start: int
    end: int
    row: int | None


class WordTable:
    """One vector per word, from an npz with `words` (N,) and `vectors` (N, D), or from a text file.

    A line of a text file holds a word and its numbers, separated by spaces, as in GloVe. The file is indexed
    once (about a second per GB); a lookup then reads single lines, so the 5 GB of GloVe 840B are never in
    memory. Lines with another number of fields are skipped, as in EMB's code: 840B has words with a space.

    Attributes:
        rows: the row of each word, without zero vectors (a padding row of an npz).
        dim: size of one vector.
        size: number of rows, with zero vectors.
    """

    def __init__(self, file: Path, dim: int) -> None:
        """Reads an npz, or indexes a text file.

        Args:
            file: the table; a text file unless its name ends in ".npz".
            dim: expected size of one vector; in a text file it separates words from numbers.

        Raises:
            OSError: if the file cannot be read.
            ValueError: if the content is not such a table, or its vectors have another size.
            KeyError: if an npz lacks an array.
        """
        self._file = file
        self._vectors: Array | None = None
        self._offsets = np.zeros(0, np.int64)
        if file.suffix == ".npz":
            with np.load(file, allow_pickle=False) as table:
                listed, self._vectors = table["words"], table["vectors"].astype(np.float32)
            self.dim = self._vectors.shape[-1]
            if self._vectors.shape != (len(listed), self.dim):
                raise ValueError(f"{len(listed)} words and {self._vectors.shape} vectors")
            if self.dim != dim:
                raise ValueError(f"its vectors have {self.dim} numbers")
            self.rows = {str(word): row for row, word in enumerate(listed) if self._vectors[row].any()}
            self.size = len(listed)
        else:
            self.dim = dim
            self.rows = self._index()
            self.size = len(self._offsets)

    def _index(self) -> dict[str, int]:
        """Finds the start of each word's line."""
        rows: dict[str, int] = {}
        offsets, odd = [], []
        position = 0
        with self._file.open("rb") as lines:
            for number, line in enumerate(lines):
                offsets.append(position)
                position += len(line)
                numbers = line.rstrip().count(b" ")
                if numbers == self.dim:
                    # The first line counts: later ones are remains of words in other alphabets.
                    word = line[: line.index(b" ")].removeprefix(b"" if number else codecs.BOM_UTF8)
                    rows.setdefault(word.decode(errors="replace"), number)
                else:
                    odd.append((number + 1, numbers))
        if 2 * len(odd) >= len(offsets):
            found = "line {} has {}".format(*odd[0]) if odd else "it has no line"
            raise ValueError(f"expected lines of {self.dim} numbers, {found}")
        self._offsets = np.array(offsets, np.int64)
        return rows

    def split(self, sentence: str) -> list[TableWord]:
        """Splits a sentence into lower-case words as GloVe's corpora were, and looks them up.

        "person's" is "person", "'s". A period within the text ends a sentence unless the table has the word
        with it ("mr.").

        Args:
            sentence: the text.
        """
        words = []
        for text, start, end in treebank_words(sentence.lower()):
            if text not in self.rows and len(text) > 1 and text.endswith("."):
                words.append(TableWord(text[:-1], start, end - 1, self.rows.get(text[:-1])))
                text, start = ".", end - 1
            words.append(TableWord(text, start, end, self.rows.get(text)))
        return words

    def lost_words(self, sentences: Iterable[str], max_tokens: int | None) -> LostWords:
        """Counts the words that the table lacks, and the known words past `max_tokens`."""
        return count_lost(
            ([word.text if word.row is None else None for word in self.split(text)] for text in sentences),
            max_tokens,
        )

    def vectors(self, rows: Array) -> Array:
        """Returns (L, dim) float32, the vectors of some rows.

        Raises:
            ValueError: if a line of a text file holds anything but numbers.
        """
        if self._vectors is not None:
            return self._vectors[rows]
        found = np.empty((len(rows), self.dim), np.float32)
        with self._file.open("rb") as lines:
            for place, row in enumerate(rows):
                lines.seek(self._offsets[row])
                found[place] = lines.readline().split()[1:]
        return found
