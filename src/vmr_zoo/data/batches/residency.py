"""Where the video features of a split reside while batches are made: on disk, in RAM or on the GPU.

Batches do not depend on the residency.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from vmr_zoo.data.features.source import VideoSource
from vmr_zoo.errors import VmrError
from vmr_zoo.utils.console import progress
from vmr_zoo.utils.machine import free_memory

Residency = Literal["auto", "disk", "memory", "device"]
"""Values of `data.residency`, explained in `VMRDataModule`."""

MANY = 1000
"""Number of videos or queries from which loading shows a progress bar."""

_SHARE = 0.5
"""Share of the free memory that the video features of one split may take under "auto"."""


class Ragged:
    """Tensors of different lengths in RAM, padded one batch at a time.

    A writeable array that already has the requested type is not copied: features that the source caches are
    held in memory once.
    """

    def __init__(self, arrays: Iterable[NDArray[Any]], dtype: torch.dtype) -> None:
        """Converts the arrays to tensors.

        Args:
            arrays: (n_i, …) each, equal in all sizes but the first.
            dtype: type of the tensors.
        """
        self.items = [
            torch.from_numpy(array if array.flags.writeable else array.copy()).to(dtype) for array in arrays
        ]
        self.lengths = torch.tensor([len(item) for item in self.items], dtype=torch.int64)

    def __len__(self) -> int:
        """Returns the number of tensors."""
        return len(self.items)

    def pad(self, rows: Sequence[int], length: int | None = None) -> tuple[Tensor, Tensor]:
        """Stacks and pads some of the tensors.

        Args:
            rows: indices of B tensors.
            length: L; None: the length of the longest one, at least 1.

        Returns:
            (B, L, …), zero on padding, and the mask (B, L), True = valid.
        """
        lengths = self.lengths[rows]
        if length is None:
            length = max(1, int(lengths.max()))
        values = pad_sequence([self.items[row] for row in rows], batch_first=True)
        if values.shape[1] < length:
            padding = values.new_zeros(values.shape[0], length - values.shape[1], *values.shape[2:])
            values = torch.cat((values, padding), 1)
        return values, torch.arange(length) < lengths[:, None]


class RaggedOnDisk:
    """Arrays of different lengths that are read for every batch, each once per batch."""

    def __init__(
        self, load: Callable[[str], NDArray[Any]], ids: Sequence[str], lengths: Tensor, dtype: torch.dtype
    ) -> None:
        """Stores how to read.

        Args:
            load: returns the array (n_i, …) of an id.
            ids: the id of each row.
            lengths: (number of ids,), n_i each.
            dtype: type of the padded tensors.
        """
        self.load = load
        self.ids = ids
        self.lengths = lengths
        self.dtype = dtype

    def pad(self, rows: Sequence[int], length: int | None = None) -> tuple[Tensor, Tensor]:
        """Returns what `Ragged.pad` returns."""
        position = {row: number for number, row in enumerate(dict.fromkeys(rows))}
        loaded = Ragged((self.load(self.ids[row]) for row in position), self.dtype)
        return loaded.pad([position[row] for row in rows], length)


class RaggedOnDevice:
    """Tensors of different lengths, concatenated on a device, where batches are gathered."""

    def __init__(self, held: Ragged, device: torch.device | None = None) -> None:
        """Takes the tensors; the first `pad` moves them, when the process knows its device.

        Args:
            held: the tensors in RAM.
            device: target; None: the current GPU of the process.
        """
        self.lengths = held.lengths
        self.first = held.lengths.cumsum(0) - held.lengths
        self.device = device
        self._in_ram = held.items
        self._on_device: Tensor | None = None

    def _moved(self) -> Tensor:
        """Returns the concatenated tensors on the device."""
        if self._on_device is None:
            device = self.device or torch.device("cuda", torch.cuda.current_device())
            rows, item = int(self.lengths.sum()), self._in_ram[0]
            try:
                flat = torch.empty((rows, *item.shape[1:]), dtype=item.dtype, device=device)
            except torch.OutOfMemoryError as error:
                size = rows * item[0].numel() * item.element_size() / 1e9
                raise VmrError(
                    f"The video features of a split take {size:.1f} GB, more than is free on {device}. Set "
                    "data.residency=memory or data.storage=float16."
                ) from error
            for part, tensor in zip(flat.split(self.lengths.tolist()), self._in_ram, strict=True):
                part.copy_(tensor)
            self._on_device, self._in_ram = flat, []
        return self._on_device

    def pad(self, rows: Sequence[int], length: int | None = None) -> tuple[Tensor, Tensor]:
        """Returns what `Ragged.pad` returns, the values on the device and the mask on the CPU."""
        flat, lengths = self._moved(), self.lengths[rows]
        if length is None:
            length = max(1, int(lengths.max()))
        place = torch.arange(length)
        mask = place < lengths[:, None]
        index = (self.first[rows][:, None] + place).masked_fill(~mask, 0)
        values = flat[index.to(flat.device)]
        valid = mask.to(flat.device).reshape(*mask.shape, *[1] * (values.ndim - 2))
        return values.masked_fill(~valid, 0), mask


def load_videos(
    source: VideoSource,
    ids: Sequence[str],
    dtype: torch.dtype,
    residency: str,
    split: str,
) -> Ragged | RaggedOnDisk | RaggedOnDevice:
    """Loads the video features of a split to where they reside, or measures them if that is the disk.

    Args:
        source: the features, prepared.
        ids: the videos.
        dtype: type in which features are held.
        residency: as in `VMRDataModule`.
        split: its name, for the progress bar.
    """
    budget = memory_budget(residency)

    def load_within_budget() -> Iterator[NDArray[Any]]:
        left = budget
        for video_id in progress(ids, f"Loading {split} videos", MANY):
            array = source.load(video_id)
            left -= array.size * dtype.itemsize
            if left < 0:
                return
            yield array

    if residency != "disk":
        held = Ragged(load_within_budget(), dtype)
        if len(held) == len(ids):
            return RaggedOnDevice(held) if residency == "device" else held
        del held
    measured = progress(ids, f"Measuring {split} videos", MANY)
    lengths = torch.tensor([source.length(video_id) for video_id in measured], dtype=torch.int64)
    return RaggedOnDisk(source.load, ids, lengths, dtype)


def memory_budget(residency: str) -> float:
    """Returns the bytes that video features may take in RAM under a residency."""
    if residency == "auto":
        return _SHARE * free_memory()
    return 0.0 if residency == "disk" else math.inf
