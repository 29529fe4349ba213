"""Branches of a span predictor (TEA Eq. 7-13): endpoints, ranked spans, and EMB's auxiliary proposals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from vmr_zoo.blocks.attention_unit import (
    MASKED,
    AttentionExchange,
    ExchangeOutput,
    GuideFunction,
    Maxima,
    QueryFusion,
    SpanNetwork,
    running_maxima,
)
from vmr_zoo.spans import iou
from vmr_zoo.utils.switches import check_switches

Gate = Literal["attended", "joint"]
Endpoints = Literal["single", "chained"]


class BidirectionalLSTM(nn.Module):
    """A bidirectional LSTM that reads only the valid part of each row of a padded batch.

    The backward direction runs over rows reversed within their own length. This equals a packed sequence, but
    needs no lengths on the host, and is no slower on a CPU.
    """

    def __init__(self, dim: int) -> None:
        """Builds one LSTM for each direction, `dim` features in and out."""
        super().__init__()
        self.forth = nn.LSTM(dim, dim, batch_first=True)
        self.back = nn.LSTM(dim, dim, batch_first=True)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Maps (B, L, d) under a (B, L) mask, valid positions first, to (B, L, 2 d), zero on padding."""
        position = torch.arange(x.shape[1], device=x.device)
        last = mask.sum(1, keepdim=True) - 1
        order = torch.where(mask, last - position, position)  # its own inverse
        rows = order + x.shape[1] * torch.arange(len(x), device=x.device).unsqueeze(1)
        forth, _ = self.forth(x)
        # An embedding lookup moves whole rows, where `gather` needs an index per number.
        back, _ = self.back(functional.embedding(rows, x.flatten(0, 1)))
        back = functional.embedding(rows, back.flatten(0, 1))
        return torch.cat((forth, back), -1) * mask.unsqueeze(-1)


class SingleEndpoints(nn.Module):
    """Start and end logits from one LSTM (Eq. 10); that it is bidirectional follows EMB's code."""

    def __init__(self, dim: int) -> None:
        """Builds the LSTM of width `dim` and the linear output layer."""
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
        """Builds both LSTMs and both output networks of width `dim`."""
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
    """Predictor(V, Q) of Eq. 10-11: softmax(LSTM(V-bar * h)) with h = sigmoid(Conv1D(V-bar || q))."""

    def __init__(self, network: SpanNetwork, *, gate: Gate, endpoints: Endpoints) -> None:
        """Builds the predictor.

        Args:
            network: sizes and forms.
            gate: what h reads and what it multiplies.
            endpoints: number of LSTMs.
        """
        super().__init__()
        dim = network.dim
        self.fusion = QueryFusion(network)
        self.joint = nn.Linear(2 * dim, dim) if gate == "joint" else None
        self.highlight = nn.Linear(dim if gate == "joint" else 2 * dim, 1)
        self.endpoints = SingleEndpoints(dim) if endpoints == "single" else ChainedEndpoints(dim)

    def forward(self, sequence: Tensor, mask: Tensor, words: Tensor, word_mask: Tensor) -> EndpointLogits:
        """Predicts endpoints and highlight from (B, L, d) under (B, L) and (B, Lq, d) under (B, Lq)."""
        fused = self.fusion(sequence, mask, words, word_mask)  # V-bar || q, Eq. 11
        if self.joint is None:
            highlight = self.highlight(fused)  # h, Eq. 11
            gated = fused[..., : sequence.shape[-1]]
        else:
            gated = self.joint(fused).relu()
            highlight = self.highlight(gated)
        start, end = self.endpoints(gated * highlight.sigmoid(), mask)  # Eq. 10
        return EndpointLogits(*(x.masked_fill(~mask, MASKED) for x in (start, end, highlight.squeeze(-1))))


class BranchOutput(NamedTuple):
    """What an endpoint branch returns.

    Attributes:
        exchanged: sequence and words after the attention exchange.
        logits: of endpoints and highlight.
    """

    exchanged: ExchangeOutput
    logits: EndpointLogits


