"""DETR decoders, with learned query positions or with learnable spans, and their prediction heads.

`QueryDecoder` is DETR's, `AnchorDecoder` DAB-DETR's (Liu et al. 2022) with spans in place of boxes. They have
one interface and return the state of each slot after each layer, and the reference spans that each layer
started from (None without learnable spans).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vmr_zoo.blocks.attention import MultiHeadAttention, attend, check_heads
from vmr_zoo.blocks.dropout import Dropout
from vmr_zoo.blocks.position import sine_coordinates
from vmr_zoo.blocks.projection import MLP, FeedForward, LayerSizes, copies, xavier_matrices

_LOGIT_EPS = 1e-3


def logit(x: Tensor) -> Tensor:
    """Inverse of the sigmoid for x in [0, 1], both x and 1 - x clamped to at least 1e-3."""
    return (x.clamp(min=_LOGIT_EPS) / (1 - x).clamp(min=_LOGIT_EPS)).log()


class QueryDecoderLayer(nn.Module):
    """Self-attention among slots, cross-attention to the memory, position-wise network; post-norm."""

    def __init__(self, sizes: LayerSizes) -> None:
        """Builds one layer."""
        super().__init__()
        dim = sizes.dim
        self.self_attention = MultiHeadAttention(dim, sizes.heads, sizes.dropout)
        self.cross_attention = MultiHeadAttention(dim, sizes.heads, sizes.dropout)
        self.ffn = FeedForward(sizes)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(dim), nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.dropout = Dropout(sizes.dropout)

    def forward(
        self,
        x: Tensor,
        query_position: Tensor,
        memory: Tensor,
        located_memory: Tensor,
        memory_mask: Tensor | None,
        record: list[Tensor] | None = None,
        rows: Tensor | None = None,
    ) -> Tensor:
        """Updates the slots.

        Args:
            x: (B, M, D) slots.
            query_position: (B, M, D).
            memory: (B, L, D).
            located_memory: (B, L, D) memory plus positions, the keys.
            memory_mask: (B, L), True = valid; None if all are.
            record: list to which the cross-attention weights (B, M, L) are appended.
            rows: (B,) the row of the memory that each row of x attends to; None is its own.

        Returns:
            (B, M, D).
        """
        located = x + query_position
        x = self.norm1(x + self.dropout(self.self_attention(located, located, x)))
        attended = self.cross_attention(x + query_position, located_memory, memory, memory_mask, record, rows)
        x = self.norm2(x + self.dropout(attended))
        return self.norm3(x + self.dropout(self.ffn(x)))


class QueryDecoder(nn.Module):
    """DETR's decoder: slot contents start at zero, learned position vectors distinguish the slots."""

    def __init__(self, sizes: LayerSizes, layers: int, queries: int) -> None:
        """Builds the stack.

        Args:
            sizes: of each layer.
            layers: number of layers.
            queries: M, the number of slots.
        """
        super().__init__()
        self.layers = copies(QueryDecoderLayer(sizes), layers)
        self.norm = nn.LayerNorm(sizes.dim)
        xavier_matrices(self)
        # Created after Xavier, to keep its own N(0, 1).
        self.query_position = nn.Embedding(queries, sizes.dim)

    def forward(
        self,
        memory: Tensor,
        mask: Tensor,
        position: Tensor,
        record: list[Tensor] | None = None,
    ) -> tuple[Tensor, None]:
        """Decodes the slots.

        Args:
            memory: (B, L, D).
            mask: (B, L), True = valid.
            position: (B, L, D), added to the keys.
            record: list to which each layer's cross-attention weights (B, M, L) are appended.

        Returns:
            The normalised states (layers, B, M, D), and None: there are no reference spans.
        """
        query_position = self.query_position.weight.expand(memory.shape[0], -1, -1)
        x = torch.zeros_like(query_position)
        located = memory + position
        states = []
        for layer in self.layers:
            x = layer(x, query_position, memory, located, mask, record)
            states.append(self.norm(x))
        return torch.stack(states), None


class AnchorDecoderLayer(nn.Module):
    """Conditional attention (Meng et al. 2021): content and position are projected separately.

    Self-attention sums the two; cross-attention concatenates them per head. The first layer also adds the
    positions to the content, which may still be zero there.
    """

    def __init__(self, sizes: LayerSizes) -> None:
        """Builds a first layer."""
        super().__init__()
        dim = sizes.dim
        check_heads(dim, sizes.heads)
        self.heads = sizes.heads
        self.attention_dropout = sizes.dropout
        self.self_query_content = nn.Linear(dim, dim)
        self.self_query_position = nn.Linear(dim, dim)
        self.self_key_content = nn.Linear(dim, dim)
        self.self_key_position = nn.Linear(dim, dim)
        self.self_value = nn.Linear(dim, dim)
        self.self_out = nn.Linear(dim, dim)
        self.cross_query_content = nn.Linear(dim, dim)
        self.cross_query_position: nn.Linear | None = nn.Linear(dim, dim)  # None in later layers
        self.cross_query_sine = nn.Linear(dim, dim)
        self.cross_key_content = nn.Linear(dim, dim)
        self.cross_key_position = nn.Linear(dim, dim)
        self.cross_value = nn.Linear(dim, dim)
        self.cross_out = nn.Linear(dim, dim)
        self.ffn = FeedForward(sizes)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(dim), nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.dropout = Dropout(sizes.dropout)
        for output in (self.self_out, self.cross_out):
            nn.init.zeros_(output.bias)  # as in torch's attention

    def _per_head(self, content: Tensor, position: Tensor) -> Tensor:
        """Concatenates two (B, L, D) within each head, to (B, L, 2 D)."""
        halves = (x.unflatten(-1, (self.heads, -1)) for x in (content, position))
        return torch.cat(tuple(halves), -1).flatten(2)

    def forward(
        self,
        x: Tensor,
        query_position: Tensor,
        query_sine: Tensor,
        memory: Tensor,
        mask: Tensor,
        position: Tensor,
        record: list[Tensor] | None = None,
    ) -> Tensor:
        """Updates the slots.

        Args:
            x: (B, M, D) slots.
            query_position: (B, M, D) learned from the reference spans.
            query_sine: (B, M, D) sine embedding of the reference spans, modulated.
            memory: (B, L, D).
            mask: (B, L), True = valid.
            position: (B, L, D) of the memory.
            record: list to which the cross-attention weights (B, M, L) are appended.

        Returns:
            (B, M, D).
        """
        dropout = self.attention_dropout if self.training else 0.0
        query = self.self_query_content(x) + self.self_query_position(query_position)
        key = self.self_key_content(x) + self.self_key_position(query_position)
        out = attend(query, key, self.self_value(x), heads=self.heads, key_mask=None, dropout=dropout)
        x = self.norm1(x + self.dropout(self.self_out(out)))

        query, key = self.cross_query_content(x), self.cross_key_content(memory)
        key_position = self.cross_key_position(position)
        if self.cross_query_position is not None:
            query, key = query + self.cross_query_position(query_position), key + key_position
        out = attend(
            self._per_head(query, self.cross_query_sine(query_sine)),
            self._per_head(key, key_position),
            self.cross_value(memory),
            heads=self.heads,
            key_mask=mask,
            dropout=dropout,
            record=record,
        )
        x = self.norm2(x + self.dropout(self.cross_out(out)))
        return self.norm3(x + self.dropout(self.ffn(x)))


