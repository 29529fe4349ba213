"""Collects the runs of a study in its results.csv, one row per run, and prints a table over seeds.

python experiments/collect.py STUDY [RUNS]      # RUNS: default runs/STUDY

Rows of earlier calls stay: a study can be trained in parts, on several machines. A run counts when it is
finished; its score with another video's sentence comes from `vmr eval run=RUN split=iid probe=other_query`.
"""

from __future__ import annotations

import csv
import json
import sys
from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from vmr_zoo.report.sentence_probe import LEAST_LOSS

METRICS = ("R1@0.5", "R1@0.7", "mIoU")
TRAINED = ("steps", "epochs", "best_epoch", "plateau", "train_cpu_seconds", "train_seconds", "parameters")


def read_run(folder: Path) -> dict[str, str]:
    """Reads one finished run."""
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    header = metrics.pop("header")
    environment = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
    row: dict[str, Any] = {key: header[key] for key in ("name", "protocol", "features", "seed")}
    row |= {key: header.get(key) for key in TRAINED}
    git = environment["git"] or {"revision": "", "dirty": False}
    row["revision"] = git["revision"][:10] + "+changes" * git["dirty"]
    for split, scores in metrics.items():
        row |= {f"{split} {metric}": f"{scores[metric]:.2f}" for metric in METRICS}
    probes = sorted(folder.glob("eval/*-other_query-*/metrics.json"))
    if probes:
        probed = json.loads(probes[-1].read_text(encoding="utf-8"))
        row |= {f"other {s} R1@0.5": f"{v['R1@0.5']:.2f}" for s, v in probed.items() if s != "header"}
    return {key: "" if value is None else str(value) for key, value in row.items()}


def merge(results: Path, runs: Path) -> list[dict[str, str]]:
    """Adds the runs below a folder to results.csv; returns all rows."""
    rows: dict[tuple[str, ...], dict[str, str]] = {}
    if results.exists():
        with results.open(newline="", encoding="utf-8") as file:
            rows = {_key(row): row for row in csv.DictReader(file)}
    for path in sorted(runs.rglob("model.safetensors")):
        if (path.parent / "metrics.json").exists():
            row = read_run(path.parent)
            rows[_key(row)] = row
    ordered = [rows[key] for key in sorted(rows)]
    columns = list(dict.fromkeys(column for row in ordered for column in row))
    with results.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(ordered)
    return ordered


def _key(row: dict[str, str]) -> tuple[str, ...]:
    return row["protocol"], row["features"], row["name"], row["seed"]


def table(rows: list[dict[str, str]]) -> list[str]:
    """Returns Markdown: R1@0.5 of each split, mean and standard deviation over seeds.

    `^` marks rows with a run that was still rising, `!` rows that lose less than `LEAST_LOSS` points on iid
    when asked another video's sentence.
    """
    columns = dict.fromkeys(column for row in rows for column in row)
    named = [column.removesuffix(" R1@0.5") for column in columns if column.endswith(" R1@0.5")]
    splits = [name for name in named if name != "selection" and not name.startswith("other ")]
    probe = next((f"{name} R1@0.5" for name in named if name.startswith("other ")), "")
    groups = defaultdict(list)
    for row in rows:
        groups[row["name"]].append(row)
    titles = ("run", "seeds", *splits, "other sentence", "best epoch")
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    first = f"{splits[0]} R1@0.5"
    for name, seeds in sorted(groups.items(), key=lambda item: -_mean(item[1], first)):
        other = [float(row[probe]) for row in seeds if row.get(probe)]
        read = _mean(seeds, first) - mean(other) if other else None
        marks = "^" * any(row["plateau"] == "False" for row in seeds)
        marks += "!" * (read is not None and read < LEAST_LOSS)
        cells = [_cell([float(row[f"{split} R1@0.5"]) for row in seeds]) for split in splits]
        best = f"{_mean(seeds, 'best_epoch'):.0f}" if _mean(seeds, "steps") else ""
        label = f"`{name}` {marks}".strip()
        lines.append(f"| {label} | {len(seeds)} | {' | '.join(cells)} | {_cell(other)} | {best} |")
    return lines


def _mean(rows: list[dict[str, str]], column: str) -> float:
    return mean(float(row[column]) for row in rows)


def _cell(values: list[float]) -> str:
    if not values:
        return ""
    return f"{mean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


def main(study: str, runs: Path) -> None:
    """Updates results.csv of a study and prints its table."""
    print("\n".join(table(merge(Path(__file__).parent / study / "results.csv", runs))))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2] if len(sys.argv) > 2 else f"runs/{sys.argv[1]}"))
