"""Feature files as users have them, and the one object through which the data module reads any features.

A `FeatureSet` bundles what a configuration of the group `features` declares: a video source, a query source
and, where there are any, narrations and patch features. A source is lazy (it reads on `load`), deterministic,
and never answers with zeros: what is missing or broken is a `Problem` that names the file and the ids before
training starts.

Files are read where they lie. A `FileStore` (npz, npy, pt) or an `Hdf5Store` finds one array per id, a
`FileFeatures` casts it to float32 and L2-normalises it if it says so, and `VideoFiles` concatenates several
of them in the declared order. Other origins (rendered, simulated) subclass `VideoSource`, `QuerySource` and
`NarrationSource`.

An id never becomes a path: it is only looked up in the listing of a folder or of an HDF5 file, so that
"../x" is missing like any other name that is not listed.
"""

from __future__ import annotations

import itertools
import json
import os
import pickle
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import InitVar, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
import torch
from rich.progress import track

from vmr_zoo.data.annotations.records import Protocol, Query
from vmr_zoo.data.text.word_table import WordTable, words
from vmr_zoo.errors import VmrError, some, unknown
from vmr_zoo.video.files import NAMES

Array = np.ndarray[Any, np.dtype[Any]]
Read = Literal["names", "sample", "all"]
"""How much a check reads: "names" lists folders only, "sample" opens some 32 files, "all" every one."""

ORIGINS = ("real", "rendered", "simulated")
_SAMPLE = 32


# ---------------------------------------------------------------------------------------------- problems


class FeatureError(VmrError):
    """One array cannot be used.

    Attributes:
        kind: "missing", "unreadable", "dimension", "not finite" or "empty".
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong with the features of a protocol.

    Attributes:
        part: what it concerns, such as "video slowfast" or "query".
        kind: a `FeatureError` kind, or "length" (number of clips contradicts duration and clip length).
        ids: every id concerned; video ids, or query ids for the part "query".
        detail: one of the underlying messages in full, naming the file.
        fatal: whether training would fail on it.
    """

    part: str
    kind: str
    ids: tuple[str, ...]
    detail: str
    fatal: bool = True

    def __str__(self) -> str:
        count = f"{len(self.ids)} id{'s' * (len(self.ids) != 1)}"
        return f"{self.part}: {self.kind} for {count}: {some(self.ids)}. {self.detail}"


def l2_normalise(x: Array) -> Array:
    """Divides each vector on the last axis by (its L2 norm + 1e-5), as the Moment-DETR family does."""
    return x / (np.linalg.norm(x, axis=-1, keepdims=True) + 1e-5)


# ---------------------------------------------------------------------------------------------- stores


class ArrayStore(ABC):
    """Arrays on disk, one per id, read where they lie.

    Attributes:
        names: what an array may be called, tried in order; "{id}" stands for the id.
        key: which array inside an npz or pt file or an HDF5 group; None: the file or dataset itself.
    """

    def __init__(self, names: Sequence[str] = NAMES, key: str | None = None) -> None:
        self.names = tuple(names)
        self.key = key

    @abstractmethod
    def listing(self) -> Collection[str]:
        """Returns every name in the store, without suffix; listed once."""

    @abstractmethod
    def where(self, name: str) -> str:
        """Says where the array of that name lies, for messages."""

    @abstractmethod
    def read_named(self, name: str) -> Array:
        """Reads the array of a name that the listing holds."""

    def find(self, identifier: str) -> str | None:
        """Returns the first of the possible names that the store holds, or None."""
        listing = self.listing()
        for pattern in self.names:
            name = pattern.replace("{id}", identifier)
            if name in listing:
                return name
        return None

    def read(self, identifier: str) -> tuple[Array, str]:
        """Reads one array.

        Args:
            identifier: a video id or query id.

        Returns:
            The array as stored, and where it lies.

        Raises:
            FeatureError: if there is none, or it cannot be read.
        """
        name = self.find(identifier)
        if name is None:
            tried = ", ".join(self.where(pattern.replace("{id}", identifier)) for pattern in self.names)
            raise FeatureError("missing", f"Expected features for '{identifier}' at {tried}; found none.")
        where = self.where(name)
        try:
            array = self.read_named(name)
        except FeatureError:
            raise
        except pickle.UnpicklingError as error:
            raise FeatureError("unreadable", f"{where} does not hold plain arrays only ({error}).") from error
        except Exception as error:  # what a broken file raises depends on the byte: zlib.error, TypeError, …
            raise FeatureError(
                "unreadable", f"{where} cannot be read ({error}). Copy or extract it anew."
            ) from error
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu":
            found = getattr(array, "dtype", type(array).__name__)
            raise FeatureError("unreadable", f"{where} holds {found} values; expected real numbers.")
        return array, where

    def _entry(self, container: Any, where: str) -> Any:
        """Takes `key` out of a mapping of arrays."""
        if self.key is None or self.key not in container:
            found = ", ".join(sorted(map(str, container)))
            raise FeatureError("unreadable", f"{where} holds the arrays {found}; expected key={self.key}.")
        return container[self.key]


