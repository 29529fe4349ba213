"""Updates the tables of fidelity/README.md: what each switch is worth.

python experiments/collect.py fidelity [RUNS] && python experiments/worth.py

A row is compared with the same method and seed where nothing is turned: a row of the same study
(`switch=full`) or of ood_shapes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from statistics import mean, stdev

from collect import HERE, read_results, update_own_page

from vmr_zoo.report.caveats import RISING
from vmr_zoo.report.escape import markdown_table
from vmr_zoo.report.sentence_probe import METRIC

SPLITS = ("iid", "ood_time", "novel_word", "novel_composition", "paraphrase", "complex")

Row = dict[str, str]


def tables() -> dict[str, str]:
    """Returns a table by method: differences in points, the switch that moves iid most first."""
    own = read_results("fidelity")
    rows = [row for row in (*read_results("ood_shapes"), *own) if row["features"] == "shapes"]
    defaults = {(row["name"], row["seed"]): row for row in rows if "+" not in row["name"]}
    found: dict[str, dict[str, list[tuple[Row, Row]]]] = defaultdict(lambda: defaultdict(list))
    for row in own:
        name, _, switch = row["name"].partition("+")
        default = defaults.get((name, row["seed"]))
        if switch and default:
            found[name.removesuffix("-paper")][switch].append((row, default))
    return {method: _table(method, switches) for method, switches in sorted(found.items())}


def _table(method: str, switches: dict[str, list[tuple[Row, Row]]]) -> str:
    differences = {
        name: [[_difference(*pair, split) for pair in pairs] for split in SPLITS]
        for name, pairs in switches.items()
    }
    rows = []
    for name in sorted(differences, key=lambda name: -abs(mean(differences[name][0]))):
        rising = any(row["plateau"] == "False" for row, _ in switches[name])
        rows.append((name + RISING.sign * rising, str(len(switches[name])), *map(_cell, differences[name])))
    return markdown_table((method, "n", *SPLITS), rows)


def _difference(row: Row, default: Row, split: str) -> float:
    return float(row[f"{split} {METRIC}"]) - float(default[f"{split} {METRIC}"])


def _cell(values: Sequence[float]) -> str:
    return f"{mean(values):+.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


def main() -> None:
    """Prints the tables and updates the page."""
    shown = tables()
    nothing = "No row of fidelity/results.csv has a counterpart where nothing is turned."
    print("\n\n".join(shown.values()) or nothing)
    update_own_page(HERE / "fidelity" / "README.md", shown)


if __name__ == "__main__":
    main()