@check_switches
class EndpointBranch(nn.Module):
    """Attn, then Predictor: Eq. 7-11 for the video, Eq. 12-13 for TEA's paragraph."""

    def __init__(
        self,
        network: SpanNetwork,
        *,
        guide_maxima: Maxima,
        guide_kernel: int,
        average_padding: bool,
        gate: Gate,
        endpoints: Endpoints,
    ) -> None:
        """Builds the branch.

        Args:
            network: sizes and forms.
            guide_maxima: "inclusive": the running maxima of Eq. 7 include the position itself. "strict": they
                do not (EMB's code).
            guide_kernel: positions that the guided convolution covers.
            average_padding: whether padded rows attend the other side with equal weights in cross-attention
                (EMB's code).
            gate: "attended": h reads V-bar || q and multiplies V-bar (Eq. 10-11). "joint": it reads and
                multiplies one more layer, F = ReLU(FC(V-bar || q)) (EMB's code).
            endpoints: a "single" LSTM (Eq. 10) or two "chained" ones (EMB's code).

        Raises:
            VmrError: for an unknown value of a switch.
        """
        super().__init__()
        self.guide_maxima: Maxima = guide_maxima
        self.exchange = AttentionExchange(network, guide_kernel=guide_kernel, average_padding=average_padding)
        self.predictor = SpanPredictor(network, gate=gate, endpoints=endpoints)

    def forward(self, sequence: Tensor, mask: Tensor, words: Tensor, word_mask: Tensor) -> BranchOutput:
        """Predicts from (B, L, d) under its (B, L) mask and words (B, Lq, d) under theirs (B, Lq)."""

        def guide(state: Tensor) -> tuple[Tensor, Tensor]:
            return running_maxima(state, mask, self.guide_maxima)

        exchanged = self.exchange(sequence, mask, words, word_mask, [guide] * len(self.exchange.units))
        return BranchOutput(exchanged, self.predictor(exchanged.sequence, mask, exchanged.words, word_mask))