class FileStore(ArrayStore):
    """A folder with one file per id: npz (with a key), npy, or pt (a tensor, or a dict with a key).

    Nothing is unpickled: `allow_pickle=False` for numpy, `weights_only=True` for torch.
    """

    def __init__(
        self, folder: str | Path, suffix: str, names: Sequence[str] = NAMES, key: str | None = None
    ) -> None:
        """Stores the place; the folder is listed on first use.

        Args:
            folder: the folder.
            suffix: ".npz", ".npy" or ".pt".
            names: file names without suffix, tried in order; "{id}" stands for the id.
            key: which array of an npz, or of a dict in a pt file.

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
        return f"{self.folder / name}{self.suffix}"

    def read_named(self, name: str) -> Array:
        """Reads one file."""
        path = self.where(name)
        if self.suffix == ".npy":
            # Mapped: of files with several layers and patch tokens only the part that is asked for is read.
            return np.load(path, mmap_mode="r", allow_pickle=False)
        if self.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                return self._entry(arrays, path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
        tensor = self._entry(loaded, path) if isinstance(loaded, Mapping) else loaded
        if not isinstance(tensor, torch.Tensor):
            raise FeatureError("unreadable", f"{path} holds a {type(tensor).__name__}; expected a tensor.")
        return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).detach().numpy()


class Hdf5Store(ArrayStore):
    """One HDF5 file with a dataset per id, or a group per id that holds the dataset `key`."""

    def __init__(self, file: str | Path, names: Sequence[str] = NAMES, key: str | None = None) -> None:
        """Stores the place; the file is opened on first use, once per process.

        Args:
            file: the HDF5 file.
            names: names in the file, tried in order; "{id}" stands for the id.
            key: the dataset inside each id's group; None: the id names the dataset itself.
        """
        super().__init__(names, key)
        self.file = Path(file).expanduser()
        self._open: tuple[int, h5py.File] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": None}

    def _handle(self) -> h5py.File:
        if self._open is None or self._open[0] != os.getpid():  # a handle does not survive a fork
            try:
                self._open = (os.getpid(), h5py.File(self.file, "r"))
            except OSError as error:
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
                "unreadable", f"{self.file} cannot be listed ({error}). Copy or extract it anew."
            ) from error

    def listing(self) -> Collection[str]:
        """Returns the names at the file's top level."""
        return self._names

    def where(self, name: str) -> str:
        """Returns file and dataset."""
        return f"{self.file}[{name}]" + (f"[{self.key}]" if self.key else "")

    def read_named(self, name: str) -> Array:
        """Reads one dataset."""
        item = self._handle()[name]
        if self.key is not None and isinstance(item, h5py.Group):
            item = self._entry(item, self.where(name))
        if not isinstance(item, h5py.Dataset):
            found = ", ".join(sorted(item)) if isinstance(item, h5py.Group) else type(item).__name__
            raise FeatureError(
                "unreadable", f"{self.where(name)} is a group with {found}; name one as `key`."
            )
        return np.asarray(item[()])


