"""What the YAML files of a verb say, read without composing them: fast enough for help and completion."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from vmr_zoo.config.compose import config_dir
from vmr_zoo.utils.trees import walk

_INTERNAL = {"base", "released"}
_UNUSED = {"eval": {"metrics"}, "parity": {"features", "metrics"}}
"""Groups in the defaults list of a verb that a user has no reason to select."""


def read_yaml(path: Path) -> dict[str, Any]:
    """Reads a file of `conf/` as it stands; {} for an empty or missing one."""
    if not path.is_file():
        return {}
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return yaml.load(path.read_text(encoding="utf-8"), loader) or {}  # a safe loader


def groups_of(verb: str) -> dict[str, str | None]:
    """Returns the groups that a verb takes, with the default choice of each."""
    groups: dict[str, str | None] = {}
    for entry in read_yaml(config_dir() / f"{verb}.yaml").get("defaults", []):
        if not isinstance(entry, dict):
            continue
        ((name, choice),) = entry.items()
        group = name.removeprefix("override ").removeprefix("optional ")
        if group not in _INTERNAL | _UNUSED.get(verb, set()):
            groups[group] = choice
    for group in list(groups):  # groups below the group, such as features/query
        for folder in sorted((config_dir() / group).glob("*/")):
            if group in ("features", "method") and folder.name not in ("base", "recipe"):
                groups[f"{group}/{folder.name}"] = None
    return groups


def keys_of(verb: str, args: Sequence[str], start: str) -> list[str]:
    """Lists keys of a verb: its own, or those below a group if the text has a dot.

    Args:
        verb: the verb.
        args: its other arguments; they select the files of the groups.
        start: the beginning of the key.

    Returns:
        Such as "seed=", and "trainer." for a mapping.
    """
    own = read_yaml(config_dir() / f"{verb}.yaml")
    groups = groups_of(verb)
    head = start.partition(".")[0]
    if "." in start and head in groups:
        choice = _selected(head, groups[head], args)
        tree: Any = {head: _merged(head, choice)} if choice else {}
    else:
        tree = {key: value for key, value in own.items() if key not in ("defaults", "hydra")}
    return [
        f"{key}." if isinstance(value, dict) and value else f"{key}="
        for key, value in walk(tree)
        if not key.rpartition(".")[2].startswith("_")
    ]


def _selected(group: str, default: str | None, args: Sequence[str]) -> str | None:
    """Returns the file selected in a group by the arguments."""
    typed = [arg.partition("=")[2] for arg in args if arg.startswith(f"{group}=")]
    if typed:
        return typed[-1].rpartition(",")[2]
    if default is None and (config_dir() / group / "default.yaml").is_file():
        return "default"
    return default


def _merged(group: str, choice: str) -> dict[str, Any]:
    """Merges a file with those of its defaults list, roughly: enough to know the names of keys."""
    node = read_yaml(config_dir() / group / f"{choice}.yaml")
    merged: dict[str, Any] = {}
    for entry in node.pop("defaults", []):
        for name, included in _includes(entry):
            target, _, package = name.partition("@")
            target = target.lstrip("/") if target.startswith("/") else f"{group}/{target}".rstrip("/")
            content = _merged(target, included)
            for level in reversed(package.split(".") if package and not package.startswith("_") else []):
                content = {level: content}
            merged = _join(merged, content)
    return _join(merged, node)


def _includes(entry: Any) -> Iterator[tuple[str, str]]:
    """Yields group, relative to the file's own unless it starts with a slash, and file of an entry."""
    if isinstance(entry, str) and entry != "_self_":
        folder, _, name = re.sub(r"^optional ", "", entry).partition("@")[0].rpartition("/")
        yield folder + entry[entry.index("@") :] if "@" in entry else folder, name
    elif isinstance(entry, dict):
        ((name, choice),) = entry.items()
        if isinstance(choice, str) and not name.startswith("override ") and "${" not in choice:
            yield name, choice


def _join(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Merges mappings; the second wins."""
    both = {
        key: _join(first[key], value)
        if isinstance(first.get(key), dict) and isinstance(value, dict)
        else value
        for key, value in second.items()
    }
    return {**first, **both}
