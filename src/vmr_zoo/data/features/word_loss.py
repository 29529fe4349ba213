"""Which share of the words of a protocol its features leave out, and the refusal to train on too few."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from vmr_zoo.errors import VmrError

if TYPE_CHECKING:
    from vmr_zoo.data.annotations.records import Protocol
    from vmr_zoo.data.features.feature_set import FeatureSet
    from vmr_zoo.data.text.lost_words import LostWords

_LISTED = 8
"""Lost words listed per split, the most frequent ones."""


class WordLoss(NamedTuple):
    """What the features leave out of the sentences of one split.

    Attributes:
        part: "query", "narration query" or "narration".
        split: name of the split.
        lost: the counts.
    """

    part: str
    split: str
    lost: LostWords

    @property
    def share(self) -> float:
        """The share of the tokens that are lost, unknown or cut, in [0, 1]."""
        return (self.lost.unknown.total() + self.lost.cut) / max(1, self.lost.tokens)

    @property
    def frequent(self) -> list[str]:
        """The most frequent words without a vector."""
        return [word for word, _ in self.lost.unknown.most_common(_LISTED)]

    def __str__(self) -> str:
        lost, tokens = self.lost, max(1, self.lost.tokens)
        parts = []
        if unknown := lost.unknown.total():
            words = ", ".join(self.frequent) + (", …" if len(lost.unknown) > _LISTED else "")
            parts.append(
                f"{unknown / tokens:.1%} have no vector, in {lost.sentences_with_unknown:,} of "
                f"{lost.sentences:,} sentences ({words})"
            )
        if lost.cut:
            parts.append(
                f"{lost.cut / tokens:.1%} are past the longest sentence (max_tokens), in "
                f"{lost.sentences_cut:,} of {lost.sentences:,} sentences"
            )
        what = " and ".join(parts) or "none is lost"
        return f"{self.part}, {self.split}: of {lost.tokens:,} tokens {what}"

    def as_json(self) -> dict[str, Any]:
        """Returns the counts under the names of `LostWords`, and `share` and `frequent`."""
        lost = self.lost
        return {
            "part": self.part,
            "split": self.split,
            "share": self.share,
            "sentences": lost.sentences,
            "tokens": lost.tokens,
            "unknown": lost.unknown.total(),
            "sentences_with_unknown": lost.sentences_with_unknown,
            "cut": lost.cut,
            "sentences_cut": lost.sentences_cut,
            "frequent": self.frequent,
        }


def word_losses(
    features: FeatureSet, protocol: Protocol, needs: Collection[str] | None = None
) -> list[WordLoss]:
    """Counts the lost words of every split; reads word tables and tokenizers, no weights.

    Args:
        features: the features. Sources that do not know their words, such as stored files, are left out.
        protocol: the splits.
        needs: the method's needs; sources that are not needed are left out. None: all.
    """
    used = features.sources(needs)
    losses = []
    for name, split in protocol.splits.items():
        sentences = [query.text for query in split.queries]
        for part, words in (("query", features.query), ("narration query", features.narration_query)):
            if words is not None and words in used and (lost := words.lost_words(sentences)) is not None:
                losses.append(WordLoss(part, name, lost))
        if features.narration is not None and features.narration in used:
            videos = list(dict.fromkeys(query.video_id for query in split.queries))
            if (lost := features.narration.lost_words(videos)) is not None:
                losses.append(WordLoss("narration", name, lost))
    return losses


def too_many_lost(losses: Sequence[WordLoss], at_most: float | None) -> list[WordLoss]:
    """Returns the losses above a share of the tokens; None: no limit."""
    return [] if at_most is None else [loss for loss in losses if loss.share > at_most]


def refuse_lost_words(losses: Sequence[WordLoss], at_most: float | None, name: str, protocol: str) -> None:
    """Refuses features that lose too many words.

    Args:
        losses: from `word_losses`.
        at_most: the accepted share of the tokens of a split (`data.max_lost_words`); None: any.
        name: name of the features.
        protocol: name of the protocol.

    Raises:
        VmrError: if a split loses more.
    """
    refused = too_many_lost(losses, at_most)
    if refused:
        worst = max(loss.share for loss in refused)
        listed = "\n".join(f"- {loss}" for loss in refused)
        raise VmrError(
            f"Expected features={name} to keep the words of {protocol}: a split may lose at most "
            f"{at_most:.1%} of its tokens (data.max_lost_words={at_most}). Found:\n{listed}\n"
            "For words without a vector, give features.query.file (or the narrations' text_encoder.file) a "
            "table that has them, such as GloVe's whole text file; for long sentences raise "
            f"max_query_tokens. To train without these words, set data.max_lost_words={worst + 0.005:.2f}."
        )