class FileFeatures:
    """One backbone's features on disk."""

    def __init__(
        self,
        backbone: str,
        dim: int,
        store: ArrayStore,
        normalise: bool = True,
        layer: int | None = None,
        part: Literal["vector", "global", "patches"] = "vector",
    ) -> None:
        """Stores what the files hold and how to use it.

        Args:
            backbone: what computed them; part of the manifest.
            dim: size of one vector.
            store: where they lie.
            normalise: whether to L2-normalise each vector (x / (norm + 1e-5)).
            layer: for files with several layers on the second axis, which to take.
            part: "vector": (T, dim) on disk. "global" and "patches": (T, 1 + P, dim) on disk, of which the
                first token or the P others are taken.
        """
        if part not in ("vector", "global", "patches"):
            raise unknown("part of a feature file", part, ("vector", "global", "patches"))
        self.backbone = backbone
        self.dim = dim
        self.store = store
        self.normalise = normalise
        self.layer = layer
        self.part = part

    def read(self, identifier: str) -> Array:
        """Reads one id's features.

        Returns:
            (T, dim) float32, or (T, P, dim) for the part "patches".

        Raises:
            FeatureError: if they are missing, unreadable, empty, not finite or of another dimension.
        """
        array, where = self.store.read(identifier)
        shape = array.shape
        axes = 2 + (self.layer is not None) + (self.part != "vector")
        if len(shape) != axes or shape[-1] != self.dim:
            expected = "(T, {}{}{})".format(
                "layers, " * (self.layer is not None), "tokens, " * (self.part != "vector"), self.dim
            )
            raise FeatureError("dimension", f"{where} has shape {shape}; expected {expected}.")
        if self.layer is not None:
            if not -shape[1] <= self.layer < shape[1]:
                raise FeatureError(
                    "dimension", f"{where} has {shape[1]} layers; layer={self.layer} asked for."
                )
            array = array[:, self.layer]
        if self.part != "vector":
            array = array[:, 0] if self.part == "global" else array[:, 1:]
        if 0 in array.shape:
            raise FeatureError("empty", f"{where} has shape {shape}.")
        array = array.astype(np.float32)
        if not np.isfinite(array).all():
            raise FeatureError(
                "not finite", f"{where} holds {int((~np.isfinite(array)).sum())} NaN or infinite values."
            )
        return l2_normalise(array) if self.normalise else array

    def manifest(self) -> dict[str, Any]:
        """Returns what makes these features interchangeable with others: not where they lie."""
        manifest: dict[str, Any] = {"backbone": self.backbone, "dim": self.dim, "normalise": self.normalise}
        if self.layer is not None:
            manifest["layer"] = self.layer
        if self.part != "vector":
            manifest["part"] = self.part
        return manifest


# ---------------------------------------------------------------------------------------------- sources


class _Source(ABC):
    """What all sources share."""

    dim: int
    """Size of one vector."""

    computed: bool = False
    """Whether `load` computes: then a check tries a sample where it would read every file."""

    def prepare(self, protocol: Protocol) -> None:  # noqa: B027, most sources have nothing to prepare
        """Generates, embeds or indexes whatever `load` needs; called once, before any `load`."""

    @abstractmethod
    def manifest(self) -> dict[str, Any]:
        """Returns a JSON-able description; two sources with equal manifests are interchangeable."""


class VideoSource(_Source):
    """Clip features by video id: (T, dim), or (T, P, dim) for patch features."""

    max_clips: int | None = None
    """Longest video in clips; None: no limit."""

    encodes: bool = False
    """Whether `encode` works."""

    def encode(self, path: Path) -> Array:
        """Computes the (T, dim) float32 that `load` would return for a video file, whatever its name."""
        raise VmrError(f"{type(self).__name__} reads features that were made elsewhere; it cannot make any.")

    @abstractmethod
    def load(self, video_id: str) -> Array:
        """Returns (T, dim) float32, or (T, P, dim) for patch features."""

    def length(self, video_id: str) -> int:
        """Returns T."""
        return len(self.load(video_id))

    def missing(self, video_ids: Sequence[str]) -> list[Problem]:
        """Finds videos without features; fast, opens no feature file."""
        return []


