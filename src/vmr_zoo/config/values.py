"""Checks the values of a composed configuration before a verb starts, and before it reads data.

The table of keys says what a value must be, else the type hints of the constructor that takes it.
"""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import InitVar
from types import NoneType, SimpleNamespace, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf

from vmr_zoo.config.keys import Text, check_kind, how_to_quote, kind_of
from vmr_zoo.errors import VmrError, unknown

_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "text", NoneType: "null"}


def check_values(verb: str, cfg: DictConfig, overrides: Sequence[str]) -> None:
    """Refuses values that a key does not take.

    Args:
        verb: the verb.
        cfg: its configuration.
        overrides: from the command line; keys below groups are checked only where they are overridden.

    Raises:
        VmrError: names the key, the value, and what the key takes.
    """
    typed = [text.lstrip("+").partition("=")[0] for text in overrides if not text.startswith("~")]
    for key in dict.fromkeys([*map(str, cfg), *typed]):
        if "/" in key and key in cfg:  # `+` adds it as a key
            raise VmrError(f"'{key}' is no group of conf/.")
        if key.startswith("hydra.") or "/" in key or "@" in key or _is_missing(cfg, key):
            continue
        kind = kind_of(verb, key)
        if kind is not None:
            value = plain(OmegaConf.select(cfg, key))
            check_kind(key, value, kind)
            if isinstance(kind, Text) and "${" in str(value) and ("." in key or verb == "train"):
                # Hydra resolves the arguments of constructors twice.
                raise VmrError(
                    f"{key}={value} contains '${{', which starts an interpolation: rename the file."
                )
        elif key in typed:
            _check_argument(cfg, key)


def _is_missing(cfg: DictConfig, key: str) -> bool:
    """Returns whether a key has no value, or is no key: a group."""
    parent, _, leaf = key.rpartition(".")
    node = OmegaConf.select(cfg, parent) if parent else cfg
    return not isinstance(node, DictConfig) or leaf not in node or OmegaConf.is_missing(node, leaf)


def plain(value: Any) -> Any:
    """Converts a node of a configuration to a plain list or mapping; returns other values as they are."""
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def takes_argument(cfg: DictConfig, key: str) -> bool:
    """Returns whether a key that the configuration lacks may be an argument of the constructor above it.

    A logger passes arguments on to its library, and refuses those that the library does not have.
    """
    found = _constructor(cfg, key)
    if found is None or found[2] != key:
        return False
    try:
        parameters = _signature(found[0]["_target_"])[0].parameters
    except (ImportError, TypeError, ValueError):
        return False
    passes_on = any(one.kind is one.VAR_KEYWORD for one in parameters.values())
    return found[1] in parameters or passes_on


def _check_argument(cfg: DictConfig, key: str) -> None:
    """Checks the value of a key against the type of the constructor argument that it belongs to."""
    found = _constructor(cfg, key)
    if found is None:
        return
    node, name, path = found
    if name.startswith("_") or name not in node or _builds_objects(node._get_node(name)):
        return
    hint = _type_of_argument(node["_target_"], name)
    if hint is not None:
        check_type(path, plain(node[name]), hint)


def _constructor(cfg: DictConfig, key: str) -> tuple[DictConfig, str, str] | None:
    """Finds the constructor above a key: its node, the argument that holds the key, and its key."""
    parts = key.split(".")
    for depth in range(len(parts) - 1, 0, -1):
        node = OmegaConf.select(cfg, ".".join(parts[:depth]))
        if isinstance(node, DictConfig) and "_target_" in node:
            return node, parts[depth], ".".join(parts[: depth + 1])
    return None


def _builds_objects(node: Any) -> bool:
    """Returns whether a node holds nodes that Hydra instantiates."""
    return OmegaConf.is_config(node) and "_target_" in str(OmegaConf.to_container(node))


