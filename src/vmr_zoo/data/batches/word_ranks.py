"""Ranks of tokens by frequency, counted in the training split or read from a file of counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vmr_zoo.data.features.source import QuerySource
from vmr_zoo.errors import VmrError


def frequency_ranks(ids: Iterable[NDArray[np.int64]]) -> dict[int, int]:
    """Ranks token ids by frequency.

    Args:
        ids: (L_i,) each.

    Returns:
        Rank by id; the most frequent id has rank 1, ties go to the smaller id.
    """
    counts = Counter(token for one in ids for token in one.tolist())
    ordered = sorted(counts, key=lambda token: (-counts[token], token))
    return {token: rank for rank, token in enumerate(ordered, 1)}


def listed_ranks(file: Path, source: QuerySource) -> dict[int, int]:
    """Reads ranks from a file: a token, and behind spaces its count, per line; the first line has rank 1.

    Args:
        file: as MESM's released code keeps them.
        source: gives the id of each token; a token that it lacks keeps its rank, but no sentence has it.

    Raises:
        VmrError: if the file cannot be read, or a line is no token of the source.
    """
    try:
        lines = file.expanduser().read_text(encoding="utf-8").split("\n")
        ids = [source.listed_id(line.split(" ")[0]) for line in lines if line]
    except (OSError, ValueError) as error:
        raise VmrError(
            f"Expected lines of a token and its count at {file} (data.word_counts); {error}. The counts must "
            "be of the tokens of features.query."
        ) from error
    return {token: rank for rank, token in enumerate(ids, 1) if token is not None}
