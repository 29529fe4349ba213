"""Comparison of the features of a checkpoint with those in use."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from vmr_zoo.errors import VmrError
from vmr_zoo.utils.trees import leaves


def compare_manifests(stored: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    """Refuses features that differ from those of a checkpoint.

    The name of the configuration may differ. Narrations, the words for them and patches are compared only if
    the stored manifest has them.

    Args:
        stored: the manifest beside the checkpoint.
        current: `FeatureSet.manifest()` of the features in use.

    Raises:
        VmrError: with a list of all differing fields.
    """
    optional = {key for key in ("narration", "narration_query", "patches") if stored.get(key) is None}
    skipped = {"name", *optional}
    # The stored manifest has been through JSON, which turns tuples into lists.
    old = leaves({key: value for key, value in stored.items() if key not in skipped})
    new = leaves(json.loads(json.dumps({key: value for key, value in current.items() if key not in skipped})))
    differing = [key for key in dict.fromkeys((*old, *new)) if old.get(key) != new.get(key)]
    if not differing:
        return
    lines = [f"- {key}: trained on {old.get(key)!r}, now {new.get(key)!r}" for key in differing]
    before, now = old.get("video.order"), new.get("video.order")
    if before != now and isinstance(before, list) and isinstance(now, list) and sorted(before) == sorted(now):
        lines.append(f"The same sources in another order: concatenate them as {' | '.join(before)}.")
    raise VmrError(
        "The features differ from those that the checkpoint was trained on:\n"
        + "\n".join(lines)
        + f"\nChoose the features it was trained on ('{stored.get('name')}')."
    )
