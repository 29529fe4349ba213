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
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from vmr_zoo.report.leaderboard import LEADING_METRIC
from vmr_zoo.report.runs import Run, scan_runs, summarize_unfinished
from vmr_zoo.report.sentence_probe import probed
from vmr_zoo.report.store import store_run
from vmr_zoo.report.study import by_data, study_table
from vmr_zoo.runs.record import OVERRIDES

HERE = Path(__file__).parent
FRONT = ("ood_shapes", "ood_charades")
METRICS = ("R1@0.5", "R1@0.7", "mIoU")
DIGITS = 16  # of the SHA-256 of a run's weights
MACHINE = re.compile(r"[+~]*(run|resume|hydra[./][^=]*|(logger|paths)[.@/\w]*)(=|$)")
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
    row: dict[str, Any] = {key: header[key] for key in ("name", "protocol", "features", "origin", "seed")}
    row |= {key: header.get(key) for key in TRAINED}
    git = environment["git"] or {"revision": "", "dirty": False}
    row["revision"] = git["revision"][:10] + "+changes" * git["dirty"]
    # The processor and its kernels decide the last bits.
    row["preloaded"] = " ".join(environment.get("preloaded", []))
    row["threads"] = environment["torch_threads"]
    row["processor"] = environment["processor"]
    row["torch"] = environment["packages"]["torch"]
    row["command"] = _command(run)
    row["weights"] = (header.get("weights_sha256") or "")[:DIGITS]
    for split, scores in run.metrics.items():
        row |= {f"{split} {metric}": f"{scores[metric]:.4f}" for metric in METRICS}
    row |= {f"other {split} {LEADING_METRIC}": f"{score:.4f}" for split, score in probed(run).items()}
    return {key: "" if value is None else str(value) for key, value in row.items()}


def _command(run: Run) -> str:
    """Returns the overrides that trained a run, without what names this machine; "" where none did alone."""
    file = run.directory / OVERRIDES
    sessions = yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else []
    if not sessions or "overrides" not in sessions[0] or any("raised" in session for session in sessions):
        return ""
    typed = [text for text in sessions[0]["overrides"] if not MACHINE.match(text)]
    config = [] if sessions[0]["config"] == "train" else ["--config-name", sessions[0]["config"]]
    return shlex.join([*config, *typed])


def merge(study: str, runs: Path) -> list[dict[str, str]]:
    """Adds the runs below a folder to the results.csv of a study, stores them, and returns all rows."""
    rows = {row_key(row): row for row in read_results(study)}
    finished, unfinished = scan_runs(runs)
    if unfinished:
        print(summarize_unfinished(unfinished), file=sys.stderr)
    for run in finished:
        row = read_run(run)
        rows[row_key(row)] = row
        store_run(run, HERE / study / "runs")
    ordered = [rows[key] for key in sorted(rows)]
    columns = list(dict.fromkeys(column for row in ordered for column in row))
    with (HERE / study / "results.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(ordered)
    return ordered


def update_page(page: Path, tables: Mapping[str, str]) -> list[str]:
    """Replaces the tables of a page, each of which stands below a line `<!-- table: TITLE -->`.

    Args:
        page: a Markdown file.
        tables: by title.

    Returns:
        The titles that the page does not have.
    """
    left = dict(tables)

    def newer(match: re.Match[str]) -> str:
        table = left.pop(match["title"], None)
        return match[0] if table is None else f"{match['place']}\n\n{table}\n"

    places = r"(?m)^(?P<place><!-- table: (?P<title>.+) -->)\n(?:\n(?:\|.*\n)+)?"
    page.write_text(re.sub(places, newer, page.read_text(encoding="utf-8")), encoding="utf-8")
    return list(left)


def update_own_page(page: Path, tables: Mapping[str, str]) -> None:
    """Replaces the tables of a page that has a place for each of them.

    Raises:
        SystemExit: if it lacks one; the others are replaced.
    """
    if left := update_page(page, tables):
        lines = "\n".join(f"<!-- table: {title} -->" for title in left)
        raise SystemExit(f"'{page}' lacks a place for {len(left)} of {len(tables)} tables. Add:\n{lines}")


def row_key(row: dict[str, str]) -> tuple[str, ...]:
    """Returns what distinguishes a row from the others of its study."""
    return row["protocol"], row["features"], row["name"], row["seed"]


def main(study: str, runs: Path) -> None:
    """Updates results.csv of a study and its tables."""
    tables = {title: study_table(rows) for title, rows in by_data(merge(study, runs)).items()}
    for title, table in tables.items():
        print("\n\n".join((f"### {title}", table.markdown(), *table.notes)), end="\n\n")
    shown = {title: table.markdown() for title, table in tables.items()}
    if study in FRONT:
        update_page(HERE.parent / "README.md", shown)
    update_own_page(HERE / study / "README.md", shown)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2] if len(sys.argv) > 2 else f"runs/{sys.argv[1]}"))