class QuerySource(_Source):
    """Token features of a sentence."""

    encodes: bool = False
    """Whether `load` works for any sentence; otherwise for those alone that lie on disk."""

    def encode(self, texts: Sequence[str]) -> None:
        """Computes together what `load` would compute one by one."""

    has_token_ids: bool = False
    """Whether `token_ids` works; then the need "query_tokens" is served."""

    has_noun_masks: bool = False
    """Whether `noun_mask` works; then the need "noun_mask" is served."""

    @abstractmethod
    def load(self, query: Query) -> Array:
        """Returns (L, dim) float32."""

    def noun_mask(self, query: Query) -> Array:
        """Returns (L,) bool, which rows of `load` belong to a noun chunk."""
        raise VmrError(f"{type(self).__name__} has no noun chunks. Choose features/query=minilm.")

    def token_ids(self, query: Query) -> Array:
        """Returns (L,) int64 tokenizer ids, one per row of `load`."""
        raise VmrError(f"{type(self).__name__} has no token ids. Choose features/query=minilm or =glove.")

    def missing(self, queries: Sequence[Query]) -> list[Problem]:
        """Finds queries without features; fast, opens no feature file."""
        return []


class NarrationSource(_Source):
    """One vector per narration sentence, with its time."""

    @abstractmethod
    def load(self, video_id: str) -> tuple[Array, Array]:
        """Returns (Ln, dim) float32 vectors and (Ln, 2) float32 start and end in seconds."""

    def missing(self, video_ids: Sequence[str]) -> list[Problem]:
        """Finds videos without narrations; fast."""
        return []


def _missing(part: str, store: ArrayStore, wanted: Mapping[str, str]) -> list[Problem]:
    """Looks ids up in one store.

    Args:
        part: what to call it.
        store: where to look.
        wanted: the store's id by the id to report.

    Returns:
        At most one problem.
    """
    try:
        lacking = tuple(report for report, identifier in wanted.items() if store.find(identifier) is None)
    except FeatureError as error:  # the whole folder or file
        return [Problem(part, error.kind, tuple(wanted), str(error))]
    tried = " or ".join(store.where(name) for name in store.names)
    return [Problem(part, "missing", lacking, f"Looked for {tried}.")] if lacking else []


class VideoFiles(VideoSource):
    """Several backbones' files, concatenated in the declared order, cut to the shortest.

    Each source is normalised on its own before the concatenation. The order is part of the manifest: features
    concatenated the other way round have the same size and silently ruin a checkpoint.
    """

    def __init__(
        self,
        sources: Sequence[FileFeatures],
        max_clips: int | None = None,
        overlong: Literal["truncate", "mean_pool"] = "truncate",
    ) -> None:
        """Stores the sources.

        Args:
            sources: in the order of the concatenation.
            max_clips: longest video in clips; None: no limit.
            overlong: what happens to a longer one: "truncate" keeps the first `max_clips`; "mean_pool"
                averages into `max_clips` bins of (nearly) equal length, each then duration / max_clips long.
        """
        if overlong not in ("truncate", "mean_pool"):
            raise unknown("treatment of overlong videos", overlong, ("truncate", "mean_pool"))
        if not sources:
            raise VmrError("VideoFiles needs at least one source.")
        if len(sources) > 1 and any(source.part == "patches" for source in sources):
            raise VmrError("Patch features come from one source; a concatenation of several is not defined.")
        self.sources = list(sources)
        self.dim = sum(source.dim for source in sources)
        self.max_clips = max_clips
        self.overlong = overlong

    def load(self, video_id: str) -> Array:
        """Returns (T, dim) float32; T is the shortest source's length, at most `max_clips`.

        Raises:
            FeatureError: see `FileFeatures.read`.
        """
        video = self.joined([source.read(video_id) for source in self.sources])
        if self.max_clips is not None and self.overlong == "truncate":
            return np.ascontiguousarray(video[: self.max_clips])
        return video

    def joined(self, arrays: Sequence[Array]) -> Array:
        """Concatenates what the sources yield for one video, as declared, and pools it if it is overlong."""
        shortest = min(map(len, arrays))
        video = (
            arrays[0] if len(arrays) == 1 else np.concatenate([array[:shortest] for array in arrays], axis=-1)
        )
        if self.max_clips is not None and self.overlong == "mean_pool" and len(video) > self.max_clips:
            edges = np.arange(self.max_clips + 1) * len(video) // self.max_clips
            sums = np.add.reduceat(video, edges[:-1], axis=0)
            video = sums / np.diff(edges).reshape(-1, *(1,) * (video.ndim - 1)).astype(np.float32)
        return video

    def missing(self, video_ids: Sequence[str]) -> list[Problem]:
        """Finds videos that a source lacks."""
        wanted = {video_id: video_id for video_id in video_ids}
        found = (_missing(f"video {source.backbone}", source.store, wanted) for source in self.sources)
        return list(itertools.chain.from_iterable(found))

    def manifest(self) -> dict[str, Any]:
        """Returns the sources in order, and the treatment of long videos."""
        return {
            "order": [source.backbone for source in self.sources],
            "sources": [source.manifest() for source in self.sources],
            "max_clips": self.max_clips,
            "overlong": self.overlong if self.max_clips is not None else None,
        }


