"""Sentences whose moment a video does not hold: which ones each video of a split is also asked.

Every sentence of a split gets a counterpart without an answer, on the same video. After Moment of Untruth
(Flanagan et al., WACV 2025), in-domain sentences are those of other videos of the same split, out-of-domain
ones those of another data set.

That a sentence has no answer is proven where the data can be asked (`Protocol.answers`: shapes), else
presumed: annotations do not list everything that happens in a video. An in-domain sentence must therefore be
far in meaning from every sentence about the video.

The choice depends on the split, the video's id and the seed alone.
"""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from vmr_zoo.data.annotations.records import Protocol, Query, Split, shared_videos
from vmr_zoo.data.text.encoder import TextEncoder
from vmr_zoo.errors import VmrError
from vmr_zoo.utils.arrays import Array

SUFFIX = "_no_answer"
"""Ends the name of a split of such sentences, and the ids of its queries."""


class Unanswerable(NamedTuple):
    """The sentences without an answer that belong to a split.

    Attributes:
        split: the queries, without moments, in the order of the sentences whose counterparts they are.
        donors: the query that each sentence was taken from.
        facts: counts for the header of the results.
    """

    split: Split
    donors: dict[Query, Query]
    facts: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class NoAnswer(ABC):
    """How sentences without an answer are chosen, and how they are rejected.

    Attributes:
        seed: of the draws.
        threshold: queries whose `Method.answer_score` is lower are rejected; None: chosen on the selection
            split and its own sentences without an answer.
    """

    seed: int = 0
    threshold: float | None = None

    @property
    @abstractmethod
    def kind(self) -> str:
        """As in `no_answer=<kind>`."""

    @abstractmethod
    def header(self, protocol: Protocol) -> dict[str, Any]:
        """Returns what the header of the results says about the choice."""

    @abstractmethod
    def choose(self, protocol: Protocol, split: Split) -> Unanswerable:
        """Chooses a sentence without an answer for every query of a split.

        Args:
            protocol: the protocol of the run.
            split: a selection or test split.

        Raises:
            VmrError: if there is none to choose from.
        """

    def _draw(
        self,
        split: Split,
        donors: Sequence[Query],
        candidates: Callable[[list[int]], Array],
        answered: Callable[[str, Query], bool] | None = None,
    ) -> Unanswerable:
        """Draws a sentence for every query, no sentence twice for one video.

        Args:
            split: the split.
            donors: the queries to take sentences from.
            candidates: returns the numbers of the donors from which a video may take, given the rows of its
                queries.
            answered: returns whether a video holds a moment of a sentence; such sentences are passed over.
        """
        rows: dict[str, list[int]] = {}
        for row, query in enumerate(split.queries):
            rows.setdefault(query.video_id, []).append(row)
        found: dict[int, Query] = {}
        passed_over = 0
        for video_id, own in rows.items():
            rng = np.random.default_rng((self.seed, zlib.crc32(video_id.encode())))
            order = rng.permutation(candidates(own)).tolist()
            kept: list[Query] = []
            for donor in _distinct(
                [donors[number] for number in order], {split.queries[i].text for i in own}
            ):
                if len(kept) == len(own):
                    break
                if answered is not None and answered(video_id, donor):
                    passed_over += 1
                else:
                    kept.append(donor)
            found |= dict(zip(own, kept, strict=False))
        if not found:
            raise VmrError(
                f"No sentence without an answer was found for any video of the {split.name} split: all are "
                "about one video, or the same. Choose another split, or raise no_answer.share."
            )
        asked = {row: _counterpart(split.queries[row], donor) for row, donor in sorted(found.items())}
        return Unanswerable(
            Split(f"{split.name}{SUFFIX}", tuple(asked.values())),
            {asked[row]: found[row] for row in asked},
            {
                "sentences": len(asked),
                "left_out": len(split.queries) - len(asked),
                "passed_over": passed_over,
            },
        )


