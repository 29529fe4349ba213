"""Transformer encoder, post-norm, with positions added to queries and keys only (DETR)."""

from __future__ import annotations

from torch import Tensor, nn

from vmr_zoo.blocks.attention import MultiHeadAttention
from vmr_zoo.blocks.dropout import Dropout
from vmr_zoo.blocks.projection import MLP, FeedForward, LayerSizes, copies, xavier_matrices


class EncoderLayer(nn.Module):
    """Self-attention and a position-wise network, each followed by residual and LayerNorm."""

    def __init__(self, sizes: LayerSizes) -> None:
        """Builds one layer."""
        super().__init__()
        self.attention = MultiHeadAttention(sizes.dim, sizes.heads, sizes.dropout)
        self.ffn = FeedForward(sizes)
        self.norm1, self.norm2 = nn.LayerNorm(sizes.dim), nn.LayerNorm(sizes.dim)
        self.dropout = Dropout(sizes.dropout)

    def forward(self, x: Tensor, mask: Tensor, position: Tensor, keep: int | None = None) -> Tensor:
        """Encodes (B, L, D) to (B, keep, D); arguments as in `Encoder`."""
        located = x + position
        if keep is None or keep == x.shape[1]:
            attended = self.attention(located, located, x, mask)
        else:
            attended = self.attention(located[:, :keep], located, x, mask)
            x = x[:, :keep]
        x = self.norm1(x + self.dropout(attended))
        return self.norm2(x + self.dropout(self.ffn(x)))


class Encoder(nn.Module):
    """A stack of encoder layers without a final norm."""

    def __init__(self, sizes: LayerSizes, layers: int, *, scale_positions: bool = False) -> None:
        """Builds the stack.

        Args:
            sizes: of each layer.
            layers: number of layers.
            scale_positions: multiply the positions of each layer by an MLP of its input; all layers share
                the MLP (DAB-DETR).
        """
        super().__init__()
        dim = sizes.dim
        self.layers = copies(EncoderLayer(sizes), layers)
        self.position_scale = MLP(dim, dim, dim, 2) if scale_positions else None
        xavier_matrices(self)

    def forward(self, x: Tensor, mask: Tensor, position: Tensor, keep: int | None = None) -> Tensor:
        """Encodes a padded sequence.

        Args:
            x: (B, L, D).
            mask: (B, L), True = valid.
            position: (B, L, D), added to queries and keys.
            keep: how many leading elements the caller reads; the last layer computes only these. None: all.

        Returns:
            (B, keep, D); meaningless on padding.
        """
        for i, layer in enumerate(self.layers, 1):
            scaled = position if self.position_scale is None else position * self.position_scale(x)
            x = layer(x, mask, scaled, keep if i == len(self.layers) else None)
        return x if len(self.layers) else x[:, :keep]
