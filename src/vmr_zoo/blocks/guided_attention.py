"""Guided convolution (TEA Eq. 7) and the attention exchange of two sequences (TEA Eq. 8-9)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from vmr_zoo.blocks.attention_unit import UnitName, attention_unit
from vmr_zoo.blocks.dropout import Dropout
from vmr_zoo.errors import unknown

Maxima = Literal["inclusive", "strict"]
Placement = Literal["once", "inside"]
Order = Literal["sequential", "simultaneous"]

Guides = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Takes the states (B, L, d) of a sequence and returns its left and right guides, (B, L, d) each."""


def running_maxima(states: Tensor, mask: Tensor, maxima: Maxima) -> tuple[Tensor, Tensor]:
    """Element-wise maxima over everything to the left and everything to the right of each position (Eq. 7).

    Args:
        states: (B, L, d).
        mask: (B, L) bool, True = valid; valid positions come first.
        maxima: "inclusive" counts the position itself (Eq. 7), "strict" does not (EMB's code).

    Returns:
        Left and right maxima, (B, L, d) each; zero where there is nothing to take the maximum of, and on
        padding.
    """
    valid = mask.unsqueeze(-1)
    lowest = torch.finfo(states.dtype).min
    hidden = states.masked_fill(~valid, lowest)
    left = hidden.cummax(1).values
    right = hidden.flip(1).cummax(1).values.flip(1)
    if maxima == "strict":
        left = functional.pad(left[:, :-1], (0, 0, 1, 0), value=lowest)
        right = functional.pad(right[:, 1:], (0, 0, 0, 1), value=lowest)
    return left.masked_fill(~valid | (left == lowest), 0.0), right.masked_fill(
        ~valid | (right == lowest), 0.0
    )


class GuidedConv(nn.Module):
    """Mixes left guide, right guide and the state itself: the Conv2D of TEA Eq. 7.

    A depthwise convolution over time x 3 columns, a pointwise one, dropout, layer normalisation, ReLU (the
    paper names the convolution only; its make-up is EMB's code).
    """

    def __init__(self, dim: int, kernel: int, dropout: float) -> None:
        """Builds the layer.

        Args:
            dim: width d.
            kernel: positions that the depthwise convolution covers, odd.
            dropout: dropout rate.
        """
        super().__init__()
        # Depthwise over time x columns is a grouped convolution over time whose groups are the three columns.
        self.depthwise = nn.Conv1d(3 * dim, dim, kernel, padding=kernel // 2, groups=dim, bias=False)
        self.pointwise = nn.Linear(dim, dim)
        self.dropout = Dropout(dropout)
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, left: Tensor, right: Tensor, own: Tensor) -> Tensor:
        """Convolves the columns, (B, L, d) each and zero on padding, to (B, L, d)."""
        columns = torch.stack((left, right, own), -1).flatten(2)
        mixed = self.depthwise(columns.transpose(1, 2)).transpose(1, 2)
        return self.norm(self.dropout(self.pointwise(mixed))).relu()


class Exchanged(NamedTuple):
    """What an exchange returns.

    Attributes:
        sequence: (B, L, d), X after the exchange.
        words: (B, Lq, d), Y after the exchange.
        states: X before each of its attention units, in order: what the proposals' guides are pooled from.
        attended_words: (B, Lq, d), Y after its first self-attention.
    """

    sequence: Tensor
    words: Tensor
    states: list[Tensor]
    attended_words: Tensor


