"""Plots the measurements of the sweeps in this folder and writes them as CSV.

python experiments/cost/plot.py [runs/cost] [docs/img]

Reads RUNS/SWEEP/bench.json; writes IMAGES/cost_SWEEP.png, and results.csv beside this file.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd

from vmr_zoo.engine.bench import FILE, stored_rows

# Mostly Wong's colours, which colour-blind readers can distinguish; each method also has its own marker.
STYLES = {
    "emb": ("#0072B2", "o"),
    "tea": ("#56B4E9", "s"),
    "qd_detr": ("#D55E00", "^"),
    "mesm": ("#E69F00", "v"),
    "lmr": ("#CC79A7", "D"),
    "mmn": ("#009E73", "P"),
    "vdi": ("#000000", "X"),
    "moment_detr": ("#8C8C8C", "<"),
    "bm_detr": ("#A6761D", ">"),
}
SIZES = {
    "video_length": ("clips", "clips per video"),
    "queries_per_video": ("queries_per_video", "queries per video"),
    "batch": ("queries", "queries per batch, one per video"),
    "data_set_size": ("training_videos", "training videos, 10 queries each"),
}
PANELS = {
    "video_length": [
        ("step", "training-step time, s"),
        ("inference_per_query", "inference time per query, s"),
    ],
    "queries_per_video": [
        ("step_per_query", "training time per query, s"),
        ("inference_per_query", "inference time per query, s"),
    ],
    "batch": [
        ("step_per_query", "training time per query, s"),
        ("peak_training_gb", "peak training memory, GB"),
    ],
    "data_set_size": [
        ("epoch", "epoch time, s"),
        ("setup", "set-up time, s"),
        ("peak_training_gb", "peak training memory, GB"),
    ],
}
KEPT = ("setup", "peak_training_gb", "peak_inference_gb", "flops", "efficiency", "parameters")
KEPT += ("parameters_trained", "step_cpu", "cpu_share_training", "cpu_share_inference", "steps")
KEPT += ("threads", "hardware", "torch")
TIMED = ("step", "forward", "backward", "optimizer", "loader", "step_per_query", "inference_per_query")


def read(file: Path, sweep: str) -> list[dict[str, Any]]:
    """Returns one flat row per measurement; `_low` and `_high` are the quartiles."""
    rows = []
    for row in stored_rows(file):
        batch, training = row["batch"], row["training_set"]
        flat = {
            "sweep": sweep,
            "method": row["method"],
            "clips": round(batch["clips"]),
            "queries": round(batch["query"]),
            "queries_per_video": round(batch["query"] / batch["video"]),
            "training_videos": training["video"],
            "training_queries": training["query"],
        }
        for name in TIMED:
            flat[name] = row[name]["median"]
            flat |= {f"{name}_{end}": row[name][end] for end in ("low", "high")}
        for end in ("", "_low", "_high"):
            flat[f"epoch{end}"] = flat[f"step_per_query{end}"] * training["query"]
        flat |= {key: row[key] for key in KEPT}
        rows.append(flat)
    return rows


def plot(frame: pd.DataFrame, sweep: str, file: Path) -> None:
    """Draws a line with quartiles per method; all axes are logarithmic except that of memory."""
    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import NullFormatter

    key, label = SIZES[sweep]
    panels = PANELS[sweep]
    figure, axes = pyplot.subplots(1, len(panels), figsize=(4.6 * len(panels) + 1.2, 4), layout="constrained")
    for axis, (name, unit) in zip(axes, panels, strict=True):
        for method, (colour, marker) in STYLES.items():
            line = frame[frame.method == method].sort_values(key)
            if line.empty:
                continue
            errors = None
            if f"{name}_low" in line:
                errors = [line[name] - line[f"{name}_low"], line[f"{name}_high"] - line[name]]
            axis.errorbar(
                line[key], line[name], yerr=errors, label=method, color=colour, marker=marker, markersize=5,
                linewidth=1.3, elinewidth=0.8, capsize=2,
            )  # fmt: skip
        memory = name.startswith("peak")  # torch itself takes most of it
        axis.set(xscale="log", yscale="linear" if memory else "log", xlabel=label, ylabel=unit)
        axis.set_xticks(sorted(frame[key].unique()))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.yaxis.set_major_formatter("{x:g}")
        if not memory:
            axis.yaxis.set_minor_formatter(lambda x, _: f"{x:g}" if f"{x:e}"[0] in "25" else "")
        axis.grid(alpha=0.3, which="both", linewidth=0.4)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", frameon=False)
    figure.savefig(file, dpi=100)
    pyplot.close(figure)


def main() -> None:
    """Reads the measurements, draws the plots, writes the CSV file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="?", type=Path, default=Path("runs/cost"))
    parser.add_argument("images", nargs="?", type=Path, default=Path("docs/img"))
    args = parser.parse_args()
    rows = [row for sweep in SIZES for row in read(args.runs / sweep / FILE, sweep)]
    if not rows:
        parser.error(f"No {FILE} below {args.runs}. Run the sweeps of README.md first.")
    frame = pd.DataFrame(rows).sort_values(["sweep", "method", *(key for key, _ in SIZES.values())])
    busy = frame[frame.cpu_share_training < 0.9]
    for row in busy.itertuples():
        share = f"{row.cpu_share_training:.0%} CPU"
        print(f"Another process was running, measure again: {row.sweep}, {row.method}, {share}")
    args.images.mkdir(parents=True, exist_ok=True)
    for sweep, part in frame.groupby("sweep", sort=False):
        plot(part, str(sweep), args.images / f"cost_{sweep}.png")
    frame.to_csv(Path(__file__).parent / "results.csv", index=False, float_format="%.4g", lineterminator="\n")


if __name__ == "__main__":
    main()
