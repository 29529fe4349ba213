"""From data files to batches: compares the batch of the authors' loader with ours, from the same files.

A case of this form holds made-up data files, and every array of the batches that the authors' code makes of
them. The files are written to a temporary folder, where our configured readers, features and data module read
them.
"""

from __future__ import annotations

import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import h5py
import hydra
import numpy as np
from omegaconf import DictConfig

from vmr_zoo.config.compose import compose
from vmr_zoo.data.batches.datamodule import VMRDataModule
from vmr_zoo.errors import VmrError
from vmr_zoo.parity.case import Case, Number
from vmr_zoo.parity.check import Verdict, compare_array
from vmr_zoo.utils.arrays import Array


class ReleasedFiles(ABC):
    """Adapter of one released code: where its files belong, and how its batches follow from ours."""

    @abstractmethod
    def overrides(self, case: Case, folder: Path) -> list[str]:
        """Lays out the files of a case for our readers.

        Args:
            case: the case; `case.options` are the authors' settings.
            folder: holds the files of the case at their own paths; others may be added.

        Returns:
            Overrides of `vmr train`: the experiment, paths, and the dimensions of the features. Whatever
            decides about behaviour follows from `variant=released`.

        Raises:
            VmrError: if the case has a setting that no experiment implements.
        """

    @abstractmethod
    def recompute(self, case: Case, data: VMRDataModule, cfg: DictConfig) -> dict[str, Number]:
        """Recomputes the batches of a case.

        Args:
            case: the case. A random draw that it records is given to our code; a draw that our code cannot
                make is answered by another array than the recorded one.
            data: our data module over the files of the case, as `vmr train` builds it.
            cfg: the composed configuration of `vmr train`, from which the method can be built.

        Returns:
            Recomputed arrays by the case's keys; text as `vmr_zoo.parity.case.texts` returns it.
        """


def check_files(cfg: DictConfig, case: Case) -> list[Verdict]:
    """Recomputes the batches of a case and compares every array in them.

    Args:
        cfg: the configuration composed from conf/parity.yaml, with a node `files`.
        case: a case of this form.

    Returns:
        One verdict per array `batch/…`, in the order of the file. An array that is not recomputed fails.

    Raises:
        VmrError: if the method has no adapter, or the case's files cannot be written or read.
    """
    if cfg.get("files") is None:
        raise VmrError(
            f"{case.path} goes from data files to batches, but this method has no adapter for that: "
            "conf/released/ holds no node `files` for it. Choose the method that the case was made for."
        )
    with our_data(cfg, case) as ours:
        return ours.check(case)


class OurData(NamedTuple):
    """Our data module over the files of a case.

    Attributes:
        released: the adapter of the authors' code.
        data: the data module, as `vmr train` builds it.
        cfg: the composed configuration of `vmr train`.
    """

    released: ReleasedFiles
    data: VMRDataModule
    cfg: DictConfig

    def check(self, case: Case) -> list[Verdict]:
        """Compares every array `batch/…` of a case with these files."""
        numbers = self.released.recompute(case, self.data, self.cfg)
        keys = [key for key in case.keys if key.startswith("batch/")]
        return [compare_array(case, key, numbers.get(key)) for key in keys]


@contextmanager
def our_data(cfg: DictConfig, case: Case) -> Iterator[OurData]:
    """Writes the files of a case and builds our data module over them; removes them at the end.

    Arguments and errors as in `check_files`.
    """
    released: ReleasedFiles = hydra.utils.instantiate(cfg.files)
    with tempfile.TemporaryDirectory(prefix="vmr_parity_") as name:
        folder = Path(name).resolve()
        write_files(case, folder)
        overrides = [*released.overrides(case, folder), f"paths.cache='{folder}/cache'", "variant=released"]
        train = compose("train", overrides)
        needs = hydra.utils.instantiate(train.method).needs
        yield OurData(released, hydra.utils.instantiate(train.data, needs=needs), train)


def write_files(case: Case, folder: Path) -> None:
    """Writes the files of a case below a folder, at their own paths.

    Args:
        case: holds `files/PATH` (an .npy), `files/PATH#NAME` (an array of an .npz, or a dataset of an HDF5
            file), and `text/PATH` (a text file).
        folder: where to write.

    Raises:
        VmrError: if a path leads out of the folder, or its suffix is of another kind of file.
    """
    arrays: dict[str, dict[str, Array]] = {}
    for key in case.keys:
        kind, _, rest = key.partition("/")
        if kind == "text":
            path = _inside(folder, rest, case)
            path.write_bytes(str(case.array(key)).encode())
        elif kind == "files":
            name, _, entry = rest.partition("#")
            arrays.setdefault(name, {})[entry] = case.array(key)
    for name, entries in arrays.items():
        path = _inside(folder, name, case)
        if path.suffix == ".npy" and set(entries) == {""}:
            np.save(path, entries[""], allow_pickle=False)
        elif path.suffix == ".npz" and "" not in entries:
            np.savez(path, **entries)  # type: ignore[arg-type]
        elif path.suffix in (".hdf5", ".h5") and "" not in entries:
            with h5py.File(path, "w") as file:
                for entry, array in entries.items():
                    file[entry] = array
        else:
            raise VmrError(
                f"{case.path}: expected files/PATH.npy, or files/PATH#NAME with .npz or .hdf5; found "
                f"'files/{name}' with the entries {sorted(entries)}."
            )


def _inside(folder: Path, name: str, case: Case) -> Path:
    """Returns a path below a folder whose parent exists.

    Raises:
        VmrError: if the name is absolute or has a part such as "..".
    """
    parts = PurePosixPath(name).parts
    if not parts or PurePosixPath(name).is_absolute() or ".." in parts or "\\" in name or "\0" in name:
        raise VmrError(f"{case.path}: expected a path below the case's folder, found '{name}'.")
    path = folder.joinpath(*parts)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
