"""Collects the runs of a study in its results.csv, a row per run, and updates its tables over seeds.

python experiments/collect.py STUDY [RUNS]      # RUNS: default runs/STUDY

The tables are printed, and replace the older ones in the README.md of the study. Those of the studies in
`FRONT` also replace those in the README.md of the repository.

Each run is also stored in experiments/STUDY/runs, without weights and predictions but with the scores of its
single queries, which significance and claims need: `vmr report runs=experiments/STUDY/runs`.

Rows of earlier calls stay: a study can be trained in parts, on several machines. A run counts when it is
finished; its score with another video's sentence comes from `vmr eval run=RUN split=iid probe=other_query`.
"""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vmr_zoo.report.runs import Run, scan_runs, summarize_unfinished
from vmr_zoo.report.sentence_probe import METRIC, probed
from vmr_zoo.report.store import store_run
from vmr_zoo.report.study import by_data, study_table

HERE = Path(__file__).parent
FRONT = ("ood_shapes", "ood_charades")
METRICS = ("R1@0.5", "R1@0.7", "mIoU")
TRAINED = ("steps", "epochs", "best_epoch", "plateau", "train_cpu_seconds", "train_seconds", "parameters")


def read_results(study: str) -> list[dict[str, str]]:
    """Reads the results.csv of a study; no rows without one."""
    file = HERE / study / "results.csv"
    if not file.exists():
        return []
    with file.open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def read_run(run: Run) -> dict[str, str]:
    """Reads one finished run."""
    header = run.header
    environment = json.loads((run.directory / "environment.json").read_text(encoding="utf-8"))
    row: dict[str, Any] = {key: header[key] for key in ("name", "protocol", "features", "seed")}
    row |= {key: header.get(key) for key in TRAINED}
    git = environment["git"] or {"revision": "", "dirty": False}
    row["revision"] = git["revision"][:10] + "+changes" * git["dirty"]
    row["preloaded"] = " ".join(environment.get("preloaded", []))  # kernels decide the last bits
    for split, scores in run.metrics.items():
        row |= {f"{split} {metric}": f"{scores[metric]:.2f}" for metric in METRICS}
    row |= {f"other {split} {METRIC}": f"{score:.2f}" for split, score in probed(run).items()}
    return {key: "" if value is None else str(value) for key, value in row.items()}


def merge(study: str, runs: Path) -> list[dict[str, str]]:
    """Adds the runs below a folder to the results.csv of a study, stores them, and returns all rows."""
    rows = {_key(row): row for row in read_results(study)}
    finished, unfinished = scan_runs(runs)
    if unfinished:
        print(summarize_unfinished(unfinished), file=sys.stderr)
    for run in finished:
        row = read_run(run)
        rows[_key(row)] = row
        store_run(run, HERE / study / "runs")
    ordered = [rows[key] for key in sorted(rows)]
    columns = list(dict.fromkeys(column for row in ordered for column in row))
    with (HERE / study / "results.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(ordered)
    return ordered


def update_page(page: Path, tables: Sequence[str]) -> list[str]:
    """Replaces the tables of a page that have the header of one of ours; the first such one by our first.

    Returns:
        The tables for which the page has no place.
    """
    left = list(tables)

    def newer(match: re.Match[str]) -> str:
        header = match[0].partition("\n")[0]
        for table in left:
            if table.partition("\n")[0] == header:
                left.remove(table)
                return f"{table}\n"
        return match[0]

    text = re.sub(r"(?m)(?:^\|.*\n)+", newer, page.read_text(encoding="utf-8"))
    page.write_text(text, encoding="utf-8")
    return left


def update_own_page(page: Path, tables: Sequence[str]) -> None:
    """Replaces the tables of a page that has a place for each of them.

    Raises:
        SystemExit: if it lacks one; the others are replaced.
    """
    if left := update_page(page, tables):
        raise SystemExit(
            f"'{page}' has no place for {len(left)} of {len(tables)} tables. Add their first lines:\n"
            + "\n".join(table.partition("\n")[0] for table in left)
        )


def _key(row: dict[str, str]) -> tuple[str, ...]:
    return row["protocol"], row["features"], row["name"], row["seed"]


def main(study: str, runs: Path) -> None:
    """Updates results.csv of a study and its tables."""
    tables = {title: study_table(rows) for title, rows in by_data(merge(study, runs)).items()}
    for title, table in tables.items():
        print("\n\n".join((f"### {title}", table.markdown(), *table.notes)), end="\n\n")
    pages = [table.markdown() for table in tables.values()]
    if study in FRONT:
        update_page(HERE.parent / "README.md", pages)
    update_own_page(HERE / study / "README.md", pages)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2] if len(sys.argv) > 2 else f"runs/{sys.argv[1]}"))