class Exchange(nn.Module):
    """Self- and cross-attention between a sequence X and the words Y: Attn(X, Y) of TEA Eq. 8-9.

    The paper runs X <- A(X, X), X <- A(X, Y), Y <- A(Y, Y), Y <- A(Y, X) one after the other, on an X that
    was guided once. EMB's code lets both sides cross-attend at the same time, adds a second self-attention
    to each, and guides inside every unit of X, where the guided X is only the attention's query (and, in
    self-attention, its keys and values) while the residual keeps the plain X. Each difference is an
    argument.
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
        guide_placement: Placement | None,
        guide_kernel: int,
        average_padding: bool = False,
        word_self_attention: bool = True,
    ) -> None:
        """Builds the units.

        Args:
            dim: width d.
            heads: attention heads.
            dropout: dropout rate.
            unit: form of the attention unit.
            order: "sequential" (Eq. 9) or "simultaneous" (EMB's code).
            final_self_attention: whether both sides attend themselves once more at the end (EMB's code).
            guide_placement: "once" before the units (Eq. 7), "inside" every unit of X (EMB's code), None for
                a sequence without guides (Eq. 12).
            guide_kernel: positions that the guided convolution covers.
            word_self_attention: False for an exchange that is given the words after their first
                self-attention.
            average_padding: in cross attention, whether padded rows become plain means over the other side
                (EMB's code; only what reads padded rows can tell).
        """
        super().__init__()
        if order not in ("sequential", "simultaneous"):
            raise unknown("exchange order", order, ["sequential", "simultaneous"])
        if guide_placement not in ("once", "inside", None):
            raise unknown("guide_placement", str(guide_placement), ["once", "inside"])
        self.order = order
        self.guide_placement = guide_placement
        self.average_padding = average_padding
        stages = ["self", "cross", *(["final"] if final_self_attention else [])]
        guided = {"once": ["self"], "inside": stages, None: []}[guide_placement]
        self.units = nn.ModuleDict({stage: attention_unit(unit, dim, heads, dropout) for stage in stages})
        self.word_units = nn.ModuleDict(
            {
                stage: attention_unit(unit, dim, heads, dropout)
                for stage in stages
                if word_self_attention or stage != "self"
            }
        )
        self.guides = nn.ModuleDict({stage: GuidedConv(dim, guide_kernel, dropout) for stage in guided})

    def forward(
        self,
        sequence: Tensor,
        mask: Tensor,
        words: Tensor,
        word_mask: Tensor,
        guides: list[Guides] | None = None,
        attended_words: Tensor | None = None,
    ) -> Exchanged:
        """Runs the exchange.

        Args:
            sequence: X, (B, L, d).
            mask: (B, L) bool.
            words: Y, (B, Lq, d).
            word_mask: (B, Lq) bool.
            guides: for each guided unit of X, what yields its guides; None for an exchange without guides.
            attended_words: (B, Lq, d), Y after its first self-attention, for an exchange without its own.

        Returns:
            Both sides, the intermediate X, and the words after their first self-attention.
        """
        x = sequence
        if self.guide_placement == "once":
            assert guides is not None
            own = x.masked_fill(~mask.unsqueeze(-1), 0.0)
            x = self.guides["self"](*guides[0](own), own)
        y1 = attended_words
        if y1 is None:
            y1 = self.word_units["self"](words, words, word_mask)

        padded = (mask, word_mask) if self.average_padding else (None, None)
        states = []

        def attend(stage: str, target: Tensor, other: Tensor | None) -> Tensor:
            states.append(target)
            query = target
            if self.guide_placement == "inside":
                assert guides is not None
                query_guides = guides[len(states) - 1](target)
                target = target.masked_fill(~mask.unsqueeze(-1), 0.0)
                query = self.guides[stage](*query_guides, target)
            if other is None:
                return self.units[stage](target, query, mask, query=query)
            return self.units[stage](target, other, word_mask, target_mask=padded[0], query=query)

        x1 = attend("self", x, None)
        x2 = attend("cross", x1, words if self.order == "sequential" else y1)
        y2 = self.word_units["cross"](
            y1, x2 if self.order == "sequential" else x1, mask, target_mask=padded[1]
        )
        if "final" in self.units:
            x2 = attend("final", x2, None)
            y2 = self.word_units["final"](y2, y2, word_mask)
        return Exchanged(x2, y2, states, y1)
