"""TEA: text-enhanced alignment; narrations merged into the video, and a branch from paragraph to query.

Paper: Cai, Huang, Gong, Jin, Liu, "MLLM as Video Narrator: Mitigating Modality Imbalance in Video Moment
Retrieval", arXiv 2406.17880. It extends EMB: without narrations (`merge: null`, `alpha: 0`) it is EMB.

No code was released. Choices made here where the paper is silent: one projection of the narration, separate
from that of the words, serves merge and branch; positions are added after the merge; the paragraph branch has
its own weights, reads the words before any attention and is not guided (`guided_paragraph`); only the video's
highlight h is supervised (Eq. 16), the paragraph's learns through L_vmr; p^s and p^e of Eq. 14 sum to
1 + alpha and are not renormalised.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from vmr_zoo.blocks.attention_unit import SpanNetwork
from vmr_zoo.blocks.clips import whole_clips
from vmr_zoo.blocks.per_video import per_video
from vmr_zoo.blocks.span_predictor import EndpointBranch, ProposalBranch, SpanRanking
from vmr_zoo.errors import VmrError
from vmr_zoo.methods.base import Training
from vmr_zoo.methods.emb import EMB, ElasticBoundary, EMBOutput, SnippetPooling, WeightedEndpoints
from vmr_zoo.types import Batch


def align_narration(narration: Tensor, narration_mask: Tensor, spans: Tensor, mask: Tensor) -> Tensor:
    """Averages the narration sentences of each snippet: C^a of Eq. 3.

    Snippet k of L covers [k / L, (k + 1) / L). A sentence about an interval belongs to every snippet whose
    centre it contains; one that contains no centre, as about one frame, to the snippet of its own centre. A
    snippet without a sentence takes the nearest in time. (The paper does not cover this case; with one
    caption a second and finer features, most snippets have none.)

    Args:
        narration: (B, Ln, D) one vector for each sentence.
        narration_mask: (B, Ln) bool, at least one True in each row.
        spans: (B, Ln, 2) start and end as fractions of the duration.
        mask: (B, L) bool of the snippets; valid ones come first.

    Returns:
        (B, L, D), zero on padding.
    """
    count = mask.sum(1)[:, None]
    snippet = torch.arange(mask.shape[1], device=mask.device)[:, None]
    centre = (snippet + 0.5) / count.unsqueeze(1)
    start, end = spans.unsqueeze(1).unbind(-1)
    contains = (start <= centre) & (centre < end) & mask.unsqueeze(-1)
    own = torch.minimum(whole_clips(spans.mean(2) * count), count - 1).unsqueeze(1) == snippet
    inside = torch.where(contains.any(1, keepdim=True), contains, own) & narration_mask.unsqueeze(1)
    distance = (torch.maximum(start - centre, centre - end)).clamp(min=0.0)
    nearest = distance.masked_fill(~narration_mask.unsqueeze(1), torch.inf).argmin(2)
    fallback = functional.one_hot(nearest, narration.shape[1]).bool()
    weights = torch.where(inside.any(2, keepdim=True), inside, fallback).to(narration.dtype)
    pooled = (weights / weights.sum(2, keepdim=True)) @ narration
    return pooled * mask.unsqueeze(-1)


class ConcatMerge(nn.Module):
    """s^m = MLP(s || c), Eq. 4: snippet and narration concatenated (Table 4, "Concat+MLP")."""

    def __init__(self, dim: int) -> None:
        """Builds the MLP, 2 d to d to d."""
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(2 * dim, dim), nn.ReLU(), nn.Linear(dim, dim))

    def forward(self, video: Tensor, narration: Tensor, mask: Tensor) -> Tensor:
        """Merges (B, L, d) video and narration under a (B, L) mask to (B, L, d)."""
        return self.mlp(torch.cat((video, narration), -1))


class AddMerge(nn.Module):
    """s^m = s + c, alternative (a) to Eq. 4 (Table 4, "Add")."""

    def forward(self, video: Tensor, narration: Tensor, mask: Tensor) -> Tensor:
        """Merges (B, L, d) video and narration under a (B, L) mask to (B, L, d)."""
        return video + narration


class AttentionMerge(nn.Module):
    """V^m = A(V, C), alternative (b) to Eq. 4 (Table 4, "Attention"): the attention unit of Eq. 6."""

    def __init__(self, network: SpanNetwork) -> None:
        """Builds the unit."""
        super().__init__()
        self.unit = network.attention_unit()

    def forward(self, video: Tensor, narration: Tensor, mask: Tensor) -> Tensor:
        """Merges (B, L, d) video and narration under a (B, L) mask to (B, L, d)."""
        return self.unit(video, narration, mask)


class TEA(EMB):
    """TEA."""

    def __init__(
        self,
        *,
        video_dim: int,
        query_dim: int,
        narration_dim: int | None,
        network: SpanNetwork,
        snippets: SnippetPooling,
        merge: nn.Module | None,
        alpha: float,
        guided_paragraph: bool,
        branch: Callable[[SpanNetwork], EndpointBranch],
        proposals: ProposalBranch | None,
        boundary: ElasticBoundary,
        ranking: SpanRanking,
        training: Training,
    ) -> None:
        """Builds the network.

        Args:
            video_dim: width of the clip features.
            query_dim: width of the token features.
            narration_dim: width of the narration's sentence features; None without narrations.
            network: sizes and forms of the attention layers.
            snippets: pools long videos.
            merge: merges (B, L, d) video and narration under a mask (Eq. 4); None keeps the video.
            alpha: weight of the paragraph branch (Eq. 14); 0 leaves it out.
            guided_paragraph: whether the paragraph is guided like the video; Eq. 12 does not guide it.
            branch: builds the video branch, and again the paragraph branch.
            proposals: auxiliary proposals; they read the merged video.
            boundary: losses and candidate sets.
            ranking: ranks the moments of a prediction.
            training: loss weights, optimizer, and what validation computes.
        """
        super().__init__(
            video_dim=video_dim,
            query_dim=query_dim,
            network=network,
            snippets=snippets,
            branch=branch,
            proposals=proposals,
            boundary=boundary,
            ranking=ranking,
            training=training,
        )
        if alpha < 0:
            raise VmrError(f"method.alpha weights a probability (Eq. 14): expected 0 or more, found {alpha}.")
        self.merge, self.alpha = merge, alpha
        if merge is not None or alpha > 0:
            self.build_narration_parts(narration_dim, branch, guided_paragraph)

    def build_narration_parts(
        self,
        narration_dim: int | None,
        branch: Callable[[SpanNetwork], EndpointBranch],
        guided_paragraph: bool,
    ) -> None:
        """Builds the parts that read narrations; arguments as in the constructor.

        Raises:
            VmrError: if the features have no narrations.
        """
        if narration_dim is None:
            raise VmrError(
                "TEA reads narrations, but these features have none (features.narration_dim is not set). Use "
                "features with narrations, or turn both off: method.merge=null method.alpha=0, which is EMB."
            )
        self.needs = frozenset({"narration"})
        self.narration_projection = self.input_projection(narration_dim)
        if self.alpha > 0:
            placement = self.network.guide_placement if guided_paragraph else None
            self.paragraph = branch(dataclasses.replace(self.network, guide_placement=placement))
        self.initialise()

    def forward(self, batch: Batch) -> EMBOutput:
        """Runs the network without the proposals."""
        if not self.needs:
            return super().forward(batch)
        video, mask, clip_snippet = self.snippets(batch["video"], batch["video_mask"])
        words, word_mask = self.project_words(batch), batch["query_mask"]
        paragraph = self.align(batch, mask)  # Eq. 3

        frames = per_video(self.video_projection, batch, video, training=self.training)
        if self.merge is not None:
            frames = self.merge(frames, paragraph, mask)  # Eq. 4-5
        frames = self.add_position(frames)
        output = self.branch(frames, mask, words, word_mask)  # Eq. 7-11
        endpoints = [WeightedEndpoints(1.0, output.logits.start, output.logits.end)]
        if self.alpha > 0:
            logits = self.paragraph(self.add_position(paragraph), mask, words, word_mask).logits  # Eq. 12-13
            endpoints.append(WeightedEndpoints(self.alpha, logits.start, logits.end))  # Eq. 14
        return EMBOutput(frames, mask, words, clip_snippet, output, endpoints)

    def align(self, batch: Batch, mask: Tensor) -> Tensor:
        """Aligns the narration with the snippets and projects it: C^a of Eq. 3, (B, L, d)."""
        aligned = align_narration(batch["narration"], batch["narration_mask"], batch["narration_spans"], mask)
        return self.narration_projection(aligned)
