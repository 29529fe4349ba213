"""Detects operations that would make the host wait for a GPU, without a GPU.

Tensors report another device ("meta") and compute on the CPU. Every read of a value on the host, and every
copy between devices, passes through here as it would with a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing

DEVICE = torch.device("meta")

_aten = torch.ops.aten
WAITS = {
    _aten._local_scalar_dense: "a value is read (item, bool, float, int)",
    _aten.equal: "a value is read (equal)",
    _aten.is_nonzero: "a value is read (is_nonzero)",
    _aten.allclose: "a value is read (allclose)",
    _aten.nonzero: "the size depends on values",
    _aten.masked_select: "the size depends on values",
    _aten.bincount: "the size depends on values",
    _aten._unique: "the size depends on values",
    _aten._unique2: "the size depends on values",
    _aten.unique_dim: "the size depends on values",
    _aten.unique_consecutive: "the size depends on values",
    _aten.multinomial: "its probabilities are checked on the host",
    _aten.isin: "it may remove duplicates, whose number depends on values",
    _aten._linalg_check_errors: "its success is checked on the host",
}
"""Operators whose CUDA kernels make the host wait, and why."""

_INDEXED = (_aten.index, _aten.index_put, _aten.index_put_, _aten._index_put_impl_, _aten._unsafe_index_put)


class DeviceTensor(Tensor):
    """A tensor on the simulated device; `host` holds its values."""

    host: Tensor

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, host: Tensor) -> DeviceTensor:
        """Wraps."""
        wrapped: DeviceTensor = Tensor._make_wrapper_subclass(
            cls,
            host.shape,
            strides=host.stride(),
            storage_offset=host.storage_offset(),
            dtype=host.dtype,
            device=DEVICE,
        )
        wrapped.host = host
        return wrapped

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Called outside a detector only."""
        raise RuntimeError(f"{func} on the pretended device outside of a Detector")

    def tolist(self) -> Any:
        """Copies to the host, as on any device."""
        return self.cpu().tolist()

    def __repr__(self) -> str:  # type: ignore[override]
        """Shows the shape; values would require a wait."""
        return f"DeviceTensor({tuple(self.shape)})"


class _MadeOnHost(TorchFunctionMode):
    """Creates a tensor from Python numbers on the host and then moves it, as torch does internally."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Splits `torch.tensor`, `torch.as_tensor` and `new_tensor`."""
        kwargs = dict(kwargs or {})
        if func is Tensor.new_tensor:
            like, *args = args
            kwargs = {"device": like.device, "dtype": like.dtype} | kwargs
        elif func not in (torch.tensor, torch.as_tensor):
            return func(*args, **kwargs)
        device = kwargs.pop("device", None)
        made = torch.tensor(*args, **kwargs)
        return made if device is None else made.to(device)


class Detector(TorchDispatchMode):
    """Runs operations of the simulated device and records those that would wait.

    Attributes:
        found: one entry per wait: the operator and the reason.
    """

    def __init__(self) -> None:
        """Starts empty."""
        super().__init__()
        self.found: list[str] = []
        self._made = _MadeOnHost()

    def __enter__(self) -> Self:
        """Starts."""
        self._made.__enter__()
        return super().__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends."""
        super().__exit__(kind, value, trace)
        self._made.__exit__(kind, value, trace)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Records waits, computes on the CPU, and wraps results on the device."""
        kwargs = dict(kwargs or {})
        tensors = list(_tensors((args, kwargs)))
        on_device = any(isinstance(x, DeviceTensor) for x in tensors)
        target = kwargs.get("device")
        stays = target is None or torch.device(target) == DEVICE
        if not on_device and (target is None or not stays):
            return func(*args, **kwargs)
        packet = func.overloadpacket
        reason = self._waits(packet, tensors, args, kwargs)
        if reason:
            self.found.append(f"{packet.__name__}: {reason}")
        if target is not None:
            kwargs["device"] = torch.device("cpu")
        out = func(*_map(_host, args), **_map(_host, kwargs))
        if packet is _aten.copy_:
            return args[0]
        if not stays:
            return out
        out = _map(DeviceTensor, out)
        return return_and_correct_aliasing(func, args, kwargs, out) if on_device else out

    def _waits(self, packet: Any, tensors: list[Tensor], args: Any, kwargs: Any) -> str | None:
        """Returns why the host would wait, None if it would not."""
        if packet in WAITS:
            return WAITS[packet]
        if packet is _aten.repeat_interleave and kwargs.get("output_size") is None:
            return "the size depends on values"
        if packet in (_aten._to_copy, _aten.copy_):
            if packet is _aten.copy_:
                source, onto = args[1], isinstance(args[0], DeviceTensor)
                blocks = not (kwargs.get("non_blocking") or args[2:3] == (True,))
            else:
                source, onto = args[0], torch.device(kwargs.get("device") or args[0].device) == DEVICE
                blocks = not kwargs.get("non_blocking")
            if isinstance(source, DeviceTensor):
                return None if onto else "a copy to the host"
            return "a blocking copy from the host" if blocks and onto else None
        if packet in _INDEXED:
            for index in args[1]:
                if index is not None and index.dtype in (torch.bool, torch.uint8):
                    return "the size depends on values (a mask as index)"
                if index is not None and not isinstance(index, DeviceTensor):
                    return "a blocking copy from the host (of the index)"
        elif any(x.dim() and not isinstance(x, DeviceTensor) for x in tensors):
            raise RuntimeError(f"{packet}: expected all tensors on the device, found some on the host")
        return None


def _host(x: Tensor) -> Tensor:
    return x.host if isinstance(x, DeviceTensor) else x


def _map(change: Callable[[Tensor], Tensor], tree: Any) -> Any:
    """Maps the tensors in an operator's arguments; three times as fast as torch's pytree."""
    if isinstance(tree, Tensor):
        return change(tree)
    if isinstance(tree, (list, tuple)):
        return type(tree)([_map(change, x) for x in tree])
    if isinstance(tree, dict):
        return {key: _map(change, x) for key, x in tree.items()}
    return tree


def _tensors(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, (list, tuple, dict)):
        for x in tree.values() if isinstance(tree, dict) else tree:
            yield from _tensors(x)


def to_device(x: Any) -> Any:
    """Moves a module, in place, or the tensors of a batch to the simulated device; needs a detector."""
    if isinstance(x, nn.Module):
        before = torch.__future__.get_swap_module_params_on_conversion()
        torch.__future__.set_swap_module_params_on_conversion(True)  # parameters stay the same objects
        try:
            return x.to(DEVICE, non_blocking=True)
        finally:
            torch.__future__.set_swap_module_params_on_conversion(before)
    return _map(lambda t: t.to(DEVICE, non_blocking=True), x)
