"""Auxiliary proposals of a span predictor: every run of 8-frame blocks, scored on its own branch (EMB).

TEA names the branch ("an auxiliary proposal ranking", Sec. 3.5) and refers to EMB for it; all of it follows
EMB's code. It is used in training only, to widen the annotated endpoints into candidate sets.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from vmr_zoo.blocks.attention_unit import UnitName
from vmr_zoo.blocks.guided_attention import Exchange, Guides, Order, Placement
from vmr_zoo.blocks.span_predictor import Fusion, Similarity
from vmr_zoo.errors import unknown

BlockPadding = Literal["masked", "released"]


class Proposals(NamedTuple):
    """The candidate moments of a batch and how well they match.

    Attributes:
        bounds: (B, P, 2) int64, first and last index, inclusive; meaningless where invalid.
        mask: (B, P) bool, True = exists.
        logits: (B, P).
    """

    bounds: Tensor
    mask: Tensor
    logits: Tensor


def block_maxima(x: Tensor, mask: Tensor | None, size: int, tail: float | None) -> Tensor:
    """Max-pools a sequence in blocks.

    Args:
        x: (B, L, d).
        mask: (B, L) bool, True = counts; None counts padding too.
        size: positions in a block.
        tail: what fills the last block up when `size` does not divide L; None: nothing, it is shorter.

    Returns:
        (B, ceil(L / size), d), zero for a block without anything that counts.
    """
    lowest = torch.finfo(x.dtype).min
    if mask is not None:
        x = x.masked_fill(~mask.unsqueeze(-1), lowest)
    x = functional.pad(x, (0, 0, 0, -x.shape[1] % size), value=lowest if tail is None else tail)
    # max, not amax: on ties, all of the gradient goes to one position, as in the released code.
    pooled = x.unflatten(1, (-1, size)).max(2).values
    return pooled.masked_fill(pooled == lowest, 0.0)


class ProposalBranch(nn.Module):
    """Builds and scores the proposals of a video.

    A proposal is a run of blocks i..j, its feature the element-wise maximum over them. The branch mirrors the
    frame branch (guided exchange with the words, then fusion); a proposal's guides are the frame branch's own
    states, max-pooled at its first and its last block. A 3 x 3 convolution on the (i, j) grid then lets
    neighbouring proposals see each other before each is scored.
    """

    def __init__(
        self,
        *,
        dim: int,
        heads: int,
        dropout: float,
        unit: UnitName,
        order: Order,
        final_self_attention: bool,
        guide_placement: Placement,
        similarity: Similarity,
        block_padding: BlockPadding,
        block: int,
    ) -> None:
        """Builds the branch.

        Args:
            dim: width d.
            heads: attention heads.
            dropout: dropout rate.
            unit: see `Exchange`.
            order: see `Exchange`.
            final_self_attention: see `Exchange`.
            guide_placement: see `Exchange`.
            similarity: see `QueryAttention`.
            block_padding: "masked": only valid frames count in a block. "released": the guides also count
                padded frames, and an incomplete last block is filled up with about 0 (slips of EMB's code,
                by which a proposal's score depends on how far its batch is padded).
            block: frames in a block.
        """
        super().__init__()
        if block_padding not in ("masked", "released"):
            raise unknown("block_padding", block_padding, ["masked", "released"])
        self.block = block
        self.block_padding = block_padding
        self.exchange = Exchange(
            dim=dim,
            heads=heads,
            dropout=dropout,
            unit=unit,
            order=order,
            final_self_attention=final_self_attention,
            guide_placement=guide_placement,
            guide_kernel=1,
            word_self_attention=False,
        )
        self.fusion = Fusion(dim, dropout, similarity)
        self.joint = nn.Linear(2 * dim, dim)
        self.neighbours = nn.Conv2d(dim, dim, 3, padding=1)
        self.output = nn.Linear(dim, 1)

    def forward(
        self,
        video: Tensor,
        mask: Tensor,
        words: Tensor,
        word_mask: Tensor,
        attended_words: Tensor,
        states: list[Tensor],
    ) -> Proposals:
        """Scores every proposal.

        Args:
            video: (B, L, d), the frames before the exchange.
            mask: (B, L) bool.
            words: (B, Lq, d).
            word_mask: (B, Lq) bool.
            attended_words: (B, Lq, d) after their first self-attention.
            states: the frame branch's states before each of its attention units, (B, L, d) each.

        Returns:
            The N (N + 1) / 2 proposals i <= j of the N blocks, row by row.
        """
        released = self.block_padding == "released"
        blocks = block_maxima(video, mask, self.block, -1e-30 if released else None)
        count = blocks.shape[1]
        first, last = torch.triu_indices(count, count, device=video.device)
        # Running maxima from each block to the right: row i holds the maxima of i..i, i..i+1, …
        wide = blocks.unsqueeze(1).expand(-1, count, -1, -1)
        before = torch.ones(count, count, dtype=torch.bool, device=video.device).tril(-1)
        lowest = torch.finfo(video.dtype).min
        features = wide.masked_fill(before[None, :, :, None], lowest).cummax(2).values[:, first, last]

        length = mask.sum(1, keepdim=True)
        bounds = torch.stack(
            (
                (first * self.block).expand(len(video), -1),
                torch.minimum(last * self.block + self.block - 1, length - 1),
            ),
            -1,
        )
        exists = last * self.block < length

        def guides_of(state: Tensor) -> Guides:
            pooled = block_maxima(state, None if released else mask, self.block, -1e-30 if released else None)
            left, right = pooled[:, first], pooled[:, last]
            hidden = ~exists.unsqueeze(-1)
            return lambda _: (left.masked_fill(hidden, 0.0), right.masked_fill(hidden, 0.0))

        exchanged = self.exchange(
            features, exists, words, word_mask, [guides_of(state) for state in states], attended_words
        )
        fused = self.joint(self.fusion(exchanged.sequence, exists, exchanged.words, word_mask)).relu()

        grid = fused.new_zeros(len(video), count, count, fused.shape[-1])
        grid[:, first, last] = fused.masked_fill(~exists.unsqueeze(-1), 0.0)
        there = fused.new_zeros(len(video), 1, count, count)
        there[:, 0, first, last] = exists.to(fused.dtype)
        neighbours = functional.conv2d(there, there.new_ones(1, 1, 3, 3), padding=1).clamp(min=1.0)
        mixed = self.neighbours(grid.permute(0, 3, 1, 2)).relu() / neighbours
        logits = self.output(mixed.permute(0, 2, 3, 1)[:, first, last]).squeeze(-1)
        return Proposals(bounds, exists, logits)
