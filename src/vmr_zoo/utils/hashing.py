"""SHA-256 of strings and of files."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path


def content_hash(*parts: str | bytes) -> bytes:
    """Hashes a sequence of strings with SHA-256.

    The length of each part is hashed too, so ("ab", "c") and ("a", "bc") differ.
    """
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.digest()


def sha256_of(path: Path) -> str:
    """Returns the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@lru_cache
def file_hash(path: Path) -> str:
    """Returns `sha256_of` a file that does not change; reads it once per process."""
    return sha256_of(path)
