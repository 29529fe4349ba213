"""Checks the values of switches by the type of the argument that takes them."""

from __future__ import annotations

import functools
import inspect
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from vmr_zoo.errors import unknown

T = TypeVar("T")


def check_switches(cls: type[T]) -> type[T]:
    """Class decorator: refuses a value that the `Literal` type of a constructor argument does not list.

    It stands above `@dataclass`, or on a class with an `__init__` of its own.

    Raises:
        VmrError: on construction; names the class, the argument and the valid values.
    """
    build: Any = cls.__init__
    names = list(inspect.signature(build).parameters)[1:]

    @functools.wraps(build)
    def checked(self: T, *args: Any, **kwargs: Any) -> None:
        options = _options(cls, build)
        for name, value in {**dict(zip(names, args, strict=False)), **kwargs}.items():
            if name in options and value not in options[name]:
                raise unknown(f"{cls.__name__}.{name}", str(value), map(str, options[name]))
        build(self, *args, **kwargs)

    cls.__init__ = checked  # type: ignore[method-assign]
    return cls


@functools.cache
def _options(cls: type, build: Any) -> dict[str, tuple[Any, ...]]:
    """Returns the values that each `Literal` argument of a constructor takes."""
    hints = get_type_hints(build)
    return {name: get_args(hint) for name, hint in hints.items() if get_origin(hint) is Literal}
