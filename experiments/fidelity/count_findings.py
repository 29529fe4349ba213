"""Counts the findings in docs/findings.md by outcome; exits with 1 if one is open.

python experiments/fidelity/count_findings.py
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "findings.md"
OUTCOMES = ("fixed", "switch", "declared", "measured")


def read_findings(text: str) -> dict[str, tuple[str, str]]:
    """Returns outcome and explanation of each finding by its id.

    Args:
        text: a page with tables of the columns id, finding, outcome, what holds now.

    Raises:
        ValueError: for an id that occurs twice.
    """
    found: dict[str, tuple[str, str]] = {}
    for name, outcome, now in re.findall(r"^\| ([A-Z]+-\d+) \|[^|]*\| (\w+) \|([^|]*)\|$", text, re.M):
        if name in found:
            raise ValueError(f"{PAGE}: {name} occurs twice.")
        found[name] = (outcome, now.strip())
    return found


def main() -> int:
    """Prints the counts and the open findings."""
    found = read_findings(PAGE.read_text(encoding="utf-8"))
    done = [name for name, (outcome, now) in found.items() if outcome in OUTCOMES and now]
    open_ = sorted(found.keys() - set(done))
    counts = Counter(found[name][0] for name in done)
    print(", ".join(f"{counts[outcome]} {outcome}" for outcome in OUTCOMES), f"of {len(found)};", end=" ")
    print(f"{len(open_)} open" + (": " + ", ".join(open_) if open_ else "."))
    return 1 if open_ else 0


if __name__ == "__main__":
    sys.exit(main())
