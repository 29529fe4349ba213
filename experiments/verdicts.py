"""Answers the claims of the papers from stored runs, and updates the tables of verdicts.

python experiments/verdicts.py

The tables are in claims/README.md, claims_charades/README.md and the README.md of the repository.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from collect import HERE, update_own_page

from vmr_zoo.report.claim_tables import answers_frame, print_answers
from vmr_zoo.report.claims import read_claims
from vmr_zoo.report.escape import markdown_table
from vmr_zoo.report.runs import scan_runs
from vmr_zoo.report.verdicts import ClaimAnswer, answer_claims

STUDIES = {"claims": ("ood_shapes", "interventions"), "claims_charades": ("ood_charades",)}
"""The studies that answer the claims of a folder."""


def stored_answers(claims: str) -> list[ClaimAnswer]:
    """Answers the claims of a folder from the stored runs of its studies."""
    runs = [run for study in STUDIES[claims] for run in scan_runs(HERE / study / "runs")[0]]
    return answer_claims(read_claims(HERE / claims), runs)


def main() -> None:
    """Updates all pages."""
    front = {}
    for claims in STUDIES:
        answers = stored_answers(claims)
        print_answers(answers)
        frame = answers_frame(answers)
        whole = frame.drop(columns=["why not settled", "file", "seeds"])
        update_own_page(HERE / claims / "README.md", {claims: markdown_table(list(whole), whole.to_numpy())})
        rows = frame.to_dict("records")
        short = [(one["paper"], one["claim"], short_effect(one), one["verdict"]) for one in rows]
        front[claims] = markdown_table(("paper", "claim", "effect", "verdict"), short)
    update_own_page(HERE.parent / "README.md", front)


def short_effect(answer: Mapping[Any, str]) -> str:
    """Returns an effect with its intervals over queries and over seeds."""
    if not answer["effect"]:
        return str(answer["why not settled"])
    count = f"{answer['seeds']} seed{'s' if answer['seeds'] != '1' else ''} {answer['over seeds']}"
    return f"{answer['effect']}; queries {answer['over queries']}; {count.rstrip()}"


if __name__ == "__main__":
    main()
