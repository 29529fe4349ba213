"""What `vmr fetch` keeps beside the features: where each file came from, and its checksum on first use."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from vmr_zoo.errors import VmrError
from vmr_zoo.utils.files import read_text, write_json

_NAME = "fetched.json"
_MOST = 1 << 28
"""Bytes of a record; it names every file."""
_FACTS = {"size": int, "sha256": str}


@dataclass
class Record:
    """The content of `fetched.json`.

    Attributes:
        source: the entry of the catalogue.
        commits: commit by repository.
        files: `size` and `sha256` of each downloaded file, by its key.
        placed: files that came out of each downloaded file, with their sizes, as paths below the folder.
        complete: whether everything was placed.
    """

    source: str
    commits: dict[str, str] = field(default_factory=dict)
    files: dict[str, dict[str, int | str]] = field(default_factory=dict)
    placed: dict[str, dict[str, int]] = field(default_factory=dict)
    complete: bool = False

    @classmethod
    def read(cls, folder: Path, source: str) -> Record:
        """Reads the record of a folder; returns an empty one if there is none.

        Raises:
            VmrError: if it cannot be read, or the folder holds another source.
        """
        path = folder / _NAME
        try:
            found = cls(**json.loads(read_text(path, _MOST)))
            found._check_types()
        except FileNotFoundError:
            return cls(source)
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise VmrError(
                f"{path} is not a record of `vmr fetch` ({error}). Delete it: existing files are then "
                "compared with the published ones."
            ) from error
        if found.source != source:
            raise VmrError(
                f"{folder} holds {found.source}; found source {source}. Choose another folder: out=DIR."
            )
        return found

    def _check_types(self) -> None:
        """Raises a TypeError, KeyError or AttributeError for entries that `write` does not write."""
        values = [(self.complete, bool), (self.source, str)]
        values += [(commit, str) for commit in self.commits.values()]
        values += [(facts[key], kind) for facts in self.files.values() for key, kind in _FACTS.items()]
        values += [(size, int) for sizes in self.placed.values() for size in sizes.values()]
        for value, kind in values:
            if type(value) is not kind:
                raise TypeError(f"expected {kind.__name__}, found {value!r:.80}")

    def write(self, folder: Path) -> None:
        """Writes the record atomically."""
        write_json(folder / _NAME, asdict(self))

    def holds(self, folder: Path, key: str) -> bool:
        """Returns whether all that came out of a downloaded file is there, as far as sizes show."""
        placed = self.placed.get(key)
        return placed is not None and all(
            (folder / name).is_file() and (folder / name).stat().st_size == size
            for name, size in placed.items()
        )

    def check(self, key: str, size: int | None, sha256: str | None) -> None:
        """Refuses a file that differs from the one that was fetched first.

        Raises:
            VmrError: says what was recorded and what is found.
        """
        known = self.files.get(key)
        if known is None:
            return
        if size in (None, known["size"]) and sha256 in (None, known["sha256"]):
            return
        raise VmrError(
            f"{key} has changed since its first use: recorded {known['size']:,} bytes with SHA-256 "
            f"{known['sha256']}, found {size or known['size']:,} bytes with {sha256 or 'an unknown one'}. "
            "Features of two versions are not mixed: to fetch what is published now, use another out=DIR."
        )
