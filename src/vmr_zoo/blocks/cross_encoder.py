"""Cross-modal encoder: one sequence attends to another (QD-DETR, section 3.2; MESM Eq. 1; LMR Eq. 4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from vmr_zoo.blocks.attention import MultiHeadAttention
from vmr_zoo.blocks.dropout import Dropout
from vmr_zoo.blocks.projection import LayerSizes, copies, xavier_matrices
from vmr_zoo.utils.switches import check_switches

PaddingMask = Literal["own_row", "head_order"]


def attention_mask(query_mask: Tensor, key_mask: Tensor, heads: int, kind: PaddingMask) -> Tensor:
    """Returns which keys each query may attend to.

    Args:
        query_mask: (B, Lq), True = valid.
        key_mask: (B, Lk), True = valid.
        heads: H.
        kind: "own_row": the valid keys of the query's own row. "head_order": the mask of the released code of
            QD-DETR and MESM. It also blocks every padded query from every padded key, but lays out this
            second mask head by head while attention reads it row by row. Head h of row b is therefore blocked
            where row (b * H + h) mod B is padded in both: valid pairs are lost, and results depend on the
            other rows.

    Returns:
        (B, Lk), or (B, H, Lq, Lk) for "head_order"; True = may be attended to.
    """
    if kind == "own_row":
        return key_mask
    count = len(key_mask)
    other = (torch.arange(count * heads, device=key_mask.device) % count).unflatten(0, (count, heads))
    unblocked = query_mask[other].unsqueeze(-1) | key_mask[other].unsqueeze(-2)
    return key_mask[:, None, None, :] & unblocked


class _Tail(nn.Module):
    """The part of a layer that follows attention: LN2(x + FFN(LN1(x)))."""

    def __init__(self, sizes: LayerSizes) -> None:
        super().__init__()
        dim, hidden_dim = sizes.dim, sizes.feedforward_dim
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.linear1, self.linear2 = nn.Linear(dim, hidden_dim), nn.Linear(hidden_dim, dim)
        self.dropout = Dropout(sizes.dropout)

    def forward(self, x: Tensor, activation: nn.Module) -> Tensor:
        hidden = self.dropout(activation(self.linear1(self.norm1(x))))
        return self.norm2(x + self.dropout(self.linear2(hidden)))


class CrossLayer(nn.Module):
    """x = q + attention(q, k, v), then LN2(x + FFN(LN1(x))); positions enter queries and keys only."""

    def __init__(self, sizes: LayerSizes, tails: int) -> None:
        """Builds one layer of a `CrossEncoder`."""
        super().__init__()
        self.attention = MultiHeadAttention(sizes.dim, sizes.heads, sizes.dropout)
        self.activation = sizes.activation()
        self.tails = nn.ModuleList(_Tail(sizes) for _ in range(tails))
        self.dropout = Dropout(sizes.dropout)

    def forward(
        self,
        x: Tensor,
        position: Tensor | None,
        keys: Tensor,
        values: Tensor,
        mask: Tensor,
        tail: int,
        record: list[Tensor] | None = None,
    ) -> Tensor:
        """Updates x (B, Lq, D) from `values` (B, Lk, D); `keys` are the values plus their positions."""
        queries = x if position is None else x + position
        x = x + self.dropout(self.attention(queries, keys, values, mask, record))
        return self.tails[tail](x, self.activation)


class CrossEncoder(nn.Module):
    """A stack of cross-attention layers; all layers attend to the same keys."""

    def __init__(
        self,
        sizes: LayerSizes,
        layers: int,
        *,
        tails: int = 1,
        padding_mask: PaddingMask = "own_row",
        xavier: bool = True,
    ) -> None:
        """Builds the stack.

        Args:
            sizes: of each layer.
            layers: number of layers.
            tails: sets of norms and position-wise networks that share one attention and one activation (MESM
                on TACoS: 2).
            padding_mask: kind of `attention_mask`.
            xavier: draw all matrices from Xavier-uniform, as DETR does; else torch's defaults, equal in all
                layers.
        """
        super().__init__()
        self.heads = sizes.heads
        self.padding_mask: PaddingMask = padding_mask
        self.layers = copies(CrossLayer(sizes, tails), layers)
        if xavier:
            xavier_matrices(self)

    def forward(
        self,
        x: Tensor,
        mask: Tensor,
        position: Tensor | None,
        keys: Tensor,
        key_mask: Tensor,
        key_position: Tensor | None = None,
        tail: int = 0,
        record: list[Tensor] | None = None,
    ) -> Tensor:
        """Lets x attend to the keys.

        Args:
            x: (B, Lq, D).
            mask: (B, Lq), True = valid.
            position: (B, Lq, D), added to the queries; None is zero.
            keys: (B, Lk, D).
            key_mask: (B, Lk), True = valid; or (B, H, Lq, Lk), which is used as it is.
            key_position: (B, Lk, D), added to the keys; None is zero.
            tail: which set of norms and position-wise networks to use.
            record: list to which each layer appends its attention weights, (B, Lq, Lk).

        Returns:
            (B, Lq, D); meaningless on padding.
        """
        located_keys = keys if key_position is None else keys + key_position
        if key_mask.dim() == 2:
            key_mask = attention_mask(mask, key_mask, self.heads, self.padding_mask)
        for layer in self.layers:
            x = layer(x, position, located_keys, keys, key_mask, tail, record)
        return x


@check_switches
@dataclass(frozen=True)
class Aligner:
    """Settings of the cross-modal encoder that aligns the video with the query.

    Attributes:
        layers: cross-attention layers from video to query.
        padding_mask: kind of `attention_mask`, in this and every other cross-modal encoder of the method.
    """

    layers: int
    padding_mask: PaddingMask

    def build(
        self, network: LayerSizes, layers: int | None = None, tails: int = 1, *, xavier: bool = True
    ) -> CrossEncoder:
        """Builds a cross-modal encoder of the network's sizes, by default with as many layers as here."""
        return CrossEncoder(
            network,
            self.layers if layers is None else layers,
            tails=tails,
            padding_mask=self.padding_mask,
            xavier=xavier,
        )
