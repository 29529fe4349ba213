"""Reads a Caffe2 checkpoint (`.pkl`) of PySlowFast's model zoo, without running anything that it names.

Such a file is a pickle of `{"blobs": {name: array}}`. A pickle names the functions that rebuild its content.
Here the three names of an array stand for inert classes, which keep its type, shape and bytes; any other name
is refused. So no function or class outside this file is ever called.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterable
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vmr_zoo.errors import VmrError, abbreviate
from vmr_zoo.utils.arrays import Array

_TYPES = {"f2": np.float16, "f4": np.float32, "f8": np.float64}

_UNUSED = ("_momentum", "lr", "model_iter")
"""Ends of the names of blobs that only training needs."""

_NORM = {"weight": "s", "bias": "b", "running_mean": "rm", "running_var": "riv"}
"""Names of the four tensors of batch normalisation in Caffe2."""

_LAST_BLOCK = {2: 2, 3: 3, 4: 5, 5: 2}
"""The block of each stage of ResNet-50 that the fusion follows."""


class _Type:
    """Stands for numpy.dtype."""

    def __init__(self, code: str, *_: Any) -> None:
        self.code = code

    def __setstate__(self, state: Any) -> None:
        """Leaves out the byte order; x86 files are little-endian."""


class _Array:
    """Stands for numpy.ndarray."""

    tensor: Tensor | None = None

    def __init__(self, *_: Any) -> None:
        """Takes what numpy's constructor takes."""

    def __setstate__(self, state: Any) -> None:
        """Keeps an array of real numbers; another one has no tensor."""
        _, shape, kind, fortran, data = state
        dtype = _TYPES.get(getattr(kind, "code", "")[-2:])
        raw = data.encode("latin1") if isinstance(data, str) else data
        if dtype is None or not isinstance(raw, bytes) or len(raw) != prod(shape) * np.dtype(dtype).itemsize:
            return
        array: Array = np.frombuffer(raw, dtype).reshape(tuple(shape), order="F" if fortran else "C")
        self.tensor = torch.from_numpy(np.array(array, np.float32, order="C"))


def _bytes(text: str, encoding: str = "latin1") -> bytes:
    """Stands for _codecs.encode, by which Python 3 writes bytes for Python 2."""
    return text.encode(encoding)


_INERT = {
    "dtype": _Type,
    "ndarray": _Array,
    "_reconstruct": _Array,
    "scalar": _Array,
}


class _Reader(pickle.Unpickler):
    """An unpickler that knows no name but those of numpy's arrays."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("_codecs", "encode"):
            return _bytes
        if module.split(".")[0] == "numpy" and name in _INERT:
            return _INERT[name]
        raise pickle.UnpicklingError(f"it names {module}.{name}, which is no part of an array")


def read_caffe2(path: Path, names: Iterable[str]) -> dict[str, Tensor]:
    """Reads the weights of a SlowFast R50.

    Args:
        path: the file.
        names: the state-dict keys to read, as PySlowFast writes them; those of counters are left out.

    Returns:
        float32 tensors by key.

    Raises:
        VmrError: if the file is no such checkpoint, or its blobs are not those of the network.
    """
    try:
        with path.open("rb") as file:
            blobs = _Reader(file, encoding="latin1").load()["blobs"]
        found = {str(name): array.tensor for name, array in blobs.items() if isinstance(array, _Array)}
    except Exception as error:  # a broken pickle raises nearly anything
        raise VmrError(
            f"{path} is no Caffe2 checkpoint of PySlowFast's model zoo ({error}). Expected a pickle of "
            "arrays by name under 'blobs', such as SLOWFAST_8x8_R50.pkl."
        ) from error
    wanted = {caffe2_name(key): key for key in names if not key.endswith("num_batches_tracked")}
    missing = [name for name in wanted if found.get(name) is None]
    foreign = [name for name in found if name not in wanted and not name.endswith(_UNUSED)]
    if missing or foreign:
        raise VmrError(
            f"{path} does not hold the weights of SlowFast R50, 8x8. Missing: {abbreviate(missing) or 'none'}"
            f"; unexpected: {abbreviate(foreign) or 'none'}. Expected SLOWFAST_8x8_R50.pkl of Kinetics-400."
        )
    return {key: tensor for name, key in wanted.items() if (tensor := found[name]) is not None}


def caffe2_name(key: str) -> str:
    """Returns the name of a blob for a state-dict key of PySlowFast.

    >>> caffe2_name("s2.pathway1_res0.branch2.a_bn.running_var"), caffe2_name("s4_fuse.conv_f2s.weight")
    ('t_res2_0_branch2a_bn_riv', 't_res4_5_branch2c_bn_subsample_w')
    """
    layer, _, kind = key.rpartition(".")
    end = f"bn_{_NORM[kind]}" if layer.endswith("bn") else kind[0]
    if layer == "head.projection":
        return f"pred_{end}"
    if fusion := re.match(r"s(\d)_fuse", layer):
        number = int(fusion[1])
        place = "t_pool1" if number == 1 else f"t_res{number}_{_LAST_BLOCK[number]}_branch2c_bn"
        return f"{place}_subsample_{end}"
    found = re.match(r"s(\d)\.pathway(\d)_(?:stem|res(\d))\.?(\w+)\.?(\w*)", layer)
    if found is None:
        raise VmrError(f"SlowFast R50 has no layer {layer}.")
    stage, pathway, block, branch, part = found.groups()
    prefix = "t_" if pathway == "1" else ""
    if block is None:
        return f"{prefix}{'res_conv1' if end.startswith('bn') else 'conv1'}_{end}"
    return f"{prefix}res{stage}_{block}_{(branch + part).removesuffix('_bn')}_{end}"
