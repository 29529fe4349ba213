"""Tabulates runs and their scores with another video's sentence; appends new runs to results.csv.

vmr eval -m run=RUN,RUN,… split=iid probe=other_query
python experiments/reading_shapes/table.py runs/reading_shapes
"""

from __future__ import annotations

import csv
import json
import sys
from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev

RESULTS = Path(__file__).with_name("results.csv")
SPLITS = ("iid", "ood_time", "novel_word", "novel_composition", "complex")
COLUMNS = ("run", "seed", *SPLITS, "other_query", "read", "epochs", "best_epoch", "train_seconds")


def read_run(folder: Path) -> dict[str, str] | None:
    """Reads R1@0.5 of a run; None until its probe on iid exists."""
    probes = sorted(folder.glob("eval/iid-other_query-*/metrics.json"))
    if not probes:
        return None
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    other = json.loads(probes[-1].read_text(encoding="utf-8"))["iid"]["R1@0.5"]
    header, scores = metrics["header"], [metrics[split]["R1@0.5"] for split in SPLITS]
    numbers = [*scores, other, scores[0] - other]
    values = (
        header["name"],
        header["seed"],
        *(f"{number:.2f}" for number in numbers),
        *(header[key] for key in COLUMNS[-3:]),
    )
    return dict(zip(COLUMNS, map(str, values), strict=True))


def main(runs: Path) -> None:
    """Adds the runs below a folder to results.csv and prints mean ± standard deviation over seeds."""
    rows = {}
    if RESULTS.exists():
        with RESULTS.open(newline="", encoding="utf-8") as file:
            rows = {(row["run"], row["seed"]): row for row in csv.DictReader(file)}
    for path in sorted(runs.rglob("metrics.json")):
        if (path.parent / "model.safetensors").exists() and (row := read_run(path.parent)):
            rows[row["run"], row["seed"]] = row
    with RESULTS.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows[key] for key in sorted(rows))
    grouped = defaultdict(list)
    for row in rows.values():
        grouped[row["run"]].append(row)
    for name, seeds in sorted(grouped.items()):
        columns = [[float(row[column]) for row in seeds] for column in (*SPLITS, "other_query", "read")]
        cells = (f"{mean(c):.1f}" + (f" ± {stdev(c):.1f}" if len(c) > 1 else "") for c in columns)
        print(f"| {name} | {len(seeds)} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
