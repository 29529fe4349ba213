"""What the configuration of a run from the hub may name: classes, places and models.

`vmr_zoo.config.allowed` keeps a configuration from calling anything else. The classes on that list read
files, write caches and download models, though, and their arguments come from the configuration, too. So a
run of the hub names no place but those of the user (`paths`), no cache but the user's, and no model that is
not part of a library. `vmr push` finds the paths of this machine, which stay here, by the same arguments.
"""

from __future__ import annotations

import importlib
import inspect
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from vmr_zoo.config.allowed import TRUST, check_names, trusted_entries
from vmr_zoo.config.compose import config_dir
from vmr_zoo.config.keys import PRECISION
from vmr_zoo.errors import VmrError
from vmr_zoo.utils.packaged import PACKAGED

SECTIONS = ("name", "variant", "seed", "data", "features", "metrics", "method")
"""What is rebuilt or read of a run. Callbacks, loggers and the rest served its training."""

TRAINER = ("precision", "deterministic")
"""What prediction takes from the trainer of a run. Others would write logs, profiles or start processes."""

_MODULES = ("data", "methods", "blocks", "losses", "metrics", "video")
_NAMES = ("vmr_zoo.utils.arrays.", "vmr_zoo.utils.optimizers.", "torch.")
_MODEL_ARGUMENTS = ("model", "pretrained", "weights")
_HUB_MODELS = ("vmr_zoo.data.text.sentence.SentenceEncoder", "vmr_zoo.data.text.llama.LlamaEmbeddings")
"""Encoders whose `model` is a folder or a repository, never a model that a library ships."""

_WORKERS = ("processes", "workers", "num_workers")
_MOST_WORKERS = 64
_LARGEST_NUMBER = 10**6
"""Of sizes and counts; a seed may be larger."""

_PLACE = re.compile(r"\$\{paths\.(?:annotations|features|cache)\}(?:/[^/$]+)*")
_ELSEWHERE = re.compile(r"[/~\\]|[A-Za-z]:[/\\]")


@dataclass(frozen=True)
class Place:
    """An argument that names a file, a folder or a model.

    Attributes:
        key: dotted key of the value.
        kind: "path"; "cache", a folder that is written; "model", a name or a path of weights.
        target: the class or function that takes it.
        value: the text.
    """

    key: str
    kind: Literal["path", "cache", "model"]
    target: str
    value: str


def places(tree: Any, key: str = "") -> Iterator[Place]:
    """Yields the arguments of a configuration that name places, by the types of the constructors.

    Args:
        tree: plain; every class in it is allowed.
        key: dotted key of the tree.
    """
    if isinstance(tree, list):
        for number, value in enumerate(tree):
            yield from places(value, f"{key}.{number}")
    if not isinstance(tree, Mapping):
        return
    target = tree.get("_target_")
    kinds = {} if target is None else _kinds(str(target))
    for name, value in tree.items():
        inside = f"{key}.{name}".lstrip(".")
        yield from places(value, inside)
        if name in kinds:
            for where, text in _texts(value, inside):
                yield Place(where, kinds[name], str(target), text)


