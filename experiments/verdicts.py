"""Answers the claims of the papers from stored runs, and updates the tables of verdicts.

python experiments/verdicts.py

The tables are in claims_charades/README.md and in the README.md of the repository.
"""

from __future__ import annotations

from pathlib import Path

from collect import update_page

from vmr_zoo.report.claim_tables import CLAIM_WRITERS, answers_frame, print_answers
from vmr_zoo.report.claims import read_claims
from vmr_zoo.report.escape import markdown
from vmr_zoo.report.runs import scan_runs
from vmr_zoo.report.verdicts import answer_claims

HERE = Path(__file__).parent
STUDY, CLAIMS = "ood_charades", "claims_charades"


def main() -> None:
    """Updates both pages."""
    runs, _ = scan_runs(HERE / STUDY / "runs")
    answers = answer_claims(read_claims(HERE / CLAIMS), runs)
    print_answers(answers)
    written = CLAIM_WRITERS["markdown"](answers).splitlines()
    rows = [" ".join(line.split()) for line in written if line.startswith("|")]
    rows[1] = _rule(rows[0].count("|") - 1)
    update_page(HERE / CLAIMS / "README.md", ["\n".join(rows)])

    short = ["| paper | claim | effect | verdict |", _rule(4)]
    for one in answers_frame(answers).map(markdown).to_dict("records"):
        count = f"{one['seeds']} seed{'s' if one['seeds'] != '1' else ''}"
        effect = f"{one['effect']} ({one['over queries']}), {count}" if one["effect"] else ""
        short.append(f"| {one['paper']} | {one['claim']} | {effect} | {one['verdict']} |")
    update_page(HERE.parent / "README.md", ["\n".join(short)])


def _rule(columns: int) -> str:
    return f"| {' | '.join(['---'] * columns)} |"


if __name__ == "__main__":
    main()
