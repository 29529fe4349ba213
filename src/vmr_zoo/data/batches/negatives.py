"""Negative queries: sentences that do not describe the target moment.

Paper: BM-DETR (Jung et al. 2023), section 3.2. Principle 1: a negative comes from the same video and shares
its context with the target. Principle 2: its IoU with the target is below a threshold ("e.g. 0.5") and its
meaning differs (SentenceBERT). The paper states neither the SentenceBERT model nor its threshold, nor what
happens in a video without such a query. The released code has no filter and in effect takes queries of other
videos.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from vmr_zoo import spans
from vmr_zoo.data.annotations.records import Query
from vmr_zoo.data.text.encoder import TextEncoder
from vmr_zoo.errors import VmrError, abbreviate
from vmr_zoo.utils.switches import check_switches

_CHUNK = 65_536
"""Pairs compared at a time, to bound the memory that their sentence vectors take."""

_FEW = 0.5
"""Training warns if a smaller share of the queries has a negative."""


@check_switches
@dataclass(frozen=True)
class NegativeSampling:
    """Criteria for the negative query of a row.

    Attributes:
        source: "same_video" (paper) or "other_video" (released code). As in the released code, "other_video"
            draws from the queries that the annotations list for a row (`Query.negatives`), if they list any;
            no published file does.
        iou_below: upper limit of the IoU of a same-video candidate with the target; None: no limit (ablation
            in figure 3). With several moments, the maximum over all pairs counts.
        similarity_below: upper limit of its cosine similarity with the target; None: no limit. The paper does
            not publish its value. On the training split of Charades-STA, 0.7 is the 95th percentile of
            same-video pairs with IoU < 0.5; three fifths of the pairs with IoU >= 0.5, mostly paraphrases,
            exceed it.
        when_none: for a row without candidates: "other_video", as in the released code, or "skip", none
            (the paper mentions same-video negatives only).
        encoder: sentence encoder for the similarity; required with `similarity_below`.
    """

    source: Literal["same_video", "other_video"] = "same_video"
    iou_below: float | None = 0.5
    similarity_below: float | None = 0.7
    when_none: Literal["skip", "other_video"] = "other_video"
    encoder: TextEncoder | None = None

    def pool(self, queries: Sequence[Query]) -> NegativePool:
        """Finds the candidates of every query.

        Args:
            queries: queries of the training split.

        Raises:
            VmrError: for a similarity limit without an encoder, for negatives from other videos if there is
                only one video, or for a listed negative that is not a query of the split.
        """
        video = _numbers([query.video_id for query in queries])
        if "other_video" in (self.source, self.when_none) and len(queries) and video.max() == 0:
            raise VmrError(
                "data.negatives takes queries of other videos, but the training split has one video. Set "
                "data.negatives.source=same_video and data.negatives.when_none=skip."
            )
        if self.source == "other_video":
            candidates, offsets = _listed(queries)
            return NegativePool(video, candidates, offsets, fall_back=True, counts={})

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
        """Returns the cosine similarity (P,) of each pair; encodes each distinct sentence once."""
        if self.encoder is None:
            raise VmrError(
                f"data.negatives.similarity_below={self.similarity_below} needs a sentence encoder. Set "
                "data.negatives.encoder, or data.negatives.similarity_below=null."
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
        """Stores the candidates.

        Args:
            video: (n,) the video of each row, numbered from 0.
            candidates: (C,) candidate rows of row 0, of row 1, ….
            offsets: (n + 1,) the candidates of row i are candidates[offsets[i] : offsets[i + 1]].
            fall_back: whether a row without candidates takes a query of another video.
            counts: number of queries left after each criterion, and of all candidates.
        """
        self.video = video
        self.candidates = candidates
        self.offsets = offsets
        self.fall_back = fall_back
        self.counts = counts
        # In rows sorted by video, "any row of another video" is an index that skips one gap.
        self._by_video = np.argsort(video, kind="stable")
        self._sizes = np.bincount(video)
        self._starts = np.cumsum(self._sizes) - self._sizes

    def draw(self, rows: NDArray[np.int64], draws: NDArray[Any], other: NDArray[Any]) -> NDArray[np.int64]:
        """Draws one negative per row, uniformly among its candidates.

        Args:
            rows: (B,) rows of the batch.
            draws: (B,) numbers in [0, 1), choose among the candidates.
            other: (B,) numbers in [0, 1), choose among the queries of other videos.

        Returns:
            (B,) rows of the negatives; -1: none.
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

    @property
    def share(self) -> float:
        """The share of the rows that have a candidate of their own, in [0, 1]."""
        return float((np.diff(self.offsets) > 0).mean()) if len(self.video) else 0.0

    def warning(self) -> str:
        """Says how many rows have a negative on their own video, if most have none; "" otherwise."""
        if not self.counts or self.share >= _FEW:
            return ""
        rows, counts = len(self.video), self.counts
        others = (
            "get queries of other videos (data.negatives.when_none=other_video)."
            if self.fall_back
            else "train without (data.negatives.when_none=skip), so the background is hardly learned. "
            "data.negatives.when_none=other_video gives them queries of other videos."
        )
        return (
            f"Negative queries: only {round(self.share * rows):,} of {rows:,} training queries "
            f"({self.share:.1%}) have one on their own video: {counts['with_same_video']:,} share it with "
            f"another query, {counts['and_iou_below']:,} of them have one below data.negatives.iou_below, "
            f"and {counts['and_similarity_below']:,} one below data.negatives.similarity_below too. The "
            f"others {others}"
        )

    def choices(self, row: int) -> NDArray[np.int64]:
        """Returns the rows that `draw` may return for a row, each for an equal share of [0, 1), in order."""
        listed = self.candidates[self.offsets[row] : self.offsets[row + 1]]
        if len(listed) or not self.fall_back:
            return listed
        return self._by_video[self.video[self._by_video] != self.video[row]]

    def _other_video(self, rows: NDArray[np.int64], draws: NDArray[Any]) -> NDArray[np.int64]:
        own = self.video[rows]
        sizes, starts = self._sizes, self._starts
        place = (draws * (len(self.video) - sizes[own])).astype(np.int64)
        place += np.where(place >= starts[own], sizes[own], 0)
        return self._by_video[place]


def same_video_pairs(video: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Lists all ordered pairs of different rows on one video, sorted by left row, then by right row.

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


def _listed(queries: Sequence[Query]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns the negatives that the annotations list, as `NegativePool` takes them.

    Raises:
        VmrError: for one that is not among the queries.
    """
    row = {query.query_id: i for i, query in enumerate(queries)}
    candidates: list[int] = []
    offsets = [0]
    for query in queries:
        if unknown := [listed for listed in query.negatives if listed not in row]:
            raise VmrError(
                f"'neg_query_ids' of query {query.query_id} names {abbreviate(unknown)}, no query of the "
                "training split. Remove it from the annotations."
            )
        candidates += [row[listed] for listed in query.negatives]
        offsets.append(len(candidates))
    return np.array(candidates, np.int64), np.array(offsets, np.int64)


def _overlap(
    queries: Sequence[Query], left: NDArray[np.int64], right: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Returns the maximum IoU (P,) over the moments of each pair."""
    most = max((len(query.moments) for query in queries), default=1)
    # Padding is an empty span before the video: its IoU with any span is 0.
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
