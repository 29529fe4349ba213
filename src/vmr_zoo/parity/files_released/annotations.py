"""Writes annotations of other codebases as the data sets publish them."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path


def write_charades_lengths(folder: Path, lengths: Mapping[str, float]) -> None:
    """Writes the lengths of videos in seconds as the CSV files of Charades v1."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, videos in (("train", lengths), ("test", {})):
        with (folder / f"Charades_v1_{name}.csv").open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            rows.writerow(("id", "length"))
            rows.writerows((video_id, repr(length)) for video_id, length in videos.items())
