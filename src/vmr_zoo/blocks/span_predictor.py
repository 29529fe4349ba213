"""From a sequence and the words to endpoint distributions (TEA Eq. 10-11), and from those to ranked spans."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from vmr_zoo.blocks.attention_unit import UnitName
from vmr_zoo.blocks.dropout import Dropout
from vmr_zoo.blocks.guided_attention import Exchange, Exchanged, Maxima, Order, Placement, running_maxima
from vmr_zoo.errors import unknown

Similarity = Literal["bilinear", "trilinear"]
Gate = Literal["attended", "joint"]
Endpoints = Literal["single", "chained"]

MASKED = -1e30
"""Logit of a padded position: finite, so that no gradient is NaN."""


class QueryAttention(nn.Module):
    """The sequence attends the words: V-bar = H(V, Q) of TEA Eq. 11.

    With R the similarity of each position to each word, R^r and R^c its row- and column-wise softmax:
    X^v2q = R^r Q, X^q2v = R^r R^c^T V, V-bar = FC(V || X^v2q || V * X^v2q || V * X^q2v).
    """

    def __init__(self, dim: int, dropout: float, similarity: Similarity) -> None:
        """Builds the layer.

        Args:
            dim: width d.
            dropout: on the inputs of the trilinear similarity.
            similarity: "bilinear", R = FC(V) FC(Q)^T / sqrt(d) (Eq. 11), or "trilinear", R = w1 V + w2 Q +
                (V * w3) Q^T (EMB's code).
        """
        super().__init__()
        if similarity not in ("bilinear", "trilinear"):
            raise unknown("similarity", similarity, ["bilinear", "trilinear"])
        self.similarity = similarity
        if similarity == "bilinear":
            self.left = nn.Linear(dim, dim)
            self.right = nn.Linear(dim, dim)
        else:
            self.w1 = nn.Parameter(torch.empty(dim, 1))
            self.w2 = nn.Parameter(torch.empty(dim, 1))
            self.w3 = nn.Parameter(torch.empty(1, 1, dim))
            for weight in (self.w1, self.w2, self.w3):
                nn.init.xavier_uniform_(weight)
            self.dropout = Dropout(dropout)
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
        rows = scores.masked_fill(~word_mask.unsqueeze(1), MASKED).softmax(2)
        columns = scores.masked_fill(~mask.unsqueeze(2), MASKED).softmax(1)
        to_words = rows @ words
        to_sequence = rows @ (columns.transpose(1, 2) @ sequence)
        return self.output(torch.cat((sequence, to_words, sequence * to_words, sequence * to_sequence), -1))


class SentencePool(nn.Module):
    """The sentence vector q of TEA Eq. 11: a learned weighted sum of the words (Bahdanau et al. 2014)."""

    def __init__(self, dim: int) -> None:
        """Builds the projection that scores a word of width `dim`."""
        super().__init__()
        self.weight = nn.Parameter(torch.empty(dim, 1))
        nn.init.xavier_uniform_(self.weight)

    def forward(self, words: Tensor, mask: Tensor) -> Tensor:
        """Pools (B, Lq, d) words under their (B, Lq) mask to (B, d)."""
        weights = (words @ self.weight).masked_fill(~mask.unsqueeze(-1), MASKED).softmax(1)
        return (words * weights).sum(1)


class Fusion(nn.Module):
    """V-bar and q side by side at every position: (V-bar || q) of TEA Eq. 11."""

    def __init__(self, dim: int, dropout: float, similarity: Similarity) -> None:
        """Builds both parts; see `QueryAttention` for the arguments."""
        super().__init__()
        self.attention = QueryAttention(dim, dropout, similarity)
        self.sentence = SentencePool(dim)

    def forward(self, sequence: Tensor, mask: Tensor, words: Tensor, word_mask: Tensor) -> Tensor:
        """Returns (B, L, 2 d): V-bar first, then q; see `QueryAttention.forward` for the arguments."""
        attended = self.attention(sequence, mask, words, word_mask)
        sentence = self.sentence(words, word_mask).unsqueeze(1).expand_as(attended)
        return torch.cat((attended, sentence), -1)


class BidirectionalLSTM(nn.Module):
    """A bidirectional LSTM over padded sequences that reads each row's valid part only.

    The backward direction runs over rows reversed within their own length, which equals a packed sequence but
    needs no lengths on the host, and on a CPU is no slower.
    """

    def __init__(self, dim: int) -> None:
        """Builds one LSTM for each direction, `dim` features in and out."""
        super().__init__()
        self.forth = nn.LSTM(dim, dim, batch_first=True)
        self.back = nn.LSTM(dim, dim, batch_first=True)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Runs (B, L, d) under a (B, L) mask, valid positions first, to (B, L, 2 d), zero on padding."""
        position = torch.arange(x.shape[1], device=x.device)
        last = mask.sum(1, keepdim=True) - 1
        order = torch.where(mask, last - position, position).unsqueeze(-1).expand_as(x)
        forth, _ = self.forth(x)
        back, _ = self.back(x.gather(1, order))
        return torch.cat((forth, back.gather(1, order)), -1) * mask.unsqueeze(-1)


class SingleEndpoints(nn.Module):
    """Start and end logits from one LSTM (TEA Eq. 10; that it is bidirectional is EMB's code)."""

    def __init__(self, dim: int) -> None:
        """Builds the LSTM and the linear read-out of width `dim`."""
        super().__init__()
        self.lstm = BidirectionalLSTM(dim)
        self.output = nn.Linear(2 * dim, 2)

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Maps (B, L, d) to start and end logits (B, L), not masked."""
        start, end = self.output(self.lstm(x, mask)).unbind(-1)
        return start, end


class ChainedEndpoints(nn.Module):
    """Start logits from a first LSTM, end logits from a second one that reads the first (EMB's code)."""

    def __init__(self, dim: int) -> None:
        """Builds both LSTMs and both read-outs of width `dim`."""
        super().__init__()
        self.start_lstm = BidirectionalLSTM(dim)
        self.start_linear = nn.Linear(2 * dim, dim)
        self.end_lstm = BidirectionalLSTM(dim)
        self.end_linear = nn.Linear(2 * dim, dim)
        self.start_output = nn.Sequential(nn.Linear(2 * dim, dim), nn.ReLU(), nn.Linear(dim, 1))
        self.end_output = nn.Sequential(nn.Linear(2 * dim, dim), nn.ReLU(), nn.Linear(dim, 1))

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Maps (B, L, d) to start and end logits (B, L), not masked."""
        start = self.start_linear(self.start_lstm(x, mask))
        end = self.end_linear(self.end_lstm(start, mask))
        return (
            self.start_output(torch.cat((start, x), -1)).squeeze(-1),
            self.end_output(torch.cat((end, x), -1)).squeeze(-1),
        )


class EndpointLogits(NamedTuple):
    """What a predictor returns.

    Attributes:
        start: (B, L) logits of being the first index, about minus infinity on padding.
        end: (B, L) logits of being the last index.
        highlight: (B, L), h of Eq. 11 before the sigmoid, about minus infinity on padding.
    """

    start: Tensor
    end: Tensor
    highlight: Tensor


class SpanPredictor(nn.Module):
    """Predictor(V, Q) of TEA Eq. 10-11: softmax(LSTM(V-bar * h)), h = sigmoid(Conv1D(V-bar || q))."""

    def __init__(
        self, *, dim: int, dropout: float, similarity: Similarity, gate: Gate, endpoints: Endpoints
    ) -> None:
        """Builds the predictor.

        Args:
            dim: width d.
            dropout: dropout rate; only the trilinear similarity has any.
            similarity: see `QueryAttention`.
            gate: "attended": h reads V-bar || q and multiplies V-bar (Eq. 10-11). "joint": one more layer,
                F = ReLU(FC(V-bar || q)), is what h reads and multiplies (EMB's code).
            endpoints: "single" LSTM (Eq. 10) or "chained" ones (EMB's code).
        """
        super().__init__()
        if gate not in ("attended", "joint"):
            raise unknown("gate", gate, ["attended", "joint"])
        if endpoints not in ("single", "chained"):
            raise unknown("endpoints", endpoints, ["single", "chained"])
        self.fusion = Fusion(dim, dropout, similarity)
        self.joint = nn.Linear(2 * dim, dim) if gate == "joint" else None
        self.highlight = nn.Linear(dim if gate == "joint" else 2 * dim, 1)
        self.endpoints = SingleEndpoints(dim) if endpoints == "single" else ChainedEndpoints(dim)

    def forward(self, sequence: Tensor, mask: Tensor, words: Tensor, word_mask: Tensor) -> EndpointLogits:
        """Predicts both endpoints and the highlight; see `QueryAttention.forward` for the arguments."""
        fused = self.fusion(sequence, mask, words, word_mask)
        if self.joint is None:
            highlight = self.highlight(fused)
            gated = fused[..., : sequence.shape[-1]]
        else:
            gated = self.joint(fused).relu()
            highlight = self.highlight(gated)
        start, end = self.endpoints(gated * highlight.sigmoid(), mask)
        return EndpointLogits(*(x.masked_fill(~mask, MASKED) for x in (start, end, highlight.squeeze(-1))))


class Located(NamedTuple):
    """What a branch returns.

    Attributes:
        exchanged: the sequence and the words after the exchange.
        logits: of endpoints and highlight.
    """

    exchanged: Exchanged
    logits: EndpointLogits


class EndpointBranch(nn.Module):
    """Attn, then Predictor: Eq. 7-11 of TEA for the video, Eq. 12-13 for the paragraph."""

    def __init__(
        self,
        *,
        dim: int,
        heads: int,
        dropout: float,
        unit: UnitName,
        order: Order,
        final_self_attention: bool,
        guide_maxima: Maxima,
        guide_placement: Placement | None,
        average_padding: bool,
        guide_kernel: int,
        similarity: Similarity,
        gate: Gate,
        endpoints: Endpoints,
    ) -> None:
        """Builds the branch.

        Args:
            dim: width d.
            heads: attention heads.
            dropout: dropout rate.
            unit: see `Exchange`.
            order: see `Exchange`.
            final_self_attention: see `Exchange`.
            guide_maxima: see `running_maxima`.
            guide_placement: see `Exchange`.
            average_padding: see `Exchange`.
            guide_kernel: see `Exchange`.
            similarity: see `QueryAttention`.
            gate: see `SpanPredictor`.
            endpoints: see `SpanPredictor`.

        Raises:
            VmrError: for an unknown value of a switch.
        """
        super().__init__()
        if guide_maxima not in ("inclusive", "strict"):
            raise unknown("guide_maxima", guide_maxima, ["inclusive", "strict"])
        self.guide_maxima = guide_maxima
        self.exchange = Exchange(
            dim=dim,
            heads=heads,
            dropout=dropout,
            unit=unit,
            order=order,
            final_self_attention=final_self_attention,
            guide_placement=guide_placement,
            guide_kernel=guide_kernel,
            average_padding=average_padding,
        )
        self.predictor = SpanPredictor(
            dim=dim, dropout=dropout, similarity=similarity, gate=gate, endpoints=endpoints
        )

    def forward(self, sequence: Tensor, mask: Tensor, words: Tensor, word_mask: Tensor) -> Located:
        """Locates the words in (B, L, d) under its (B, L) mask; words are (B, Lq, d) under (B, Lq)."""

        def guides(state: Tensor) -> tuple[Tensor, Tensor]:
            return running_maxima(state, mask, self.guide_maxima)

        exchanged = self.exchange(sequence, mask, words, word_mask, [guides] * len(self.exchange.units))
        return Located(exchanged, self.predictor(exchanged.sequence, mask, exchanged.words, word_mask))


def rank_spans(start: Tensor, end: Tensor, mask: Tensor, count: int, nms_iou: float) -> tuple[Tensor, Tensor]:
    """Ranks the joint distribution of both endpoints, start <= end, with greedy non-maximum suppression.

    The first answer is the joint argmax. Every further one is the best cell whose IoU with all earlier
    answers does not exceed `nms_iou`.

    Args:
        start: (B, L) non-negative score of each index as the first one.
        end: (B, L) non-negative score of each index as the last one.
        mask: (B, L) bool, True = valid; valid positions come first.
        count: K, answers for each row.
        nms_iou: largest IoU of two answers.

    Returns:
        spans (B, K, 2) as fractions of the valid length, (s / L, (e + 1) / L), and scores (B, K) in
        descending order; where too few cells are left, empty spans of score 0.
    """
    size = start.shape[1]
    index = torch.arange(size, device=start.device)
    pair = mask.unsqueeze(2) & mask.unsqueeze(1) & (index.unsqueeze(1) <= index)
    joint = (start.unsqueeze(2) * end.unsqueeze(1)).masked_fill(~pair, -1.0)
    length = (index - index.unsqueeze(1) + 1).clamp(min=0)
    picked, scores = [], []
    for _ in range(count):
        score, cell = joint.flatten(1).max(1)
        first, last = cell // size, cell % size
        inter = (
            torch.minimum(index, last.unsqueeze(1)).unsqueeze(1)
            + 1
            - torch.maximum(index, first.unsqueeze(1)).unsqueeze(2)
        )
        inter = inter.clamp(min=0)
        union = length + (last - first + 1)[:, None, None] - inter
        # The chosen cell goes in any case: its own IoU of 1 would survive a threshold of 1.
        chosen = (index.unsqueeze(1) == first[:, None, None]) & (index == last[:, None, None])
        joint = joint.masked_fill((inter > nms_iou * union) | chosen, -1.0)
        left = score >= 0
        picked.append(torch.stack((first, last + 1), -1) * left.unsqueeze(-1))
        scores.append(score.clamp(min=0.0))
    spans = torch.stack(picked, 1) / mask.sum(1)[:, None, None]
    return spans, torch.stack(scores, 1)
