"""Tables of word vectors: text files in GloVe's format and npz files."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from vmr_zoo.utils.arrays import Array


def words(text: str) -> list[tuple[str, tuple[int, int]]]:
    """Splits a sentence into lower-case words: runs of letters, digits and apostrophes.

    Args:
        text: the sentence.

    Returns:
        Words and their characters in `text.lower()`, end exclusive.
    """
    return [(found.group(), found.span()) for found in re.finditer(r"[a-z0-9']+", text.lower())]


class WordTable:
    """One vector per word, from an npz with `words` (N,) and `vectors` (N, D), or from a text file.

    A line of a text file holds a word and its numbers, separated by spaces, as in GloVe. The file is indexed
    once (about a second per GB); a lookup then reads single lines, so the 5 GB of GloVe 840B are never in
    memory. Words that contain a space (840B has some) are skipped: no sentence is split into such words.

    Attributes:
        rows: the row of each word, without zero vectors (a padding row of an npz).
        dim: size of one vector.
    """

    def __init__(self, file: Path, dim: int) -> None:
        """Reads an npz, or indexes a text file.

        Args:
            file: the table; a text file unless its name ends in ".npz".
            dim: size of one vector; in a text file it separates words from numbers.

        Raises:
            OSError: if the file cannot be read.
            ValueError: if the content is not such a table.
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
            self.rows = {str(word): row for row, word in enumerate(listed) if self._vectors[row].any()}
        else:
            self.dim = dim
            self.rows = self._index()

    def _index(self) -> dict[str, int]:
        """Finds the start of each word's line."""
        rows: dict[str, int] = {}
        offsets = []
        position = 0
        with self._file.open("rb") as lines:
            for number, line in enumerate(lines):
                offsets.append(position)
                position += len(line)
                numbers = line.rstrip().count(b" ")
                if numbers < self.dim:
                    raise ValueError(f"line {number + 1} has {numbers} numbers, expected {self.dim}")
                if numbers == self.dim:
                    # The first line counts: later ones are remains of words in other alphabets.
                    rows.setdefault(line[: line.index(b" ")].decode(errors="replace"), number)
        self._offsets = np.array(offsets, np.int64)
        return rows

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