@functools.cache
def _type_of_argument(target: str, name: str) -> Any:
    """Returns the type hint of a constructor's argument; None if it has none that can be read."""
    try:
        signature, function = _signature(target)
        parameter = signature.parameters.get(name)
        hint = _type_hint(function, name)
    except (ImportError, NameError, TypeError, ValueError):
        return None
    if parameter is None or hint is None:
        return None
    if isinstance(hint, InitVar):
        hint = hint.type
    return hint | None if parameter.default is None else hint


def _type_hint(function: Any, name: str) -> Any:
    """Returns one type hint of a function; None without one.

    The others are not evaluated: one may name what is imported for type checkers only.
    """
    own = {key: hint for key, hint in getattr(function, "__annotations__", {}).items() if key == name}
    names = getattr(inspect.unwrap(function), "__globals__", {})
    return get_type_hints(SimpleNamespace(__annotations__=own), names).get(name)


def _signature(target: str) -> tuple[inspect.Signature, Any]:
    from hydra.utils import get_object

    made: Any = get_object(target)
    function = made.__init__ if inspect.isclass(made) else made
    return inspect.signature(function), function


def check_type(key: str, value: Any, hint: Any) -> None:
    """Refuses a value that does not have a type.

    Args:
        key: named in the message.
        value: plain; a list also stands for a tuple.
        hint: a type or type hint.

    Raises:
        VmrError: says which values the type has.
    """
    from pydantic import ValidationError

    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise unknown(key, str(value), map(str, get_args(hint)))
        return
    try:
        adapter = _adapter(hint)
        if adapter is not None:
            adapter.validate_json(json.dumps(value))
        elif value is not None and not isinstance(value, dict | list):
            found = f"{json.dumps(value)}.{_choice(key, value)}"
            raise VmrError(f"Expected {key} to be a mapping with a _target_; found {found}")
    except ValidationError as error:
        at = error.errors()[0]["loc"]
        if at and isinstance(value, dict) and at[0] in value and get_origin(hint) in (dict, Mapping):
            check_type(f"{key}.{at[0]}", value[at[0]], get_args(hint)[-1])
        needs_quotes = _takes_text(hint) and not isinstance(value, str | dict)
        advice = f" {how_to_quote(key, value)}" if needs_quotes else _choice(key, value)
        raise VmrError(
            f"Expected {key} to be {_described(hint)}; found {json.dumps(value)}.{advice}"
        ) from error


def _choice(key: str, value: Any) -> str:
    """Returns how to choose a file of a config group, if a key that a group fills was given a name."""
    from hydra.core.hydra_config import HydraConfig

    if not isinstance(value, str) or not HydraConfig.initialized():
        return ""
    chosen = {name.partition("@")[0] for name in HydraConfig.get().runtime.choices}
    groups = key.replace(".", "/"), key.rpartition(".")[2]
    group = next((group for group in groups if group in chosen), None)
    return f" To choose a file of the group, write {group}={value}." if group else ""


def _takes_text(hint: Any) -> bool:
    """Returns whether a type hint is text, or text among others or in a list."""
    return hint is str or any(map(_takes_text, get_args(hint)))


@functools.cache
def _adapter(hint: Any) -> Any:
    """Returns pydantic's validator of a type; None for a class that it cannot validate."""
    from pydantic import ConfigDict, PydanticUserError, TypeAdapter
    from pydantic_core import SchemaError

    try:
        return TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True, strict=True))
    except (SchemaError, PydanticUserError):  # the latter for a dataclass
        return None


def _described(hint: Any) -> str:
    """Formats a type hint for a message."""
    if hint in _NAMES:
        return _NAMES[hint]
    if get_origin(hint) is Literal:
        return " or ".join(map(str, get_args(hint)))
    if get_origin(hint) in (UnionType, Union):
        return " or ".join(map(_described, get_args(hint)))
    return inspect.formatannotation(hint).replace("collections.abc.", "").replace("typing.", "")