def _texts(value: Any, key: str) -> Iterator[tuple[str, str]]:
    """Yields the texts of a value, a list or a mapping, with their keys; not those of nodes of their own."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, list):
        for number, one in enumerate(value):
            yield from _texts(one, f"{key}.{number}")
    elif isinstance(value, Mapping) and "_target_" not in value:
        for name, one in value.items():
            yield from _texts(one, f"{key}.{name}")


def _kinds(target: str) -> dict[str, Literal["path", "cache", "model"]]:
    """Returns the arguments of a class or function that name places."""
    module, _, leaf = target.rpartition(".")
    parameters = inspect.signature(getattr(importlib.import_module(module), leaf)).parameters.values()
    kinds: dict[str, Literal["path", "cache", "model"]] = {}
    for one in parameters:
        annotation = str(one.annotation)
        if one.name == "cache":
            kinds[one.name] = "cache"
        elif one.name in _MODEL_ARGUMENTS and ("str" in annotation or "Path" in annotation):
            kinds[one.name] = "model"
        elif "Path" in annotation:
            kinds[one.name] = "path"
    return kinds


def own_paths() -> dict[str, Any]:
    """Returns `paths` as this user has set them: by environment variables, or the defaults."""
    from omegaconf import OmegaConf

    found = OmegaConf.load(config_dir() / "paths" / "default.yaml")
    return dict(OmegaConf.to_container(found, resolve=True))  # type: ignore[arg-type]


def restricted(tree: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Returns what is rebuilt of the configuration of a run from the hub, with the user's own paths.

    Args:
        tree: plain, with `${paths.NAME}`.
        source: where it comes from, for errors.

    Raises:
        VmrError: if it names a class, a place or a model that such a run may not name.
    """
    kept = {key: tree[key] for key in SECTIONS if key in tree}
    check_names(kept, source)
    _check_classes(kept, source)
    found = list(places(kept))
    for place in found:
        _check_place(place, source)
    checked = {place.key for place in found}
    for key, value in _values(kept, ""):
        if isinstance(value, str) and key not in checked and (leaves_folder(value) or "${" in value):
            raise _refusal(source, key, value, "it names places in no other argument than one for files")
        if isinstance(value, str) and not value.isprintable():
            raise _refusal(source, key, value, "its texts are printable")
        if isinstance(value, int) and key.rpartition(".")[2] != "seed" and abs(value) > _LARGEST_NUMBER:
            raise _refusal(source, key, value, f"its sizes and counts are at most {_LARGEST_NUMBER:,}")
        if isinstance(value, int) and key.rpartition(".")[2] in _WORKERS and value > _MOST_WORKERS:
            raise _refusal(source, key, value, f"it starts at most {_MOST_WORKERS} processes")
    return {**kept, "trainer": _trainer(tree.get("trainer"), source), "paths": own_paths()}


def _refusal(source: str, key: str, value: Any, rule: str) -> VmrError:
    return VmrError(
        f"{source} has {key}={value!s:.200}. A run of the hub is somebody else's: {rule} (docs/security.md)."
    )


def _check_classes(tree: Any, source: str) -> None:
    """Refuses classes that are allowed in a run of one's own, but do more than a model or its data."""
    for key in _names(tree):
        if not isinstance(key, str) or "." in key:  # two values could share a dotted key
            raise _refusal(source, "a key", key, "its keys are words without a dot")
    for key, value in _values(tree, ""):
        last = key.rpartition(".")[2]
        if last == "_args_" or "._args_." in key:
            raise _refusal(source, key, value, "its arguments have names")
        if last != "_target_" or value in trusted_entries():
            continue
        ours = any(value.startswith(f"vmr_zoo.{name}.") for name in _MODULES) or value.startswith(_NAMES)
        trusted = any(value.startswith(f"{entry}.") for entry in trusted_entries())
        if not (ours or trusted) or value.startswith("vmr_zoo.data.annotations.download."):
            raise _refusal(source, key, value, "it builds methods and their data, nothing else")


def _names(tree: Any) -> Iterator[Any]:
    """Yields the keys of all mappings."""
    if isinstance(tree, Mapping):
        yield from tree
    for value in tree.values() if isinstance(tree, Mapping) else tree if isinstance(tree, list) else ():
        yield from _names(value)


def _values(tree: Any, key: str) -> Iterator[tuple[str, Any]]:
    """Yields every value with its dotted key, also an empty list or mapping."""
    children = (
        tree.items() if isinstance(tree, Mapping) else enumerate(tree) if isinstance(tree, list) else ()
    )
    for name, value in children:
        yield from _values(value, f"{key}.{name}".lstrip("."))
    if not isinstance(tree, Mapping | list) or not tree:
        yield key, tree


def leaves_folder(text: str) -> bool:
    """Returns whether a text, read as a path, leads out of the folder it is relative to, or is an address."""
    return bool(
        _ELSEWHERE.match(text) or ".." in PurePosixPath(text.replace("\\", "/")).parts or "://" in text
    )


