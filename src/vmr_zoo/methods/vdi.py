"""VDI: MMN with visual context and spatial dynamics injected into its text encoder.

Paper: Luo, Huang, Gong, Jin, Liu, "Towards Generalisable Video Moment Retrieval: Visual-Dynamic Injection to
Image-Text Pre-Training", CVPR 2023, https://arxiv.org/abs/2303.00040. Extends MMN: without both injections
(`visual_context: null`, `spatial_dynamic: null`) it equals MMN with the same text encoder. Both injections
are losses: inference costs as much as MMN's and reads no patches.

No code was released. The paper leaves these points open; the choices here are:
- Masked words keep their position and are excluded from attention (CLIP has no mask token).
- Queries without nouns are excluded from both injections. A final period is a word of Q^d, so no sentence
  that ends with one lacks Q^d.
- Eq. 2: the squared norm is a mean over D.
- Eq. 3-4: the middle frame of each of `frames` segments of the whole video, with its own global feature; no
  softmax; positions are added, because the mean of the sequence model would ignore the order otherwise. Every
  FC has its own weights.
- Eq. 5: pairs of sentences on different videos only.
- Frames and patches enter both injections with a root mean square of 1 (`scale`). Features of unit length
  vanish beside the normalised query of Eq. 1 and beside the biases of Eq. 3-4: the video would not count.
- Eq. 2 and 5 train only what x^qd passes through: the text encoder, as Algorithm 1 and section 4.1.3 say,
  and an FC. x-tilde and m-tilde are fixed targets (`target`): the layers that compute them stay as they were
  drawn, and no gradient flows back through x-tilde. Trained targets become constant within a few epochs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vmr_zoo.blocks.candidate_map import CandidateMap
from vmr_zoo.blocks.decoder import QueryDecoderLayer
from vmr_zoo.blocks.encoder import Encoder
from vmr_zoo.blocks.per_video import unique_videos
from vmr_zoo.blocks.position import sine_position
from vmr_zoo.blocks.projection import LayerSizes
from vmr_zoo.blocks.text_encoder import QueryEncoder
from vmr_zoo.errors import VmrError
from vmr_zoo.losses.mutual_contrastive import MutualContrast
from vmr_zoo.methods.base import Training
from vmr_zoo.methods.mmn import MMN, FusedRanking, IoUScore, TextTraining
from vmr_zoo.types import Batch, Prediction
from vmr_zoo.utils.switches import check_switches

QueryPart = Literal["full", "static", "dynamic"]
DecoderQuery = Literal["static", "full", "learned"]
SequenceModel = Literal["transformer", "lstm"]
Scale = Literal["rms", "as_read"]
Target = Literal["fixed", "trained"]


def scaled(vectors: Tensor, scale: Scale) -> Tensor:
    """Returns vectors (..., D) with a root mean square of 1 over D ("rms"), or as they are ("as_read")."""
    return F.rms_norm(vectors, vectors.shape[-1:]) if scale == "rms" else vectors


@check_switches
class VisualContext(nn.Module):
    """Visual context injection (VDI Eq. 1-2)."""

    def __init__(
        self,
        *,
        video_dim: int,
        dim: int,
        heads: int,
        feedforward_dim: int,
        dropout: float,
        scale: Scale,
        decoder_query: DecoderQuery,
        target: Target,
    ) -> None:
        """Builds the decoder.

        Args:
            video_dim: width of the frame features; a linear layer projects them if it differs from `dim`.
                Both are 512 in the joint space of CLIP ViT-B/32; features=r2_tuning holds the 768 before the
                projection.
            dim: D, width of the sentence vectors.
            heads: attention heads of the decoder.
            feedforward_dim: width of its position-wise network.
            dropout: in the decoder, with target="trained" only: it would move a fixed target more than
                another video does.
            scale: of the frames, "rms" or "as_read".
            decoder_query: what attends to the frames: the "static" query (Eq. 1), the "full" query, or a
                "learned" vector (Table 3: "w/ Q^s", "w/ Q", "w/o Q"), learned with target="trained" only.
            target: x-tilde, "fixed" (the decoder stays as it was drawn, and Eq. 2 sends no gradient into the
                static query) or "trained".
        """
        super().__init__()
        self.decoder_query, self.fixed, self.scale = decoder_query, target == "fixed", scale
        self.frames = nn.Identity() if video_dim == dim else nn.Linear(video_dim, dim)
        learned = decoder_query == "learned"
        self.learned = nn.Parameter(torch.randn(dim) * dim**-0.5) if learned else None
        dropout = 0.0 if self.fixed else dropout
        self.decoder = QueryDecoderLayer(LayerSizes(dim, heads, feedforward_dim, nn.ReLU, dropout))
        self.requires_grad_(not self.fixed)
        self.project = nn.Linear(dim, dim)

    def forward(
        self, frames: Tensor, video: Tensor, full: Tensor, static: Tensor, dynamic: Tensor, usable: Tensor
    ) -> Tensor:
        """Computes L^vc.

        Args:
            frames: (V, P, Dv), X^v of each video.
            video: (S,) index of each sentence's video.
            full: (S, D), x^q.
            static: (S, D), x^qs.
            dynamic: (S, D), x^qd.
            usable: (S,) bool, the sentences that count.

        Returns:
            Mean over usable sentences, a scalar.
        """
        if self.learned is None:
            query = (static if self.decoder_query == "static" else full).unsqueeze(1)
        else:
            query = self.learned.expand(len(video), 1, -1)
        if self.fixed:
            query = query.detach()  # x-tilde is a target
        memory = self.frames(scaled(frames, self.scale))
        position = torch.zeros_like(query)
        context = self.decoder(query, position, memory, memory, None, rows=video).squeeze(1)  # Eq. 1
        difference = (self.project(dynamic) - context).square().mean(1)  # Eq. 2
        return (difference * usable).sum() / usable.sum().clamp(min=1)


@check_switches
class SpatialDynamic(nn.Module):
    """Spatial dynamic injection (VDI Eq. 3-5)."""

    def __init__(
        self,
        *,
        video_dim: int,
        patch_dim: int,
        patch_count: int,
        dim: int,
        frames: int,
        sequence: SequenceModel,
        heads: int,
        feedforward_dim: int,
        dropout: float,
        scale: Scale,
        target: Target,
    ) -> None:
        """Builds the heatmap and the sequence model.

        Args:
            video_dim: width of a frame's global feature.
            patch_dim: width of a patch feature.
            patch_count: H * W.
            dim: D, width of the sentence vectors and of all layers here.
            frames: F, sampled frames per video.
            sequence: "transformer", the mean state of an encoder, or "lstm", its last state (Table 3).
            heads: attention heads of the encoder.
            feedforward_dim: width of its position-wise network.
            dropout: in the encoder, with target="trained" only.
            scale: of frames and patches, "rms" or "as_read".
            target: m-tilde, "fixed" (its layers stay as they were drawn) or "trained".
        """
        super().__init__()
        self.count, self.dim, self.scale = frames, dim, scale
        self.whole = nn.Linear(video_dim, dim)
        self.patch = nn.Linear(patch_dim, dim)
        self.flatten = nn.Linear(patch_count, dim)
        self.encoder = self.lstm = None
        if sequence == "transformer":
            dropout = dropout if target == "trained" else 0.0
            self.encoder = Encoder(LayerSizes(dim, heads, feedforward_dim, nn.ReLU, dropout), layers=1)
        else:
            self.lstm = nn.LSTM(dim, dim, batch_first=True)
        self.requires_grad_(target == "trained")
        self.project = nn.Linear(dim, dim)

    def frame_indices(self, mask: Tensor) -> Tensor:
        """Returns the middle frame of each of F segments, (V, F), given a mask (V, Lv)."""
        middle = (torch.arange(self.count, device=mask.device) + 0.5) / self.count
        return (middle * mask.sum(1, keepdim=True)).long()

    def heatmaps(self, whole: Tensor, patches: Tensor) -> Tensor:
        """Correlates each frame with its patches (Eq. 3).

        FC(x) . FC(patch) is computed as (FC(x) W) . patch + FC(x) . b: H * W times fewer multiplications.

        Args:
            whole: (V, F, Dv), global features.
            patches: (V, F, H * W, Dp).

        Returns:
            M, (V, F, H * W).
        """
        query, patches = self.whole(scaled(whole, self.scale)), scaled(patches, self.scale)
        maps = (patches @ (query @ self.patch.weight).unsqueeze(3)).squeeze(3)
        return (maps + (query @ self.patch.bias).unsqueeze(2)) / self.dim**0.5  # Eq. 3

    def dynamics(self, maps: Tensor) -> Tensor:
        """Encodes the heatmaps (V, F, H * W) of a video over time: m-tilde of Eq. 4, (V, D)."""
        states = self.flatten(maps)  # Eq. 4, m
        if self.lstm is not None:
            return self.lstm(states)[1][0].squeeze(0)
        assert self.encoder is not None
        mask = torch.ones(states.shape[:2], dtype=torch.bool, device=states.device)
        return self.encoder(states, mask, sine_position(mask, self.dim)).mean(1)  # Eq. 4, m-tilde

    def forward(self, maps: Tensor, video: Tensor, dynamic: Tensor, usable: Tensor) -> Tensor:
        """Computes L^sd.

        Args:
            maps: (V, F, H * W).
            video: (S,) index of each sentence's video.
            dynamic: (S, D), x^qd.
            usable: (S,) bool, the sentences that count.

        Returns:
            Mean over pairs of usable sentences on different videos (Eq. 11), a scalar.
        """
        pairs = (video.unsqueeze(1) != video) & usable.unsqueeze(1) & usable
        return correlation_consistency(self.dynamics(maps)[video], self.project(dynamic), pairs)


def correlation_consistency(left: Tensor, right: Tensor, pairs: Tensor) -> Tensor:
    """Encourages equal cosine similarities in two spaces (VDI Eq. 5).

    Args:
        left: (S, D).
        right: (S, E), the counterpart of each row.
        pairs: (S, S) bool, the pairs that count.

    Returns:
        Mean squared difference of the cosines, a scalar; 0 without any pair.
    """
    left, right = F.normalize(left, dim=1), F.normalize(right, dim=1)
    difference = (left @ left.T - right @ right.T).square()  # Eq. 5
    return (difference * pairs).sum() / pairs.sum().clamp(min=1)


@check_switches
class VDI(MMN):
    """VDI."""

    def __init__(
        self,
        *,
        video_dim: int,
        patch_dim: int | None,
        patch_count: int | None,
        text: QueryEncoder,
        text_norm: Callable[[int], nn.Module],
        network: CandidateMap,
        iou_score: IoUScore,
        contrast: MutualContrast,
        ranking: FusedRanking,
        text_training: TextTraining,
        visual_context: Callable[..., VisualContext] | None,
        spatial_dynamic: Callable[..., SpatialDynamic] | None,
        retrieve_by: QueryPart,
        training: Training,
    ) -> None:
        """Builds MMN and the injections.

        Args:
            video_dim: width of the frame features.
            patch_dim: width of a patch feature; None if there are no patches.
            patch_count: patches per frame.
            text: encodes queries as sentence vectors; trained if anything is injected into it.
            text_norm: builds the normalisation of the sentence vectors, given their width.
            network: sizes of the map and its convolutions.
            iou_score: predicted IoU and its loss.
            contrast: contrastive losses.
            ranking: fusion of the two scores, and NMS.
            text_training: learning rate of the text encoder.
            visual_context: builds Eq. 1-2, given the widths; None removes them.
            spatial_dynamic: builds Eq. 3-5, given the widths; None removes them.
            retrieve_by: part of the query that tests use (Figure 3); validation uses all of it.
            training: loss weights, optimizer, and what validation computes.
        """
        super().__init__(
            video_dim=video_dim,
            text=text,
            text_norm=text_norm,
            network=network,
            iou_score=iou_score,
            contrast=contrast,
            ranking=ranking,
            text_training=text_training,
            training=training,
        )
        self.retrieve_by = retrieve_by
        self._inject(visual_context, spatial_dynamic, video_dim, (patch_dim, patch_count))

    def _inject(
        self,
        visual_context: Callable[..., VisualContext] | None,
        spatial_dynamic: Callable[..., SpatialDynamic] | None,
        video_dim: int,
        patches: tuple[int | None, int | None],
    ) -> None:
        """Builds the injections; without patches, for which the data module raises the error, not Eq. 3-5."""
        self._check_injections(visual_context is not None, spatial_dynamic is not None)
        widths = {"video_dim": video_dim, "dim": self.text.dim}
        self.visual_context = visual_context(**widths) if visual_context else None
        dim, count = patches
        self.spatial_dynamic = None
        if spatial_dynamic is not None and dim is not None:
            self.spatial_dynamic = spatial_dynamic(patch_dim=dim, patch_count=count, **widths)

    def _check_injections(self, visual_context: bool, spatial_dynamic: bool) -> None:
        """Adds the batch fields that the injections and `retrieve_by` read.

        Raises:
            VmrError: if there is an injection, but the text encoder is not trained.
        """
        injects = visual_context or spatial_dynamic
        if injects and not self._trained_text:
            raise VmrError(
                "Expected method.text to be trained, because VDI injects into it, found one that trains "
                "nothing. Select another one (method/text=minilm), or remove both injections "
                "(method.visual_context=null method.spatial_dynamic=null, and null for their weights in "
                "method.training.loss_weights)."
            )
        if injects or self.retrieve_by != "full":
            self.needs = self.needs | {"noun_mask"}
        if spatial_dynamic:
            self.needs = self.needs | {"patches"}

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Computes MMN's losses, "visual_context" (VDI Eq. 2) and "spatial_dynamic" (Eq. 5)."""
        if self.visual_context is None and self.spatial_dynamic is None:
            return super().losses(batch)
        masks = [self.query_part(batch, name) for name in ("full", "static", "dynamic")]
        full, static, dynamic = self.text(batch, torch.stack(masks))
        usable = masks[1].any(1) & masks[2].any(1)
        moments, sentences = self.moments(batch), self.sentences(full)
        losses = self.matching_losses(moments, sentences, batch)
        if self.visual_context is not None:
            losses["visual_context"] = self.visual_context(
                moments.frames, moments.video, full, static, dynamic, usable
            )
        if self.spatial_dynamic is not None:
            losses["spatial_dynamic"] = self.spatial_dynamic(
                self.heatmaps(batch), moments.video, dynamic, usable
            )
        return losses

    def query_part(self, batch: Batch, name: QueryPart) -> Tensor:
        """Returns the tokens of Q ("full"), Q^s ("static", noun chunks) or Q^d (the others), (S, Lq)."""
        mask = batch["query_mask"]
        if name == "full":
            return mask
        return mask & (batch["noun_mask"] if name == "static" else ~batch["noun_mask"])

    def heatmaps(self, batch: Batch) -> Tensor:
        """Computes M of Eq. 3 for the sampled frames of each distinct video, (V, F, H * W).

        Raises:
            VmrError: if the spatial dynamic injection is off.
        """
        if self.spatial_dynamic is None:
            raise VmrError("Heatmaps need method.spatial_dynamic, which is null. Enable it.")
        first = unique_videos(batch).first
        frame = self.spatial_dynamic.frame_indices(batch["video_mask"][first])
        row = first.unsqueeze(1)
        return self.spatial_dynamic.heatmaps(batch["video"][row, frame], batch["patches"][row, frame])

    def predict(self, batch: Batch, *, details: bool = False) -> Prediction:
        """Ranks the candidates by their fused score with the part of the query in `retrieve_by`.

        Args:
            batch: the queries and their videos.
            details: also return `score_map` and, if the batch has `patches`, `heatmap`, M of Eq. 3.
        """
        return self._retrieve(batch, self.retrieve_by, details)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Predicts with the whole query: Figure 3 reads one trained model in three ways."""
        self.metrics.update(self._retrieve(batch, "full", details=False), batch)

    def _retrieve(self, batch: Batch, part: QueryPart, details: bool) -> Prediction:
        moments, sentences = self(batch, self.query_part(batch, part))
        prediction = self.rank(batch, moments, sentences, details)
        if details and self.spatial_dynamic is not None and "patches" in batch:
            prediction["details"]["heatmap"] = self.heatmaps(batch)[moments.video]
        return prediction
