"""Updates the tables of fidelity/README.md: what each switch is worth.

python experiments/collect.py fidelity [RUNS] && python experiments/worth.py

A switch is compared with the mean of the runs of the same method where nothing is turned, over all their
seeds: rows of the same study (`switch=full`) or of ood_shapes. Each difference has its standard error. The
deviation over seeds is pooled over both sides, so that of the default serves a switch with one seed. Three
seeds may agree by chance, so it counts as at least the median of all rows with several seeds.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
from collect import HERE, read_results, update_own_page

from vmr_zoo.report.caveats import RISING
from vmr_zoo.report.escape import markdown_table
from vmr_zoo.report.leaderboard import LEADING_METRIC

SPLITS = ("iid", "ood_time", "novel_word", "novel_composition", "paraphrase", "complex")

Row = dict[str, str]


def tables() -> dict[str, str]:
    """Returns a table by method: differences in points, the switch that moves iid most first."""
    own = read_results("fidelity")
    both = [row for row in (*read_results("ood_shapes"), *own) if row["features"] == "shapes"]
    rows = list({(row["name"], row["seed"]): row for row in both}.values())  # a default may be in both
    defaults: dict[str, list[Row]] = defaultdict(list)
    usual = {split: _usual_variance(rows, split) for split in SPLITS}
    for row in rows:
        if "+" not in row["name"]:
            defaults[row["name"]].append(row)
    found: dict[str, dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in own:
        name, _, switch = row["name"].partition("+")
        if switch and defaults[name]:
            found[name][switch].append(row)
    return {
        name.removesuffix("-paper"): _table(name.removesuffix("-paper"), switches, defaults[name], usual)
        for name, switches in sorted(found.items())
    }


def _usual_variance(rows: Sequence[Row], split: str) -> float:
    """Returns the median variance over seeds of the rows that have several; 0 if none has."""
    groups = defaultdict(list)
    for row in rows:
        groups[row["name"]].append(float(row[f"{split} {LEADING_METRIC}"]))
    variances = [np.var(scores, ddof=1) for scores in groups.values() if len(scores) > 1]
    return float(np.median(variances)) if variances else 0.0


def _table(
    method: str, switches: dict[str, list[Row]], default: Sequence[Row], usual: Mapping[str, float]
) -> str:
    differences = {
        name: [_difference(runs, default, split, usual[split]) for split in SPLITS]
        for name, runs in switches.items()
    }
    rows = []
    for name in sorted(differences, key=lambda name: -abs(differences[name][0][0])):
        rising = any(row["plateau"] == "False" for row in switches[name])
        cells = (f"{mean:+.1f} ± {error:.1f}" for mean, error in differences[name])
        rows.append((name + RISING.sign * rising, str(len(switches[name])), *cells))
    return markdown_table((method, "n", *SPLITS), rows)


def _difference(runs: Sequence[Row], default: Sequence[Row], split: str, usual: float) -> tuple[float, float]:
    """Returns the difference of the means of two groups of runs, and its standard error.

    Args:
        runs: with the switch.
        default: without.
        split: of the scores.
        usual: least variance over seeds.
    """
    groups = [
        np.array([float(row[f"{split} {LEADING_METRIC}"]) for row in group]) for group in (runs, default)
    ]
    freedom = sum(len(group) - 1 for group in groups)
    squares = sum(((group - group.mean()) ** 2).sum() for group in groups)
    variance = max(usual, squares / freedom if freedom else 0.0) or np.nan
    error = np.sqrt(variance * sum(1 / len(group) for group in groups))
    return float(groups[0].mean() - groups[1].mean()), float(error)


def main() -> None:
    """Prints the tables and updates the page."""
    shown = tables()
    nothing = "No row of fidelity/results.csv has a counterpart where nothing is turned."
    print("\n\n".join(shown.values()) or nothing)
    update_own_page(HERE / "fidelity" / "README.md", shown)


if __name__ == "__main__":
    main()
