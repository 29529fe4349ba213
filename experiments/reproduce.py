"""Trains rows of a study again, chosen at random, and compares them with results.csv bit for bit.

python experiments/reproduce.py STUDY [COUNT] [DRAW]      # 3 rows by default; another DRAW chooses others

A row is the same if its weights have the same SHA-256 (16 digits), and steps, epochs and scores are equal.
Drawn are rows that were trained and whose command is in results.csv. The last bits depend on the processor,
the version of torch, the number of threads, which is set as it was, and a preloaded library: for
`mkl_as_intel.so` see docs/performance.md, and set LD_PRELOAD to its full path.

Runs are kept in runs/reproduced: after an interruption the same command goes on. The exit code is 1 if a row
differs, 2 if it could not be trained.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shlex
import subprocess
import sys
from pathlib import Path

from collect import HERE, read_results, read_run, row_key

from vmr_zoo.report.runs import Run, finished_runs
from vmr_zoo.report.store import run_place
from vmr_zoo.runs.directory import METRICS

MACHINE = ("processor", "torch", "threads", "preloaded")
"""Columns that say where a row was trained; another place can change the last bits."""
NOT_COMPARED = (*MACHINE, "revision", "train_seconds", "train_cpu_seconds", "command")


def draw_rows(study: str, count: int, draw: int) -> list[dict[str, str]]:
    """Draws rows that can be trained again; new rows of the study leave the order of the others.

    Raises:
        ValueError: if there are fewer.
    """

    def chance(row: dict[str, str]) -> bytes:
        return hashlib.sha256(" ".join((str(draw), *row_key(row))).encode()).digest()

    trained = [row for row in read_results(study) if row.get("command") and row["steps"] != "0"]
    if not 0 < count <= len(trained):
        file = HERE / study / "results.csv"
        raise ValueError(f"found {len(trained)} rows with a training and its command in {file}, not {count}")
    return sorted(trained, key=chance)[:count]


def train_again(study: str, row: dict[str, str]) -> Run:
    """Trains a row by the command that trained it; a run that an earlier call finished is kept."""
    place = Path("runs/reproduced", study, run_place(row))
    if (place / METRICS).is_file():
        print(f"{place} was trained by an earlier call. Remove it to train it now.")
    vmr = Path(sys.executable).with_name("vmr")
    command = [str(vmr), "train", "--config-dir", str(HERE / study), *shlex.split(row["command"])]
    here = [f"run={place}", "resume=true", "logger=csv", "trainer.accelerator=cpu", "hydra.mode=RUN"]
    subprocess.run([*command, *here], check=True, env=os.environ | {"OMP_NUM_THREADS": row["threads"]})
    (run,) = finished_runs(place)
    return run


def differences(row: dict[str, str], again: dict[str, str]) -> list[str]:
    """Returns the columns in which two rows differ; scores of probes are not compared."""
    columns = [column for column in dict.fromkeys((*row, *again)) if column not in NOT_COMPARED]
    return [
        f"{column} {row.get(column) or 'nothing'} -> {again.get(column) or 'nothing'}"
        for column in columns
        if not column.startswith("other ") and row.get(column, "") != again.get(column, "")
    ]


def describe(row: dict[str, str], again: dict[str, str], found: list[str]) -> str:
    """Says whether two rows are the same, given their `differences`, and if not, what else differed."""
    title = f"{row['name']}, seed {row['seed']}, of {row['revision']}, at {again['revision']}: "
    if not found:
        return f"{title}the same, weights {row['weights']}"
    elsewhere = [
        f"{key} {row.get(key)} -> {again.get(key)}" for key in MACHINE if row.get(key) != again.get(key)
    ]
    reason = (
        f"\n    trained elsewhere ({'; '.join(elsewhere)}): a point or two is expected" if elsewhere else ""
    )
    return f"{title}different{reason}\n    " + "\n    ".join(found)


def main() -> int:
    """Prints a line for each row; returns 1 if one differs, 2 if one fails."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study")
    parser.add_argument("count", nargs="?", type=int, default=3)
    parser.add_argument("draw", nargs="?", type=int, default=0)
    given = parser.parse_args()
    try:
        rows = draw_rows(given.study, given.count, given.draw)
    except ValueError as error:
        parser.error(str(error))
    failed = False
    for row in rows:
        try:
            again = read_run(train_again(given.study, row))
        except subprocess.CalledProcessError as error:
            print(f"Not trained: {shlex.join(error.cmd)}", file=sys.stderr)
            return 2
        found = differences(row, again)
        print(describe(row, again, found), flush=True)
        failed |= bool(found)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