@dataclass(frozen=True)
class SpanRanking:
    """Ranks spans by the joint distribution of their endpoints, with greedy non-maximum suppression.

    The first answer is the joint argmax. Each further one is the best cell whose IoU with all earlier answers
    does not exceed `nms_iou`.

    Attributes:
        answers: K, answers for each row.
        nms_iou: largest IoU of two answers.
    """

    answers: int
    nms_iou: float

    def __call__(self, start: Tensor, end: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Ranks the spans with start <= end.

        Args:
            start: (B, L) non-negative score of each index as the first one.
            end: (B, L) non-negative score of each index as the last one.
            mask: (B, L) bool, True = valid; valid positions come first.

        Returns:
            spans (B, K, 2) as fractions of the valid length, (s / L, (e + 1) / L), and scores (B, K) in
            descending order; empty spans of score 0 where too few cells are left.
        """
        size = start.shape[1]
        # Small whole numbers in float32: exact, and faster than integers on a CPU.
        index = torch.arange(size, device=start.device, dtype=torch.float32)
        pair = mask.unsqueeze(2) & mask.unsqueeze(1) & (index.unsqueeze(1) <= index)
        joint = (start.unsqueeze(2) * end.unsqueeze(1)).masked_fill(~pair, -1.0)
        length = index - index.unsqueeze(1) + 1
        picked, scores = [], []
        for _ in range(self.answers):
            score, cell = joint.flatten(1).max(1)
            first, last = cell // size, cell % size
            inter = (
                torch.minimum(index, last.unsqueeze(1)).unsqueeze(1)
                + 1
                - torch.maximum(index, first.unsqueeze(1)).unsqueeze(2)
            ).clamp_(min=0)
            union = (length + (last - first + 1)[:, None, None]).sub_(inter)
            covered = inter.gt_(union.mul_(self.nms_iou))  # 1.0 or 0.0
            joint.add_(covered, alpha=MASKED)  # faster than filling
            # Drop the chosen cell explicitly: its IoU with itself, 1, does not exceed a threshold of 1.
            joint.flatten(1).scatter_(1, cell.unsqueeze(1), -1.0)
            left = score >= 0
            picked.append(torch.stack((first, last + 1), -1) * left.unsqueeze(-1))
            scores.append(score.clamp(min=0.0))
        spans = torch.stack(picked, 1) / mask.sum(1)[:, None, None]
        return spans, torch.stack(scores, 1)


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


class Proposals(NamedTuple):
    """The candidate moments of a batch and their scores.

    Attributes:
        bounds: (B, P, 2) int64, first and last index, inclusive; meaningless where invalid.
        mask: (B, P) bool, True = exists.
        logits: (B, P).
    """

    bounds: Tensor
    mask: Tensor
    logits: Tensor

    def times(self, frame_mask: Tensor) -> Tensor:
        """Returns start and end as fractions of the duration, (B, P, 2), given the (B, L) frame mask."""
        return (self.bounds + torch.arange(2, device=self.bounds.device)) / frame_mask.sum(1)[:, None, None]


def block_maxima(x: Tensor, mask: Tensor | None, size: int, fill: float | None) -> Tensor:
    """Max-pools a sequence in blocks.

    Args:
        x: (B, L, d).
        mask: (B, L) bool, True = counts; None counts padding too.
        size: positions in a block.
        fill: value of the positions that are missing in the last block; None: they do not count.

    Returns:
        (B, ceil(L / size), d), zero for a block in which no position counts.
    """
    lowest = torch.finfo(x.dtype).min / 2  # half, or the sum with a number could overflow
    if mask is not None:
        x = x + (1 - mask.unsqueeze(-1).to(x.dtype)) * lowest
    x = functional.pad(x, (0, 0, 0, -x.shape[1] % size), value=lowest if fill is None else fill)
    # max, not amax: on ties, one position gets the whole gradient, as in the released code.
    pooled = x.unflatten(1, (-1, size)).max(2).values
    return pooled.masked_fill(pooled <= lowest / 2, 0.0)


def neighbours_of(first: Tensor, last: Tensor, count: int) -> Tensor:
    """Finds the 3 x 3 neighbourhood of each proposal on the grid of first and last block.

    Args:
        first: (P,) first block of each proposal, row by row of the upper triangle.
        last: (P,) last block.
        count: N, blocks.

    Returns:
        (P, 9) indices of proposals; P where the grid has none.
    """
    offset = torch.arange(-1, 2, device=first.device)
    i = first[:, None, None] + offset[:, None]
    j = last[:, None, None] + offset
    number = i * count - i * (i - 1) // 2 + j - i  # row i of the triangle has N - i cells
    return torch.where((i >= 0) & (j < count) & (i <= j), number, len(first)).flatten(1)


@check_switches
class ProposalBranch(nn.Module):
    """Builds and scores the auxiliary proposals of a video: every run of blocks of frames.

    TEA names "an auxiliary proposal ranking" (Sec. 3.5) and refers to EMB; the branch follows EMB's code. It
    runs in training only, where its best proposal widens the annotated endpoints to candidate sets.

    The feature of a proposal, blocks i to j, is their element-wise maximum. The branch mirrors the frame
    branch (guided exchange with the words, then fusion). The guides of a proposal are the frame branch's
    states, max-pooled in its first and its last block. A 3 x 3 convolution on the (i, j) grid mixes
    neighbouring proposals before they are scored.
    """

    def __init__(
        self, network: SpanNetwork, *, block: int, block_padding: Literal["masked", "released"]
    ) -> None:
        """Builds the branch.

        Args:
            network: sizes and forms.
            block: frames in a block.
            block_padding: "masked": only valid frames count in a block. "released": the guides also count
                padded frames, and values near 0 fill an incomplete last block (bugs of EMB's code, by which
                a proposal's score depends on the padding of its batch).

        Raises:
            VmrError: for an unknown value of the switch.
        """
        super().__init__()
        dim = network.dim
        self.block = block
        self.block_padding = block_padding
        self.exchange = AttentionExchange(network, guide_kernel=1, word_self_attention=False)
        self.fusion = QueryFusion(network)
        self.joint = nn.Linear(2 * dim, dim)
        self.neighbours = nn.Conv2d(dim, dim, 3, padding=1)
        self.output = nn.Linear(dim, 1)

    def forward(
        self, video: Tensor, mask: Tensor, words: Tensor, word_mask: Tensor, frame_branch: ExchangeOutput
    ) -> Proposals:
        """Scores every proposal.

        Args:
            video: (B, L, d), the frames before the exchange.
            mask: (B, L) bool.
            words: (B, Lq, d).
            word_mask: (B, Lq) bool.
            frame_branch: the frame branch's exchange, whose states and attended words the proposals read.

        Returns:
            The N (N + 1) / 2 proposals i <= j of the N blocks, row by row.
        """
        released = self.block_padding == "released"
        fill = -1e-30 if released else None
        blocks = block_maxima(video, mask, self.block, fill)
        count = blocks.shape[1]
        first, last = torch.triu_indices(count, count, device=video.device)
        features = self._run_maxima(blocks)[:, first, last]

        length = mask.sum(1, keepdim=True)
        first_frame = (first * self.block).expand(len(video), -1)
        last_frame = torch.minimum(last * self.block + self.block - 1, length - 1)
        exists = last * self.block < length
        present = exists.unsqueeze(-1).to(video.dtype)

        def guide_of(state: Tensor) -> GuideFunction:
            pooled = block_maxima(state, None if released else mask, self.block, fill)
            left, right = pooled.index_select(1, first), pooled.index_select(1, last)
            return lambda _: (left * present, right * present)

        guides = [guide_of(state) for state in frame_branch.states]
        exchanged = self.exchange(features, exists, words, word_mask, guides, frame_branch.attended_words)
        fused = self.joint(self.fusion(exchanged.sequence, exists, exchanged.words, word_mask)).relu()
        mixed = self._mix_neighbours(fused * present, present, neighbours_of(first, last, count))
        return Proposals(torch.stack((first_frame, last_frame), -1), exists, self.output(mixed).squeeze(-1))

    @staticmethod
    def _run_maxima(blocks: Tensor) -> Tensor:
        """Takes the maxima of every run i..j of (B, N, d) blocks, (B, N, N, d); meaningless where i > j."""
        count = blocks.shape[1]
        wide = blocks.unsqueeze(1).expand(-1, count, -1, -1)
        before = torch.ones(count, count, dtype=torch.bool, device=blocks.device).tril(-1)
        lowest = torch.finfo(blocks.dtype).min
        return wide.masked_fill(before[None, :, :, None], lowest).cummax(2).values

    def _mix_neighbours(self, x: Tensor, present: Tensor, neighbours: Tensor) -> Tensor:
        """Convolves the grid of the (B, P, d) proposals; divides by the number of existing neighbours.

        Only the upper triangle of the grid exists. So the neighbours of each proposal are collected, and one
        matrix product replaces a convolution of the whole grid.

        Args:
            x: (B, P, d), zero for proposals that do not exist.
            present: (B, P, 1), 1 for those that exist, else 0.
            neighbours: (P, 9), as `neighbours_of` returns it.
        """
        index = neighbours.flatten()
        around = functional.pad(x, (0, 0, 0, 1)).index_select(1, index)
        number = functional.pad(present, (0, 0, 0, 1)).index_select(1, index).unflatten(1, (-1, 9)).sum(2)
        kernel = self.neighbours.weight.permute(0, 2, 3, 1).flatten(1)  # (d, 9 d)
        mixed = functional.linear(around.unflatten(1, (-1, 9)).flatten(2), kernel, self.neighbours.bias)
        return mixed.relu() / number.clamp(min=1.0)
