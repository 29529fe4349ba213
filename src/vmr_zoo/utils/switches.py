"""Checks the values of switches against the `Literal` types of constructor arguments."""

from __future__ import annotations

import functools
import inspect
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from vmr_zoo.errors import unknown

T = TypeVar("T")


def check_switches(cls: type[T]) -> type[T]:
    """Class decorator: refuses values outside the `Literal` type of a constructor argument.

    It goes above `@dataclass`, or on a class with its own `__init__`.

    Raises:
        VmrError: on construction; names the class, the argument and the valid values.
    """
    build: Any = cls.__init__
    names = list(inspect.signature(build).parameters)[1:]

    @functools.wraps(build)
    def checked(self: T, *args: Any, **kwargs: Any) -> None:
        options = _options(build)
        for name, value in {**dict(zip(names, args, strict=False)), **kwargs}.items():
            if name in options and value not in options[name]:
                raise unknown(f"{cls.__name__}.{name}", str(value), map(str, options[name]))
        build(self, *args, **kwargs)

    setattr(cls, "__init__", checked)  # noqa: B010  # mypy refuses the assignment
    return cls


@functools.cache
def _options(build: Any) -> dict[str, tuple[Any, ...]]:
    """Returns the valid values of each `Literal` argument of a constructor."""
    hints = get_type_hints(build)
    return {name: get_args(hint) for name, hint in hints.items() if get_origin(hint) is Literal}