class AnchorDecoder(nn.Module):
    """DAB-DETR's decoder with learnable spans (centre, width) as slots.

    Each layer embeds its reference spans and scales the embedding by an MLP of the content (from the second
    layer on) and by sigmoid(MLP(content)) / width, which widens the attention of wide slots.
    """

    def __init__(
        self,
        sizes: LayerSizes,
        layers: int,
        queries: int,
        *,
        refine: bool = False,
        width_first: bool = False,
    ) -> None:
        """Builds the stack.

        Args:
            sizes: of each layer, `dim` even.
            layers: number of layers.
            queries: M, the number of learnable spans.
            refine: update the reference spans after every layer (DAB-DETR); otherwise they are constant.
            width_first: embed (width, centre) instead of (centre, width), the channel order of BM-DETR's
                weights.
        """
        super().__init__()
        self.dim = dim = sizes.dim
        self.width_first = width_first
        self.layers = copies(AnchorDecoderLayer(sizes), layers)
        for later in self.layers[1:]:
            setattr(later, "cross_query_position", None)  # noqa: B010  the list holds plain modules
        self.norm = nn.LayerNorm(dim)
        self.position_head = MLP(dim, dim, dim, 2)
        self.sine_scale = MLP(dim, dim, dim, 2)
        self.width_head = MLP(dim, dim, 1, 2)
        self.refine = MLP(dim, dim, 2, 3) if refine and layers > 1 else None
        if self.refine is not None:
            last = self.refine.layers[-1]
            assert isinstance(last, nn.Linear)
            nn.init.zeros_(last.bias)
        xavier_matrices(self)
        self.anchors = nn.Embedding(queries, 2)  # in logit space, N(0, 1)

    def forward(
        self,
        memory: Tensor,
        mask: Tensor,
        position: Tensor,
        content: Tensor | None = None,
        record: list[Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Decodes the slots.

        Args:
            memory: (B, L, D).
            mask: (B, L), True = valid.
            position: (B, L, D) of the memory.
            content: (B, M, D) initial slot contents; None is zeros.
            record: list to which each layer's cross-attention weights (B, M, L) are appended.

        Returns:
            The normalised states (layers, B, M, D), and the reference spans (layers, B, M, 2), centre and
            width, that each layer started from.
        """
        batch = memory.shape[0]
        reference = self.anchors.weight.sigmoid().expand(batch, -1, -1)
        x = memory.new_zeros(batch, reference.shape[1], self.dim) if content is None else content
        states, references = [], [reference]
        for i, layer in enumerate(self.layers):
            detached = reference if i == 0 or self.refine is None else reference.detach()
            sine = sine_coordinates(detached.flip(-1) if self.width_first else detached, self.dim)
            query_position = self.position_head(sine)
            if i > 0:
                sine = sine * self.sine_scale(x)
            sine = sine * (self.width_head(x).sigmoid() / detached[..., 1:])
            x = layer(x, query_position, sine, memory, mask, position, record)
            states.append(self.norm(x))
            if i < len(self.layers) - 1:
                if self.refine is not None:
                    reference = (self.refine(x) + logit(detached)).sigmoid()
                references.append(reference)
        return torch.stack(states), torch.stack(references)


class SpanHeads(nn.Module):
    """Predicts class and span of each slot from its decoder state."""

    def __init__(self, dim: int) -> None:
        """Builds a two-way classifier (index 0 = foreground) and a three-layer span MLP."""
        super().__init__()
        self.classes = nn.Linear(dim, 2)
        self.spans = MLP(dim, dim, 2, 3)

    def forward(self, states: Tensor, references: Tensor | None) -> tuple[Tensor, Tensor]:
        """Predicts from each state.

        Args:
            states: (..., M, D).
            references: (..., M, 2) centre and width, to which the predicted spans are offsets in logit space;
                None for absolute spans.

        Returns:
            Class logits (..., M, 2), and spans (..., M, 2), centre and width in (0, 1).
        """
        offset = self.spans(states)
        return self.classes(states), (offset if references is None else offset + logit(references)).sigmoid()
