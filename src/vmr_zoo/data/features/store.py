"""Arrays on disk, one per id: a folder of files (npz, npy, pt), or one HDF5 file.

An id never becomes a path. It is looked up in the listing of a folder or of an HDF5 file, so "../x" is
missing like any other unlisted name. Nothing is unpickled.
"""

from __future__ import annotations

import os
import pickle
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from vmr_zoo.data.features.contained import (
    check_archive,
    check_inside,
    check_size,
    member,
    read_npy,
    read_npz,
    take,
)
from vmr_zoo.data.features.problems import FeatureError
from vmr_zoo.errors import VmrError, unknown
from vmr_zoo.utils.arrays import Array
from vmr_zoo.utils.files import check_regular, file_state
from vmr_zoo.video.files import FILE_NAMES

# ---------------------------------------------------------------------------------------------- stores


class ArrayStore(ABC):
    """Arrays on disk, one per id, read in the layout in which they were published.

    Attributes:
        names: possible names of an array, tried in order; "{id}" stands for the id.
        key: the array inside an npz or pt file or an HDF5 group; None: the file or dataset itself.
    """

    def __init__(self, names: Sequence[str] = FILE_NAMES, key: str | None = None) -> None:
        self.names = tuple(names)
        self.key = key

    @abstractmethod
    def listing(self) -> Collection[str]:
        """Returns all names in the store, without suffix; listed once."""

    @abstractmethod
    def where(self, name: str) -> str:
        """Returns the location of the array of that name, for messages."""

    @abstractmethod
    def file_of(self, name: str) -> str:
        """Returns the path of the file with the array of that name."""

    @abstractmethod
    def read_named(self, name: str) -> Array:
        """Reads the array of a listed name."""

    def find(self, identifier: str) -> str | None:
        """Returns the first of the possible names that the store holds, or None."""
        listing = self.listing()
        for pattern in self.names:
            name = pattern.replace("{id}", identifier)
            if name in listing:
                return name
        return None

    def state(self, identifier: str) -> list[int]:
        """Returns size and time of the file with an id's array; empty if there is none."""
        try:
            name = self.find(identifier)
        except FeatureError:  # the whole folder or file is gone
            return []
        return [] if name is None else file_state(self.file_of(name))

    def other_spelling(self, identifier: str) -> str:
        """Says that the store has the name of an id with its accents encoded in another way; "" if not.

        macOS writes a letter and its accent as two characters (NFD) where other systems write one (NFC).
        """
        for pattern in self.names:
            name = pattern.replace("{id}", identifier)
            found = self._by_form.get(unicodedata.normalize("NFC", name))
            if found is not None:
                theirs, own = ("NFC" if unicodedata.is_normalized("NFC", n) else "NFD" for n in (found, name))
                return (
                    f" {self.where(found)} looks the same but has the Unicode form {theirs}, the id {own}: "
                    f"rename it to {own}."
                )
        return ""

    @cached_property
    def _by_form(self) -> dict[str, str]:
        """The names with other letters than ASCII, by their form NFC."""
        return {unicodedata.normalize("NFC", name): name for name in self.listing() if not name.isascii()}

    def read(self, identifier: str) -> tuple[Array, str]:
        """Reads one array.

        Args:
            identifier: a video id or query id.

        Returns:
            The array as stored, and its location.

        Raises:
            FeatureError: if it is missing or cannot be read.
        """
        name = self.find(identifier)
        if name is None:
            tried = ", ".join(self.where(pattern.replace("{id}", identifier)) for pattern in self.names)
            spelled = self.other_spelling(identifier)
            raise FeatureError(
                "missing", f"Expected features for '{identifier}' at {tried}; found none.{spelled}"
            )
        where = self.where(name)
        try:
            array = self.read_named(name)
        except FeatureError:
            raise
        except pickle.UnpicklingError as error:
            raise FeatureError("unreadable", f"{where} does not hold plain arrays only ({error}).") from error
        except Exception as error:  # a broken file raises nearly anything: zlib.error, TypeError, …
            raise FeatureError(
                "unreadable", f"{where} cannot be read ({error}). Copy or extract it again."
            ) from error
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu":
            found = getattr(array, "dtype", type(array).__name__)
            raise FeatureError("unreadable", f"{where} holds {found} values; expected real numbers.")
        return array, where


