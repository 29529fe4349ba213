"""Stores finished runs in a repository, without weights, predictions and paths of this machine.

A stored run is a run directory with `metrics.json`, `config.yaml`, the metrics of its probes, and hits and
IoU of the single queries of its test splits (`stored_scores`), some 40 kB. Leaderboards, significance and
claims read it like any other run; what needs predictions says that there are none.
"""

from __future__ import annotations

from pathlib import Path

from vmr_zoo.data.annotations.records import SELECTION
from vmr_zoo.report.query_scores import load_scores
from vmr_zoo.report.runs import Run
from vmr_zoo.report.sentence_probe import PROBE
from vmr_zoo.report.stored_scores import SCORES, write_scores
from vmr_zoo.runs.directory import EVALUATIONS, HEADER, METRICS, read_json, write_config
from vmr_zoo.runs.publish import without_places
from vmr_zoo.utils.files import write_json

_LEFT_OUT = "mAP"
"""Metrics of the ranking: their scores of single queries would double the size."""


def store_run(run: Run, folder: Path) -> Path:
    """Writes a finished run of this machine in its small form.

    Args:
        run: with predictions.
        folder: of the stored runs.

    Returns:
        The directory of the run in that folder, PROTOCOL-FEATURES/NAME/seedN.

    Raises:
        VmrError: if its predictions are missing or broken, or its configuration names a path of this machine.
    """
    header, config, _ = without_places(run.directory, run.header)
    names = dict.fromkeys(name for values in run.metrics.values() for name in values)
    kept = [name for name in names if not name.startswith(_LEFT_OUT)]
    _, scores = load_scores(run, [split for split in run.metrics if split != SELECTION], kept)
    target = folder / f"{header['protocol']}-{header['features']}" / header["name"] / f"seed{header['seed']}"
    write_config(target, config)
    for file in sorted(run.directory.glob(f"{EVALUATIONS}/*-{PROBE}-*/{METRICS}")):
        probed = read_json(file)
        probed[HEADER], _, _ = without_places(run.directory, probed[HEADER])
        write_json(target / EVALUATIONS / file.parent.name / METRICS, probed)
    write_scores(target / SCORES, scores)
    write_json(target / METRICS, {HEADER: header, **run.metrics})  # last: it makes the folder a run
    return target
