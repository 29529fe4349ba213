"""Video features packed into one flat array: the writer behind `vmr pack`, and a memory-mapped reader.

    features.npy    (all clips, dim) float16 or float32, video after video
    index.json      the source's manifest, the largest absolute rounding error, and for each video its first
                    row, its number of rows, their CRC-32, and size and time of its files

While packing, `features.part` and `journal.jsonl` (one line per video) grow instead. An interrupted run
continues after the last complete line. Nothing is pickled.
"""

from __future__ import annotations

import io
import json
import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vmr_zoo.data.features.contained import read_npy
from vmr_zoo.data.features.manifest import same_sources
from vmr_zoo.data.features.problems import FeatureError, Problem, sample
from vmr_zoo.data.features.source import VideoSource
from vmr_zoo.errors import VmrError, abbreviate, unknown
from vmr_zoo.utils.arrays import Array
from vmr_zoo.utils.files import atomic_write, lock_folder
from vmr_zoo.utils.trees import differing, through_json

SCHEMA = 2
DATA, INDEX, PART, JOURNAL = "features.npy", "index.json", "features.part", "journal.jsonl"
DTYPES = ("float16", "float32")
_HEADER = 128
"""Bytes of the npy header. It is written last, when the number of rows is known; NumPy pads it for that."""


def _header(dtype: str, rows: int, dim: int) -> bytes:
    header = io.BytesIO()
    descr = np.lib.format.dtype_to_descr(np.dtype(dtype))
    shape = {"descr": descr, "fortran_order": False, "shape": (rows, dim)}
    np.lib.format.write_array_header_1_0(header, shape)
    return header.getvalue()


def pack(source: VideoSource, video_ids: Iterable[str], folder: str | Path, dtype: str = "float16") -> float:
    """Packs videos, or continues an interrupted run; does nothing if all are packed already.

    Args:
        source: the prepared source of the features.
        video_ids: the videos to pack.
        folder: the target folder; one source per folder.
        dtype: "float16" or "float32".

    Returns:
        The largest absolute rounding error.

    Raises:
        VmrError: if the folder holds another source or other videos, a packed video was replaced since, a
            value overflows `dtype`, a video cannot be read, or the parts of the source have clips of
            different lengths.
    """
    if dtype not in DTYPES:
        raise unknown("dtype", dtype, DTYPES)
    wanted, folder = list(dict.fromkeys(video_ids)), Path(folder)
    start = through_json({"schema": SCHEMA, "dtype": dtype, "dim": source.dim, "source": source.manifest()})
    with lock_folder(folder):
        if (folder / INDEX).is_file():
            index = _read_index(folder)
            same = same_sources({key: index[key] for key in start}, start)
            if not same or not set(wanted) <= index["videos"].keys():
                raise VmrError(f"{folder} holds other packed features. Choose another folder with out=DIR.")
            _refuse_replaced(source, {name: index["videos"][name] for name in wanted}, dtype, folder)
            return float(index["difference"])
        if uneven := [problem for problem in source.uneven(sample(wanted)) if problem.fatal]:
            raise VmrError(f"These features cannot be packed. {uneven[0]}")  # a pack would hide it
        rows, worst = _journal(folder, start)
        _refuse_replaced(source, rows, dtype, folder)
        done = sum(count for _, count, *_ in rows.values())
        with (folder / PART).open("r+b") as part, (folder / JOURNAL).open("a") as journal:
            part.truncate(_HEADER + done * source.dim * np.dtype(dtype).itemsize)
            part.seek(0, os.SEEK_END)
            for video_id in wanted:
                if video_id in rows:
                    continue
                state, array = source.state(video_id), source.load(video_id)
                kept = _rounded(array, dtype)
                if not np.isfinite(kept).all():
                    raise VmrError(f"'{video_id}' holds numbers beyond {dtype}. Pack with dtype=float32.")
                worst = max(worst, float(np.abs(kept.astype(np.float32) - array).max()))
                part.write(kept.tobytes())
                part.flush()
                os.fsync(part.fileno())  # the journal must never list a video that is not on disk
                rows[video_id] = (done, len(kept), zlib.crc32(kept.tobytes()), state)
                journal.write(json.dumps([video_id, *rows[video_id], worst]) + "\n")
                journal.flush()
                done += len(kept)
            part.seek(0)
            part.write(_header(dtype, done, source.dim))
        (folder / PART).replace(folder / DATA)
        atomic_write(folder / INDEX, json.dumps({**start, "difference": worst, "rows": done, "videos": rows}))
        (folder / JOURNAL).unlink()
    return worst


