"""Checksums of generated files: a flipped byte on the disk is found when the file is read, and named."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from vmr_zoo.errors import VmrError
from vmr_zoo.utils.files import write_json
from vmr_zoo.utils.hashing import sha256_of


def write_checksums(index: Path, files: Iterable[Path]) -> None:
    """Writes the SHA-256 of files into an index.

    Args:
        index: a JSON file.
        files: below the folder of the index.
    """
    write_json(index, {str(path.relative_to(index.parent)): sha256_of(path) for path in files})


def verify_checksums(index: Path, files: Iterable[Path], remedy: str) -> None:
    """Compares files with an index.

    Args:
        index: from `write_checksums`.
        files: those to compare.
        remedy: what the error advises.

    Raises:
        VmrError: names the first file that differs, or the index if it is broken.
    """
    try:
        known = dict(json.loads(index.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise VmrError(f"{index} cannot be read ({error}). {remedy}") from error
    for path in files:
        try:
            found = sha256_of(path)
        except OSError as error:
            raise VmrError(f"{path} cannot be read ({error.strerror}). {remedy}") from error
        if known.get(str(path.relative_to(index.parent))) != found:
            raise VmrError(f"{path} has changed since it was written (other checksum). {remedy}")
