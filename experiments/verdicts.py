"""Answers the claims of the papers from stored runs, and updates the tables of verdicts.

python experiments/verdicts.py

The tables are in claims_charades/README.md and in the README.md of the repository.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from collect import update_page

from vmr_zoo.report.claim_tables import answers_frame, print_answers
from vmr_zoo.report.claims import read_claims
from vmr_zoo.report.escape import markdown_table
from vmr_zoo.report.runs import scan_runs
from vmr_zoo.report.verdicts import answer_claims

HERE = Path(__file__).parent
STUDY, CLAIMS = "ood_charades", "claims_charades"


def main() -> None:
    """Updates both pages."""
    runs, _ = scan_runs(HERE / STUDY / "runs")
    answers = answer_claims(read_claims(HERE / CLAIMS), runs)
    print_answers(answers)
    frame = answers_frame(answers)
    whole = frame.drop(columns=["why not settled", "file", "seeds"])
    update_page(HERE / CLAIMS / "README.md", [markdown_table(list(whole), whole.to_numpy())])
    short = [(one["paper"], one["claim"], _effect(one), one["verdict"]) for one in frame.to_dict("records")]
    update_page(HERE.parent / "README.md", [markdown_table(("paper", "claim", "effect", "verdict"), short)])


def _effect(answer: Mapping[Any, str]) -> str:
    """Returns an effect with its interval over queries and its number of seeds; "" without runs."""
    count = f"{answer['seeds']} seed{'s' if answer['seeds'] != '1' else ''}"
    return f"{answer['effect']} ({answer['over queries']}), {count}" if answer["effect"] else ""


if __name__ == "__main__":
    main()
