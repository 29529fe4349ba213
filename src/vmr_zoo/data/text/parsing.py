"""Parses sentences with spaCy or with a tagger that needs no download, and counts clauses.

The papers parse with spaCy, whose models must be downloaded. The tagger HanTa (Wartena 2019) ships its
English model; our own rules over its tags replace spaCy offline. The parser is part of every manifest.
"""

from __future__ import annotations

import re
from functools import cache, cached_property
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from vmr_zoo.errors import VmrError
from vmr_zoo.utils.switches import check_switches

WORD = re.compile(r"'\w+|\w+(?:-\w+)*|[^\w\s]")

SUBORDINATE = ("acl", "relcl", "advcl", "ccomp", "csubj", "csubjpass")
"""spaCy's labels of a subordinate clause, without "xcomp", which shares the subject of its main clause."""

# Tags of the British National Corpus (C5) by their role in a clause: finite verb, -ing form, participle,
# infinitive, "to", "and"; words that may stand between a verb and its auxiliary; determiner, adjective, noun,
# preposition. All others map to a comma.
_KINDS = [
    ("V[VBHD][ZDB]|VM0", "f"),
    ("V[VBHD]G", "g"),
    ("V[VBHD]N", "n"),
    ("V[VBHD]I", "i"),
    ("TO0", "t"),
    ("CJC", "c"),
    ("AV.|XX0", "v"),
    ("AT0|DPS|DT0", "d"),
    ("AJ.|CRD|ORD", "a"),
    ("NN.|NP0|PN.", "N"),
    ("PR.", "p"),
]
_VERBS = re.compile("(?P<finite>f(?:v*[fgni])*)|(?P<infinitive>tv*i)|(?P<participle>[gn](?:v*n)?)")


@cache
def hanta() -> Any:
    """Returns the tagger HanTa with its English model, loaded once."""
    from HanTa.HanoverTagger import HanoverTagger

    return HanoverTagger("morphmodel_en.pgz")


@check_switches
class Parser:
    """Base of `NounChunks` and `ClauseCounts`: a parser, loaded with the first sentence."""

    def __init__(
        self, parser: Literal["hanta", "spacy", "auto"] = "hanta", model: str = "en_core_web_sm"
    ) -> None:
        """Stores the choice.

        Args:
            parser: "hanta"; "spacy" as in the papers; "auto": spaCy if it and the model are installed, else
                HanTa.
            model: the spaCy model, a package or a folder.

        Raises:
            VmrError: for another parser.
        """
        if parser == "auto":
            parser = "spacy" if _has_spacy(model) else "hanta"
        self.parser = parser
        self.model = model

    def manifest(self) -> dict[str, Any]:
        """Returns the parser and its version."""
        if self.parser == "spacy":
            return {"parser": "spacy", "model": f"{self.model} {self._spacy.meta['version']}"}
        return {"parser": "hanta", "version": version("HanTa")}

    def tag(self, text: str, kinds: list[tuple[str, str]], rest: str) -> tuple[list[re.Match[str]], str]:
        """Splits a sentence into words and tags them with HanTa.

        Args:
            text: the sentence.
            kinds: pairs of a tag pattern and its letter; the first match counts.
            rest: the letter of all other tags.

        Returns:
            The words, and a string with one letter per word.
        """
        words = list(WORD.finditer(text))
        tags = [tag for _, _, tag in hanta().tag_sent([word.group() for word in words])]
        letters = (next((kind for tags_, kind in kinds if re.fullmatch(tags_, tag)), rest) for tag in tags)
        return words, "".join(letters)

    @cached_property
    def _spacy(self) -> Any:
        try:
            import spacy

            return spacy.load(self.model, exclude=["ner"])
        except (ImportError, OSError) as error:
            raise VmrError(
                f"Parsing by spaCy needs `pip install spacy` and `python -m spacy download {self.model}` "
                f"({error}). To parse without a download, set parser=hanta instead of parser=spacy."
            ) from error


def _has_spacy(model: str) -> bool:
    """Returns whether spaCy and its model are installed, without loading them."""
    found = Path(model).is_dir() or (model.isidentifier() and find_spec(model) is not None)
    return found and find_spec("spacy") is not None


class ClauseCounts(Parser):
    """Counts the clauses of a sentence below its main clause (LMR, section IV-D).

    LMR counts clauses "by spaCy" and gives no details. With spaCy, a clause is a word that depends on another
    by one of the labels in `SUBORDINATE`; the resulting sizes are close to those implied by the paper
    (docs/embed.md). With HanTa, a clause is a verb group: a finite one beyond the first that does not follow
    "and", or an infinitive or participle that follows a noun.
    """

    def count(self, text: str) -> int:
        """Returns the number of clauses below the main clause."""
        if self.parser == "spacy":
            return sum(token.dep_ in SUBORDINATE for token in self._spacy(text))
        kinds = self._kinds(text)
        finite = below = 0
        for verbs in _VERBS.finditer(kinds):
            before = kinds[: verbs.start()].rstrip("v")[-1:]
            after = kinds[verbs.end() : verbs.end() + 1]
            if verbs["finite"]:
                finite += before != "c"  # "and walks" continues the clause
            elif verbs["infinitive"]:
                below += before not in ("", "c", "p", "f", "g", "n", "i")  # "wants to walk": one clause
            else:
                # "starts walking", "by walking" and "a walking man" are not separate clauses.
                of_noun = before in ("d", "a") and after in ("a", "N")
                below += before not in ("c", "p", "f", "g", "n", "i") and not of_noun
        return below + max(0, finite - 1)

    def verbs(self, text: str) -> int:
        """Returns the number of verbs, auxiliaries not counted: "is walking" is one, "wants to walk" two."""
        if self.parser == "spacy":
            return sum(token.pos_ == "VERB" for token in self._spacy(text))
        return sum(1 for _ in _VERBS.finditer(self._kinds(text)))

    def _kinds(self, text: str) -> str:
        """Returns one letter per word; tagging takes milliseconds, so sentences are tagged once."""
        if text not in self._tagged:
            self._tagged[text] = self.tag(text, _KINDS, ",")[1]
        return self._tagged[text]

    @cached_property
    def _tagged(self) -> dict[str, str]:
        return {}


def count_words(text: str) -> int:
    """Counts the runs of letters and digits; "man's" and "red-haired" are two words each."""
    return len(re.findall(r"\w+", text))
