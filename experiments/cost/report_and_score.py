"""Measures `vmr report` and `vmr score` on 100 and 1,000 runs with 10,000 and 100,000 predictions.

python experiments/cost/report_and_score.py [FOLDER]     # about 70 MB there; a temporary folder by default

Every number in the generated files is SIMULATED: drawn at random, not predicted by a method. Each command
runs in its own process, measured from outside: wall time, CPU time and peak memory (Linux, macOS).
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SEEDS = 5
WINDOWS = 10
DURATION = 30.0
SCALES = 0.1, 1.0
RUNS, PREDICTIONS = 1_000, 100_000
CONFIG = """\
metrics: {_target_: x, r1_thresholds: [0.3, 0.5, 0.7], r5_thresholds: [0.5], windows: 10, rounding: {
  _target_: vmr_zoo.metrics.settings.Rounding, decimals: 4}}
"""


def prediction(draw: random.Random, split: str, query_id: str, video_id: str) -> dict[str, Any]:
    """Draws a row of predictions.jsonl; spans are in seconds."""

    def span() -> list[float]:
        return sorted(round(DURATION * draw.random(), 4) for _ in range(2))

    scores = sorted((round(draw.random(), 6) for _ in range(WINDOWS)), reverse=True)
    return {
        "split": split,
        "query_id": query_id,
        "video_id": video_id,
        "query": "simulated",
        "duration": DURATION,
        "moments": [span()],
        "pred_relevant_windows": [[*span(), score] for score in scores],
    }


def write_runs(root: Path, runs: int, predictions: int) -> None:
    """Writes run directories with two splits, `SEEDS` per name, and distributes the predictions equally."""
    draw = random.Random(0)
    for number in range(runs):
        name = f"simulated_{number // SEEDS}"
        run = root / name / f"seed{number % SEEDS}"
        run.mkdir(parents=True)
        metrics = {
            split: {
                metric: 100 * draw.random() for metric in ("R1@0.3", "R1@0.5", "R1@0.7", "R5@0.5", "mIoU")
            }
            for split in ("iid", "ood")
        }
        header = {
            "name": name,
            "method": "simulated",
            "variant": "paper",
            "protocol": "simulated",
            "features": "simulated",
            "origin": "simulated",
            "selection": "none",
            "rounding": "4 decimals",
            "seed": number % SEEDS,
            "parameters": 1,
        }
        (run / "metrics.json").write_text(json.dumps({"header": header, **metrics}))
        (run / "status.json").write_text('{"state": "finished", "seconds": 0}')
        (run / "config.yaml").write_text(CONFIG)
        with (run / "predictions.jsonl").open("w") as file:
            for row in range(predictions // runs):
                split = ("iid", "ood")[row % 2]
                file.write(json.dumps(prediction(draw, split, f"{split}_{row}", f"{split}_{row}")) + "\n")


def write_predictions(root: Path, count: int) -> Path:
    """Writes predictions, and annotations in the format of ActivityNet Captions, one sentence per video."""
    draw = random.Random(0)
    folder = root / "activitynet"
    folder.mkdir(parents=True)
    predictions = root / "predictions.jsonl"
    truth = {}
    with predictions.open("w") as file:
        for number in range(count):
            video = f"v_{number}"
            row = prediction(draw, "test", f"{video}_0", video)
            file.write(json.dumps(row) + "\n")
            truth[video] = {"duration": DURATION, "timestamps": row["moments"], "sentences": [row["query"]]}
    for name, content in ("train", {"t": truth["v_0"]}), ("val_1", {"s": truth["v_0"]}), ("val_2", truth):
        (folder / f"{name}.json").write_text(json.dumps(content))
    return predictions


def measure(*args: str) -> tuple[float, float, float]:
    """Runs `vmr ARGS`; returns wall time and CPU time in seconds, and peak memory in MB.

    Raises:
        subprocess.CalledProcessError: if the command fails.
    """
    command = [sys.executable, "-m", "vmr_zoo.cli.main", *args]
    with tempfile.TemporaryFile() as output:
        started = time.perf_counter()
        child = os.posix_spawn(
            sys.executable, command, os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, output.fileno(), 1)]
        )
        _, status, used = os.wait4(child, 0)
        seconds = time.perf_counter() - started
        if code := os.waitstatus_to_exitcode(status):
            output.seek(0)
            raise subprocess.CalledProcessError(code, command, output.read())
    unit = 1 if sys.platform == "darwin" else 1024
    return seconds, used.ru_utime + used.ru_stime, used.ru_maxrss * unit / 1e6


def commands(folder: Path, scale: float) -> Iterator[tuple[str, list[str]]]:
    """Writes the input files; yields the title and arguments of each command to measure."""
    runs, predictions = round(RUNS * scale), round(PREDICTIONS * scale)
    root = folder / f"runs_{runs}"
    write_runs(root, runs, predictions)
    yield f"`vmr report`, {runs:,} runs", ["report", f"runs={root}"]
    yield (
        f"`vmr report significance=true`, {runs:,} runs with {predictions:,} predictions",
        ["report", f"runs={root}", "significance=true"],
    )
    yield (
        f"`vmr report html=true significance=true`, the same runs, {runs // SEEDS:,} rows",
        ["report", f"runs={root}", "significance=true", "html=true", f"out={folder / 'report.html'}"],
    )
    annotations = folder / f"annotations_{predictions}"
    file = write_predictions(annotations, predictions)
    overrides = [f"predictions={file}", "data=activitynet", "split=test", f"paths.annotations={annotations}"]
    yield f"`vmr score`, {predictions:,} predictions", ["score", *overrides]


def main(folder: Path) -> None:
    """Prints the measurements as a Markdown table."""
    print("| command | wall, s | CPU, s | peak memory, MB |\n|---|---|---|---|")
    for scale in SCALES:
        for title, args in commands(folder, scale):
            seconds, cpu, memory = measure(*args)
            print(f"| {title} | {seconds:.1f} | {cpu:.1f} | {memory:,.0f} |", flush=True)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(Path(temporary))
