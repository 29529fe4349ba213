"""Attention of a span predictor between a sequence and the words of a query (TEA Eq. 6-9 and 11).

From bottom to top: the attention unit (Eq. 6), the guides of a sequence (Eq. 7), the exchange between both
sides (Eq. 8-9), and the fusion of the words into the sequence (Eq. 11).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from vmr_zoo.blocks.attention import attend, check_heads
from vmr_zoo.blocks.dropout import Dropout
from vmr_zoo.blocks.dropout import dropout as dropped
from vmr_zoo.blocks.unknown_word import UnknownWord
from vmr_zoo.errors import VmrError
from vmr_zoo.utils.switches import check_switches

MASKED = -1e30
"""Logit of a padded position: finite, because infinities make NaN gradients."""

Maxima = Literal["inclusive", "strict"]

GuideFunction = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Maps the states (B, L, d) of a sequence to its left and right guides, (B, L, d) each."""


@check_switches
@dataclass(frozen=True)
class SpanNetwork:
    """Sizes and forms of the attention layers that all branches of a span predictor share.

    Attributes:
        dim: width d.
        heads: attention heads; each attends d / heads features.
        attention_scale: scores are divided by the root of a head's width, d / heads ("head"; Eq. 6 with d
            read as that width, and EMB's code), or of d ("model", Eq. 6 to the letter).
        dropout: dropout rate, also of the input projections.
        unit: attention unit: "equation_6", or "post_norm" with a feed-forward network (EMB's code).
        order: of cross-attention: "sequential", words attend the sequence after it attended them (Eq. 9), or
            "simultaneous" (EMB's code).
        final_self_attention: whether both sides attend themselves once more at the end (EMB's code).
        guide_placement: "once" guides the sequence before its units (Eq. 7). "inside" guides it in every unit
            (EMB's code): the guided sequence is the attention's query (in self-attention also its keys and
            values), and the residual connection keeps the plain sequence. None: no guides (Eq. 12).
        similarity: R of Eq. 11: "bilinear", FC(V) FC(Q)^T / sqrt(d), or "trilinear", w1 V + w2 Q + (V * w3)
            Q^T (EMB's code).
        unknown_word: "given" takes the features of every word as they are; "trained" puts one trained vector
            in the place of a word whose features are zeros (EMB's code).
    """

    dim: int
    heads: int
    attention_scale: Literal["head", "model"]
    dropout: float
    unit: Literal["equation_6", "post_norm"]
    order: Literal["sequential", "simultaneous"]
    final_self_attention: bool
    guide_placement: Literal["once", "inside", None]
    similarity: Literal["bilinear", "trilinear"]
    unknown_word: Literal["given", "trained"]

    def unknown_word_vector(self, query_dim: int) -> UnknownWord | None:
        """Builds the vector of unknown words; None if features are taken as they are."""
        return UnknownWord(query_dim) if self.unknown_word == "trained" else None

    def attention_unit(self) -> AttentionUnit:
        """Builds one attention unit."""
        unit = EquationUnit if self.unit == "equation_6" else PostNormUnit
        query_factor = self.heads**-0.5 if self.attention_scale == "model" else 1.0
        return unit(self.dim, self.heads, self.dropout, query_factor)


