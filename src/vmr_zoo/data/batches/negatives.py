"""Negative queries: sentences that describe something else than the target moment.

Paper: BM-DETR (Jung et al. 2023), section 3.2. Principle 1: a negative comes from the same video, since it
shares context and time with the target. Principle 2: it overlaps the target less than an IoU threshold ("e.g.
0.5") and is not similar to it in meaning (SentenceBERT). The paper gives neither the SentenceBERT model nor
its threshold, nor what happens where a video has no such query; the released code has no filter and in effect
takes other videos' queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from vmr_zoo import spans
from vmr_zoo.data.annotations.records import Query
from vmr_zoo.errors import VmrError, unknown

SOURCES = ("same_video", "other_video")
WHEN_NONE = ("skip", "other_video")
_CHUNK = (
    65_536  # pairs compared at a time, so that the sentence vectors of all pairs never lie in memory together
)


class Sentences(Protocol):
    """A sentence encoder, `vmr_zoo.data.text.encoders.SentenceEncoder` in practice."""

    def sentences(self, texts: list[str]) -> NDArray[np.float32]:
        """Returns (n, D), one vector per text."""


@dataclass(frozen=True)
class NegativeSampling:
    """Which queries may serve as a row's negative.

    Attributes:
        source: "same_video" (paper) or "other_video" (what the released code does on the released
            annotations).
        iou_below: a same-video candidate's IoU with the target must be below this; None: any (figure 3's
            ablation). With several moments the two closest count.
        similarity_below: its cosine similarity with the target must be below this; None: any. The paper does
            not publish its value. On Charades-STA's training split 0.7 is the 95th percentile among
            same-video pairs with IoU < 0.5, and three fifths of the pairs with IoU >= 0.5, paraphrases
            mostly, lie above it.
        when_none: for a row without candidates: "skip" (no negative in the batch; the paper speaks of
            same-video negatives only) or "other_video" (released code).
        encoder: what similarity is computed with; needed when `similarity_below` is set.
    """

    source: str = "same_video"
    iou_below: float | None = 0.5
    similarity_below: float | None = 0.7
    when_none: str = "skip"
    encoder: Sentences | None = None

    def __post_init__(self) -> None:
        if self.source not in SOURCES:
            raise unknown("data.negatives.source", self.source, SOURCES)
        if self.when_none not in WHEN_NONE:
            raise unknown("data.negatives.when_none", self.when_none, WHEN_NONE)

    def pool(self, queries: Sequence[Query]) -> NegativePool:
        """Finds every query's candidates, once.

        Args:
            queries: of the training split.

        Returns:
            What negatives are drawn from.

        Raises:
            VmrError: if similarity is asked for without an encoder, or other videos' queries where there is
                one video.
        """
        video = _numbers([query.video_id for query in queries])
        if "other_video" in (self.source, self.when_none) and len(queries) and video.max() == 0:
            raise VmrError(
                "data.negatives asks for queries of other videos, but the training split has one video. "
                "Set data.negatives.source=same_video and data.negatives.when_none=skip."
            )
        if self.source == "other_video":
            empty = np.empty(0, np.int64)
            return NegativePool(video, empty, np.zeros(len(video) + 1, np.int64), fall_back=True, counts={})

        left, right = same_video_pairs(video)
        counts = {"queries": len(queries), "with_same_video": len(np.unique(left))}
        if self.iou_below is not None:
            keep = _overlap(queries, left, right) < self.iou_below
            left, right = left[keep], right[keep]
        counts["and_iou_below"] = len(np.unique(left))
        if self.similarity_below is not None:
            keep = self._similarity(queries, left, right) < self.similarity_below
            left, right = left[keep], right[keep]
        counts["and_similarity_below"] = len(np.unique(left))
        counts["candidates"] = len(left)
        offsets = np.searchsorted(left, np.arange(len(queries) + 1))
        return NegativePool(video, right, offsets, fall_back=self.when_none == "other_video", counts=counts)

    def _similarity(
        self, queries: Sequence[Query], left: NDArray[np.int64], right: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """Returns the cosine similarity of each pair; each distinct sentence is encoded once."""
        if self.encoder is None:
            raise VmrError(
                f"data.negatives.similarity_below={self.similarity_below} needs a sentence encoder. Set "
                "data.negatives.encoder, or similarity_below=null to leave similarity out."
            )
        if not len(left):
            return np.empty(0, np.float32)
        texts = sorted({query.text for query in queries})
        number = {text: i for i, text in enumerate(texts)}
        vectors = np.asarray(self.encoder.sentences(texts), np.float32)
        vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        text = np.array([number[query.text] for query in queries])
        left, right = text[left], text[right]
        return np.concatenate(
            [
                np.einsum("pd,pd->p", vectors[left[i : i + _CHUNK]], vectors[right[i : i + _CHUNK]])
                for i in range(0, len(left), _CHUNK)
            ]
        )


class NegativePool:
    """The candidates of every row."""

    def __init__(
        self,
        video: NDArray[np.int64],
        candidates: NDArray[np.int64],
        offsets: NDArray[np.int64],
        *,
        fall_back: bool,
        counts: dict[str, int],
    ) -> None:
        """Takes the candidates.

        Args:
            video: (n,) the video of each row, numbered from 0.
            candidates: (C,) candidate rows, those of row 0 first.
            offsets: (n + 1,) row i's candidates are candidates[offsets[i] : offsets[i + 1]].
            fall_back: whether a row without candidates takes a query of another video.
            counts: how many queries are left after each criterion, and how many candidates in all.
        """
        self.video = video
        self.candidates = candidates
        self.offsets = offsets
        self.fall_back = fall_back
        self.counts = counts
        # Rows sorted by video: "any row but those of this video" is then an index that jumps over one gap.
        self._by_video = np.argsort(video, kind="stable")
        self._sizes = np.bincount(video)
        self._starts = np.cumsum(self._sizes) - self._sizes

    def draw(self, rows: NDArray[np.int64], draws: NDArray[Any], other: NDArray[Any]) -> NDArray[np.int64]:
        """Draws one negative per row, each candidate with equal chance.

        Args:
            rows: (B,) rows of the batch.
            draws: (B,) numbers in [0, 1) that choose among the candidates.
            other: (B,) numbers in [0, 1) that choose among the other videos' queries.

        Returns:
            (B,) rows of the negatives; -1 where there is none.
        """
        count = self.offsets[rows + 1] - self.offsets[rows]
        found = count > 0
        negative = np.full(len(rows), -1, np.int64)
        negative[found] = self.candidates[
            self.offsets[rows[found]] + (draws[found] * count[found]).astype(np.int64)
        ]
        if self.fall_back and not found.all():
            negative[~found] = self._other_video(rows[~found], other[~found])
        return negative

    def _other_video(self, rows: NDArray[np.int64], draws: NDArray[Any]) -> NDArray[np.int64]:
        own = self.video[rows]
        sizes, starts = self._sizes, self._starts
        place = (draws * (len(self.video) - sizes[own])).astype(np.int64)
        place += np.where(place >= starts[own], sizes[own], 0)
        return self._by_video[place]


def same_video_pairs(video: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Lists all ordered pairs of different rows on one video, by left row and then right row.

    Args:
        video: (n,) the video of each row, numbered from 0.

    Returns:
        Left and right rows, (P,) each.
    """
    sizes = np.bincount(video)
    starts = np.cumsum(sizes) - sizes
    by_video = np.argsort(video, kind="stable")
    count = sizes[video]
    left = np.repeat(np.arange(len(video)), count)
    within = np.arange(len(left)) - np.repeat(np.cumsum(count) - count, count)
    right = by_video[starts[video[left]] + within]
    different = left != right
    return left[different], right[different]


def _numbers(names: Sequence[str]) -> NDArray[np.int64]:
    """Numbers names from 0 in order of first appearance."""
    index: dict[str, int] = {}
    return np.array([index.setdefault(name, len(index)) for name in names], np.int64)


def _overlap(
    queries: Sequence[Query], left: NDArray[np.int64], right: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Returns the IoU (P,) of the closest two moments of each pair."""
    most = max((len(query.moments) for query in queries), default=1)
    # A missing moment is an empty span before the video: its IoU with anything is 0.
    moments = torch.full((len(queries), most, 2), -1.0, dtype=torch.float64)
    for row, query in enumerate(queries):
        moments[row, : len(query.moments)] = torch.tensor(query.moments, dtype=torch.float64).reshape(-1, 2)
    chunks = [
        spans.iou(spans.pairwise(moments[left[i : i + _CHUNK]]), moments[right[i : i + _CHUNK], None])
        .amax((1, 2))
        .numpy()
        for i in range(0, len(left), _CHUNK)
    ]
    return np.concatenate(chunks) if chunks else np.empty(0)
