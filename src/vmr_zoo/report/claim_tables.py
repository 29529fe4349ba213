"""Writes answered claims: to the terminal, or as Markdown, CSV, JSON, or for the page."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
from rich.table import Table
from rich.text import Text

from vmr_zoo.report.escape import markdown, markdown_table
from vmr_zoo.report.significance import LEVEL
from vmr_zoo.report.verdicts import FAILS, HOLDS, OPEN, ClaimAnswer
from vmr_zoo.report.writers import csv_text
from vmr_zoo.utils.console import wide_console

_PAGE_VERDICTS = {HOLDS: ("holds", "✓"), FAILS: ("fails", "✕"), OPEN: ("open", "○")}
"""Class and sign of each verdict on the page: no verdict is known by its colour alone."""

_STYLES = {HOLDS: "green", FAILS: "red", OPEN: "dim"}

NOTE = (
    "Effect in points: the claim's method minus what it is compared with; for claims about gains and losses, "
    f"the difference of two such differences. {LEVEL:.0%} intervals, over queries (paired bootstrap of whole "
    "videos) and over seeds (Student's t). p: Holm's correction for the number of claims with an effect. A "
    f"claim holds if its effect is in the claimed direction at p < {1 - LEVEL:.2f}; it does not hold if its "
    "effect is below the claim's margin at that level."
)


def print_answers(answers: Sequence[ClaimAnswer]) -> None:
    """Prints the verdicts to the terminal; the table fits into 80 columns."""
    console = wide_console()
    table = Table(show_lines=True, width=80)
    table.add_column("claim", ratio=1, overflow="fold")
    table.add_column("effect, points", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for answer in answers:
        claim = answer.claim
        where = f" {claim.setting}, {claim.metric} [{claim.name}]"
        text = Text.assemble((f"{claim.paper}: ", "bold"), claim.text, (where, "dim"))
        table.add_row(text, Text(_effect_lines(answer)), Text(answer.verdict, _STYLES[answer.verdict]))
    console.print(Text(title(answers), "bold"), soft_wrap=True)
    console.print(table)
    console.print(Text(f"{summary(answers)}."), soft_wrap=True)
    for answer in answers:
        if answer.reason:
            console.print(Text(f"not settled, {answer.claim.name}: {answer.reason}"), soft_wrap=True)
    console.print(Text(NOTE, "dim"), soft_wrap=True)
    console.print("Next: add html=true to see them on the page, or format=json for data.")


def title(answers: Sequence[ClaimAnswer]) -> str:
    """Says on which data the claims were tested: not on that of the papers, unless it is named."""
    data = dict.fromkeys(one for answer in answers for one in answer.data)
    return f"What the papers claim, tested on {'; '.join(data)}" if data else "What the papers claim"


def summary(answers: Sequence[ClaimAnswer]) -> str:
    """Counts the verdicts in one line."""
    counts = Counter(answer.verdict for answer in answers)
    found = ", ".join(f"{counts[verdict]} {verdict}" for verdict in (HOLDS, FAILS, OPEN))
    return f"Verdicts on {len(answers)} claims: {found}"


def _effect_lines(answer: ClaimAnswer) -> str:
    effect = answer.effect
    if effect is None or answer.p is None:
        return "no effect yet"
    lines = [f"{_signed(effect.mean)}, p {_p(answer)}", f"queries {_interval(effect.low, effect.high)}"]
    seeds = effect.seed_interval
    lines.append(f"{len(effect.by_seed)} seeds {_interval(*seeds)}" if seeds else "1 seed")
    return "\n".join(lines)


def _signed(value: float) -> str:
    return f"{value:+.1f}"


def _interval(low: float, high: float) -> str:
    return f"{_signed(low)} to {_signed(high)}"


def _p(answer: ClaimAnswer) -> str:
    """Formats the p that decides the verdict: of the claim, or of its refutation."""
    assert answer.p is not None
    assert answer.p_fails is not None
    p = answer.p_fails if answer.verdict == FAILS else answer.p
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def answers_frame(answers: Sequence[ClaimAnswer]) -> pd.DataFrame:
    """Returns the verdicts as text: one row per claim."""
    rows = []
    for answer in answers:
        claim, effect = answer.claim, answer.effect
        seeds = None if effect is None else effect.seed_interval
        rows.append(
            {
                "paper": claim.paper,
                "claim": claim.text,
                "in the paper": claim.section,
                "split": claim.setting,
                "metric": claim.metric,
                "effect": "" if effect is None else _signed(effect.mean),
                "over queries": "" if effect is None else _interval(effect.low, effect.high),
                "over seeds": "" if seeds is None else _interval(*seeds),
                "seeds": "" if effect is None else str(len(effect.by_seed)),
                "p": "" if answer.p is None else _p(answer),
                "verdict": answer.verdict,
                "why not settled": answer.reason,
                "file": claim.name,
            }
        )
    return pd.DataFrame(rows)


def _markdown(answers: Sequence[ClaimAnswer]) -> str:
    frame = answers_frame(answers)
    open_ones = frame[frame["why not settled"] != ""]
    table = frame.drop(columns=["why not settled", "file", "seeds"])
    lines = [
        f"### {markdown(title(answers))}",
        "",
        markdown_table(list(map(str, table)), table.to_numpy()),
        "",
        f"{summary(answers)}. {NOTE}",
    ]
    if len(open_ones):
        reasons = open_ones.map(markdown)
        pairs = zip(reasons["file"], reasons["why not settled"], strict=True)
        lines += ["", "Not settled:", "", *(f"- {name}: {reason}" for name, reason in pairs)]
    return "\n".join(lines) + "\n"


def _csv(answers: Sequence[ClaimAnswer]) -> str:
    return csv_text(pd.DataFrame(_records(answers)))


def _json(answers: Sequence[ClaimAnswer]) -> str:
    return json.dumps(_records(answers), indent=1, ensure_ascii=False) + "\n"


def _records(answers: Sequence[ClaimAnswer]) -> list[dict[str, Any]]:
    """Returns the verdicts as data: numbers unrounded, None where there is none."""
    records = []
    for answer in answers:
        claim, effect = answer.claim, answer.effect
        seeds = None if effect is None else effect.seed_interval
        records.append(
            {
                "claim": claim.name,
                "paper": claim.paper,
                "section": claim.section,
                "text": claim.text,
                "kind": claim.kind,
                "split": claim.setting,
                "metric": claim.metric,
                "claimed": "higher" if claim.sign > 0 else "lower",
                "margin": claim.margin,
                "effect": None if effect is None else effect.mean,
                "low_queries": None if effect is None else effect.low,
                "high_queries": None if effect is None else effect.high,
                "low_seeds": None if seeds is None else seeds[0],
                "high_seeds": None if seeds is None else seeds[1],
                "seeds": 0 if effect is None else len(effect.by_seed),
                "queries": 0 if effect is None else sum(effect.queries.values()),
                "p_holds": answer.p,
                "p_does_not_hold": answer.p_fails,
                "verdict": answer.verdict,
                "reason": answer.reason,
            }
        )
    return records


def page_section(answers: Sequence[ClaimAnswer]) -> dict[str, Any]:
    """Returns what the page shows: verdicts with their numbers, open ones apart."""
    frame = answers_frame(answers)
    columns = ["effect", "over queries", "over seeds", "p"]
    rows = [
        {
            "claim": one.claim.text,
            "paper": one.claim.paper,
            "where": f"{one.claim.setting}, {one.claim.metric}",
            "verdict": one.verdict,
            "kind": _PAGE_VERDICTS[one.verdict][0],
            "sign": _PAGE_VERDICTS[one.verdict][1],
            "reason": one.reason,
            "cells": cells,
        }
        for one, cells in zip(answers, frame[columns].to_numpy().tolist(), strict=True)
    ]
    counts = Counter(one.verdict for one in answers)
    decided = [row for row in rows if row["verdict"] != OPEN]
    still_open = [row for row in rows if row["verdict"] == OPEN]
    return {
        "title": title(answers),
        "titles": ["claim", "verdict", *columns],
        "counts": [(*_PAGE_VERDICTS[one], counts[one], one) for one in (HOLDS, FAILS, OPEN)],
        "groups": [("", decided), (f"{len(still_open)} claims that are {OPEN}", still_open)],
        "note": NOTE,
    }


CLAIM_WRITERS: dict[str, Callable[[Sequence[ClaimAnswer]], str]] = {
    "table": _markdown,
    "markdown": _markdown,
    "csv": _csv,
    "json": _json,
}
"""Text of answered claims by format; "table" applies to files, where there is no terminal."""