class FileStore(ArrayStore):
    """A folder with one file per id: npz (with a key), npy, or pt (a tensor, or a dict with a key)."""

    def __init__(
        self, folder: str | Path, suffix: str, names: Sequence[str] = FILE_NAMES, key: str | None = None
    ) -> None:
        """Stores the path; the folder is listed on first use.

        Args:
            folder: the folder.
            suffix: ".npz", ".npy" or ".pt".
            names: possible file names, without suffix.
            key: the array inside each file.

        Raises:
            VmrError: for another suffix.
        """
        super().__init__(names, key)
        self.folder = Path(folder).expanduser()
        if suffix not in (".npz", ".npy", ".pt"):
            raise unknown("feature file suffix", suffix, (".npz", ".npy", ".pt"))
        self.suffix = suffix

    @cached_property
    def _files(self) -> frozenset[str]:
        try:
            names = os.listdir(self.folder)
        except OSError as error:
            raise FeatureError(
                "missing",
                f"Expected a folder of {self.suffix} files at {self.folder}; {error.strerror or error}. "
                "Set paths.features to the folder that holds this data set's features.",
            ) from error
        return frozenset(name[: -len(self.suffix)] for name in names if name.endswith(self.suffix))

    def listing(self) -> Collection[str]:
        """Returns the file names without suffix."""
        return self._files

    def where(self, name: str) -> str:
        """Returns the file's path."""
        return self.file_of(name)

    def file_of(self, name: str) -> str:
        """Returns the file's path."""
        return f"{self.folder / name}{self.suffix}"

    def read_named(self, name: str) -> Array:
        """Reads one file."""
        path = self.where(name)
        if self.suffix == ".npy":
            return read_npy(path)
        if self.suffix == ".npz":
            return read_npz(path, self.key)
        stored = check_archive(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
        tensor = take(loaded, self.key, path) if isinstance(loaded, Mapping) else loaded
        if not isinstance(tensor, torch.Tensor):
            raise FeatureError("unreadable", f"{path} holds a {type(tensor).__name__}; expected a tensor.")
        check_size(path, tensor.numel() * tensor.element_size(), stored)
        return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).detach().numpy()


class Hdf5Store(ArrayStore):
    """One HDF5 file with a dataset per id, or a group per id that holds the dataset `key`."""

    def __init__(self, file: str | Path, names: Sequence[str] = FILE_NAMES, key: str | None = None) -> None:
        """Stores the path; the file is opened on first use, once per process.

        Args:
            file: the HDF5 file.
            names: possible names in the file.
            key: the dataset inside each id's group.
        """
        super().__init__(names, key)
        self.file = Path(file).expanduser()
        self._open: tuple[int, h5py.File] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": None}

    def _handle(self) -> h5py.File:
        if self._open is None or self._open[0] != os.getpid():  # a handle does not survive a fork
            try:
                check_regular(self.file)
                self._open = (os.getpid(), h5py.File(self.file, "r"))
            except (OSError, VmrError) as error:
                kind = "unreadable" if self.file.exists() else "missing"
                raise FeatureError(
                    kind,
                    f"Expected an HDF5 file at {self.file} ({error}). "
                    "Set paths.features to the folder that holds this data set's features.",
                ) from error
        return self._open[1]

    @cached_property
    def _names(self) -> frozenset[str]:
        try:
            return frozenset(self._handle())
        except (RuntimeError, KeyError, ValueError, UnicodeError) as error:
            raise FeatureError(
                "unreadable", f"{self.file} cannot be listed ({error}). Copy or extract it again."
            ) from error

    def listing(self) -> Collection[str]:
        """Returns the names at the file's top level."""
        return self._names

    def where(self, name: str) -> str:
        """Returns the file and the dataset."""
        return f"{self.file}[{name}]" + (f"[{self.key}]" if self.key else "")

    def file_of(self, name: str) -> str:
        """Returns the path of the one file."""
        return str(self.file)

    def read_named(self, name: str) -> Array:
        """Reads one dataset."""
        item = member(self._handle(), name, self.where(name))
        if self.key is not None and isinstance(item, h5py.Group):
            item = member(item, self.key, self.where(name))
        if not isinstance(item, h5py.Dataset):
            found = ", ".join(sorted(item)) if isinstance(item, h5py.Group) else type(item).__name__
            raise FeatureError(
                "unreadable", f"{self.where(name)} is a group with {found}; set `key` to one of them."
            )
        check_inside(item, self.where(name))
        return np.asarray(item[()])
