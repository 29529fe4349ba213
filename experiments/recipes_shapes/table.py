"""Adds the trials of finished searches to results.csv, and prints a table per method.

python experiments/recipes_shapes/table.py [RUNS]      # RUNS: default runs/recipes_shapes
"""

from __future__ import annotations

import csv
import sys
from itertools import groupby
from pathlib import Path

from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import get_all_study_summaries, load_study

RESULTS = Path(__file__).parent / "results.csv"
COLUMNS = ("method", "trial", "state", "epochs", "mIoU", "learning rate", "batch size", "dropout")
KEYS = ("method.training.optimizer.lr", "data.batch_size", "method.network.dropout")


def read_searches(runs: Path) -> dict[str, list[dict[str, str]]]:
    """Reads the trials below a folder, by method."""
    found = {}
    for journal in sorted(runs.glob("*/search/*/study.journal")):
        storage = JournalStorage(JournalFileBackend(str(journal)))
        for summary in get_all_study_summaries(storage):
            study = load_study(study_name=summary.study_name, storage=storage)
            method = summary.study_name.split("/")[1].partition("-paper")[0]
            found[method] = [_row(method, trial) for trial in study.get_trials() if trial.intermediate_values]
    return found


def _row(method: str, trial) -> dict[str, str]:
    values = [trial.params.get(key) for key in KEYS]
    cells = (
        *(method, trial.number, trial.state.name.lower(), len(trial.intermediate_values)),
        f"{max(trial.intermediate_values.values()):.2f}",
        *("" if value is None else f"{value:.3g}" for value in values),
    )
    return dict(zip(COLUMNS, map(str, cells), strict=True))


def main(runs: Path) -> None:
    """Updates results.csv and prints it as Markdown, the best trial of each method first."""
    by_method: dict[str, list[dict[str, str]]] = {}
    if RESULTS.exists():
        with RESULTS.open(newline="", encoding="utf-8") as file:
            by_method = {
                key: list(rows) for key, rows in groupby(csv.DictReader(file), lambda row: row["method"])
            }
    by_method |= read_searches(runs)
    rows = [row for method in sorted(by_method) for row in by_method[method]]
    with RESULTS.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print(f"| {' | '.join(COLUMNS)} |\n|{' --- |' * len(COLUMNS)}")
    for method in sorted(by_method):
        for row in sorted(by_method[method], key=lambda row: -float(row["mIoU"])):
            print(f"| {' | '.join(row.values())} |")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/recipes_shapes"))