def _rounded(array: Array, dtype: str) -> Array:
    """Converts to the packed type; what overflows becomes infinite."""
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(array, dtype=dtype)


def _refuse_replaced(
    source: VideoSource, rows: Mapping[str, Sequence[Any]], dtype: str, folder: Path
) -> None:
    """Refuses to keep the values of videos whose files hold other values now.

    Values are read again only where size or time of a file changed, or were not recorded (by vmr_zoo 0.2).

    Args:
        source: of the features.
        rows: for each packed video its place, as in the index.
        dtype: the packed type.
        folder: of the pack, for the error.
    """
    replaced = []
    for video_id, (_, _, crc, *recorded) in rows.items():
        now = source.state(video_id)
        if now and recorded != [now] and zlib.crc32(_rounded(source.load(video_id), dtype).tobytes()) != crc:
            replaced.append(video_id)
    if replaced:
        raise VmrError(
            f"{folder} holds earlier features of {abbreviate(replaced)}: their files have changed since they "
            "were packed. Delete the folder and pack again, or choose another with out=DIR."
        )


def _journal(folder: Path, start: dict[str, Any]) -> tuple[dict[str, Sequence[Any]], float]:
    """Reads the progress of an earlier run, or starts a journal; drops an incomplete last line."""
    path = folder / JOURNAL
    if path.is_file() and not (folder / PART).is_file() and (folder / DATA).is_file():
        (folder / DATA).replace(folder / PART)  # stopped between the last two steps
    if path.is_file() and (folder / PART).is_file():
        lines = path.read_text(encoding="utf-8").split("\n")[:-1]
        if lines and json.loads(lines[0]) != start:
            raise VmrError(f"{folder} holds other features, half packed. Choose another folder with out=DIR.")
        done = [json.loads(line) for line in lines[1:]]
        if lines:
            atomic_write(path, "\n".join(lines) + "\n")
            return {video_id: place for video_id, *place, _ in done}, done[-1][-1] if done else 0.0
    (folder / PART).write_bytes(b"\0" * _HEADER)
    atomic_write(path, json.dumps(start) + "\n")
    return {}, 0.0


def _read_index(folder: Path) -> dict[str, Any]:
    path = folder / INDEX
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FeatureError("missing", f"Expected packed features at {path}; make them by vmr pack.") from None
    except (ValueError, RecursionError) as error:
        raise FeatureError("unreadable", f"{path} is not valid JSON ({error}). Pack again.") from error
    if not isinstance(index, dict) or index.get("schema") != SCHEMA:
        raise FeatureError("unreadable", f"{path} was not written by this version of vmr pack. Pack again.")
    types = {"dtype": str, "dim": int, "source": dict, "difference": int | float, "rows": int, "videos": dict}
    broken = [key for key, kind in types.items() if not isinstance(index.get(key), kind)]
    if broken or not all(map(_is_place, index["videos"].values())):
        raise FeatureError("unreadable", f"{path} is broken ({', '.join(broken) or 'videos'}). Pack again.")
    return index


def _is_place(place: Any) -> bool:
    """Returns whether a value is a first row, a number of rows, their checksum, and perhaps a state."""
    return (
        isinstance(place, list) and len(place) in (3, 4) and all(type(x) is int and x >= 0 for x in place[:3])
    )


