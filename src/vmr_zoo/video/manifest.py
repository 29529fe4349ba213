"""The `manifest.json` of a folder of extracted features.

It contains everything that determines the features (`VideoEncoder.manifest`), how they are stored, and, under
"encoder", the configuration node that rebuilds the encoder.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import get_class, instantiate

from vmr_zoo.errors import VmrError
from vmr_zoo.utils.files import write_json
from vmr_zoo.utils.trees import differing, through_json
from vmr_zoo.video.encoder import VideoEncoder

MANIFEST_NAME = "manifest.json"
_PACKAGE = "vmr_zoo."
"""Prefix of the class of an encoder: manifests come with features, so they may name no other class."""


STORAGE = ("float32", "float16")
"""Types in which clip vectors are stored."""


def _is_count(value: Any) -> bool:
    return type(value) is int and value > 0


_ENTRIES: dict[str, Callable[[Any], bool]] = {
    "backbone": lambda value: isinstance(value, str),
    "clip_seconds": lambda value: type(value) in (int, float) and value > 0,
    "dtype": lambda value: value in STORAGE,
    "dim": _is_count,
    "patch_dim": lambda value: value is None or _is_count(value),
    "patches": lambda value: value is None or _is_count(value),
}
"""The entries of a manifest that readers use, and which values are valid."""


def feature_settings(encoder: VideoEncoder, storage: str) -> dict[str, Any]:
    """Returns what determines the features of a folder; folders with equal settings are interchangeable.

    Args:
        encoder: the encoder.
        storage: numpy's name of the type in which clip vectors are stored.
    """
    return {
        **encoder.manifest(),
        "dtype": storage,
        "dim": encoder.dim,
        "patch_dim": encoder.patch_dim,
        "patches": encoder.patches,
    }


def write_or_compare_manifest(folder: Path, settings: Mapping[str, Any], node: Mapping[str, Any]) -> None:
    """Writes the manifest of an empty folder; compares that of a filled one.

    Args:
        folder: where the features go.
        settings: the result of `feature_settings`.
        node: configuration node of the encoder.

    Raises:
        VmrError: if the folder was filled with other settings; lists them.
    """
    if (folder / MANIFEST_NAME).exists():
        stored = {key: value for key, value in read_manifest(folder).items() if key != "encoder"}
        now = through_json(settings)
        if keys := differing(stored, now):
            lines = "\n".join(f"- {key}: there {stored.get(key)!r}, now {now.get(key)!r}" for key in keys)
            raise VmrError(
                f"{folder} holds features that were extracted with other settings:\n{lines}\n"
                "Choose another out=FOLDER."
            )
        return
    if any(folder.glob("*.npz")):
        raise VmrError(
            f"{folder} holds npz files but no {MANIFEST_NAME}: their settings are unknown. Choose another "
            "out=FOLDER."
        )
    write_json(folder / MANIFEST_NAME, {**settings, "encoder": node})


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """Reads the manifest of a folder.

    Raises:
        VmrError: if it does not exist, is broken, or names an encoder outside this package.
    """
    path = Path(folder).expanduser() / MANIFEST_NAME
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        target = str(found["encoder"]["_target_"])
        broken = [key for key, is_valid in _ENTRIES.items() if not is_valid(found[key])]
    except FileNotFoundError:
        raise VmrError(
            f"Expected the manifest of extracted features at {path}; there is none. Set folders that "
            "`vmr extract` filled (features.video.folders, paths.features)."
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise VmrError(
            f"{path} is no manifest of `vmr extract` ({type(error).__name__}: {error}). Extract again."
        ) from error
    if broken:
        listed = ", ".join(f"{key}={found[key]!r:.80}" for key in broken)
        raise VmrError(
            f"{path} has values that `vmr extract` never writes: {listed}. Copy it again from where the "
            "features were extracted, or extract again."
        )
    check_target(target, str(path))
    return dict(found)


def check_target(target: Any, where: str) -> None:
    """Refuses an encoder outside this package by its `_target_`; `build_encoder` also checks the class.

    Args:
        target: the name, from an untrusted file.
        where: what names it, for the message.
    """
    if not str(target).startswith(_PACKAGE):
        raise VmrError(
            f"{where} names the encoder {target}; only encoders of this package ({_PACKAGE}…) are built."
        )


def build_encoder(node: Mapping[str, Any]) -> VideoEncoder:
    """Builds the encoder of a manifest, which is untrusted: no other class is built.

    Args:
        node: "encoder" of the manifest.

    Raises:
        VmrError: if it names no encoder of this package, or arguments that the encoder does not take.
    """
    target = str(node.get("_target_"))
    try:
        found = get_class(target) if target.startswith(_PACKAGE) else None
    except (ImportError, ValueError):
        found = None
    # A name may start with the package and lead out of it: vmr_zoo.utils.files.os.system.
    if found is None or not issubclass(found, VideoEncoder):
        raise VmrError(f"{target} is no encoder; only encoders of this package ({_PACKAGE}…) are built.")
    try:
        encoder: VideoEncoder = instantiate(node, _recursive_=False)
    except InstantiationException as error:
        if isinstance(error.__cause__, VmrError):
            raise error.__cause__ from None
        raise VmrError(
            f"{target} does not accept the arguments in the manifest: {error.__cause__}."
        ) from error
    return encoder


def combined_entry(key: str, folders: Sequence[str | Path]) -> Any:
    """Returns an entry of the manifests of concatenated folders.

    Args:
        key: "dim" (the sum), "clip_seconds", "patch_dim" or "patches" (None without patches), or "encoders"
            (the list of nodes).
        folders: in the order of concatenation.

    Raises:
        VmrError: if a manifest is missing or broken, clips differ in length, or several folders have patches.
    """
    manifests = [read_manifest(folder) for folder in folders]
    if not manifests:
        raise VmrError("No folder of extracted features: set features.video.folders=[FOLDER,…].")
    if key == "dim":
        return sum(manifest["dim"] for manifest in manifests)
    if key == "encoders":
        return [manifest["encoder"] for manifest in manifests]
    if key == "clip_seconds":
        lengths = [manifest["clip_seconds"] for manifest in manifests]
        if len(set(lengths)) > 1:
            listed = "\n".join(
                f"- {folder}: {length} s" for folder, length in zip(folders, lengths, strict=True)
            )
            raise VmrError(f"Features of clips of different lengths cannot be concatenated:\n{listed}")
        return lengths[0]
    with_patches = [number for number, manifest in enumerate(manifests) if manifest["patches"] is not None]
    if len(with_patches) > 1:
        raise VmrError(
            f"Several folders have patch features: {', '.join(str(folders[i]) for i in with_patches)}. Give "
            "only one such folder; their concatenation is not defined."
        )
    return manifests[with_patches[0]][key] if with_patches else None
