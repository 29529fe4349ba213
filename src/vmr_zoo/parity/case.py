"""Golden cases: inputs, weights and all numbers that the authors' code computes, in one .npz file each."""

from __future__ import annotations

import copy
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from vmr_zoo.errors import VmrError
from vmr_zoo.methods.base import Method
from vmr_zoo.parity.weights import WeightNames
from vmr_zoo.utils.arrays import Array

Form = Literal["step", "trajectory", "files"]
"""What a case records: one training step, many of them, or the way from data files to batches."""

_FORMS: dict[str, Form] = {"curve/": "trajectory", "batch/": "files"}
"""Form by the prefix of arrays that only cases of this form have."""


class Options(dict[str, Any]):
    """The authors' options by name; records which were read.

    Attributes:
        read: names of the options that were read.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        """Copies options."""
        super().__init__(options)
        self.read: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        """Returns an option and records that it was read."""
        self.read.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        """Returns an option, or `default`, and records that it was read."""
        self.read.add(name)
        return super().get(name, default)


class Case:
    """A golden case; records which of its arrays were read.

    Attributes:
        path: the file.
        options: the authors' options, from the array `config`.
        keys: names of all arrays, in the order of the file.
        read: names of the arrays that were read through `case[name]`.
    """

    def __init__(self, path: Path) -> None:
        """Reads a file.

        Args:
            path: an .npz file without pickled objects.

        Raises:
            VmrError: if the file cannot be read or has no `config`.
        """
        self.path = path
        try:
            with np.load(path, allow_pickle=False) as file:
                self._arrays = {name: file[name] for name in file.files}
            self.options = Options(json.loads(str(self._arrays["config"])))
        except Exception as error:  # its type depends on which byte is broken
            raise VmrError(
                f"Expected a golden case (.npz without pickled objects, with JSON in an array 'config') "
                f"in {path}, but: {error}"
            ) from error
        self.keys = list(self._arrays)
        self.read = {"config"}

    def __contains__(self, key: str) -> bool:
        return key in self._arrays

    def __getitem__(self, key: str) -> Tensor:
        """Returns an array as a tensor and records that it was read.

        Raises:
            VmrError: if the case has no such array.
        """
        if key not in self._arrays:
            raise VmrError(f"{self.path} has no array '{key}': it is not a golden case of this method.")
        self.read.add(key)
        return self.stored(key)

    @property
    def form(self) -> Form:
        """What the case records, by the names of its arrays."""
        found = (form for prefix, form in _FORMS.items() if any(key.startswith(prefix) for key in self.keys))
        return next(found, "step")

    def stored(self, key: str) -> Tensor:
        """Returns an array without recording it, for the comparison; text as `texts` encodes it."""
        array = self._arrays[key]
        return texts(array.ravel()) if array.dtype.kind == "U" else torch.from_numpy(array)

    def array(self, key: str) -> Array:
        """Returns an array as in the file, text included, without recording it."""
        return self._arrays[key]

    def part(self, prefix: str, widen: bool = False) -> Case:
        """Returns the arrays `prefix/…` as a case of their own, by the rest of their names.

        Args:
            prefix: such as "step07".
            widen: return float32 arrays as float64, for a computation in that precision.
        """
        start = prefix + "/"
        part = copy.copy(self)
        part._arrays = {
            key.removeprefix(start): array.astype("float64") if widen and array.dtype == "float32" else array
            for key, array in self._arrays.items()
            if key.startswith(start)
        }
        part.keys, part.read = list(part._arrays), set()
        return part

    def group(self, prefix: str) -> dict[str, Tensor]:
        """Returns the arrays `prefix/…` by the rest of their names."""
        start = prefix + "/"
        return {key.removeprefix(start): self[key] for key in self.keys if key.startswith(start)}


@dataclass(frozen=True)
class Number:
    """A recomputed array and its tolerance.

    Attributes:
        value: the recomputed array.
        atol: absolute tolerance, a number or one per entry of the last axis.
        rtol: tolerance relative to the stored value, added to the absolute one.
        where: bool, broadcastable to the value; only True entries are compared (padding is arbitrary).
    """

    value: Tensor
    atol: float | Tensor
    rtol: float = 0.0
    where: Tensor | None = None


class Released(ABC):
    """Adapter of one method's released code: translates names and options, and recomputes golden cases.

    Attributes:
        names: translates the names of weights.
    """

    names: WeightNames

    @abstractmethod
    def settings(self, options: Mapping[str, Any], weights: Mapping[str, Tensor]) -> dict[str, Any]:
        """Derives settings from the authors' options and the shapes of their weights.

        Args:
            options: the authors' options.
            weights: the weights by the authors' names.

        Returns:
            Values by dotted key below `method`.

        Raises:
            VmrError: if an option is missing or has a value that is not implemented.
        """

    @abstractmethod
    def data(self, options: Mapping[str, Any]) -> str:
        """Returns the data set (a file in conf/data) that a checkpoint was trained on.

        Args:
            options: the authors' options.

        Raises:
            VmrError: if conf/data has no such data set.
        """

    @abstractmethod
    def recompute(self, method: Method, case: Case) -> dict[str, Number]:
        """Recomputes the arrays of a case.

        Args:
            method: the method in `variant: released`, with the case's weights and settings.
            case: the case. Arrays read through `case[...]` count as inputs; all others must be recomputed.

        Returns:
            Recomputed arrays by the case's keys. Keys that the case does not have are ignored.
        """


def texts(values: Iterable[str]) -> Tensor:
    """Encodes texts, which then compare like numbers: (n, longest) code points, padded with 0."""
    array = np.array(list(values), dtype=np.str_)
    width = max(1, array.dtype.itemsize // 4)  # letters of the longest, of four bytes each
    return torch.from_numpy(array.astype(f"U{width}").view(np.uint32).astype(np.int64).reshape(-1, width))


def gradients(
    method: Method,
    names: WeightNames,
    case: Case,
    total: Tensor,
    *,
    norm_key: str,
    clip: float,
    atol: float,
    rtol: float = 0.0,
) -> dict[str, Number]:
    """Recomputes the gradients of a case and its weights after one step of the configured optimizer.

    Args:
        method: the method.
        names: translates the names of weights.
        case: the case.
        total: the total loss.
        norm_key: key of the global gradient norm.
        clip: the norm that gradients are clipped to before the step.
        atol: absolute tolerance of gradients.
        rtol: relative tolerance of gradients and of their norm.

    Returns:
        Recomputed arrays by key.
    """
    parameters = dict(method.named_parameters())
    method.zero_grad(set_to_none=True)
    total.backward()
    results: dict[str, Number] = {}
    for name, stored in _named(case, "grad").items():
        ours = names.ours(name)
        if ours is None or (gradient := parameters[ours].grad) is None:
            continue  # the comparison reports it as not recomputed
        full = torch.zeros_like(stored)
        full[: len(gradient)] = gradient
        results[f"grad/{name}"] = Number(full, atol, rtol)
    trained = [p for p in parameters.values() if p.grad is not None]
    norm = torch.nn.utils.clip_grad_norm_(trained, clip)
    results[norm_key] = Number(norm, 1e-4, max(rtol, 1e-5))

    configured = method.configure_optimizers()
    optimizer = configured["optimizer"] if isinstance(configured, dict) else configured
    optimizer.step()
    for name, stored in _named(case, "after_step").items():
        ours = names.ours(name)
        after = case[f"param/{name}"].clone()  # unused weights have no gradient and stay
        reliable = torch.ones_like(stored, dtype=torch.bool)
        if ours is not None:
            after[: len(parameters[ours])] = parameters[ours].detach()
            gradient = parameters[ours].grad
            if gradient is not None:
                # Adam's first step is the sign of the gradient, which is noise for gradients near zero.
                reliable[: len(gradient)] = gradient.abs() > 1e-6
        results[f"after_step/{name}"] = Number(after, 1e-6, where=reliable)
    return results


def _named(case: Case, prefix: str) -> dict[str, Tensor]:
    start = prefix + "/"
    return {key.removeprefix(start): case.stored(key) for key in case.keys if key.startswith(start)}


def pairs(slots: Tensor, matched: Tensor) -> Tensor:
    """Lists an assignment in the authors' format: (row, slot, target), sorted by row, then by slot.

    Args:
        slots: (B, N) predicted slot of each target, from `blocks.matcher.hungarian_match`.
        matched: (B, N) which targets exist.

    Returns:
        (number of pairs, 3) int64.
    """
    row, target = matched.nonzero(as_tuple=True)
    slot = slots[row, target]
    order = torch.argsort(row * (int(slots.max()) + 1) + slot)
    return torch.stack((row, slot, target), 1)[order]


def windows(seconds: Tensor, duration: Tensor) -> tuple[Tensor, Tensor]:
    """Converts windows in seconds, padded with NaN, to spans.

    Args:
        seconds: (B, W, 2) start and end.
        duration: (B,) in seconds.

    Returns:
        Spans (B, W, 2) as fractions of the duration, not clipped, and their mask (B, W).
    """
    mask = ~seconds.isnan().any(-1)
    return (seconds / duration[:, None, None]).nan_to_num(0.0), mask


def encoder_layers(method: Method) -> tuple[list[Tensor], Sequence[Any]]:
    """Registers hooks that collect the output of every encoder layer.

    Returns:
        The list that outputs are appended to, and the handles of the hooks.
    """
    collected: list[Tensor] = []
    layers = method.get_submodule("encoder.encoder").layers
    return collected, [
        layer.register_forward_hook(lambda _module, _inputs, output: collected.append(output))
        for layer in layers  # type: ignore[union-attr]
    ]
