"""Highlight margin loss on sampled pairs of clips (Moment-DETR's saliency loss, BM-DETR Eq. 15)."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

PairRule = Literal["usable", "rated", "moment"]
"""Which clips may form the pairs of the margin loss: see `pair_choices`."""

Pairs = tuple[Tensor, Tensor, Tensor]
"""positive and negative, (B, 2) clip indices, and usable, (B, 2) bool, False where there is no such pair."""


def _draw(allowed: Tensor) -> Tensor:
    """Draws a True position of each row of (B, L) uniformly; 0 where a row has none.

    It draws one random number per row, which makes the result independent of padding.
    """
    count = allowed.sum(1, keepdim=True)
    nth = (torch.rand(len(allowed), 1, device=allowed.device) * count).long().clamp(max=count - 1)
    return (allowed & (allowed.cumsum(1) == nth + 1)).int().argmax(1)


class PairChoices(NamedTuple):
    """The clips that may be drawn for the two pairs of each row.

    Attributes:
        positive: (B, 2, L) bool, clips that should score higher; L > Lv if clips are rated that a video
            lacks.
        negative: (B, 2, Lv) bool, clips that should score lower.
        usable: (B, 2) bool, False where there is no such pair.
        apart: whether the clips of the second pair differ from those of the first where they can.
        repeated: (B,) bool, whether the second pair is the first one again.
    """

    positive: Tensor
    negative: Tensor
    usable: Tensor
    apart: bool
    repeated: Tensor

    def draw(self) -> Pairs:
        """Draws the pairs."""
        drawn = []
        for allowed in (self.positive, self.negative):
            first = _draw(allowed[:, 0])
            second = _draw(self._left(allowed, first))
            drawn.append(torch.stack((first, torch.where(self.repeated, first, second)), 1))
        # The released code fails on a clip beyond the padding.
        return drawn[0].clamp(max=self.negative.shape[2] - 1), drawn[1], self.usable

    def admit(self, positive: Tensor, negative: Tensor) -> tuple[Tensor, Tensor]:
        """Returns whether `draw` can return the clips (B, 2) of each side, as (B, 2) bool."""
        found = []
        for allowed, clips in ((self.positive, positive), (self.negative, negative)):
            first, second = clips.unbind(1)
            sets = torch.stack((allowed[:, 0], self._left(allowed, first)), 1)
            sets[:, :, 0] |= ~sets.any(2)  # what `_draw` returns then
            inside = (clips >= 0) & (clips < sets.shape[2])
            valid = sets.gather(2, clips.clamp(0, sets.shape[2] - 1).unsqueeze(2)).squeeze(2) & inside
            valid[:, 1] = torch.where(self.repeated, second == first, valid[:, 1])
            found.append(valid)
        return found[0], found[1]

    def of_rows(self, rows: slice) -> PairChoices:
        """Returns the choices of some rows."""
        positive, negative, usable = self.positive[rows], self.negative[rows], self.usable[rows]
        return PairChoices(positive, negative, usable, self.apart, self.repeated[rows])

    def _left(self, allowed: Tensor, first: Tensor) -> Tensor:
        """Returns the clips (B, L) that the second pair may have after the first one, (B,)."""
        second = allowed[:, 1]
        if not self.apart:
            return second
        others = second & (torch.arange(second.shape[1], device=second.device) != first[:, None])
        return torch.where(others.any(1, keepdim=True), others, second)


def pair_choices(
    rule: PairRule, inside: Tensor, video_mask: Tensor, saliency: Tensor, saliency_mask: Tensor
) -> PairChoices:
    """Lists the clips that may form pairs of a more and a less relevant clip, two for each row.

    Args:
        rule: "usable": if the ratings of a row differ, its first pair is the highest and the lowest rated
            clip; other pairs are a clip inside the moments and a clip outside, and a pair that does not exist
            (all clips are inside, or none is) is not used. "rated" and "moment" follow released code, which
            uses every pair. "rated" (Moment-DETR, QD-DETR and BM-DETR on QVHighlights): the first pair is one
            of the highest and one of the lowest rated clips, also if their ratings are equal, and a clip that
            the video lacks counts as its last one; the second is a rated and an unrated clip, or the first
            again if all clips are rated. "moment" (BM-DETR on other data): two different clips inside and two
            outside, the same one twice if there is one, clip 0 if there is none.
        inside: (B, Lv) bool, the clips inside a moment.
        video_mask: (B, Lv), True = valid.
        saliency: (B, Lv) ratings; longer if clips are rated that a video lacks.
        saliency_mask: (B, Lv), True = rated; as long as `saliency`.
    """
    outside = ~inside & video_mask
    always = torch.ones_like(inside[:, :2])
    never = torch.zeros_like(always[:, 0])
    if rule == "moment":
        return PairChoices(_twice(inside, inside), _twice(outside, outside), always, True, never)
    above = saliency.masked_fill(~saliency_mask, -torch.inf)
    below = saliency.masked_fill(~saliency_mask, torch.inf)
    if rule == "rated":
        best = above.eq(above.amax(1, keepdim=True)) & saliency_mask
        worst = below.eq(below.amin(1, keepdim=True)) & saliency_mask
        unrated = video_mask & ~saliency_mask[:, : video_mask.shape[1]]
        nowhere = torch.zeros_like(saliency_mask[:, video_mask.shape[1] :])
        positive = _twice(torch.cat((_within(best, video_mask), nowhere), 1), saliency_mask)
        negative = _twice(_within(worst, video_mask), unrated)
        return PairChoices(positive, negative, always, False, ~unrated.any(1))
    best_rating, highest = above.max(1)
    worst_rating, lowest = below.min(1)
    hard = (best_rating > worst_rating)[:, None]
    index = torch.arange(inside.shape[1], device=inside.device)
    usable = (inside.any(1) & outside.any(1))[:, None].expand(-1, 2)
    return PairChoices(
        _twice(torch.where(hard, index == highest[:, None], inside), inside),
        _twice(torch.where(hard, index == lowest[:, None], outside), outside),
        usable | torch.cat((hard, torch.zeros_like(hard)), 1),
        False,
        never,
    )


def _twice(first: Tensor, second: Tensor) -> Tensor:
    """Returns the clips of two pairs, (B, 2, Lv)."""
    return torch.stack((first, second), 1)


def _within(clips: Tensor, video_mask: Tensor) -> Tensor:
    """Moves marks (B, L) on clips that a video lacks to its last clip, (B, Lv)."""
    length = video_mask.shape[1]
    beyond = clips.clone()
    beyond[:, :length] &= ~video_mask
    last = torch.arange(length, device=clips.device) == video_mask.sum(1, keepdim=True) - 1
    return (clips[:, :length] & video_mask) | (last & beyond.any(1, keepdim=True))


def margin_loss(
    scores: Tensor, positive: Tensor, negative: Tensor, usable: Tensor, margin: float = 0.2
) -> Tensor:
    """Hinge loss that encourages each positive clip to outscore its negative by a margin (BM-DETR Eq. 15).

    Args:
        scores: (B, Lv).
        positive: (B, P) clip indices.
        negative: (B, P) clip indices.
        usable: (B, P) bool; other pairs contribute 0.
        margin: minimum difference of the scores.

    Returns:
        Twice the mean over B * P (the factor is Moment-DETR's).
    """
    gap = scores.gather(1, negative) - scores.gather(1, positive)
    return 2 * ((margin + gap).clamp(min=0) * usable).mean()
