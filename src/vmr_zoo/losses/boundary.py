"""Losses of a span predictor with elastic boundaries (TEA Eq. 15-16, EMB).

An annotated endpoint is uncertain. So each is widened to a set, everything between the annotation and the
best proposal that overlaps it enough, and the predictor is asked to put its probability anywhere in the set.

Indices count snippets; "first" and "last" are inclusive.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from vmr_zoo.blocks.proposal_branch import Proposals
from vmr_zoo.errors import unknown
from vmr_zoo.spans import iou

EndSet = Literal["inclusive", "one_more"]
HighlightEnd = Literal["max", "min"]


def overlap_threshold(progress: float) -> float:
    """How much a proposal must overlap the annotation to widen it, theta: 1 at first, 0.5 in the end (EMB).

    Args:
        progress: share of the training done, epoch / epochs, in [0, 1].

    Returns:
        0.5 + 0.5 (1 - sigmoid((progress - 0.5) / 0.05)).
    """
    return 0.5 + 0.5 * (
        1.0 - torch.sigmoid(torch.tensor((progress - 0.5) / 0.05, dtype=torch.float64)).item()
    )


def span_to_indices(span: Tensor, mask: Tensor) -> Tensor:
    """Finds the cell (first, last) whose time has the largest IoU with a span; the first such cell on ties.

    Args:
        span: (B, 2) fractions of the duration.
        mask: (B, L) bool, True = valid; valid positions come first and divide the duration evenly.

    Returns:
        (B, 2) int64.
    """
    size = mask.shape[1]
    count = mask.sum(1)[:, None, None]
    index = torch.arange(size, device=span.device)
    first, last = index[:, None].expand(size, size), index.expand(size, size)
    cells = torch.stack((first, last + 1), -1) / count.unsqueeze(-1).to(span.dtype)
    overlap = iou(cells, span.clamp(0.0, 1.0)[:, None, None])
    overlap = overlap.masked_fill((first > last) | (last >= count), -1.0)
    best = overlap.flatten(1).argmax(1)
    return torch.stack((best // size, best % size), -1)


def choose_proposal(scores: Tensor, bounds: Tensor, mask: Tensor, moment: Tensor, threshold: float) -> Tensor:
    """Picks the best-scored proposal that overlaps the annotation enough.

    Args:
        scores: (B, P).
        bounds: (B, P, 2) first and last index.
        mask: (B, P) bool, True = exists.
        moment: (B, 2) annotated first and last index.
        threshold: least IoU.

    Returns:
        (B, 2) first and last index of the proposal, or the annotation itself where none overlaps enough.
    """
    half_open = torch.arange(2, device=bounds.device)
    overlap = iou((bounds + half_open).float(), (moment + half_open).float().unsqueeze(1))
    eligible = mask & (overlap >= threshold)
    best = scores.detach().masked_fill(~eligible, -torch.inf).argmax(1)
    chosen = bounds.gather(1, best[:, None, None].expand(-1, 1, 2)).squeeze(1)
    return torch.where(eligible.any(1, keepdim=True), chosen, moment)


def endpoint_sets(moment: Tensor, chosen: Tensor, size: int, end_set: EndSet) -> tuple[Tensor, Tensor]:
    """Widens both endpoints to sets: every index between the annotation and the chosen proposal.

    Args:
        moment: (B, 2) annotated first and last index.
        chosen: (B, 2) the proposal's.
        size: L.
        end_set: "inclusive", between both last indices; "one_more", the proposal's is taken one too late (a
            slip of EMB's code, whose proposal ends are half-open).

    Returns:
        Start set and end set, (B, L) bool each.
    """
    if end_set == "one_more":
        chosen = chosen + torch.arange(2, device=chosen.device)
    index = torch.arange(size, device=moment.device)
    low, high = torch.minimum(moment, chosen), torch.maximum(moment, chosen)
    inside = (index >= low.unsqueeze(-1)) & (index <= high.unsqueeze(-1))
    return inside[:, 0], inside[:, 1]


def set_log_probability(logits: Tensor, members: Tensor) -> Tensor:
    """Log of the probability that a softmax gives to a set.

    Args:
        logits: (B, L), about minus infinity on padding.
        members: (B, L) bool, at least one valid position in each row.

    Returns:
        (B,).
    """
    return logits.masked_fill(~members, -1e30).logsumexp(1) - logits.logsumexp(1)


def highlight_labels(
    moment: Tensor,
    chosen: Tensor,
    mask: Tensor,
    highlight_end: HighlightEnd,
    end_set: EndSet,
    extension: float,
) -> Tensor:
    """Marks the foreground: y^h of TEA Eq. 16.

    Args:
        moment: (B, 2) annotated first and last index.
        chosen: (B, 2) the proposal's.
        mask: (B, L) bool.
        highlight_end: "max", the larger end (Eq. 16), or "min", the smaller one (EMB's code).
        end_set: see `endpoint_sets`.
        extension: share of the foreground's length by which it is widened on each side (EMB's code: 0.1; the
            paper: 0).

    Returns:
        (B, L) bool.
    """
    first = torch.minimum(moment[:, 0], chosen[:, 0])
    other = chosen[:, 1] + (end_set == "one_more")
    last = (
        torch.maximum(moment[:, 1], other) if highlight_end == "max" else torch.minimum(moment[:, 1], other)
    )
    margin = (extension * (last - first + 1)).round().long()
    index = torch.arange(mask.shape[1], device=mask.device)
    return (index >= (first - margin)[:, None]) & (index <= (last + margin)[:, None]) & mask


def highlight_loss(logits: Tensor, labels: Tensor, mask: Tensor, positive_weight: float) -> Tensor:
    """Binary cross-entropy of the foreground, averaged over the batch's valid positions (TEA Eq. 16).

    Args:
        logits: (B, L).
        labels: (B, L) bool.
        mask: (B, L) bool.
        positive_weight: of foreground positions (the paper: 1; EMB's code: 2).

    Returns:
        A scalar.
    """
    weight = torch.where(labels, positive_weight, 1.0) * mask
    entropy = functional.binary_cross_entropy_with_logits(
        logits.masked_fill(~mask, 0.0), labels.to(logits.dtype), reduction="none"
    )
    return (weight * entropy).sum() / mask.sum()


def proposal_times(bounds: Tensor, frame_mask: Tensor) -> Tensor:
    """Turns (B, P, 2) first and last indices into fractions of the duration, given the (B, L) frame mask."""
    return (bounds + torch.arange(2, device=bounds.device)) / frame_mask.sum(1)[:, None, None]


def ranking_targets(spans: Tensor, moment: Tensor, low: float, high: float) -> Tensor:
    """How well each proposal should score: its IoU with the annotation, [low, high] scaled to [0, 1] (EMB).

    Args:
        spans: (B, P, 2) in the unit of `moment`.
        moment: (B, 2).
        low: IoU of target 0.
        high: IoU of target 1.

    Returns:
        (B, P).
    """
    return ((iou(spans, moment.unsqueeze(1)) - low) / (high - low)).clamp(0.0, 1.0)


def ranking_loss(logits: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """Binary cross-entropy of the proposals, averaged over those that exist.

    Args:
        logits: (B, P).
        targets: (B, P) in [0, 1].
        mask: (B, P) bool.

    Returns:
        A scalar.
    """
    entropy = functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return (entropy * mask).sum() / mask.sum()


class PathLogits(NamedTuple):
    """One predictor's endpoint logits and its weight in the sum of probabilities (TEA Eq. 14).

    Attributes:
        weight: 1 for the video's own path, alpha for the paragraph's.
        start: (B, L), about minus infinity on padding.
        end: (B, L).
    """

    weight: float
    start: Tensor
    end: Tensor


@dataclass(frozen=True)
class ElasticBoundary:
    """The losses of a span predictor whose endpoints may lie anywhere in a set (TEA Eq. 15-16, EMB).

    Attributes:
        end_set: see `endpoint_sets`.
        highlight_end: see `highlight_labels`.
        extension: see `highlight_labels`.
        positive_weight: see `highlight_loss`.
        rank_low: see `ranking_targets`.
        rank_high: see `ranking_targets`.
    """

    end_set: EndSet
    highlight_end: HighlightEnd
    extension: float
    positive_weight: float
    rank_low: float
    rank_high: float

    def __post_init__(self) -> None:
        """Refuses unknown values of a switch."""
        if self.end_set not in ("inclusive", "one_more"):
            raise unknown("end_set", self.end_set, ["inclusive", "one_more"])
        if self.highlight_end not in ("max", "min"):
            raise unknown("highlight_end", self.highlight_end, ["max", "min"])

    def __call__(
        self,
        paths: Sequence[PathLogits],
        highlight: Tensor,
        mask: Tensor,
        span: Tensor,
        proposals: Proposals | None,
        threshold: float,
    ) -> dict[str, Tensor]:
        """Computes the losses.

        Args:
            paths: every predictor's endpoint logits; their weighted probabilities are summed, not
                renormalised.
            highlight: (B, L), h before the sigmoid.
            mask: (B, L) bool.
            span: (B, 2) the annotation as fractions of the duration.
            proposals: None leaves out "ranking" and keeps the annotation as the only candidate.
            threshold: theta, see `overlap_threshold`.

        Returns:
            "endpoint" (L_vmr, Eq. 15, the batch's mean), "highlight" (L_h, Eq. 16), "ranking" (EMB's L_rank).
        """
        losses = {}
        chosen = moment = span_to_indices(span, mask)
        if proposals is not None:
            chosen = choose_proposal(proposals.logits, proposals.bounds, proposals.mask, moment, threshold)
            times = proposal_times(proposals.bounds, mask)
            targets = ranking_targets(times, span, self.rank_low, self.rank_high)
            losses["ranking"] = ranking_loss(proposals.logits, targets, proposals.mask)
        starts, ends = endpoint_sets(moment, chosen, mask.shape[1], self.end_set)
        losses["endpoint"] = -(
            self._log_mass([(path.weight, path.start) for path in paths], starts)
            + self._log_mass([(path.weight, path.end) for path in paths], ends)
        ).mean()
        labels = highlight_labels(moment, chosen, mask, self.highlight_end, self.end_set, self.extension)
        losses["highlight"] = highlight_loss(highlight, labels, mask, self.positive_weight)
        return losses

    @staticmethod
    def _log_mass(paths: list[tuple[float, Tensor]], members: Tensor) -> Tensor:
        parts = [set_log_probability(logits, members) + math.log(weight) for weight, logits in paths]
        return torch.stack(parts).logsumexp(0)
