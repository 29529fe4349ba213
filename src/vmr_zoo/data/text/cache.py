"""Embeddings on disk, by a hash of the sentence.

One safetensors file holds thousands of entries, each with the checksums of its values. Files are only added,
each under a temporary name first, so processes may share a cache.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from vmr_zoo.errors import VmrError
from vmr_zoo.utils.arrays import Array, half
from vmr_zoo.utils.files import atomic_path
from vmr_zoo.utils.hashing import content_hash


class _Entry(NamedTuple):
    """The place of an entry in a file, and the CRC-32 of its values."""

    file: Path
    row: int
    start: int
    end: int
    tokens_crc: int
    sentence_crc: int


class EmbeddingCache:
    """Token embeddings (L, D) and one sentence embedding (D,) by a 32-byte key.

    Values are stored and returned as float16, so a result does not depend on whether it was cached.
    """

    def __init__(self, folder: str | Path) -> None:
        """Stores the path of the folder, which need not exist.

        Args:
            folder: the cache folder of one encoder.
        """
        self.folder = Path(folder).expanduser()
        self._shards: dict[Path, Any] = {}
        self._sentences: dict[Path, Array] = {}
        self._entries: dict[bytes, _Entry] = {}

    def _refresh(self) -> None:
        """Opens files that were added since the last call."""
        for path in sorted(self.folder.glob("[!.]*.safetensors")):
            if path in self._shards:
                continue
            with _named(path):
                shard = safe_open(path, framework="numpy")
                if "checksums" not in set(shard.keys()):  # of an earlier version: computed again
                    continue
                keys = shard.get_tensor("keys").tobytes()
                offsets = shard.get_tensor("offsets").tolist()
                checksums = shard.get_tensor("checksums").tolist()
                entries = {
                    keys[32 * row : 32 * row + 32]: _Entry(path, row, *limits, *checksums[row])
                    for row, limits in enumerate(itertools.pairwise(offsets))
                }
            self._shards[path] = shard
            self._entries |= entries

    def missing(self, keys: Iterable[bytes]) -> list[bytes]:
        """Returns the distinct keys without an entry, in order."""
        distinct = list(dict.fromkeys(keys))
        if any(key not in self._entries for key in distinct):
            self._refresh()
        return [key for key in distinct if key not in self._entries]

    def add(self, keys: Sequence[bytes], tokens: Sequence[Array], sentences: Array) -> None:
        """Writes one file.

        Args:
            keys: N keys.
            tokens: N arrays (L, D).
            sentences: (N, D).

        Raises:
            VmrError: for numbers that float16 cannot hold.
        """
        offsets = np.cumsum([0, *map(len, tokens)], dtype=np.int64)
        sentences = np.ascontiguousarray(half(sentences, "embeddings of sentences"))
        joined = half(np.concatenate(tokens), "embeddings of tokens")
        checksums = [
            (_crc(joined[start:end]), _crc(sentence))
            for (start, end), sentence in zip(itertools.pairwise(offsets), sentences, strict=True)
        ]
        with atomic_path(self.folder / f"{content_hash(*keys).hex()[:32]}.safetensors") as path:
            save_file(
                {
                    "keys": np.frombuffer(b"".join(keys), dtype=np.uint8).reshape(len(keys), 32),
                    "offsets": offsets,
                    "checksums": np.array(checksums, dtype=np.int64),
                    "tokens": joined,
                    "sentences": sentences,
                },
                path,
            )
        self._refresh()

    def tokens(self, key: bytes) -> Array:
        """Returns the (L, D) float16 token embeddings of a cached key.

        Raises:
            VmrError: if their bytes have changed since they were written.
        """
        entry = self._entries[key]
        with _named(entry.file):
            found: Array = self._shards[entry.file].get_slice("tokens")[entry.start : entry.end]
        return _verified(found, entry.tokens_crc, entry.file)

    def sentences(self, keys: Sequence[bytes]) -> Array:
        """Returns the (N, D) float16 sentence embeddings of cached keys.

        Raises:
            VmrError: if their bytes have changed since they were written.
        """
        found = []
        for entry in (self._entries[key] for key in keys):
            if entry.file not in self._sentences:
                with _named(entry.file):
                    self._sentences[entry.file] = self._shards[entry.file].get_tensor("sentences")
            vector = self._sentences[entry.file][entry.row : entry.row + 1]
            found.append(_verified(vector, entry.sentence_crc, entry.file))
        return np.concatenate(found)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Names the file in what safetensors raises about it."""
    try:
        yield
    except (SafetensorError, OSError, TypeError, ValueError, IndexError, OverflowError) as error:
        raise _broken(path, str(error)) from error


def _crc(array: Array) -> int:
    return zlib.crc32(array.tobytes())


def _verified(array: Array, crc: int, path: Path) -> Array:
    if array.dtype != np.float16 or _crc(array) != crc:
        raise _broken(path, "wrong checksum")
    return array


def _broken(path: Path, reason: str) -> VmrError:
    return VmrError(
        f"The cached embeddings at {path} are broken ({reason}). Delete the file; they are computed again."
    )
