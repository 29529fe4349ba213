"""Prints R1@0.5 per error rate of the narrator, mean ± standard deviation over seeds, as Markdown.

python experiments/narrator_noise/table.py runs/narrator_noise [runs/ood_shapes …] [--plot FILE.png]

`vmr report` shows one table per rate, because the features differ; this script merges them. It includes runs
on plain features=shapes: there, TEA and LMR read narrations with the default rates, the others read none.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd

from vmr_zoo.report.escape import markdown_table
from vmr_zoo.report.runs import finished_runs

PREFIX = "shapes_narrator_error_"
METHODS = {"tea": "TEA", "lmr": "LMR", "emb": "EMB (no narrations)", "qd_detr": "QD-DETR (no narrations)"}
READ = ("tea", "lmr")


def numbers(roots: list[Path], metric: str) -> pd.DataFrame:
    """Returns one row per run and split; the rate is NaN for plain features=shapes."""
    rows = [
        {key: run.header[key] for key in ("method", "features", "seed")}
        | {"split": split, "value": values[metric]}
        for root in roots
        for run in finished_runs(root)
        if run.header["method"] in METHODS
        for split, values in run.metrics.items()
        if split != "selection" and metric in values
    ]
    frame = pd.DataFrame(rows)
    frame = frame[frame.features.str.startswith(PREFIX) | (frame.features == "shapes")]
    frame["rate"] = pd.to_numeric(frame.features.str.removeprefix(PREFIX), errors="coerce")
    return frame


def table(frame: pd.DataFrame) -> pd.DataFrame:
    """Averages over seeds: one row per method and rate, one column per split."""

    def cell(values: pd.Series) -> str:
        spread = f" ± {values.std():.1f}" if len(values) > 1 else ""
        return f"{values.mean():.1f}{spread}"

    unset = {method: "default" if method in READ else "-" for method in METHODS}
    rate = frame.rate.map("{:g}".format).where(frame.rate.notna(), frame.method.map(unset))
    named = frame.assign(rate=rate, method=frame.method.map(METHODS))
    wide = named.pivot_table(
        index=["method", "rate"], columns="split", values="value", aggfunc=cell, sort=False
    )
    seeds = named.groupby(["method", "rate"], sort=False).seed.nunique().rename("seeds")
    return wide.join(seeds).sort_index().reset_index()


def plot(frame: pd.DataFrame, metric: str, file: Path) -> None:
    """Draws one panel per split: a curve for each method with narrations, a dashed level for the others."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    splits = list(frame.split.unique())
    figure, axes = pyplot.subplots(1, len(splits), figsize=(3 * len(splits), 3.2), sharey=True, squeeze=False)
    colours = {"tea": "C0", "emb": "C0", "lmr": "C1", "qd_detr": "C1"}
    for axis, split in zip(axes[0], splits, strict=True):
        for method, name in METHODS.items():
            here = frame[(frame.split == split) & (frame.method == method)]
            if method in READ:
                by_rate = here.groupby("rate").value.agg(["mean", "std"])
                axis.errorbar(
                    by_rate.index, by_rate["mean"], by_rate["std"].fillna(0),
                    label=name, color=colours[method], marker="o", capsize=3,
                )  # fmt: skip
            elif len(here):
                axis.axhline(here.value.mean(), label=name, color=colours[method], linestyle="--")
        axis.set(title=split, xlabel="narrator's error rate")
    axes[0][0].set_ylabel(metric)
    axes[0][-1].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(file, dpi=120)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--metric", default="R1@0.5")
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    found = numbers(arguments.runs, arguments.metric)
    rows = table(found).map(str)
    print(markdown_table(list(rows), rows.to_numpy()))
    if arguments.plot:
        plot(found, arguments.metric, arguments.plot)