class QueryFiles(QuerySource):
    """Token features on disk, one file per query."""

    def __init__(
        self, source: FileFeatures, max_tokens: int | None = 32, index: Sequence[str | Path] = ()
    ) -> None:
        """Stores the source.

        Args:
            source: the files.
            max_tokens: only the first ones are kept; None: all.
            index: JSON Lines files with `qid`, `vid` and `query`, for stores whose numbering is not that of
                the published annotations: a query's file is then found by video and text, not by query id.
        """
        self.source = source
        self.dim = source.dim
        self.max_tokens = max_tokens
        self.index = [Path(path).expanduser() for path in index]

    @cached_property
    def _qids(self) -> dict[tuple[str, str], str]:
        qids: dict[tuple[str, str], str] = {}
        for path in self.index:
            try:
                lines = path.read_text(encoding="utf-8").strip().split("\n")
            except (OSError, UnicodeError) as error:
                raise VmrError(
                    f"Expected JSON Lines with qid, vid and query in UTF-8 at {path}; {error}."
                ) from error
            for number, line in enumerate(lines, 1):
                try:
                    row = json.loads(line)
                    qids[row["vid"], row["query"].strip()] = str(row["qid"])
                except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                    raise VmrError(
                        f"{path}, line {number}: expected an object with qid, vid, query."
                    ) from error
        return qids

    def _file_id(self, query: Query) -> str:
        if not self.index:
            return query.query_id
        try:
            return self._qids[query.video_id, query.text]
        except KeyError:
            raise FeatureError(
                "missing",
                f"{some(map(str, self.index))} lacks a row with vid {query.video_id}, query '{query.text}'.",
            ) from None

    def load(self, query: Query) -> Array:
        """Returns (L, dim) float32, L at most `max_tokens`.

        Raises:
            FeatureError: see `FileFeatures.read`.
        """
        return self.source.read(self._file_id(query))[: self.max_tokens]

    def missing(self, queries: Sequence[Query]) -> list[Problem]:
        """Finds queries without a file."""
        part = f"query {self.source.backbone}"
        unlisted: list[str] = []
        wanted: dict[str, str] = {}
        for query in queries:
            try:
                wanted[query.query_id] = self._file_id(query)
            except FeatureError:
                unlisted.append(query.query_id)
        problems = _missing(part, self.source.store, wanted)
        if unlisted:
            detail = f"No row with their vid and query in {some(map(str, self.index))}."
            problems.append(Problem(part, "missing", tuple(unlisted), detail))
        return problems

    def manifest(self) -> dict[str, Any]:
        """Returns the source and the cut."""
        return {**self.source.manifest(), "max_tokens": self.max_tokens}


