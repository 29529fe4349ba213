"""Trains rows of a study again, chosen at random, and compares them with results.csv bit for bit.

python experiments/reproduce.py STUDY [COUNT] [DRAW]      # 3 rows by default; another DRAW chooses others

A row is the same if its weights have the same SHA-256, and steps, epochs and scores are equal. Drawn are
rows that were trained and whose command is in results.csv. The last bits depend on the number of threads,
which is set as it was, and on the kernels: set LD_PRELOAD as column `preloaded` says.

Runs are kept in runs/reproduced: after an interruption the same command goes on. It ends with 1 if a row
differs.
"""

from __future__ import annotations

import os
import random
import shlex
import subprocess
import sys
from pathlib import Path

from collect import HERE, read_results, read_run

from vmr_zoo.report.runs import Run, scan_runs

ELSEWHERE = ("revision", "preloaded", "threads", "train_seconds", "train_cpu_seconds", "command")
"""Columns that say where and how a row was trained, and what it cost."""


def draw_rows(study: str, count: int, draw: int) -> list[dict[str, str]]:
    """Draws rows of a study that were trained, without replacement."""
    trained = [row for row in read_results(study) if row.get("command") and row["steps"] != "0"]
    return random.Random(draw).sample(trained, count)


def train_again(study: str, row: dict[str, str]) -> Run:
    """Trains a row by the command that trained it."""
    place = Path("runs/reproduced") / study / row["weights"]
    command = ["vmr", "train", "--config-dir", str(HERE / study), *shlex.split(row["command"])]
    environment = os.environ | {"OMP_NUM_THREADS": row["threads"]}
    subprocess.run([*command, "hydra.mode=RUN", f"run={place}", "resume=true"], check=True, env=environment)
    (run,), _ = scan_runs(place)
    return run


def differences(row: dict[str, str], again: dict[str, str]) -> list[str]:
    """Returns the columns in which two rows differ; scores of probes are not compared."""
    compared = [column for column in again if column not in ELSEWHERE and not column.startswith("other ")]
    return [
        f"{column} {row[column]} -> {again[column]}" for column in compared if row[column] != again[column]
    ]


def main(study: str, count: int, draw: int) -> int:
    """Prints a line for each row; returns 1 if one differs."""
    failed = 0
    for row in draw_rows(study, count, draw):
        again = read_run(train_again(study, row))
        found = differences(row, again)
        failed |= bool(found)
        print(f"{row['name']}, seed {row['seed']}, of {row['revision']}, at {again['revision']}:")
        print(f"    {'; '.join(found) or 'the same, weights ' + row['weights']}", flush=True)
    return int(failed)


if __name__ == "__main__":
    arguments = [int(text) for text in sys.argv[2:]]
    sys.exit(main(sys.argv[1], *arguments, *(3, 0)[len(arguments) :]))
