"""EMB: a span predictor whose boundaries are elastic.

Paper: Huang et al., "Video Activity Localisation with Uncertainties in Temporal Boundary", ECCV 2022, as TEA
restates it (Cai et al., "MLLM as Video Narrator", arXiv 2406.17880, Eq. 6-11 and 15-17): EMB is TEA without
narrations.

Where TEA's text and EMB's released code differ, an argument decides (paper | released):
- `branch.unit`: Eq. 6 with an outer FC, then layer normalisation (`equation_6`) | a post-norm layer with a
  feed-forward network (`post_norm`). Both scale by the head's width.
- `branch.guide_maxima`: Eq. 7, the running maxima include the frame itself (`inclusive`) | they do not
  (`strict`).
- `branch.guide_placement`: Eq. 7 guides the video `once` | `inside` every attention unit, as the query only.
- `branch.order`: Eq. 9 `sequential` | `simultaneous` cross-attention; `branch.final_self_attention`: absent
  | present.
- `branch.similarity`: Eq. 11 `bilinear` | `trilinear`.
- `branch.gate`: Eq. 10-11, h reads and multiplies V-bar (`attended`) | a further layer of it (`joint`).
- `branch.endpoints`: Eq. 10, a `single` LSTM | two `chained` ones with MLP heads.
- `boundary.highlight_end`, `.positive_weight`, `.extension`: Eq. 16, max, 1, 0 | min, 2, 0.1.
- `downsample`: `max` (TEA Sec. 4) | `mean`.
Slips of the released code, mended unless asked for: `boundary.end_set` (candidate ends reach one too far),
`proposals.block_padding` (padding takes part in the proposals), `branch.average_padding` (what padding they
see), `drop_last_clip` (downsampling loses the last clip). TEA's total (Eq. 17) names no ranking loss, but
its candidate sets need one: its weight is EMB's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vmr_zoo.blocks.distinct import per_video
from vmr_zoo.blocks.dropout import Dropout
from vmr_zoo.blocks.guided_attention import GuidedConv
from vmr_zoo.blocks.narration import Downsample, pool_clips
from vmr_zoo.blocks.position import sine_coordinates
from vmr_zoo.blocks.proposal_branch import ProposalBranch, Proposals
from vmr_zoo.blocks.span_predictor import EndpointBranch, Located, rank_spans
from vmr_zoo.errors import VmrError
from vmr_zoo.losses.boundary import ElasticBoundary, PathLogits, overlap_threshold
from vmr_zoo.methods.base import Method, Training
from vmr_zoo.types import Batch, Prediction


class Output(NamedTuple):
    """What the network computes on L snippets.

    Attributes:
        frames: (B, L, d), the snippets as the exchange reads them.
        mask: (B, L) bool.
        words: (B, Lq, d).
        clip_snippet: (B, Lv) the snippet of each clip.
        located: the video branch.
        paths: endpoint logits of every branch with their weights.
    """

    frames: Tensor
    mask: Tensor
    words: Tensor
    clip_snippet: Tensor
    located: Located
    paths: list[PathLogits]


class EMB(Method):
    """EMB."""

    def __init__(
        self,
        *,
        video_dim: int,
        query_dim: int,
        dim: int,
        dropout: float,
        max_snippets: int,
        downsample: Downsample,
        drop_last_clip: bool,
        branch: Callable[..., EndpointBranch],
        proposals: ProposalBranch | None,
        boundary: ElasticBoundary,
        answers: int,
        nms_iou: float,
        training: Training,
    ) -> None:
        """Builds the network.

        Args:
            video_dim: width of the clip features.
            query_dim: width of the token features.
            dim: d.
            dropout: on the input features.
            max_snippets: longer videos are pooled to this many snippets.
            downsample: "max" or "mean", see above.
            drop_last_clip: see above.
            branch: makes the video branch (`EndpointBranch`, all arguments bound).
            proposals: auxiliary proposals, used in training only; None leaves the annotated endpoints as
                they are.
            boundary: losses and candidate sets.
            answers: K, moments in a prediction.
            nms_iou: largest IoU of two of them.
            training: see `Method`.

        Raises:
            VmrError: if exactly one of the proposals and their ranking loss is turned off.
        """
        super().__init__(training)
        if (proposals is None) != (self.weight("ranking") is None):
            raise VmrError(
                "The ranking loss trains the proposals: turn off both (method.proposals=null "
                "method.training.loss_weights.ranking=null) or neither."
            )
        self.dim = dim
        self.max_snippets, self.downsample, self.drop_last_clip = max_snippets, downsample, drop_last_clip
        self.query_projection = nn.Sequential(Dropout(dropout), nn.Linear(query_dim, dim))
        self.video_projection = nn.Sequential(Dropout(dropout), nn.Linear(video_dim, dim))
        self.branch = branch()
        self.proposals = proposals
        self.boundary = boundary
        self.answers, self.nms_iou = answers, nms_iou
        self.initialise()

    def initialise(self) -> None:
        """Draws Linear and convolution weights from Xavier-uniform, biases zero (EMB's code)."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def position(self, x: Tensor) -> Tensor:
        """Adds sinusoids of the plain index to (B, L, d)."""
        index = torch.arange(x.shape[1], device=x.device, dtype=x.dtype).unsqueeze(-1)
        return x + sine_coordinates(index / (2 * torch.pi), self.dim)

    def snippets(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Pools long videos: snippets (B, L, Dv), their mask, and the snippet of each clip (B, Lv)."""
        return pool_clips(
            batch["video"], batch["video_mask"], self.max_snippets, self.downsample, self.drop_last_clip
        )

    def forward(self, batch: Batch) -> Output:
        """Runs the network without the proposals."""
        video, mask, clip_snippet = self.snippets(batch)
        frames = self.position(per_video(self.video_projection, batch, video, training=self.training))
        words = self.position(self.query_projection(batch["query"]))
        located = self.branch(frames, mask, words, batch["query_mask"])  # Eq. 7-11
        paths = [PathLogits(1.0, located.logits.start, located.logits.end)]
        return Output(frames, mask, words, clip_snippet, located, paths)

    def progress(self) -> float:
        """Share of the training done; 0 outside a trainer."""
        try:
            trainer = self.trainer
        except RuntimeError:
            return 0.0
        if trainer.max_epochs and trainer.max_epochs > 0:
            return self.current_epoch / trainer.max_epochs
        return self.global_step / float(trainer.estimated_stepping_batches)

    def losses(self, batch: Batch, threshold: float | None = None) -> dict[str, Tensor]:
        """Computes L_vmr, L_h (Eq. 15-16) and the ranking loss.

        A row with several moments is trained on its first one.

        Args:
            batch: see `vmr_zoo.types.Batch`.
            threshold: theta, how much a proposal must overlap the annotation; None: by the training's
                progress.

        Returns:
            "endpoint", "highlight" and, with proposals, "ranking".
        """
        return self.losses_of(
            self(batch), batch, overlap_threshold(self.progress()) if threshold is None else threshold
        )

    def losses_of(self, output: Output, batch: Batch, threshold: float) -> dict[str, Tensor]:
        """Computes the losses of an output; see `losses`."""
        first = batch["span_mask"].int().argmax(1)
        span = batch["spans"][torch.arange(len(first), device=first.device), first]
        return self.boundary(
            output.paths,
            output.located.logits.highlight,
            output.mask,
            span,
            self.rank_proposals(output, batch),
            threshold,
        )

    def rank_proposals(self, output: Output, batch: Batch) -> Proposals | None:
        """Scores the auxiliary proposals; None without any."""
        if self.proposals is None:
            return None
        exchanged = output.located.exchanged
        return self.proposals(
            output.frames,
            output.mask,
            output.words,
            batch["query_mask"],
            exchanged.attended_words,
            exchanged.states,
        )

    def curves(self, output: Output) -> tuple[Tensor, Tensor]:
        """Returns p^s and p^e, (B, L) each: every path's probabilities by its weight, summed (Eq. 14)."""
        start = sum(path.weight * path.start.softmax(1) for path in output.paths)
        end = sum(path.weight * path.end.softmax(1) for path in output.paths)
        assert isinstance(start, Tensor)
        assert isinstance(end, Tensor)
        return start, end

    def predict(self, batch: Batch, *, details: bool = False) -> Prediction:
        """Ranks the joint distribution of both endpoints; the proposals take no part.

        Args:
            batch: see `Batch`.
            details: also return `start_probability`, `end_probability` and `highlight` of each snippet.
        """
        output = self(batch)
        start, end = self.curves(output)
        spans, scores = rank_spans(start, end, output.mask, self.answers, self.nms_iou)
        highlight = output.located.logits.highlight.sigmoid()
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
        """Lets the learning rate fall linearly to 0 over `steps`, without warm-up (TEA Sec. 4)."""
        return torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)

    def configure_optimizers(self) -> Any:
        """Builds the optimizer, its learning rate decaying step by step over the whole training."""
        optimizer = self.build_optimizer()
        schedule = self.linear_decay(optimizer, int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