class WordVectors(QuerySource):
    """One vector per word out of a table such as GloVe: its published text file, or an npz (`WordTable`).

    Words are the lower-cased runs of letters, digits and apostrophes. Words that the table lacks are left out
    of the sequence and counted as a problem that is not fatal; a sentence without any known word is.
    """

    encodes = True
    has_token_ids = True

    def __init__(self, file: str | Path, dim: int, name: str = "glove", normalise: bool = True) -> None:
        """Stores the place; the table is read on first use.

        Args:
            file: GloVe's text file, or an npz with `words` (N,) and `vectors` (N, dim).
            dim: size of one vector.
            name: what the vectors are; part of the manifest.
            normalise: whether to L2-normalise each vector.
        """
        self.file = Path(file).expanduser()
        self.dim = dim
        self.name = name
        self.normalise = normalise

    @cached_property
    def _table(self) -> WordTable:
        try:
            table = WordTable(self.file, self.dim)
        except Exception as error:  # what a broken npz raises depends on the byte
            raise FeatureError(
                "unreadable",
                f"Expected word vectors (GloVe's text file, or npz with words, vectors) of {self.dim} "
                f"numbers at {self.file}; {error}.",
            ) from error
        if table.dim != self.dim:
            raise FeatureError(
                "dimension", f"{self.file} has vectors of {table.dim} numbers; expected {self.dim}."
            )
        return table

    @staticmethod
    def words(text: str) -> list[str]:
        """Splits a sentence into lower-case words."""
        return [word for word, _ in words(text)]

    def token_ids(self, query: Query) -> Array:
        """Returns (L,) int64 rows of the table, known words only.

        Raises:
            FeatureError: if the table knows none of the words.
        """
        rows = self._table.rows
        ids = [rows[word] for word in self.words(query.text) if word in rows]
        if not ids:
            raise FeatureError("empty", f"{self.file} knows no word of '{query.text}' ({query.query_id}).")
        return np.array(ids, dtype=np.int64)

    def load(self, query: Query) -> Array:
        """Returns (L, dim) float32, one row per known word."""
        try:
            vectors = self._table.vectors(self.token_ids(query))
        except ValueError as error:
            raise FeatureError(
                "unreadable", f"{self.file} has no {self.dim} numbers for a word of '{query.text}' ({error})."
            ) from error
        if not np.isfinite(vectors).all():
            raise FeatureError(
                "not finite", f"{self.file} holds NaN or infinite numbers for a word of '{query.text}'."
            )
        return l2_normalise(vectors) if self.normalise else vectors

    def missing(self, queries: Sequence[Query]) -> list[Problem]:
        """Finds queries with words that the table lacks."""
        try:
            rows = self._table.rows
        except FeatureError as error:
            return [Problem("query words", error.kind, tuple(q.query_id for q in queries), str(error))]
        unknown_words = {
            query.query_id: lacking
            for query in queries
            if (lacking := set(self.words(query.text)) - rows.keys())
        }
        if not unknown_words:
            return []
        detail = f"{self.file} lacks {some(sorted(set().union(*unknown_words.values())))}; they are left out."
        return [Problem("query words", "missing", tuple(unknown_words), detail, fatal=False)]

    def manifest(self) -> dict[str, Any]:
        """Returns the name of the table and its size."""
        return {"backbone": self.name, "dim": self.dim, "normalise": self.normalise}


# ---------------------------------------------------------------------------------------------- the set


