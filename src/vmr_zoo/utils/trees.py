"""Nested mappings: as dotted keys, through JSON, compared."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any


def walk(tree: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields every node below the root with its dotted key, parents before their children.

    The items of a list of mappings have numbers for keys.

    >>> [key for key, _ in walk({"a": {"b": 1}, "c": [2], "d": [{"e": 3}]})]
    ['a', 'a.b', 'c', 'd', 'd.0', 'd.0.e']
    """
    for key, value in tree.items():
        name = f"{prefix}{key}"
        yield name, value
        yield from walk(_children(value), f"{name}.")


def leaves(tree: Mapping[Any, Any]) -> dict[str, Any]:
    """Returns the values without children by dotted key.

    >>> leaves({"a": {"b": 1}, "c": {}})
    {'a.b': 1, 'c': {}}
    """
    return {key: value for key, value in walk(tree) if not _children(value)}


def _children(node: Any) -> Mapping[Any, Any]:
    if isinstance(node, list) and node and isinstance(node[0], Mapping):
        return dict(enumerate(node))
    return node if isinstance(node, Mapping) else {}


def map_leaves(function: Callable[[Any], Any], tree: Any) -> Any:
    """Applies a function to every value of nested mappings and sequences; tuples become lists.

    >>> map_leaves(str, {"a": [1, (2, 3)]})
    {'a': ['1', ['2', '3']]}
    """
    if isinstance(tree, Mapping):
        return {key: map_leaves(function, value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [map_leaves(function, value) for value in tree]
    return function(tree)


def leaf_values(tree: Any) -> Iterator[Any]:
    """Yields every value of nested mappings and sequences.

    >>> list(leaf_values({"a": [1, {"b": 2}]}))
    [1, 2]
    """
    if isinstance(tree, Mapping):
        tree = list(tree.values())
    if isinstance(tree, list | tuple):
        for value in tree:
            yield from leaf_values(value)
    else:
        yield tree


def through_json(tree: Any) -> Any:
    """Returns a value as it is read again from JSON: tuples become lists, and keys text.

    >>> through_json({1: (2, 3)})
    {'1': [2, 3]}
    """
    return json.loads(json.dumps(tree))


def differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Returns the keys whose values differ, those of `before` first; an absent value counts as None.

    >>> differing({"a": 1, "b": 2, "c": None}, {"d": 4, "b": 3, "a": 1})
    ['b', 'd']
    """
    return [key for key in dict.fromkeys((*before, *now)) if before.get(key) != now.get(key)]