@dataclass(frozen=True, kw_only=True)
class InDomain(NoAnswer):
    """Sentences about other videos of the same split, far in meaning from every sentence about the video.

    Attributes:
        encoder: of sentences; its cosine similarity is the distance in meaning.
        share: a video takes from this share of the other videos' sentences: those whose highest similarity to
            a sentence about it is lowest.
        proof: whether sentences that the video does answer are passed over, where the data can be asked;
            False counts them instead.
    """

    encoder: TextEncoder
    share: float = 0.25
    proof: bool = True

    def __post_init__(self) -> None:
        """Refuses a share outside of (0, 1]."""
        if not 0 < self.share <= 1:
            raise VmrError(f"Expected no_answer.share in (0, 1], found {self.share}.")

    @property
    def kind(self) -> str:
        """As in `no_answer=in_domain`."""
        return "in_domain"

    def header(self, protocol: Protocol) -> dict[str, Any]:
        """Returns the similarity, the share, and whether it is proven that there is no answer."""
        return {
            "kind": self.kind,
            "no_answer": "proven" if self.proof and protocol.answers else "presumed",
            "similarity": self.encoder.manifest(),
            "share": self.share,
            "seed": self.seed,
        }

    def choose(self, protocol: Protocol, split: Split) -> Unanswerable:
        """Chooses among the sentences of the split itself."""
        queries = split.queries
        texts = list(dict.fromkeys(query.text for query in queries))
        vectors = self.encoder.sentences(texts)
        number = {text: i for i, text in enumerate(texts)}
        text = np.array([number[query.text] for query in queries])
        video = np.unique([query.video_id for query in queries], return_inverse=True)[1]

        def farthest(own: list[int]) -> Array:
            similarity = (vectors[text[own]] @ vectors.T).max(0)[text]
            others = np.flatnonzero(video != video[own[0]])
            # Rounded and stable: no processor's last bits decide.
            nearest_last = np.argsort(similarity[others].round(4), kind="stable")
            return others[nearest_last[: int(np.ceil(self.share * len(others)))]]

        answers = protocol.answers
        chosen = self._draw(split, queries, farthest, answers if self.proof else None)
        if answers is not None and not self.proof:
            wrong = sum(answers(query.video_id, donor) for query, donor in chosen.donors.items())
            chosen.facts["answered_after_all"] = wrong
        return chosen


@dataclass(frozen=True, kw_only=True)
class OutOfDomain(NoAnswer):
    """Sentences of another data set, drawn from all of its test splits.

    Attributes:
        protocol: the other data set.
    """

    protocol: Protocol

    @property
    def kind(self) -> str:
        """As in `no_answer=out_of_domain`."""
        return "out_of_domain"

    def header(self, protocol: Protocol) -> dict[str, Any]:
        """Returns the other data set. Nothing is proven about its sentences."""
        return {
            "kind": self.kind,
            "no_answer": "presumed",
            "sentences_of": self.protocol.label,
            "seed": self.seed,
        }

    def choose(self, protocol: Protocol, split: Split) -> Unanswerable:
        """Chooses among the sentences of the other data set.

        Raises:
            VmrError: if it is about videos of the run's own data set.
        """
        other = self.protocol
        same = protocol.name == other.name or (protocol.pool and protocol.pool == other.pool)
        if same or shared_videos(protocol.splits.values(), other.splits.values()):
            raise VmrError(
                f"Sentences of {other.label} are not out of the domain of {protocol.label}: both are about "
                "the same videos, or the same world. Name other data (data=…), or use no_answer=in_domain."
            )
        donors = list(_distinct([query for one in other.tests.values() for query in one.queries], set()))
        return self._draw(split, donors, lambda own: np.arange(len(donors)))


def _distinct(queries: Sequence[Query], without: set[str]) -> Iterator[Query]:
    """Yields the first query of each text that is not among `without`."""
    seen = set(without)
    for query in queries:
        if query.text not in seen:
            seen.add(query.text)
            yield query


def _counterpart(query: Query, donor: Query) -> Query:
    return Query(f"{query.query_id}{SUFFIX}", query.video_id, donor.text, (), query.duration)