def padding_bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Turns a mask, True = valid, into what is added to logits: 0 where valid, `MASKED` on padding.

    Adding costs less than filling, and its backward pass costs nothing.
    """
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, MASKED)


def _linear_together(x: Tensor, layers: Sequence[nn.Linear]) -> tuple[Tensor, ...]:
    """Applies layers of the same output width to the same (B, L, d) input, in one matrix product."""
    weight = torch.cat([layer.weight for layer in layers])
    bias = torch.cat([layer.bias for layer in layers])
    return functional.linear(x, weight, bias).chunk(len(layers), -1)


class _Attention(nn.Module):
    """Multi-head dot-product attention without an output projection: R(X^t, X^r) FC(X^r) of Eq. 6."""

    def __init__(self, dim: int, heads: int, dropout: float, query_factor: float) -> None:
        super().__init__()
        check_heads(dim, heads)
        self.heads = heads
        self.dropout = dropout
        self.query_factor = query_factor
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)

    def project(self, target: Tensor, reference: Tensor) -> tuple[Tensor, ...]:
        """Returns query, key and value; one matrix product serves all projections of the same input."""
        layers = [self.query, self.key, self.value]
        if target is reference:
            return _linear_together(reference, layers)
        return self.query(target), *_linear_together(reference, layers[1:])

    def forward(
        self, target: Tensor, reference: Tensor, reference_mask: Tensor, target_mask: Tensor | None
    ) -> Tensor:
        query, key, value = self.project(target, reference)
        if self.query_factor != 1.0:
            query = query * self.query_factor
        dropout = self.dropout if self.training else 0.0
        if target_mask is None:
            return attend(query, key, value, heads=self.heads, key_mask=reference_mask, dropout=dropout)
        # The large finite bias drowns the scores of a padded row: its weights become uniform, and gradients
        # still flow. Written out because torch's fused backward recomputes the weights of such rows wrongly.
        allowed = (target_mask.unsqueeze(2) & reference_mask.unsqueeze(1)).unsqueeze(1)
        bias = padding_bias(allowed, query.dtype)
        q, k, v = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (query, key, value))
        weights = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5 + bias).softmax(-1)
        return (dropped(weights, dropout) @ v).transpose(1, 2).flatten(2)


class AttentionUnit(nn.Module):
    """A(X^t, X^r) of Eq. 6: a target sequence attends a reference sequence. Base class of both forms."""

    def __init__(self, dim: int, heads: int, dropout: float, query_factor: float = 1.0) -> None:
        """Builds the query, key and value projections.

        Args:
            dim: width d of both sequences.
            heads: attention heads.
            dropout: on the attention weights and on the unit's output.
            query_factor: of the queries; the scores are also divided by the root of a head's width.
        """
        super().__init__()
        self.attention = _Attention(dim, heads, dropout, query_factor)
        self.dropout = Dropout(dropout)

    def forward(
        self,
        target: Tensor,
        reference: Tensor,
        reference_mask: Tensor,
        *,
        target_mask: Tensor | None = None,
        query: Tensor | None = None,
    ) -> Tensor:
        """Attends `reference` from `target`.

        Args:
            target: (B, Lt, d), kept by the residual connection.
            reference: (B, Lr, d), keys and values.
            reference_mask: (B, Lr) bool, True = may be attended.
            target_mask: (B, Lt) bool; a row where it is False attends all of `reference`, padding included,
                with equal weights (EMB's code masks both sides of cross-attention). None: every row attends
                normally.
            query: (B, Lt, d), the attention query if it is not `target` (a guided target).

        Returns:
            (B, Lt, d).
        """
        attending = target if query is None else query
        return self.combine(target, self.attention(attending, reference, reference_mask, target_mask))

    def combine(self, target: Tensor, context: Tensor) -> Tensor:
        """Combines the target with the attended context, both (B, Lt, d)."""
        raise NotImplementedError


class EquationUnit(AttentionUnit):
    """Eq. 6: FC(X^t + R(X^t, X^r) FC(X^r)), then layer normalisation and dropout (TEA Sec. 4)."""

    def __init__(self, dim: int, heads: int, dropout: float, query_factor: float = 1.0) -> None:
        """Adds the outer FC layer."""
        super().__init__(dim, heads, dropout, query_factor)
        self.output = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    def combine(self, target: Tensor, context: Tensor) -> Tensor:
        """Returns Dropout(LN(FC(target + context)))."""
        return self.dropout(self.norm(self.output(target + context)))


class PostNormUnit(AttentionUnit):
    """EMB's layer: x = LN(X^t + context), then LN(x + FFN(x)) with a two-layer ReLU network of width d."""

    def __init__(self, dim: int, heads: int, dropout: float, query_factor: float = 1.0) -> None:
        """Adds the feed-forward network and both norms."""
        super().__init__(dim, heads, dropout, query_factor)
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.feed_forward = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim))
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)

    def combine(self, target: Tensor, context: Tensor) -> Tensor:
        """Applies both residual steps."""
        hidden = self.norm1(target + self.dropout(context))
        return self.norm2(hidden + self.dropout(self.feed_forward(hidden)))