@dataclass
class FeatureSet:
    """The features of one configuration.

    Attributes:
        name: the configuration's name.
        origin: "real", "rendered" or "simulated"; rows of different origin never share a table.
        video_dim: size of a clip vector, without TEF.
        query_dim: size of a token vector.
        clip_seconds: seconds that one clip covers; None: duration / number of clips.
        video: the clip features.
        query: the token features.
        narration: the narrations, if there are any.
        patches: the patch features, if there are any; as many clips as `video`.
        narration_dim: size of a narration vector; None without narrations.
        patch_dim: size of a patch vector; None without patches.
        patch_count: patches in a clip; None without patches.
        packed: what `vmr pack` wrote of `video`; None: the video features are read where they come from.
    """

    name: str
    origin: str
    video_dim: int
    query_dim: int
    clip_seconds: float | None
    video: VideoSource
    query: QuerySource
    narration: NarrationSource | None = None
    patches: VideoSource | None = None
    narration_dim: int | None = None
    patch_dim: int | None = None
    patch_count: int | None = None
    packed: InitVar[str | Path | None] = None

    def __post_init__(self, packed: str | Path | None) -> None:
        if self.origin not in ORIGINS:
            raise unknown("feature origin", self.origin, ORIGINS)
        for key, source in (
            ("video_dim", self.video),
            ("query_dim", self.query),
            ("narration_dim", self.narration),
            ("patch_dim", self.patches),
        ):
            declared = getattr(self, key)
            found = None if source is None else source.dim
            if declared != found:
                raise VmrError(
                    f"features={self.name} declares {key}={declared}, but its source yields {found}."
                )
        if isinstance(self.video, VideoFiles) and self.video.max_clips is not None:
            pooled = self.video.overlong == "mean_pool"
            if pooled and self.clip_seconds is not None:
                raise VmrError(
                    f"features={self.name} averages long videos (overlong=mean_pool), so a clip's length "
                    f"depends on the video; set features.clip_seconds=null instead of {self.clip_seconds}."
                )
            if not pooled and self.clip_seconds is None:
                raise VmrError(
                    f"features={self.name} cuts long videos to {self.video.max_clips} clips, after which "
                    "duration / clips is no clip's length; set features.clip_seconds, or overlong=mean_pool."
                )
        if packed is not None:
            from vmr_zoo.data.features.packed import PackedVideos  # which imports this module

            self.video = PackedVideos(packed, self.video)
            if self.video.rounded is not None:  # other features: never in a table with those they came from
                self.name = f"{self.name} in {self.video.rounded}"

    def served(self) -> frozenset[str]:
        """Returns which of "narration", "patches", "query_tokens", "noun_mask" these features serve."""
        served = {"narration": self.narration is not None, "patches": self.patches is not None}
        served["query_tokens"] = self.query.has_token_ids
        served["noun_mask"] = self.query.has_noun_masks
        return frozenset(need for need, there in served.items() if there)

    def clip_length(self, duration: float, clips: int) -> float:
        """Returns the seconds that one of a video's `clips` clips covers."""
        return duration / clips if self.clip_seconds is None else self.clip_seconds

    def _sources(self, needs: Collection[str] | None) -> list[_Source]:
        optional = [(self.narration, "narration"), (self.patches, "patches")]
        wanted = [
            source for source, need in optional if source is not None and (needs is None or need in needs)
        ]
        return [self.video, self.query, *wanted]

    def prepare(self, protocol: Protocol, needs: Collection[str] | None = None) -> None:
        """Makes everything ready to `load`, and refuses to start on anything missing or broken.

        Reads every file of every split, so that a broken one stops here and not after training.

        Args:
            protocol: whose splits will be read.
            needs: the method's needs; narrations and patches that nobody asked for are left alone. None: all.

        Raises:
            VmrError: listing every fatal problem.
        """
        for source in self._sources(needs):
            source.prepare(protocol)
        for read in ("names", "all"):
            fatal = [problem for problem in self.check(protocol, read, needs) if problem.fatal]
            if fatal:
                listed = "\n".join(f"- {problem}" for problem in fatal)
                raise VmrError(
                    f"features={self.name} cannot serve {protocol.name}:\n{listed}\n"
                    "`vmr doctor` with the same data and features lists everything that is wrong."
                )

    def check(
        self, protocol: Protocol, read: Read = "sample", needs: Collection[str] | None = None
    ) -> list[Problem]:
        """Looks for missing ids, wrong dimensions, NaN, and lengths that contradict the durations.

        Sources must have been prepared if they need to be; files need not.

        Args:
            protocol: whose splits are looked at.
            read: how much is opened; 16,000 files take some 20 s to read and well under 1 s to list.
            needs: as in `prepare`.

        Returns:
            The problems, fatal ones first.
        """
        if read not in ("names", "sample", "all"):
            raise unknown("extent of a check", read, ("names", "sample", "all"))
        queries = [query for split in protocol.splits.values() for query in split.queries]
        durations = {query.video_id: query.duration for query in queries}
        by_id = {query.query_id: query for query in queries}
        sources = self._sources(needs)
        narration = self.narration if self.narration in sources else None
        patches = self.patches if self.patches in sources else None

        of_queries = self.query.missing(queries)
        of_videos = self.video.missing(list(durations))
        if narration is not None:
            of_videos += narration.missing(list(durations))
        if patches is not None:
            of_videos += [replace(p, part=f"patches of {p.part}") for p in patches.missing(list(durations))]
        problems = of_videos + of_queries
        if read != "names":
            videos = _there(durations, of_videos)
            lengths: dict[str, int] = {}
            problems += _read(
                self.video, "video", videos, read, lambda i: lengths.update({i: len(self.video.load(i))})
            )
            problems += self._contradictions(lengths, durations)
            problems += _read(
                self.query, "query", _there(by_id, of_queries), read, lambda i: self.query.load(by_id[i])
            )
            if narration is not None:
                problems += _read(narration, "narration", videos, read, narration.load)
            if patches is not None:
                problems += _read(patches, "patches", videos, read, patches.load)
        return sorted(problems, key=lambda problem: not problem.fatal)

    def _contradictions(self, lengths: Mapping[str, int], durations: Mapping[str, float]) -> list[Problem]:
        """Finds videos whose number of clips is off by more than two clips and more than 10 %.

        Fatal if most are: then the clip length is wrong, and moments are looked for in the wrong place.
        """
        if self.clip_seconds is None:
            return []
        most = self.video.max_clips
        off = {}
        for video_id, length in lengths.items():
            expected = durations[video_id] / self.clip_seconds
            if most is not None:
                expected = min(expected, most)
            if abs(length - expected) > max(2.0, 0.1 * expected):
                off[video_id] = f"{length} clips where about {expected:.0f} were expected"
        if not off:
            return []
        first = next(iter(off))
        detail = f"'{first}' has {off[first]} ({durations[first]:.1f} s at {self.clip_seconds} s a clip)."
        systematic = len(off) > len(lengths) / 2
        if systematic:
            detail += (
                f" So have most: check features.clip_seconds={self.clip_seconds} against the extraction."
            )
        return [Problem("video", "length", tuple(off), detail, fatal=systematic)]

    def manifest(self) -> dict[str, Any]:
        """Returns what a checkpoint stores about its features, JSON-able; `compare_manifests` checks it."""
        return {
            "name": self.name,
            "origin": self.origin,
            "video_dim": self.video_dim,
            "query_dim": self.query_dim,
            "clip_seconds": self.clip_seconds,
            "video": self.video.manifest(),
            "query": self.query.manifest(),
            "narration": None if self.narration is None else self.narration.manifest(),
            "patches": None if self.patches is None else self.patches.manifest(),
        }


