"""Parsing sentences, by spaCy or by a tagger that needs no download; the clauses of a sentence.

The papers parse with spaCy, whose models are downloads. HanTa (Wartena 2019), a tagger that ships its English
model, with rules of our own over its tags needs none and is the default. Which parser was used is part of
whatever is made with it.
"""

from __future__ import annotations

import re
from functools import cached_property
from importlib.metadata import version
from typing import Any, Literal

from vmr_zoo.errors import VmrError, unknown

WORD = re.compile(r"'\w+|\w+(?:-\w+)*|[^\w\s]")

SUBORDINATE = ("acl", "relcl", "advcl", "ccomp", "csubj", "csubjpass")
"""spaCy's labels of a clause below the main one; "xcomp", which shares its subject, is not among them."""

# Tags of the British National Corpus (C5) by the part that they play in a clause: finite verb, -ing form,
# participle, infinitive, "to", "and"; what may stand between a verb and its auxiliary; determiner, adjective,
# noun, preposition; the rest is a comma.
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


class Parser:
    """What `NounChunks` and `ClauseCounts` share: the choice of a parser, loaded with the first sentence."""

    def __init__(self, parser: Literal["hanta", "spacy"] = "hanta", model: str = "en_core_web_sm") -> None:
        """Stores the choice.

        Args:
            parser: "hanta", or "spacy", as the papers.
            model: the spaCy model.

        Raises:
            VmrError: for another parser.
        """
        if parser not in ("hanta", "spacy"):
            raise unknown("parser", parser, ("hanta", "spacy"))
        self.parser = parser
        self.model = model

    def manifest(self) -> dict[str, Any]:
        """Returns the parser and its version."""
        if self.parser == "spacy":
            return {"parser": "spacy", "model": f"{self.model} {self._spacy.meta['version']}"}
        return {"parser": "hanta", "version": version("HanTa")}

    def tag(self, text: str, kinds: list[tuple[str, str]], rest: str) -> tuple[list[re.Match[str]], str]:
        """Splits a sentence and tags it by HanTa.

        Args:
            text: the sentence.
            kinds: pairs of a pattern of tags and the letter that stands for them, first match taken.
            rest: the letter of all other tags.

        Returns:
            The words, and a string with one letter for each.
        """
        words = list(WORD.finditer(text))
        tags = [tag for _, _, tag in self._hanta.tag_sent([word.group() for word in words])]
        letters = (next((kind for tags_, kind in kinds if re.fullmatch(tags_, tag)), rest) for tag in tags)
        return words, "".join(letters)

    @cached_property
    def _hanta(self) -> Any:
        from HanTa.HanoverTagger import HanoverTagger

        return HanoverTagger("morphmodel_en.pgz")

    @cached_property
    def _spacy(self) -> Any:
        try:
            import spacy

            return spacy.load(self.model, exclude=["ner"])
        except (ImportError, OSError) as error:
            raise VmrError(
                f"Parsing by spaCy needs `pip install spacy` and `python -m spacy download {self.model}` "
                f"({error}). Without a download: parser=hanta, in the place where parser=spacy was set."
            ) from error


class ClauseCounts(Parser):
    """Counts the clauses of a sentence below its main clause (LMR, section IV-D).

    LMR counts clauses "by spaCy" and says no more. By spaCy they are the words that hang on another by one
    of the labels in `SUBORDINATE`, which comes close to the sizes that the paper's numbers imply
    (docs/embed.md).
    By HanTa they are groups of verbs: finite ones beyond the first that do not follow "and", infinitives and
    participles that follow a noun.
    """

    def count(self, text: str) -> int:
        """Returns how many clauses a sentence has below its main clause."""
        if self.parser == "spacy":
            return sum(token.dep_ in SUBORDINATE for token in self._spacy(text))
        _, kinds = self.tag(text, _KINDS, ",")
        finite = below = 0
        for verbs in _VERBS.finditer(kinds):
            before = kinds[: verbs.start()].rstrip("v")[-1:]
            after = kinds[verbs.end() : verbs.end() + 1]
            if verbs["finite"]:
                finite += before != "c"  # "and walks": the same clause goes on
            elif verbs["infinitive"]:
                below += before not in ("", "c", "p", "f", "g", "n", "i")  # "wants to walk": one clause
            else:
                # "starts walking", "by walking", "a walking man" are no clauses of their own.
                of_noun = before in ("d", "a") and after in ("a", "N")
                below += before not in ("c", "p", "f", "g", "n", "i") and not of_noun
        return below + max(0, finite - 1)


def count_words(text: str) -> int:
    """Counts the runs of letters and digits: punctuation is no word, "man's" and "red-haired" are two."""
    return len(re.findall(r"\w+", text))