def running_maxima(states: Tensor, mask: Tensor, maxima: Maxima) -> tuple[Tensor, Tensor]:
    """Takes element-wise maxima over all positions to the left and to the right of each one (Eq. 7).

    Args:
        states: (B, L, d).
        mask: (B, L) bool, True = valid; valid positions come first.
        maxima: "inclusive" includes the position itself (Eq. 7), "strict" does not (EMB's code).

    Returns:
        Left and right maxima, (B, L, d) each; zero on padding and where a side is empty.
    """
    valid = mask.unsqueeze(-1).to(states.dtype)
    # Half the lowest number: far below every state, and the sum stays finite.
    hidden = states + (1 - valid) * (torch.finfo(states.dtype).min / 2)
    left = hidden.cummax(1).values
    right = hidden.flip(1).cummax(1).values.flip(1)
    if maxima == "inclusive":
        return left * valid, right * valid
    left = functional.pad(left[:, :-1], (0, 0, 1, 0))
    right = functional.pad((right * valid)[:, 1:], (0, 0, 0, 1))
    return left * valid, right


class GuidedConv(nn.Module):
    """Convolves left guide, right guide and the state itself: the Conv2D of Eq. 7.

    A depthwise convolution over time x 3 columns, a pointwise one, dropout, layer normalisation and ReLU. The
    paper names only the convolution; the layers follow EMB's code.
    """

    def __init__(self, dim: int, kernel: int, dropout: float) -> None:
        """Builds the layer.

        Args:
            dim: width d.
            kernel: positions that the depthwise convolution covers, odd.
            dropout: dropout rate.

        Raises:
            VmrError: for an even kernel.
        """
        super().__init__()
        if kernel < 1 or kernel % 2 == 0:
            raise VmrError(f"Expected an odd number for guide_kernel; found {kernel}.")
        # Holds the weight (d, 3, kernel) of the depthwise convolution.
        self.depthwise = nn.Conv1d(3 * dim, dim, kernel, padding=kernel // 2, groups=dim, bias=False)
        self.pointwise = nn.Linear(dim, dim)
        self.dropout = Dropout(dropout)
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, left: Tensor, right: Tensor, own: Tensor) -> Tensor:
        """Convolves the columns, (B, L, d) each and zero on padding, to (B, L, d)."""
        # As images (B, d, L, 3) in the memory order B, L, 3, d: the fast case of a depthwise convolution.
        columns = torch.stack((left, right, own), 2).permute(0, 3, 1, 2)
        weight = self.depthwise.weight.transpose(1, 2).unsqueeze(1)
        padding = (weight.shape[2] // 2, 0)
        mixed = functional.conv2d(columns, weight, padding=padding, groups=len(weight)).squeeze(3)
        return self.norm(self.dropout(self.pointwise(mixed.transpose(1, 2)))).relu()


class ExchangeOutput(NamedTuple):
    """Both sides after the attention exchange, and the states that the proposals need.

    Attributes:
        sequence: (B, L, d), X.
        words: (B, Lq, d), Y.
        states: X before each of its attention units; the proposals' guides are pooled from them.
        attended_words: (B, Lq, d), Y after its first self-attention.
    """

    sequence: Tensor
    words: Tensor
    states: list[Tensor]
    attended_words: Tensor


class AttentionExchange(nn.Module):
    """Self- and cross-attention between a sequence X and the words Y: Attn(X, Y) of Eq. 8-9.

    The paper guides X, then computes X <- A(X, X), X <- A(X, Y), Y <- A(Y, Y), Y <- A(Y, X) in sequence.
    `SpanNetwork` holds the switches to EMB's code.
    """

    def __init__(
        self,
        network: SpanNetwork,
        *,
        guide_kernel: int,
        average_padding: bool = False,
        word_self_attention: bool = True,
    ) -> None:
        """Builds the units.

        Args:
            network: sizes and forms.
            guide_kernel: positions that the guided convolution covers.
            average_padding: whether padded rows attend the other side with equal weights in cross-attention
                (EMB's code; it matters only to layers that read padded rows).
            word_self_attention: False if `forward` receives the words after their first self-attention.
        """
        super().__init__()
        self.network = network
        self.average_padding = average_padding
        stages = ["self", "cross", *(["final"] if network.final_self_attention else [])]
        guided = {"once": ["self"], "inside": stages, None: []}[network.guide_placement]
        self.units = nn.ModuleDict({stage: network.attention_unit() for stage in stages})
        word_stages = [stage for stage in stages if word_self_attention or stage != "self"]
        self.word_units = nn.ModuleDict({stage: network.attention_unit() for stage in word_stages})
        self.guides = nn.ModuleDict(
            {stage: GuidedConv(network.dim, guide_kernel, network.dropout) for stage in guided}
        )

    def forward(
        self,
        sequence: Tensor,
        mask: Tensor,
        words: Tensor,
        word_mask: Tensor,
        guides: list[GuideFunction],
        attended_words: Tensor | None = None,
    ) -> ExchangeOutput:
        """Runs the exchange.

        Args:
            sequence: X, (B, L, d).
            mask: (B, L) bool.
            words: Y, (B, Lq, d).
            word_mask: (B, Lq) bool.
            guides: one for each unit of X; ignored without guide placement.
            attended_words: (B, Lq, d), Y after its first self-attention; None computes it.

        Returns:
            Both sides, the states of X between its units, and the words after their first self-attention.
        """
        x = sequence
        if self.network.guide_placement == "once":
            own = x * mask.unsqueeze(-1)
            x = self.guides["self"](*guides[0](own), own)  # Eq. 7
        y1 = attended_words
        if y1 is None:
            y1 = self.word_units["self"](words, words, word_mask)
        sequential = self.network.order == "sequential"
        row_mask, word_row_mask = (mask, word_mask) if self.average_padding else (None, None)

        target, query = self._query("self", x, mask, guides[0])
        x1 = self.units["self"](target, query, mask, query=query)  # Eq. 9, X <- A(X, X)
        target, query = self._query("cross", x1, mask, guides[1])
        other = words if sequential else y1
        x2 = self.units["cross"](
            target, other, word_mask, target_mask=row_mask, query=query
        )  # Eq. 9, X <- A(X, Y)
        y2 = self.word_units["cross"](y1, x2 if sequential else x1, mask, target_mask=word_row_mask)
        states = [x, x1]
        if "final" in self.units:
            states.append(x2)
            target, query = self._query("final", x2, mask, guides[2])
            x2 = self.units["final"](target, query, mask, query=query)
            y2 = self.word_units["final"](y2, y2, word_mask)
        return ExchangeOutput(x2, y2, states, y1)

    def _query(self, stage: str, x: Tensor, mask: Tensor, guide: GuideFunction) -> tuple[Tensor, Tensor]:
        """Returns target and attention query of a unit of X, (B, L, d) each."""
        if self.network.guide_placement != "inside":
            return x, x
        left, right = guide(x)
        own = x * mask.unsqueeze(-1)
        return own, self.guides[stage](left, right, own)


class QueryAttention(nn.Module):
    """The sequence attends the words: V-bar = H(V, Q) of Eq. 11.

    With R the similarity of each position to each word, R^r and R^c its row- and column-wise softmax:
    X^v2q = R^r Q, X^q2v = R^r R^c^T V, V-bar = FC(V || X^v2q || V * X^v2q || V * X^q2v).
    """

    def __init__(self, network: SpanNetwork) -> None:
        """Builds the similarity R and the output layer; only the trilinear R has dropout, on its inputs."""
        super().__init__()
        dim = network.dim
        self.similarity = network.similarity
        if self.similarity == "bilinear":
            self.left = nn.Linear(dim, dim)
            self.right = nn.Linear(dim, dim)
        else:
            self.w1 = nn.Parameter(torch.empty(dim, 1))
            self.w2 = nn.Parameter(torch.empty(dim, 1))
            self.w3 = nn.Parameter(torch.empty(1, 1, dim))
            for weight in (self.w1, self.w2, self.w3):
                nn.init.xavier_uniform_(weight)
            self.dropout = Dropout(network.dropout)
        self.output = nn.Linear(4 * dim, dim)

    def scores(self, sequence: Tensor, words: Tensor) -> Tensor:
        """Returns R, (B, L, Lq)."""
        if self.similarity == "bilinear":
            return self.left(sequence) @ self.right(words).transpose(1, 2) / sequence.shape[-1] ** 0.5
        sequence, words = self.dropout(sequence), self.dropout(words)
        return (
            sequence @ self.w1
            + (words @ self.w2).transpose(1, 2)
            + (sequence * self.w3) @ words.transpose(1, 2)
        )

    def forward(self, sequence: Tensor, mask: Tensor, words: Tensor, word_mask: Tensor) -> Tensor:
        """Attends the words.

        Args:
            sequence: V, (B, L, d).
            mask: (B, L) bool.
            words: Q, (B, Lq, d).
            word_mask: (B, Lq) bool.

        Returns:
            V-bar, (B, L, d).
        """
        scores = self.scores(sequence, words)
        rows = (scores + padding_bias(word_mask, scores.dtype).unsqueeze(1)).softmax(2)  # R^r
        columns = (scores + padding_bias(mask, scores.dtype).unsqueeze(2)).softmax(1)  # R^c
        to_words = rows @ words  # X^v2q
        to_sequence = rows @ (columns.transpose(1, 2) @ sequence)  # X^q2v
        return self.output(torch.cat((sequence, to_words, sequence * to_words, sequence * to_sequence), -1))


class SentencePool(nn.Module):
    """The sentence vector q of Eq. 11: a learned weighted sum of the words (Bahdanau et al. 2014)."""

    def __init__(self, dim: int) -> None:
        """Builds the projection that scores a word of width `dim`."""
        super().__init__()
        self.weight = nn.Parameter(torch.empty(dim, 1))
        nn.init.xavier_uniform_(self.weight)

    def forward(self, words: Tensor, mask: Tensor) -> Tensor:
        """Pools (B, Lq, d) words under their (B, Lq) mask to (B, d)."""
        scores = (words @ self.weight).squeeze(-1)
        weights = (scores + padding_bias(mask, scores.dtype)).softmax(1)
        return (weights.unsqueeze(1) @ words).squeeze(1)


class QueryFusion(nn.Module):
    """V-bar and q concatenated at every position: (V-bar || q) of Eq. 11."""

    def __init__(self, network: SpanNetwork) -> None:
        """Builds both parts."""
        super().__init__()
        self.attention = QueryAttention(network)
        self.sentence = SentencePool(network.dim)

    def forward(self, sequence: Tensor, mask: Tensor, words: Tensor, word_mask: Tensor) -> Tensor:
        """Fuses (B, L, d) under its (B, L) mask and (B, Lq, d) under (B, Lq) to (B, L, 2 d), V-bar first."""
        attended = self.attention(sequence, mask, words, word_mask)
        sentence = self.sentence(words, word_mask).unsqueeze(1).expand_as(attended)
        return torch.cat((attended, sentence), -1)