def _there(ids: Iterable[str], problems: Sequence[Problem]) -> list[str]:
    """Returns the ids that no fatal problem concerns."""
    gone = {identifier for problem in problems if problem.fatal for identifier in problem.ids}
    return [identifier for identifier in ids if identifier not in gone]


def _read(
    source: _Source, part: str, ids: Sequence[str], read: Read, load: Callable[[str], Any]
) -> list[Problem]:
    """Loads every id, or evenly spaced ones, and groups the failures by kind."""
    if read == "sample" or source.computed:
        ids = ids[:: max(1, -(-len(ids) // _SAMPLE))]
    failures: dict[str, list[tuple[str, str]]] = {}
    for identifier in track(ids, f"Reading {part} features", transient=True, disable=len(ids) <= _SAMPLE):
        try:
            load(identifier)
        except FeatureError as error:
            failures.setdefault(error.kind, []).append((identifier, str(error)))
    return [
        Problem(part, kind, tuple(identifier for identifier, _ in listed), listed[0][1])
        for kind, listed in failures.items()
    ]


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Flattens nested dicts and lists of dicts to dotted names."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        value = {str(number): entry for number, entry in enumerate(value)}
    if not isinstance(value, dict):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, entry in value.items():
        flat |= _flat(entry, f"{prefix}.{key}" if prefix else key)
    return flat


def compare_manifests(stored: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    """Refuses features that differ from those that a checkpoint was trained on.

    The configuration's name is free; narrations and patches count only if the checkpoint's manifest has them.

    Args:
        stored: the manifest beside the checkpoint.
        current: `FeatureSet.manifest()` of the features to be used.

    Raises:
        VmrError: listing every field that differs.
    """
    optional = {key for key in ("narration", "patches") if stored.get(key) is None}
    skipped = {"name", *optional}
    # A round trip through JSON makes tuples lists, as they are in the stored manifest.
    old = _flat({key: value for key, value in stored.items() if key not in skipped})
    new = _flat(json.loads(json.dumps({key: value for key, value in current.items() if key not in skipped})))
    differing = [key for key in dict.fromkeys((*old, *new)) if old.get(key) != new.get(key)]
    if not differing:
        return
    lines = [f"- {key}: trained on {old.get(key)!r}, now {new.get(key)!r}" for key in differing]
    before, now = old.get("video.order"), new.get("video.order")
    if before != now and isinstance(before, list) and isinstance(now, list) and sorted(before) == sorted(now):
        lines.append(f"The same sources in another order: concatenate them as {' | '.join(before)}.")
    raise VmrError(
        "The features differ from those that the checkpoint was trained on:\n"
        + "\n".join(lines)
        + f"\nChoose the features it was trained on ('{stored.get('name')}')."
    )
