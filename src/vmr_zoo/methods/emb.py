"""EMB: a span predictor with elastic boundaries.

Paper: Huang et al., "Video Activity Localisation with Uncertainties in Temporal Boundary", ECCV 2022, as TEA
restates it (Cai et al., "MLLM as Video Narrator", arXiv 2406.17880, Eq. 6-11 and 15-17): EMB is TEA without
narrations.

TEA's text and EMB's released code differ in the switches of `SpanNetwork` (blocks/attention_unit.py),
`EndpointBranch` and `ProposalBranch` (blocks/span_predictor.py), `SnippetPooling` and `ElasticBoundary`;
docs/methods/emb.md lists them. TEA's total loss (Eq. 17) has no ranking loss, but its candidate sets need
one; its weight follows EMB's code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from vmr_zoo.blocks.attention_unit import GuidedConv, SpanNetwork
from vmr_zoo.blocks.dropout import Dropout
from vmr_zoo.blocks.per_video import per_video
from vmr_zoo.blocks.position import sine_coordinates
from vmr_zoo.blocks.span_predictor import (
    BranchOutput,
    EndpointBranch,
    ProposalBranch,
    Proposals,
    SpanRanking,
    span_to_indices,
)
from vmr_zoo.errors import VmrError
from vmr_zoo.methods.base import Method, Training
from vmr_zoo.spans import iou
from vmr_zoo.types import Batch, Prediction
from vmr_zoo.utils.switches import check_switches


@check_switches
@dataclass(frozen=True)
class SnippetPooling:
    """Pools the clips of long videos to snippets; a short video keeps one snippet per clip.

    Attributes:
        max_snippets: videos with more clips than this are pooled to this many snippets.
        pooling: "max" (TEA Sec. 4) or "mean" (EMB's code).
        drop_last_clip: whether the last snippet of a pooled video leaves out the last clip, unless that is
            its only one (a bug of EMB's code).
    """

    max_snippets: int
    pooling: Literal["max", "mean"]
    drop_last_clip: bool

    def snippet_of_clip(self, mask: Tensor) -> Tensor:
        """Finds the snippet of each clip; snippet k of n clips begins at round(k n / max_snippets).

        Args:
            mask: (B, Lv) bool, True = valid; valid clips come first.

        Returns:
            (B, Lv) int64; `max_snippets` for a clip that belongs to none.
        """
        limit = self.max_snippets
        count = mask.sum(1, keepdim=True)
        step = torch.arange(limit + 1, device=mask.device)
        edges = torch.where(count > limit, (step * count.double() / limit).round().long(), step)
        clip = torch.arange(mask.shape[1], device=mask.device).expand_as(mask).contiguous()
        snippet = torch.searchsorted(edges[:, 1:].contiguous(), clip, right=True)
        if self.drop_last_clip:
            dropped = (clip == count - 1) & (count > limit) & (edges[:, -2:-1] < count - 1)
            snippet = snippet.masked_fill(dropped, limit)
        return snippet.masked_fill(~mask, limit)

    def __call__(self, video: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Pools (B, Lv, Dv) clips under their (B, Lv) mask.

        Returns:
            Snippets (B, L, Dv), L = min(Lv, max_snippets), their mask, and (B, Lv) the snippet of each clip.
        """
        limit = self.max_snippets
        if video.shape[1] <= limit:
            return video, mask, torch.arange(video.shape[1], device=video.device).expand_as(mask)
        snippet = self.snippet_of_clip(mask)
        # One extra snippet collects the clips that belong to none.
        pooled = video.new_zeros(len(video), limit + 1, video.shape[2]).scatter_reduce(
            1,
            snippet.unsqueeze(-1).expand_as(video),
            video,
            "amax" if self.pooling == "max" else "mean",
            include_self=False,
        )[:, :limit]
        valid = torch.arange(limit, device=video.device) < mask.sum(1, keepdim=True)
        return pooled * valid.unsqueeze(-1), valid, snippet.clamp(max=limit - 1)


def overlap_threshold(progress: float) -> float:
    """Computes theta, the least IoU of a proposal that may widen the annotation (EMB's code).

    Args:
        progress: fraction of the epochs in which theta falls; more than 1 after them.

    Returns:
        0.5 + 0.5 (1 - sigmoid((progress - 0.5) / 0.05)): from 1 down to 0.5.
    """
    return 0.5 + 0.5 * (
        1.0 - torch.sigmoid(torch.tensor((progress - 0.5) / 0.05, dtype=torch.float64)).item()
    )


def choose_proposal(proposals: Proposals, moment: Tensor, threshold: float) -> Tensor:
    """Picks the best-scored proposal that overlaps the annotation enough.

    Args:
        proposals: P for each row.
        moment: (B, 2) annotated first and last index.
        threshold: least IoU.

    Returns:
        (B, 2) first and last index of the proposal, or the annotation itself if none overlaps enough.
    """
    bounds = proposals.bounds
    half_open = torch.arange(2, device=bounds.device)
    overlap = iou((bounds + half_open).float(), (moment + half_open).float().unsqueeze(1))
    eligible = proposals.mask & (overlap >= threshold)
    best = proposals.logits.detach().masked_fill(~eligible, -torch.inf).argmax(1)
    chosen = bounds.gather(1, best[:, None, None].expand(-1, 1, 2)).squeeze(1)
    return torch.where(eligible.any(1, keepdim=True), chosen, moment)


def set_log_probability(logits: Tensor, members: Tensor) -> Tensor:
    """Computes the log of the probability that a softmax gives to a set.

    Args:
        logits: (B, L), about minus infinity on padding.
        members: (B, L) bool, at least one valid position in each row.

    Returns:
        (B,).
    """
    return logits.masked_fill(~members, -1e30).logsumexp(1) - logits.logsumexp(1)


def mean_cross_entropy(logits: Tensor, targets: Tensor, mask: Tensor, weight: Tensor | float = 1.0) -> Tensor:
    """Averages the weighted binary cross-entropy of (B, N) logits over the valid positions of a batch."""
    entropy = functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return (entropy * mask * weight).sum() / mask.sum()


class WeightedEndpoints(NamedTuple):
    """Endpoint logits of one branch and its weight in the sum of probabilities (Eq. 14).

    Attributes:
        weight: 1 for the video branch, alpha for the paragraph branch.
        start: (B, L), about minus infinity on padding.
        end: (B, L).
    """

    weight: float
    start: Tensor
    end: Tensor


@check_switches
@dataclass(frozen=True)
class ElasticBoundary:
    """Losses of a span predictor with elastic boundaries (Eq. 15-16, EMB).

    An annotated endpoint is uncertain. It is therefore widened to a candidate set, all snippets between the
    annotation and the best-scored proposal that overlaps it enough, and the predictor may put its probability
    anywhere in the set. Indices count snippets; "first" and "last" are inclusive.

    Attributes:
        end_set: "inclusive": candidate ends are between both last indices. "one_more": they extend one index
            further (a bug of EMB's code, whose proposal ends are exclusive).
        highlight_end: the foreground ends at the larger end, "max" (Eq. 16), or the smaller one, "min" (EMB's
            code).
        extension: fraction of its length by which the foreground is widened on each side (paper: 0; EMB's
            code: 0.1).
        positive_weight: weight of foreground snippets in L_h (paper: 1; EMB's code: 2).
        rank_low: IoU with the annotation at which a proposal's target score is 0.
        rank_high: IoU at which it is 1; linear between both.
        theta_epochs: epochs in which theta falls to 0.5; None: all epochs of the training (EMB's code).
    """

    end_set: Literal["inclusive", "one_more"]
    highlight_end: Literal["max", "min"]
    extension: float
    positive_weight: float
    rank_low: float
    rank_high: float
    theta_epochs: int | None

    def endpoint_sets(self, moment: Tensor, chosen: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Widens both endpoints to sets: every index between the annotation and the chosen proposal.

        Args:
            moment: (B, 2) annotated first and last index.
            chosen: (B, 2) those of the proposal.
            size: L.

        Returns:
            Start set and end set, (B, L) bool each.
        """
        if self.end_set == "one_more":
            chosen = chosen + torch.arange(2, device=chosen.device)
        index = torch.arange(size, device=moment.device)
        low, high = torch.minimum(moment, chosen), torch.maximum(moment, chosen)
        inside = (index >= low.unsqueeze(-1)) & (index <= high.unsqueeze(-1))
        return inside[:, 0], inside[:, 1]

    def highlight_labels(self, moment: Tensor, chosen: Tensor, mask: Tensor) -> Tensor:
        """Marks the foreground, y^h of Eq. 16, as (B, L) bool; arguments as in `endpoint_sets`."""
        first = torch.minimum(moment[:, 0], chosen[:, 0])
        other = chosen[:, 1] + (self.end_set == "one_more")
        larger = self.highlight_end == "max"
        last = torch.maximum(moment[:, 1], other) if larger else torch.minimum(moment[:, 1], other)
        margin = (self.extension * (last - first + 1)).round().long()
        index = torch.arange(mask.shape[1], device=mask.device)
        return (index >= (first - margin)[:, None]) & (index <= (last + margin)[:, None]) & mask

    def highlight_loss(self, logits: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
        """Computes L_h (Eq. 16), a scalar, from (B, L) logits, bool labels and mask."""
        weight = torch.where(labels, self.positive_weight, 1.0)
        return mean_cross_entropy(logits.masked_fill(~mask, 0.0), labels.to(logits.dtype), mask, weight)

    def ranking_targets(self, times: Tensor, span: Tensor) -> Tensor:
        """Computes the target score of each proposal from its IoU with the annotated cells (EMB's code).

        Args:
            times: (B, P, 2) start and end of the proposals.
            span: (B, 2) those of the annotation, in the same unit.

        Returns:
            (B, P) in [0, 1].
        """
        overlap = iou(times, span.unsqueeze(1))
        return ((overlap - self.rank_low) / (self.rank_high - self.rank_low)).clamp(0.0, 1.0)

    def __call__(
        self,
        endpoints: Sequence[WeightedEndpoints],
        highlight: Tensor,
        mask: Tensor,
        span: Tensor,
        proposals: Proposals | None,
        threshold: float,
    ) -> dict[str, Tensor]:
        """Computes the losses.

        Args:
            endpoints: of every branch; their weighted probabilities are summed, not renormalised.
            highlight: (B, L), h before the sigmoid.
            mask: (B, L) bool.
            span: (B, 2) the annotation as fractions of the duration.
            proposals: None leaves out "ranking" and keeps the annotation as the only candidate.
            threshold: theta of `overlap_threshold`.

        Returns:
            "endpoint" (L_vmr, Eq. 15, batch mean), "highlight" (L_h, Eq. 16), "ranking" (L_rank of EMB).
        """
        losses = {}
        chosen = moment = span_to_indices(span, mask)
        if proposals is not None:
            chosen = choose_proposal(proposals, moment, threshold)
            half_open = torch.arange(2, device=moment.device)
            targets = self.ranking_targets(
                (proposals.bounds + half_open).to(span.dtype), (moment + half_open).to(span.dtype)
            )
            losses["ranking"] = mean_cross_entropy(proposals.logits, targets, proposals.mask)
        starts, ends = self.endpoint_sets(moment, chosen, mask.shape[1])
        losses["endpoint"] = -(
            self._log_probability([(branch.weight, branch.start) for branch in endpoints], starts)
            + self._log_probability([(branch.weight, branch.end) for branch in endpoints], ends)
        ).mean()  # Eq. 15
        losses["highlight"] = self.highlight_loss(
            highlight, self.highlight_labels(moment, chosen, mask), mask
        )
        return losses

    @staticmethod
    def _log_probability(branches: list[tuple[float, Tensor]], members: Tensor) -> Tensor:
        parts = [set_log_probability(logits, members) + math.log(weight) for weight, logits in branches]
        return torch.stack(parts).logsumexp(0)


class EMBOutput(NamedTuple):
    """What the network computes on L snippets.

    Attributes:
        frames: (B, L, d), the snippets before the attention exchange.
        mask: (B, L) bool.
        words: (B, Lq, d).
        clip_snippet: (B, Lv) the snippet of each clip.
        video: output of the video branch.
        endpoints: endpoint logits of every branch with their weights.
    """

    frames: Tensor
    mask: Tensor
    words: Tensor
    clip_snippet: Tensor
    video: BranchOutput
    endpoints: list[WeightedEndpoints]


class EMB(Method):
    """EMB."""

    family = "Span prediction"
    follows_epochs = True  # the elastic boundary and the learning rate do

    def __init__(
        self,
        *,
        video_dim: int,
        query_dim: int,
        network: SpanNetwork,
        snippets: SnippetPooling,
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
            network: sizes and forms of the attention layers.
            snippets: pools long videos.
            branch: builds the video branch.
            proposals: auxiliary proposals, used in training only; None keeps the annotated endpoints.
            boundary: losses and candidate sets.
            ranking: ranks the moments of a prediction.
            training: loss weights, optimizer, and what validation computes.

        Raises:
            VmrError: if exactly one of the proposals and their ranking loss is turned off.
        """
        super().__init__(training)
        if (proposals is None) != (self.weight("ranking") is None):
            raise VmrError(
                "The ranking loss trains the proposals: turn off both (method.proposals=null "
                "method.training.loss_weights.ranking=null) or neither."
            )
        self.network, self.snippets = network, snippets
        self.unknown_word = network.unknown_word_vector(query_dim)
        self.query_projection = self.input_projection(query_dim)
        self.video_projection = self.input_projection(video_dim)
        self.branch = branch(network)
        self.proposals = proposals
        self.boundary, self.ranking = boundary, ranking
        self.initialise()

    def input_projection(self, features_dim: int) -> nn.Sequential:
        """Builds the projection of features to width d."""
        return nn.Sequential(Dropout(self.network.dropout), nn.Linear(features_dim, self.network.dim))

    def initialise(self) -> None:
        """Draws Linear and convolution weights from Xavier-uniform, biases zero (EMB's code)."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d):
                weight = module.weight
                # The guides' three columns are channels here, and part of a 2D kernel in EMB's code.
                grouped = isinstance(module, nn.Conv1d) and module.groups > 1
                nn.init.xavier_uniform_(weight.unsqueeze(1) if grouped else weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def add_position(self, x: Tensor) -> Tensor:
        """Adds sinusoids of the index to (B, L, d)."""
        index = torch.arange(x.shape[1], device=x.device, dtype=x.dtype).unsqueeze(-1)
        return x + sine_coordinates(index / (2 * torch.pi), self.network.dim)

    def project_words(self, batch: Batch) -> Tensor:
        """Projects the words to width d and adds their positions, (B, Lq, d)."""
        words = batch["query"]
        if self.unknown_word is not None:
            words = self.unknown_word(words, batch["query_mask"])
        return self.add_position(self.query_projection(words))

    def forward(self, batch: Batch) -> EMBOutput:
        """Runs the network without the proposals."""
        video, mask, clip_snippet = self.snippets(batch["video"], batch["video_mask"])
        frames = self.add_position(per_video(self.video_projection, batch, video, training=self.training))
        words = self.project_words(batch)
        output = self.branch(frames, mask, words, batch["query_mask"])  # Eq. 7-11
        endpoints = [WeightedEndpoints(1.0, output.logits.start, output.logits.end)]
        return EMBOutput(frames, mask, words, clip_snippet, output, endpoints)

    def progress(self) -> float:
        """Returns the argument of `overlap_threshold` for the current epoch; 0 outside a trainer."""
        try:
            trainer = self.trainer
        except RuntimeError:
            return 0.0
        if trainer.max_epochs and trainer.max_epochs > 0:
            return self.current_epoch / min(self.boundary.theta_epochs or math.inf, trainer.max_epochs)
        return self.global_step / float(trainer.estimated_stepping_batches)

    def losses(self, batch: Batch, threshold: float | None = None) -> dict[str, Tensor]:
        """Computes L_vmr, L_h (Eq. 15-16) and the ranking loss.

        A row with several moments is trained on its first one.

        Args:
            batch: as `vmr_zoo.types.Batch` describes it.
            threshold: theta, the least IoU of a proposal that may widen the annotation; None computes it from
                the training's progress.

        Returns:
            "endpoint", "highlight" and, with proposals, "ranking".
        """
        if threshold is None:
            threshold = overlap_threshold(self.progress())
        return self.losses_of(self(batch), batch, threshold)

    def losses_of(self, output: EMBOutput, batch: Batch, threshold: float) -> dict[str, Tensor]:
        """Computes the losses of an output under the given theta."""
        first = batch["span_mask"].int().argmax(1)
        span = batch["spans"][torch.arange(len(first), device=first.device), first]
        proposals = self.score_proposals(output, batch)
        highlight = output.video.logits.highlight
        return self.boundary(output.endpoints, highlight, output.mask, span, proposals, threshold)

    def score_proposals(self, output: EMBOutput, batch: Batch) -> Proposals | None:
        """Scores the auxiliary proposals; None if they are turned off."""
        if self.proposals is None:
            return None
        return self.proposals(
            output.frames, output.mask, output.words, batch["query_mask"], output.video.exchanged
        )

    def endpoint_probabilities(self, output: EMBOutput) -> tuple[Tensor, Tensor]:
        """Returns p^s and p^e, (B, L) each: the weighted sum of every branch's probabilities (Eq. 14)."""
        start = sum(branch.weight * branch.start.softmax(1) for branch in output.endpoints)
        end = sum(branch.weight * branch.end.softmax(1) for branch in output.endpoints)
        assert isinstance(start, Tensor)
        assert isinstance(end, Tensor)
        return start, end

    def predict(self, batch: Batch, *, details: bool = False) -> Prediction:
        """Ranks the joint distribution of both endpoints; the proposals are not used.

        Args:
            batch: as `vmr_zoo.types.Batch` describes it.
            details: also return `start_probability`, `end_probability` and `highlight` of each snippet.
        """
        output = self(batch)
        start, end = self.endpoint_probabilities(output)
        spans, scores = self.ranking(start, end, output.mask)
        highlight = output.video.logits.highlight.sigmoid()
        saliency = highlight.gather(1, output.clip_snippet) * batch["video_mask"]
        prediction: Prediction = {"spans": spans, "scores": scores, "saliency": saliency}
        if details:
            prediction["details"] = {
                "start_probability": start,
                "end_probability": end,
                "highlight": highlight,
            }
        return prediction

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Exempts biases and the guided convolutions' normalisation from weight decay (EMB's code)."""
        exempt = {
            id(weight)
            for module in self.modules()
            if isinstance(module, GuidedConv)
            for weight in module.norm.parameters()
        }
        decay: list[nn.Parameter] = []
        plain: list[nn.Parameter] = []
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                (plain if id(parameter) in exempt or "bias" in name else decay).append(parameter)
        return [{"params": decay}, {"params": plain, "weight_decay": 0.0}]

    def build_optimizer(self) -> torch.optim.Optimizer:
        """Builds the optimizer without its schedule."""
        optimizer: torch.optim.Optimizer = super().configure_optimizers()
        return optimizer

    @staticmethod
    def linear_decay(optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
        """Decays the learning rate linearly to 0 over `steps`, without warm-up (TEA Sec. 4)."""
        return torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)

    def configure_optimizers(self) -> Any:
        """Builds the optimizer and the configured schedule, or a decay at every step of the training."""
        if self._scheduler is not None:
            return super().configure_optimizers()
        optimizer = self.build_optimizer()
        schedule = self.linear_decay(optimizer, int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
