"""Cross-modal encoder: one sequence attends to another (QD-DETR, section 3.2; MESM Eq. 1; LMR Eq. 4)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vmr_zoo.blocks.attention import MultiHeadAttention
from vmr_zoo.blocks.dropout import Dropout
from vmr_zoo.blocks.projection import Activation, xavier_matrices
from vmr_zoo.errors import unknown

PADDING_MASKS = ("own_row", "head_order")


def attention_mask(query_mask: Tensor, key_mask: Tensor, heads: int, kind: str) -> Tensor:
    """Says which keys each query may attend to.

    "own_row": the valid keys of its own row. "head_order": what the released codes of QD-DETR and MESM do.
    They also block every padded query from every padded key, but lay that mask out head by head while
    attention reads it row by row, so that head h of row b is blocked where row (b * H + h) mod B is padded
    in both: valid pairs are lost, and results depend on the other rows.

    Args:
        query_mask: (B, Lq), True = valid.
        key_mask: (B, Lk), True = valid.
        heads: H.
        kind: one of `PADDING_MASKS`.

    Returns:
        (B, Lk), or (B, H, Lq, Lk) for "head_order"; True = may be attended to.

    Raises:
        VmrError: for another kind.
    """
    if kind not in PADDING_MASKS:
        raise unknown("padding_mask", kind, PADDING_MASKS)
    if kind == "own_row":
        return key_mask
    count = len(key_mask)
    other = (torch.arange(count * heads, device=key_mask.device) % count).unflatten(0, (count, heads))
    spared = query_mask[other].unsqueeze(-1) | key_mask[other].unsqueeze(-2)
    return key_mask[:, None, None, :] & spared


class _Tail(nn.Module):
    """What follows attention in a layer: LN2(x + FFN(LN1(x)))."""

    def __init__(self, dim: int, feedforward_dim: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.linear1, self.linear2 = nn.Linear(dim, feedforward_dim), nn.Linear(feedforward_dim, dim)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, activation: nn.Module) -> Tensor:
        hidden = self.dropout(activation(self.linear1(self.norm1(x))))
        return self.norm2(x + self.dropout(self.linear2(hidden)))


class CrossLayer(nn.Module):
    """x = q + attention(q, k, v), then LN2(x + FFN(LN1(x))); positions enter queries and keys only."""

    def __init__(
        self,
        dim: int,
        heads: int,
        feedforward_dim: int,
        *,
        tails: int,
        activation: Activation,
        dropout: float,
    ) -> None:
        """Builds one layer; see `CrossEncoder` for the arguments."""
        super().__init__()
        self.attention = MultiHeadAttention(dim, heads, dropout)
        self.activation = activation()
        self.tails = nn.ModuleList(_Tail(dim, feedforward_dim, dropout) for _ in range(tails))
        self.dropout = Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        position: Tensor | None,
        located: Tensor,
        keys: Tensor,
        mask: Tensor,
        tail: int,
        record: list[Tensor] | None = None,
    ) -> Tensor:
        """Updates x (B, Lq, D) from `keys` (B, Lk, D); `located` are the keys with their positions."""
        queries = x if position is None else x + position
        x = x + self.dropout(self.attention(queries, located, keys, mask, record))
        return self.tails[tail](x, self.activation)


class CrossEncoder(nn.Module):
    """A stack of cross-attention layers; the keys stay as they are."""

    def __init__(
        self,
        dim: int,
        heads: int,
        feedforward_dim: int,
        layers: int,
        *,
        tails: int = 1,
        activation: Activation = nn.PReLU,
        dropout: float = 0.1,
        padding_mask: str = "own_row",
    ) -> None:
        """Builds the stack.

        Args:
            dim: D.
            heads: attention heads.
            feedforward_dim: width inside the position-wise networks.
            layers: how many layers.
            tails: how many sets of norms and position-wise networks share one attention (MESM on TACoS: 2).
            activation: makes the activation of each layer, which its tails share.
            dropout: in attention, residuals and the position-wise networks.
            padding_mask: see `attention_mask`.
        """
        super().__init__()
        self.heads, self.padding_mask = heads, padding_mask
        self.layers = nn.ModuleList(
            CrossLayer(dim, heads, feedforward_dim, tails=tails, activation=activation, dropout=dropout)
            for _ in range(layers)
        )
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
            record: gets each layer's attention weights appended, (B, Lq, Lk); see `attend`.

        Returns:
            (B, Lq, D); meaningless on padding.
        """
        located = keys if key_position is None else keys + key_position
        if key_mask.dim() == 2:
            key_mask = attention_mask(mask, key_mask, self.heads, self.padding_mask)
        for layer in self.layers:
            x = layer(x, position, located, keys, key_mask, tail, record)
        return x