def _check_place(place: Place, source: str) -> None:
    """Refuses a place outside `paths`, a cache elsewhere, and a model that the user does not know."""
    inside = bool(_PLACE.fullmatch(place.value)) and ".." not in place.value.split("/")
    if place.kind == "cache":
        if place.value != "${paths.cache}":
            raise _refusal(source, place.key, place.value, "it writes into the cache of the user alone")
    elif place.kind == "path" or "${" in place.value:
        if not inside:
            rule = "its files are below paths.annotations and paths.features, which the user sets"
            raise _refusal(source, place.key, place.value, rule)
    elif place.value not in PACKAGED and place.value.removeprefix("hf-hub:") not in trusted_entries():
        if leaves_folder(place.value) or os.path.exists(place.value) or place.value.startswith("local-dir:"):
            rule = "its files are below paths.annotations and paths.features, which the user sets"
            raise _refusal(source, place.key, place.value, rule)
        if place.target in _HUB_MODELS or "/" in place.value or ":" in place.value:
            raise VmrError(
                f"{source} has {place.key}={place.value!s:.200}: it would download this model and run it. If "
                f"you trust its authors, name the model in the environment variable {TRUST}: "
                f"{TRUST}={place.value.removeprefix('hf-hub:')!s:.200} (docs/security.md)."
            )


def _trainer(node: Any, source: str) -> dict[str, Any]:
    """Returns a trainer that predicts in the precision of the run and does nothing else."""
    stored = node if isinstance(node, Mapping) else {}
    kept = {key: stored[key] for key in TRAINER if key in stored}
    if kept.get("precision", "32-true") not in PRECISION.values:
        raise _refusal(source, "trainer.precision", kept["precision"], "its precision is a known one")
    if kept.get("deterministic", "warn") not in (True, False, None, "warn"):
        raise _refusal(source, "trainer.deterministic", kept["deterministic"], "it is true, false or warn")
    return {"_target_": "lightning.Trainer", "accelerator": "auto", "devices": 1, **kept}


# ---------------------------------------------------------------------------------------- for publishing


def portable(tree: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Returns what is published of a configuration, without places of this machine.

    Args:
        tree: plain, of a run made here, with `${paths.NAME}`.

    Returns:
        The sections that are rebuilt, where each file, folder or cache elsewhere became one of the same name
        below `${paths.features}` or `${paths.annotations}`; and the new values by the old ones.

    Raises:
        VmrError: if it names a class that is not allowed, two places would have the same name, or another
            value is a path.
    """
    kept = {key: tree[key] for key in SECTIONS if key in tree}
    check_names(kept, "config.yaml")  # to look at the arguments of a class, its module is imported
    stored = tree.get("trainer") or {}
    kept["trainer"] = {key: stored[key] for key in TRAINER if key in stored}
    found = {place.key: place for place in places(kept)}
    new = {key: _portable_place(place) for key, place in found.items()}
    olds: dict[str, set[str]] = {}
    for key, place in found.items():
        if place.kind != "cache":
            olds.setdefault(new[key], set()).add(place.value)
    for same in (sorted(values) for values in olds.values() if len(values) > 1):
        raise VmrError(
            f"Two of these places have the same name: {', '.join(same)}. Rename one, also in config.yaml."
        )
    for key, value in _values(kept, ""):
        if isinstance(value, str) and key not in found and leaves_folder(value):
            raise VmrError(f"config.yaml has {key}={value!s:.200}, a path of this machine. Remove it there.")

    def replaced(node: Any, key: str) -> Any:
        if isinstance(node, Mapping):
            return {name: replaced(value, f"{key}.{name}".lstrip(".")) for name, value in node.items()}
        if isinstance(node, list):
            return [replaced(value, f"{key}.{number}") for number, value in enumerate(node)]
        return new.get(key, node)

    shown = {place.value: new[key] for key, place in found.items() if place.value != new[key]}
    return {name: replaced(value, name) for name, value in kept.items()}, shown


def _portable_place(place: Place) -> str:
    """Returns what stands for a place on any machine; a place below `paths` and a model's name stay."""
    if place.kind == "cache":
        return "${paths.cache}"
    if _PLACE.fullmatch(place.value):
        return place.value
    if place.kind == "path" or leaves_folder(place.value) or os.path.exists(place.value):
        root = "annotations" if place.key.startswith("data.protocol") else "features"
        return f"${{paths.{root}}}/{Path(place.value.removeprefix('local-dir:')).name}"
    return place.value
