"""Adds the trials of finished searches to results.csv, and updates the table of recipes_shapes/README.md.

python experiments/searches.py [RUNS]      # RUNS: default runs/recipes_shapes
"""

from __future__ import annotations

import csv
import sys
from itertools import groupby
from operator import itemgetter
from pathlib import Path

from collect import HERE, read_results, update_own_page
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import get_all_study_summaries, load_study

from vmr_zoo.report.escape import markdown_table

STUDY = "recipes_shapes"
COLUMNS = ("method", "trial", "state", "epochs", "mIoU", "learning rate", "batch size", "dropout")
KEYS = ("method.training.optimizer.lr", "data.batch_size", "method.network.dropout")
SHOWN = ("method", "trials", "stopped early", "recipe", "mIoU", "best trial", "its mIoU", "gain")

Row = dict[str, str]


def read_searches(runs: Path) -> dict[str, list[Row]]:
    """Reads the trials below a folder, by method."""
    found = {}
    for journal in sorted(runs.glob("*/search/*/study.journal")):
        storage = JournalStorage(JournalFileBackend(str(journal)))
        for summary in get_all_study_summaries(storage):
            study = load_study(study_name=summary.study_name, storage=storage)
            method = summary.study_name.split("/")[1].partition("-paper")[0]
            trials = [trial for trial in study.get_trials() if trial.state.name in ("COMPLETE", "PRUNED")]
            found[method] = [_row(method, trial) for trial in trials]
    return found


def _row(method: str, trial) -> Row:
    values = [trial.params.get(key) for key in KEYS]
    cells = (
        *(method, trial.number, trial.state.name.lower(), len(trial.intermediate_values)),
        f"{max(trial.intermediate_values.values()):.2f}",
        *("" if value is None else f"{value:.3g}" for value in values),
    )
    return dict(zip(COLUMNS, map(str, cells), strict=True))


def stored_searches() -> dict[str, list[Row]]:
    """Reads results.csv, by method."""
    return {key: list(rows) for key, rows in groupby(read_results(STUDY), itemgetter("method"))}


def table(by_method: dict[str, list[Row]]) -> str:
    """Returns a row per method: its recipe, which is the first trial, and the best trial."""
    rows = []
    for method, trials in sorted(by_method.items()):
        first = trials[0]
        best = max(trials, key=lambda trial: float(trial["mIoU"]))
        pruned = sum(trial["state"] == "pruned" for trial in trials)
        gain = float(best["mIoU"]) - float(first["mIoU"])
        found = (_settings(first), first["mIoU"], _settings(best), best["mIoU"], f"{gain:+.1f}")
        rows.append((method, str(len(trials)), str(pruned), *found))
    return markdown_table(SHOWN, rows)


def _settings(trial: Row) -> str:
    return " / ".join(filter(None, (trial[key] for key in COLUMNS[-3:])))


def main(runs: Path) -> None:
    """Updates results.csv and the page, and prints the table."""
    by_method = stored_searches() | read_searches(runs)
    with (HERE / STUDY / "results.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(row for method in sorted(by_method) for row in by_method[method])
    shown = table(by_method)
    print(shown)
    update_own_page(HERE / STUDY / "README.md", {"searches": shown})


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/recipes_shapes"))
