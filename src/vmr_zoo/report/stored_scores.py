"""Scores of single queries in a file, small enough for a repository: what stays of a run's predictions.

`scores.npz` holds, for each split, the ids of the queries and of their videos, `SPLIT/ids` and
`SPLIT/videos`, (N,) text, and for each metric `SPLIT/METRIC`, (N,) float16 in [0, 1], computed from the
predictions in full precision. Hits are exact, a mean IoU to 0.01 points.
"""

from __future__ import annotations

import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from vmr_zoo.errors import VmrError, first_line
from vmr_zoo.utils.files import atomic_path, check_regular

SCORES = "scores.npz"

VIDEO, QUERY = "video", "query"
"""Levels of the index of scores of single queries."""

_IDS, _VIDEOS = "ids", "videos"
_LARGEST = 2**26
"""Bytes of all arrays together."""

_TOLERANCE = 0.05
"""Points between the mean of the stored scores and the metric: float16 accounts for 0.01."""


def index_of(videos: Any, queries: Any) -> pd.MultiIndex:
    """Returns the index of scores of single queries, from (N,) ids of their videos and their own."""
    return pd.MultiIndex.from_arrays([videos, queries], names=(VIDEO, QUERY))


def write_scores(path: Path, scores: Mapping[str, pd.DataFrame]) -> None:
    """Writes the scores of one run.

    Args:
        path: the file.
        scores: (N, metrics) in [0, 1] by split, one row per query.
    """
    arrays: dict[str, Any] = {}
    for split, frame in scores.items():
        for key, level in ((_IDS, QUERY), (_VIDEOS, VIDEO)):
            arrays[f"{split}/{key}"] = np.asarray(frame.index.get_level_values(level), dtype=np.str_)
        arrays |= {f"{split}/{name}": frame[name].to_numpy(np.float16) for name in frame}
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)


def read_scores(
    path: Path, metrics: Mapping[str, Mapping[str, float]], wanted: Collection[str] | None = None
) -> dict[str, pd.DataFrame]:
    """Reads the scores of one run.

    Args:
        path: the file.
        metrics: percentages of the run by split and metric, which the scores must explain.
        wanted: the metrics to read; None: all.

    Returns:
        (N, metrics) float32 scores by split, one row per query.

    Raises:
        VmrError: if the file is broken or belongs to other metrics.
    """
    try:
        check_regular(path)
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > _LARGEST:
                raise ValueError(f"it holds more than {_LARGEST} bytes")
        with np.load(path, allow_pickle=False) as stored:
            scores = _frames({name: stored[name] for name in stored.files}, wanted)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise VmrError(
            f"{path} is not a file of stored scores ({first_line(error)}). experiments/collect.py writes it."
        ) from error
    if difference := other_means(scores, metrics):
        raise VmrError(
            f"{path} belongs to another run: {difference}. Store the run again: experiments/collect.py."
        )
    return scores


def other_means(scores: Mapping[str, pd.DataFrame], metrics: Mapping[str, Mapping[str, float]]) -> str:
    """Says which mean over the queries is not the stored metric, the first one; "" if all are.

    Args:
        scores: of single queries by split, in [0, 1].
        metrics: percentages of the run by split and metric.
    """
    for split, frame in scores.items():
        for name in map(str, frame):
            found, expected = 100 * float(frame[name].mean()), metrics.get(split, {}).get(name)
            if expected is not None and not abs(found - expected) <= _TOLERANCE:
                return f"its {name} on {split} is {found:.2f}, in metrics.json it is {expected:.2f}"
    return ""


def _frames(arrays: Mapping[str, Any], wanted: Collection[str] | None) -> dict[str, pd.DataFrame]:
    """Builds one table per split."""
    frames = {}
    for split in (name.removesuffix(f"/{_IDS}") for name in arrays if name.endswith(f"/{_IDS}")):
        names = [name.removeprefix(f"{split}/") for name in arrays if name.startswith(f"{split}/")]
        kept = [n for n in names if n not in (_IDS, _VIDEOS) and (wanted is None or n in wanted)]
        values = {name: arrays[f"{split}/{name}"].astype(np.float32) for name in kept}
        ids = [arrays[f"{split}/{key}"].astype(object) for key in (_VIDEOS, _IDS)]
        index = index_of(*ids)
        if not index.is_unique:
            raise ValueError(f"a query of {split} stands in it twice")
        frames[split] = pd.DataFrame(values, index=index)
    return frames
