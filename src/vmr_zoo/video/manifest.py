"""What a folder of extracted features says about itself: its `manifest.json`.

It holds everything that decides the numbers (`VideoEncoder.manifest`), how they are stored, and, under
"encoder", the configuration node that rebuilds the encoder.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import get_class, instantiate

from vmr_zoo.errors import VmrError
from vmr_zoo.utils.files import atomic_write
from vmr_zoo.video.encoder import VideoEncoder

NAME = "manifest.json"
PACKAGE = "vmr_zoo."
"""Where the class of an encoder must lie: a manifest comes with features, and may name nothing else."""


def describe(encoder: VideoEncoder, storage: str) -> dict[str, Any]:
    """Returns what decides the features of a folder; two folders with equal ones are interchangeable.

    Args:
        encoder: what computes them.
        storage: numpy's name of the type in which clip vectors are stored.
    """
    return {
        **encoder.manifest(),
        "dtype": storage,
        "dim": encoder.dim,
        "patch_dim": encoder.patch_dim,
        "patches": encoder.patches,
    }


def settle(folder: Path, settings: Mapping[str, Any], node: Mapping[str, Any]) -> None:
    """Writes a folder's manifest, or refuses a folder that was filled otherwise.

    Args:
        folder: where the features go.
        settings: what `describe` returned.
        node: the configuration node of the encoder.

    Raises:
        VmrError: naming every setting that differs.
    """
    if (folder / NAME).exists():
        stored = {key: value for key, value in read(folder).items() if key != "encoder"}
        now = json.loads(json.dumps(settings))
        differing = [key for key in dict.fromkeys((*stored, *now)) if stored.get(key) != now.get(key)]
        if differing:
            lines = "\n".join(
                f"- {key}: there {stored.get(key)!r}, now {now.get(key)!r}" for key in differing
            )
            raise VmrError(
                f"{folder} holds features that were extracted otherwise:\n{lines}\nChoose another out=FOLDER."
            )
        return
    if any(folder.glob("*.npz")):
        raise VmrError(
            f"{folder} holds npz files but no {NAME}, so nobody knows how they were made. "
            "Choose another out=FOLDER."
        )
    atomic_write(folder / NAME, f"{json.dumps({**settings, 'encoder': node}, indent=1)}\n")


def read(folder: str | Path) -> dict[str, Any]:
    """Reads a folder's manifest.

    Raises:
        VmrError: if there is none, it is broken, or its encoder is none of this package's.
    """
    path = Path(folder).expanduser() / NAME
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        target = str(found["encoder"]["_target_"])
        _ = found["dim"], found["clip_seconds"], found["backbone"], found["patches"], found["patch_dim"]
    except FileNotFoundError:
        raise VmrError(
            f"Expected the manifest of extracted features at {path}; there is none. Give folders that "
            "`vmr extract` filled (features.video.folders, paths.features)."
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise VmrError(
            f"{path} is no manifest of `vmr extract` ({type(error).__name__}: {error}). Extract anew."
        ) from error
    if not target.startswith(PACKAGE):
        raise VmrError(
            f"{path} names the encoder {target}; only encoders of this package ({PACKAGE}…) are built."
        )
    return dict(found)


def build(node: Mapping[str, Any]) -> VideoEncoder:
    """Builds the encoder of a manifest, which came with features and is not to be trusted with anything else.

    Args:
        node: the manifest's "encoder".

    Raises:
        VmrError: if it names no encoder of this package, or arguments that the encoder does not have.
    """
    target = str(node.get("_target_"))
    try:
        found = get_class(target) if target.startswith(PACKAGE) else None
    except (ImportError, ValueError):
        found = None
    # A name may begin with the package's and lead out of it: vmr_zoo.utils.files.os.system.
    if found is None or not issubclass(found, VideoEncoder):
        raise VmrError(f"{target} is no encoder; only encoders of this package ({PACKAGE}…) are built.")
    try:
        encoder: VideoEncoder = instantiate(node, _recursive_=False)
    except InstantiationException as error:
        if isinstance(error.__cause__, VmrError):
            raise error.__cause__ from None
        raise VmrError(f"{target} does not take what the manifest gives it: {error.__cause__}.") from error
    return encoder


def declared(key: str, folders: Sequence[str | Path]) -> Any:
    """Answers what a configuration asks about folders of extracted features.

    Args:
        key: "dim" (the sum), "clip_seconds", "patch_dim", "patches" (both None without), "encoders" (the list
            of nodes), or "patch_source" (the node that reads the patches, None without).
        folders: in the order of concatenation.

    Raises:
        VmrError: see `read`; or if clips differ in length, or several folders have patches.
    """
    manifests = [read(folder) for folder in folders]
    if not manifests:
        raise VmrError("No folder of extracted features was given: set features.video.folders=[FOLDER,…].")
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
    having = [number for number, manifest in enumerate(manifests) if manifest["patches"] is not None]
    if len(having) > 1:
        raise VmrError(
            f"Several folders have patch features: {', '.join(str(folders[number]) for number in having)}. "
            "Give one such folder; a concatenation of several is not defined."
        )
    if not having:
        return None
    if key == "patch_source":
        target = "vmr_zoo.data.features.extracted.ExtractedPatches"
        return {"_target_": target, "folders": [str(folder) for folder in folders]}
    return manifests[having[0]][key]
