"""Which novel words are hard: updates a table of ood_shapes/README.md, and lists of queries for two claims.

python experiments/novel_words.py [RUNS …]      # with RUNS, prints their table and changes no file

Each sentence of novel_word has one novel word, for a colour, a shape or an action. Most have a counterpart in
iid: the same question about the same video in words of training. The table has R1@0.5 on both, in per cent,
mean over seeds. Still pictures show colours and shapes, but no action: the two claims are about these groups.
"""

from __future__ import annotations

import functools
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from collect import HERE, update_own_page
from who_acts import Scores, best_first, mean_cells

from vmr_zoo.data.worlds.shapes.generate import annotate
from vmr_zoo.data.worlds.shapes.sentences import NOVEL, NOVEL_VERBS
from vmr_zoo.data.worlds.shapes.world import COLOURS, SHAPES, WorldSettings

STUDY, CLAIMS = HERE / "ood_shapes", HERE / "claims"
SPLITS = ("iid", "novel_word")
KINDS = ("colour", "shape", "action")
LISTS = {"novel_looks.txt": ("colour", "shape"), "novel_actions.txt": ("action",)}
"""Files that claims name, with the kinds of novel words of their queries."""

Pairs = dict[str, list[tuple[str, str]]]
"""Ids of a query of iid and of its counterpart in novel_word, by kind of novel word."""


def counterparts() -> Pairs:
    """Pairs the queries of novel_word with those of iid that ask the same."""
    rows = annotate(WorldSettings(train_videos=1))  # test videos do not depend on it
    known = {_question(row): row["query_id"] for row in rows["iid"]}
    found: Pairs = {kind: [] for kind in KINDS}
    for row in rows["novel_word"]:
        if _question(row) in known:
            found[_kind(row["query"])].append((known[_question(row)], row["query_id"]))
    return found


def _question(row: Mapping[str, Any]) -> str:
    return json.dumps([row[key] for key in ("video_id", "clauses", "moments")])


def _kind(sentence: str) -> str:
    (found,) = (kind for kind, pattern in _patterns().items() if pattern.search(sentence))
    return found


@functools.cache
def _patterns() -> dict[str, re.Pattern[str]]:
    """Returns what finds a novel word, by its kind."""
    words = {
        "colour": (word for colour in COLOURS for word in NOVEL[colour]),
        "shape": (word for shape in SHAPES for word in NOVEL[shape]),
        "action": (form for pairs in NOVEL_VERBS.values() for pair in pairs for form in pair),
    }
    return {
        kind: re.compile(rf"\b({'|'.join(map(re.escape, own))})\b", re.IGNORECASE)
        for kind, own in words.items()
    }


def table(pairs: Pairs, folders: Sequence[Path]) -> str:
    """Returns a row per method, the best on novel words for colours first."""

    def cells(name: str, scores: Scores) -> list[float]:
        return [
            100 * float(scores[split][list(ids)].mean())
            for kind in KINDS
            for split, ids in zip(SPLITS, zip(*pairs[kind], strict=True), strict=True)
        ]

    columns = [f"{kind}, {which}" for kind in KINDS for which in ("known", "novel")]
    return best_first(columns, mean_cells(folders, SPLITS, cells))


def main(folders: Sequence[Path]) -> None:
    """Prints the table; without folders also updates the page and the lists."""
    pairs = counterparts()
    print({kind: len(own) for kind, own in pairs.items()})
    shown = table(pairs, folders or [STUDY / "runs"])
    print(shown)
    if not folders:
        update_own_page(STUDY / "README.md", {"novel words": shown})
        for name, kinds in LISTS.items():
            ids = sorted(query for kind in kinds for pair in pairs[kind] for query in pair)
            (CLAIMS / name).write_text("".join(f"{one}\n" for one in ids), encoding="utf-8")


if __name__ == "__main__":
    main([Path(folder) for folder in sys.argv[1:]])