class PackedVideos(VideoSource):
    """Reads the output of `vmr pack` in place of the original features.

    Both have the same manifest, unless float16 has changed a value.
    """

    def __init__(self, folder: str | Path, source: VideoSource) -> None:
        """Stores the path; the file is opened on first use.

        Args:
            folder: the `out` folder of `vmr pack`.
            source: the packed source; its files are no longer needed.
        """
        self.folder = Path(folder).expanduser()
        self.source = source
        self.dim = source.dim
        self.max_clips = source.max_clips
        self.encodes = source.encodes
        self._verified: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:
        # Pickling the memory map would read the whole file.
        return {name: value for name, value in self.__dict__.items() if name != "_rows"}

    @cached_property
    def _index(self) -> dict[str, Any]:
        index = _read_index(self.folder)
        now = through_json(self.source.manifest())
        before = index["source"]
        if not same_sources(before, now):
            listed = "; ".join(
                f"{key}: packed {before.get(key)!r}, now {now.get(key)!r}" for key in differing(before, now)
            )
            raise FeatureError(
                "unreadable",
                f"{self.folder} was packed from other features ({listed}). Pack these: vmr pack out=DIR.",
            )
        return index

    @cached_property
    def _rows(self) -> Array:
        path = self.folder / DATA
        try:
            rows = read_npy(str(path))
        except Exception as error:  # a broken header raises nearly anything
            raise FeatureError("unreadable", f"{path} cannot be read ({error}). Pack again.") from error
        expected = (self._index["rows"], self.dim)
        if rows.shape != expected or rows.dtype != self._index["dtype"]:
            raise FeatureError(
                "dimension",
                f"{path} has {rows.dtype} {rows.shape}; expected {self._index['dtype']} {expected}.",
            )
        return rows

    def _entry(self, video_id: str) -> tuple[int, int, int]:
        try:
            first, count, crc, *_ = self._index["videos"][video_id]
        except KeyError:
            raise FeatureError("missing", f"{self.folder} has no features for '{video_id}'.") from None
        return first, count, crc

    def load(self, video_id: str) -> Array:
        """Returns (T, dim) float32; the first load of a video verifies its checksum.

        Raises:
            FeatureError: if the video was not packed, or its bytes have changed.
        """
        first, count, crc = self._entry(video_id)
        rows = np.array(self._rows[first : first + count])
        if video_id not in self._verified:
            if zlib.crc32(rows.tobytes()) != crc:
                raise FeatureError(
                    "unreadable",
                    f"Wrong checksum of '{video_id}' in {self.folder}. Delete the folder and pack again.",
                )
            self._verified.add(video_id)
        full: Array = torch.from_numpy(rows).float().numpy()  # three times as fast as NumPy's astype
        return full

    def length(self, video_id: str) -> int:
        """Returns T, without reading the features."""
        return self._entry(video_id)[1]

    def encode(self, path: Path) -> Array:
        """Computes (T, dim) float32 for a video file with the source, rounded to the packed type."""
        return self.source.encode(path).astype(self._index["dtype"]).astype(np.float32)

    def missing(self, video_ids: Sequence[str]) -> list[Problem]:
        """Finds videos that were not packed."""
        try:
            lacking = tuple(video_id for video_id in video_ids if video_id not in self._index["videos"])
        except FeatureError as error:
            return [Problem("video", error.kind, tuple(video_ids), str(error))]
        return [Problem("video", "missing", lacking, f"Not packed in {self.folder}.")] if lacking else []

    def corrupt(self) -> list[str]:
        """Returns the videos whose bytes have changed since packing."""
        return [video_id for video_id in self._index["videos"] if self._is_corrupt(video_id)]

    def _is_corrupt(self, video_id: str) -> bool:
        try:
            self.load(video_id)
        except FeatureError:
            return True
        return False

    @property
    def rounded(self) -> str | None:
        """The packed type if rounding changed a value; None: all values equal those of the source."""
        return str(self._index["dtype"]) if self._index["difference"] else None

    def manifest(self) -> dict[str, Any]:
        """Returns the source's manifest, and the packed type if rounding changed a value."""
        rounded = {} if self.rounded is None else {"packed": self.rounded}
        return {**self._index["source"], **rounded}
