"""Embeddings on disk, by a hash of the sentence.

One safetensors file holds thousands of entries. Files are only added, each under a temporary name first, so
processes may share a cache.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from vmr_zoo.errors import VmrError
from vmr_zoo.utils.arrays import Array
from vmr_zoo.utils.files import atomic_path
from vmr_zoo.utils.hashing import content_hash


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
        self._sentences: dict[int, Array] = {}
        self._rows: dict[bytes, tuple[Any, int, int, int]] = {}

    def _refresh(self) -> None:
        """Opens files that were added since the last call."""
        for path in sorted(self.folder.glob("[!.]*.safetensors")):
            if path in self._shards:
                continue
            try:
                shard = safe_open(path, framework="numpy")
                keys = shard.get_tensor("keys").tobytes()
                offsets = shard.get_tensor("offsets").tolist()
            except (SafetensorError, OSError) as error:
                raise VmrError(
                    f"The cached embeddings at {path} are broken ({error}). Delete the file."
                ) from error
            self._shards[path] = shard
            for row, (start, end) in enumerate(itertools.pairwise(offsets)):
                self._rows[keys[32 * row : 32 * row + 32]] = (shard, row, start, end)

    def missing(self, keys: Iterable[bytes]) -> list[bytes]:
        """Returns the distinct keys without an entry, in order."""
        distinct = list(dict.fromkeys(keys))
        if any(key not in self._rows for key in distinct):
            self._refresh()
        return [key for key in distinct if key not in self._rows]

    def add(self, keys: Sequence[bytes], tokens: Sequence[Array], sentences: Array) -> None:
        """Writes one file.

        Args:
            keys: N keys.
            tokens: N arrays (L, D).
            sentences: (N, D).
        """
        offsets = np.cumsum([0, *map(len, tokens)], dtype=np.int64)
        with atomic_path(self.folder / f"{content_hash(*keys).hex()[:32]}.safetensors") as path:
            save_file(
                {
                    "keys": np.frombuffer(b"".join(keys), dtype=np.uint8).reshape(len(keys), 32),
                    "offsets": offsets,
                    "tokens": np.concatenate(tokens).astype(np.float16),
                    "sentences": np.ascontiguousarray(sentences, dtype=np.float16),
                },
                path,
            )
        self._refresh()

    def tokens(self, key: bytes) -> Array:
        """Returns the (L, D) float16 token embeddings of a cached key."""
        shard, _, start, end = self._rows[key]
        return shard.get_slice("tokens")[start:end]

    def sentences(self, keys: Sequence[bytes]) -> Array:
        """Returns the (N, D) float16 sentence embeddings of cached keys."""
        rows = [self._rows[key] for key in keys]
        for shard, *_ in rows:
            if id(shard) not in self._sentences:
                self._sentences[id(shard)] = shard.get_tensor("sentences")
        return np.stack([self._sentences[id(shard)][row] for shard, row, *_ in rows])
