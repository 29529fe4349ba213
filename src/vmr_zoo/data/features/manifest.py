"""Comparison of the features of a checkpoint with those in use, and the former names of backbones."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from vmr_zoo.errors import VmrError
from vmr_zoo.utils.trees import leaves, through_json

_ANY = "other"
_UNIVTG = ("univtg", "univtg_hdf5")

FORMER_BACKBONES: dict[str, dict[str, str]] = {
    "clip": {_ANY: "clip_vit_b32"} | dict.fromkeys(_UNIVTG, "clip_univtg"),
    "clip_text": {_ANY: "clip_vit_b32_text"} | dict.fromkeys(_UNIVTG, "clip_univtg_text"),
    "slowfast": {_ANY: "slowfast_r50"},
    "internvideo2": {_ANY: "internvideo2_6b"},
    "llama": {_ANY: "internvl_llama_7b"},
    "resnet": {_ANY: "resnet152"},
    "i3d": {"emb": "i3d_vslnet", "i3d": "i3d_bm_detr", "mesm_i3d": "i3d_mesm"},
}
"""Names of backbones in manifests of vmr_zoo 0.2: the present name, by configuration of features. The old
names did not tell networks apart that differ."""


def compare_manifests(
    stored: Mapping[str, Any], current: Mapping[str, Any], unread: Collection[str] = ()
) -> None:
    """Refuses features that differ from those of a checkpoint.

    The name of the configuration may differ. Narrations, the words for them and patches are compared only if
    the stored manifest has them. A former name of a backbone counts as its present name.

    Args:
        stored: the manifest beside the checkpoint.
        current: `FeatureSet.manifest()` of the features in use.
        unread: keys that may differ, as the method does not read what they describe.

    Raises:
        VmrError: with a list of all differing fields.
    """
    optional = {key for key in ("narration", "narration_query", "patches") if stored.get(key) is None}
    skipped = {"name", *optional, *unread}
    old = leaves({key: value for key, value in stored.items() if key not in skipped})
    new = leaves(through_json({key: value for key, value in current.items() if key not in skipped}))
    features = str(stored.get("name") or _ANY).split(" ")[0]  # "univtg in float16"
    differing = [
        key for key in dict.fromkeys((*old, *new)) if not _same(old.get(key), new.get(key), features)
    ]
    if not differing:
        return
    lines = [f"- {key}: trained on {old.get(key)!r}, now {new.get(key)!r}" for key in differing]
    before, now = old.get("video.order"), new.get("video.order")
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        before = [name if name in now else present_name(name, features) for name in before]
        if before != now and sorted(before) == sorted(now):
            lines.append(f"The same sources in another order: concatenate them as {' | '.join(before)}.")
    raise VmrError(
        "The features differ from those that the checkpoint was trained on:\n"
        + "\n".join(lines)
        + f"\nChoose the features it was trained on ('{stored.get('name')}')."
    )


def same_sources(stored: Mapping[str, Any], current: Mapping[str, Any]) -> bool:
    """Whether two manifests of video sources describe the same, whatever their backbones were called.

    Args:
        stored: from a file, perhaps with former names.
        current: `VideoSource.manifest()`, after JSON.
    """
    old, new = leaves(stored), leaves(current)
    return old.keys() == new.keys() and all(_same(old[key], new[key], None) for key in old)


def _same(old: Any, new: Any, features: str | None) -> bool:
    """Whether two values are equal, or one is the former name of a backbone and the other its present one.

    Args:
        old: of the stored manifest.
        new: of the features in use.
        features: the configuration that was stored; None: unknown.
    """
    if old == new:
        return True
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return all(_same(*pair, features) for pair in zip(old, new, strict=True))
    if not isinstance(old, str):
        return False
    if features is None:
        return new in FORMER_BACKBONES.get(old, {}).values()
    return bool(new == present_name(old, features))


def present_name(name: str, features: str) -> str:
    """Returns what a backbone is called now.

    Args:
        name: its present or a former name.
        features: the name of the configuration of features in which it stands.
    """
    names = FORMER_BACKBONES.get(name, {})
    return names.get(features) or names.get(_ANY) or name
