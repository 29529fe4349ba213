"""Opening arrays that somebody else made: they stay inside of their file, and are as large as it says.

A file of kilobytes can declare an array of terabytes: a sparse file, a zip that unpacks to nothing but
zeros, an HDF5 dataset without chunks, a tensor that repeats one number. And an HDF5 file can refer to any
other file. Both are refused before anything is read.
"""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from vmr_zoo.data.features.problems import FeatureError
from vmr_zoo.utils.arrays import Array
from vmr_zoo.utils.files import check_regular

_SMALL = 64 * 2**20
"""Bytes that may always be read, whatever their compression."""

_MOST_COMPRESSED = 100
"""A larger array takes at most so many times its bytes on disk. Features compress to a third at best."""


def check_size(where: str, declared: int, stored: int) -> None:
    """Refuses an array that declares far more bytes than its file stores.

    Args:
        where: the file, for the error.
        declared: bytes of the array in memory.
        stored: its bytes on disk.

    Raises:
        FeatureError: for more than 64 MB and 100 times its bytes on disk.
    """
    if declared > _SMALL and declared > _MOST_COMPRESSED * stored:
        raise FeatureError(
            "unreadable",
            f"{where} declares {declared:,} bytes, but stores {stored:,}. Features are never compressed more "
            f"than {_MOST_COMPRESSED} times; copy or extract it again.",
        )


def bytes_on_disk(path: str | Path) -> int:
    """Returns the bytes that a regular file takes on disk; a sparse file takes less than its size.

    Raises:
        VmrError: if it is a pipe or a device.
    """
    size = check_regular(path)
    return min(size, os.stat(path).st_blocks * 512) or size


def read_npy(path: str) -> Array:
    """Memory-maps an npy file: files with several layers and patch tokens are read in part only."""
    stored = bytes_on_disk(path)
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    check_size(path, array.nbytes, stored)
    return array


def read_npz(path: str, key: str | None) -> Array:
    """Reads one array of an npz file, whose checksum is verified.

    Args:
        path: the file.
        key: the array.

    Raises:
        FeatureError: if there is no such array, or it is unreasonably large.
    """
    stored = bytes_on_disk(path)
    with zipfile.ZipFile(path) as archive:
        entry = take({info.filename.removesuffix(".npy"): info for info in archive.infolist()}, key, path)
        check_size(path, entry.file_size, stored)
        content = archive.read(entry)  # all of it, which verifies its checksum
    array: Array = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
    return array


def check_archive(path: str) -> int:
    """Checks what a file that may be a zip, such as torch's, unpacks to; returns its bytes on disk.

    Raises:
        FeatureError: if that is unreasonably large.
    """
    stored = bytes_on_disk(path)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            check_size(path, sum(entry.file_size for entry in archive.infolist()), stored)
    return stored


def take(container: Mapping[str, Any], key: str | None, where: str) -> Any:
    """Takes `key` out of a mapping of arrays.

    Raises:
        FeatureError: if there is none; lists those that there are.
    """
    if key is None or key not in container:
        found = ", ".join(sorted(map(str, container)))
        raise FeatureError("unreadable", f"{where} holds the arrays {found}; expected key={key}.")
    return container[key]


def check_inside(item: h5py.Dataset, where: str) -> None:
    """Refuses an HDF5 dataset whose values are in other files, or are not there.

    Raises:
        FeatureError: for external storage, a virtual dataset, or far more values than are stored.
    """
    if item.external or item.is_virtual:
        raise FeatureError(
            "unreadable", f"{where} refers to values in other files, which are not read. Copy them into it."
        )
    check_size(where, item.size * item.dtype.itemsize, item.id.get_storage_size())


def member(group: h5py.Group, name: str, where: str) -> h5py.Group | h5py.Dataset:
    """Takes a member out of an HDF5 group, without following a link to another place.

    Args:
        group: the file or group.
        name: a name in it; a slash leads into groups.
        where: the location, for the error.

    Raises:
        FeatureError: if there is none, or it is a soft or an external link.
    """
    item: h5py.Group | h5py.Dataset = group
    for part in name.split("/"):
        take(dict.fromkeys(item), part, where)  # lists names only; `in` would follow links
        if not isinstance(item.get(part, getlink=True), h5py.HardLink):
            raise FeatureError(
                "unreadable", f"{where} is a link to another place, which is not followed. Copy its values."
            )
        item = item[part]
    return item
