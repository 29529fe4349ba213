"""TEA: text-enhanced alignment; narrations merged into the video, and a branch from paragraph to query.

Paper: Cai, Huang, Gong, Jin, Liu, "MLLM as Video Narrator: Mitigating Modality Imbalance in Video Moment
Retrieval", arXiv 2406.17880. Stands on EMB: without narrations (`merge: null`, `alpha: 0`) it is EMB.

No code was released. What the paper leaves open and is chosen here: narration projected like the words, by
weights of its own, once for merge and branch; merging takes place before the positions are added; the
paragraph branch has its own weights, reads the words before any attention and is not guided
(`guided_paragraph`); only the video's highlight h is supervised (Eq. 16), the paragraph's learns through
L_vmr; p^s and p^e of Eq. 14 sum to 1 + alpha and are not renormalised.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from vmr_zoo.blocks.distinct import per_video
from vmr_zoo.blocks.dropout import Dropout
from vmr_zoo.blocks.narration import Downsample, align_narration
from vmr_zoo.blocks.proposal_branch import ProposalBranch
from vmr_zoo.blocks.span_predictor import EndpointBranch
from vmr_zoo.errors import VmrError
from vmr_zoo.losses.boundary import ElasticBoundary, PathLogits
from vmr_zoo.methods.base import Training
from vmr_zoo.methods.emb import EMB, Output
from vmr_zoo.types import Batch


class TEA(EMB):
    """TEA."""

    def __init__(
        self,
        *,
        video_dim: int,
        query_dim: int,
        narration_dim: int | None,
        dim: int,
        dropout: float,
        max_snippets: int,
        downsample: Downsample,
        drop_last_clip: bool,
        merge: nn.Module | None,
        alpha: float,
        guided_paragraph: bool,
        branch: Callable[..., EndpointBranch],
        proposals: ProposalBranch | None,
        boundary: ElasticBoundary,
        answers: int,
        nms_iou: float,
        training: Training,
    ) -> None:
        """Builds the network; arguments that are not listed are EMB's.

        Args:
            video_dim: see `EMB`.
            query_dim: see `EMB`.
            narration_dim: width of the narration's sentence features; None where there are none.
            dim: see `EMB`.
            dropout: see `EMB`.
            max_snippets: see `EMB`.
            downsample: see `EMB`.
            drop_last_clip: see `EMB`.
            merge: merges video and narration (Eq. 4, Table 4), both (B, L, d), under a mask; None leaves the
                video as it is (VN off, Figure 3).
            alpha: weight of the paragraph branch (Eq. 14); 0 leaves it out (PQ off, Figure 3).
            guided_paragraph: whether the paragraph is guided like the video; Eq. 12 writes C without a hat.
            branch: see `EMB`; called a second time for the paragraph.
            proposals: see `EMB`; they read the merged video.
            boundary: see `EMB`.
            answers: see `EMB`.
            nms_iou: see `EMB`.
            training: see `Method`.

        Raises:
            VmrError: if alpha is negative, or narrations are used but have no width.
        """
        super().__init__(
            video_dim=video_dim,
            query_dim=query_dim,
            dim=dim,
            dropout=dropout,
            max_snippets=max_snippets,
            downsample=downsample,
            drop_last_clip=drop_last_clip,
            branch=branch,
            proposals=proposals,
            boundary=boundary,
            answers=answers,
            nms_iou=nms_iou,
            training=training,
        )
        if alpha < 0:
            raise VmrError(f"method.alpha weights a probability (Eq. 14); expected 0 or more, found {alpha}.")
        self.merge = merge
        self.alpha = alpha
        if merge is None and alpha == 0:
            return
        if narration_dim is None:
            raise VmrError(
                "TEA reads narrations, but these features have none (features.narration_dim is not set). "
                "Take features with narrations, or turn both uses off (method.merge=null method.alpha=0, "
                "which is EMB)."
            )
        self.needs = frozenset({"narration"})
        self.narration_projection = nn.Sequential(Dropout(dropout), nn.Linear(narration_dim, dim))
        if alpha > 0:
            self.paragraph = branch() if guided_paragraph else branch(guide_placement=None)
        self.initialise()

    def forward(self, batch: Batch) -> Output:
        """Runs the network without the proposals."""
        if not self.needs:
            return super().forward(batch)
        video, mask, clip_snippet = self.snippets(batch)
        words, word_mask = self.position(self.query_projection(batch["query"])), batch["query_mask"]
        paragraph = self.align(batch, mask)

        frames = per_video(self.video_projection, batch, video, training=self.training)
        if self.merge is not None:
            frames = self.merge(frames, paragraph, mask)  # Eq. 4-5
        frames = self.position(frames)
        located = self.branch(frames, mask, words, word_mask)  # Eq. 7-11
        paths = [PathLogits(1.0, located.logits.start, located.logits.end)]
        if self.alpha > 0:
            text = self.paragraph(self.position(paragraph), mask, words, word_mask).logits  # Eq. 12-13
            paths.append(PathLogits(self.alpha, text.start, text.end))  # Eq. 14
        return Output(frames, mask, words, clip_snippet, located, paths)

    def align(self, batch: Batch, mask: Tensor) -> Tensor:
        """Aligns the narration with the snippets and projects it: C^a of Eq. 3, (B, L, d)."""
        aligned = align_narration(batch["narration"], batch["narration_mask"], batch["narration_spans"], mask)
        return self.narration_projection(aligned)
