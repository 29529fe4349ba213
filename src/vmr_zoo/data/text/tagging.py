"""Tags words by part of speech: which words of a sentence carry its content."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from vmr_zoo.data.text.parsing import hanta
from vmr_zoo.errors import VmrError
from vmr_zoo.utils.switches import check_switches

_PENN = re.compile("NN|VB|JJ|RB")
"""Nouns, verbs, adjectives and adverbs in tags of the Penn Treebank."""
_BNC = re.compile("NN.|NP0|V[BDHV].|AJ.|AV.|XX0")
"""The same in HanTa's tags (British National Corpus, C5); the Penn Treebank counts "not" as an adverb."""


@check_switches
class ContentWords:
    """Finds the nouns, verbs, adjectives and adverbs of a sentence."""

    def __init__(
        self, tagger: Literal["auto", "nltk", "hanta", "table"] = "auto", table: str | Path | None = None
    ) -> None:
        """Stores the choice; the tagger is loaded with the first sentence.

        Args:
            tagger: "nltk" as in MESM's released code; "hanta", which needs no download; "auto": NLTK's if it
                and its model are installed, else HanTa; "table": tags from a file.
            table: a JSON object with the Penn Treebank tag of each word, for "table".

        Raises:
            VmrError: for another tagger, or if a table is missing or not wanted.
        """
        if (tagger == "table") != (table is not None):
            raise VmrError(
                "A table of tags belongs to tagger=table, and to no other: set both or neither of "
                f"data.content_words.tagger and .table; found {tagger} and {table}."
            )
        self.tagger = "nltk" if tagger == "auto" and _nltk() is not None else tagger
        if self.tagger == "auto":
            self.tagger = "hanta"
        self.table = None if table is None else Path(table).expanduser()

    def marks(self, words: Sequence[str]) -> list[bool]:
        """Returns whether each word of a sentence is a noun, verb, adjective or adverb."""
        if self.tagger == "hanta":
            return [_BNC.fullmatch(tag) is not None for _, _, tag in hanta().tag_sent(list(words))]
        tags = self._looked_up(words) if self.tagger == "table" else [tag for _, tag in self._pos_tag(words)]
        return [_PENN.search(tag) is not None for tag in tags]

    def _looked_up(self, words: Sequence[str]) -> list[str]:
        if absent := [word for word in words if word not in self._tags]:
            raise VmrError(f"{self.table} has no tag for '{absent[0]}'. Add it to the JSON object.")
        return [self._tags[word] for word in words]

    def _pos_tag(self, words: Sequence[str]) -> Any:
        pos_tag = _nltk()
        if pos_tag is None:
            raise VmrError(
                "tagger=nltk needs `pip install nltk` and `python -m nltk.downloader "
                "averaged_perceptron_tagger_eng`. To tag without a download, set "
                "data.content_words.tagger=hanta."
            )
        return pos_tag(list(words))

    @cached_property
    def _tags(self) -> dict[str, str]:
        assert self.table is not None
        try:
            tags = json.loads(self.table.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise VmrError(f"Expected a JSON object of tags by word at {self.table}; {error}.") from error
        if not isinstance(tags, dict) or not all(isinstance(tag, str) for tag in tags.values()):
            raise VmrError(f"Expected a JSON object of tags by word at {self.table}; found other JSON.")
        return tags


def _nltk() -> Any:
    """Returns NLTK's `pos_tag`, or None if it or its model is not installed."""
    try:
        from nltk import pos_tag

        pos_tag(["word"])
    except (ImportError, LookupError):
        return None
    return pos_tag
