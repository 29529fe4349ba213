"""Stores finished runs in a repository, without weights, predictions and paths of this machine.

A stored run is a run directory with `metrics.json`, `config.yaml`, the metrics of its probes, and hits and
IoU of the single queries of its test splits (`stored_scores`), 40 to 130 kB. Leaderboards, significance and
claims read it like any other run; what needs predictions says that there are none.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vmr_zoo.config.foreign import leaves_folder
from vmr_zoo.data.annotations.records import SELECTION
from vmr_zoo.errors import VmrError
from vmr_zoo.report.query_scores import load_scores
from vmr_zoo.report.runs import Run
from vmr_zoo.report.stored_scores import SCORES, write_scores
from vmr_zoo.runs.directory import HEADER, METRICS, read_json, write_config
from vmr_zoo.runs.publish import without_places
from vmr_zoo.utils.files import write_json

_LEFT_OUT = "mAP"
"""Metrics of the ranking: their scores of single queries would double the size."""


def run_place(header: Mapping[str, Any]) -> str:
    """Returns the place of a run in a folder of runs, PROTOCOL-FEATURES/NAME/seedN."""
    return f"{header['protocol']}-{header['features']}/{header['name']}/seed{header['seed']}"


def store_run(run: Run, folder: Path) -> Path:
    """Writes a finished run of this machine in its small form.

    Args:
        run: with predictions.
        folder: of the stored runs.

    Returns:
        The directory of the run in that folder, PROTOCOL-FEATURES/NAME/seedN.

    Raises:
        VmrError: if its predictions are missing or broken, or its configuration or its name is a path.
    """
    found = [one.directory / METRICS for one in run.probes]
    files = {str(file.relative_to(run.directory)): read_json(file) for file in found}
    files[METRICS] = {HEADER: run.header, **run.metrics}  # written last: it makes the folder a run
    files, config, _ = without_places(run.directory, files)
    names = dict.fromkeys(name for values in run.metrics.values() for name in values)
    kept = [name for name in names if not name.startswith(_LEFT_OUT)]
    _, scores = load_scores(run, [split for split in run.metrics if split != SELECTION], kept)
    header = files[METRICS][HEADER]
    place = run_place(header)
    if leaves_folder(place):
        raise VmrError(
            f"Expected names in the header of {run.directory}, found '{place}': it leaves {folder}."
        )
    target = folder / place
    shutil.rmtree(target, ignore_errors=True)  # probes of an earlier training would count for this one
    write_config(target, config)
    write_scores(target / SCORES, scores)
    for name, content in files.items():
        write_json(target / name, content)
    return target
