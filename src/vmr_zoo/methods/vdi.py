"""VDI: visual-dynamic injection into the text encoder of MMN.

Paper: Luo, Huang, Gong, Jin, Liu, "Towards Generalisable Video Moment Retrieval: Visual-Dynamic Injection to
Image-Text Pre-Training", CVPR 2023, https://arxiv.org/abs/2303.00040. Stands on MMN: without both injections
(`visual_context: null`, `spatial_dynamic: null`) it is MMN with the same text encoder. Both are losses:
answering costs what MMN costs, and reads no patches.

No code was released. What the paper leaves open and is chosen here: a masked word keeps its place and is
hidden from attention (CLIP has no mask token); the readings of a query without nouns, or of nothing but
nouns, take no part; the squared norm of Eq. 2 is a mean over D; Eq. 3-4 look at the middle frame of each of
`frames` segments of the whole video, with its own global feature, without a softmax, and positions are
added, else the mean of the sequence model would not know the order; each FC has weights of its own; Eq. 5
pairs sentences on different videos only; no gradient is stopped, and both losses have constant solutions,
so their variance is worth watching (`detach_context` stops the one into x-tilde). "We only update the text
encoder" (section 4.1.3) contradicts Eq. 11 and Algorithm 1: the visual encoder is frozen, all else is
trained.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from vmr_zoo.blocks.candidate_map import LastFrame, NmsUnit
from vmr_zoo.blocks.decoder import QueryDecoderLayer
from vmr_zoo.blocks.distinct import distinct_videos
from vmr_zoo.blocks.encoder import Encoder
from vmr_zoo.blocks.position import sine_position
from vmr_zoo.blocks.text_encoder import GivenTokens, TransformerText
from vmr_zoo.errors import VmrError, unknown
from vmr_zoo.losses.injection import correlation_consistency
from vmr_zoo.losses.mutual_contrastive import MutualContrast
from vmr_zoo.methods.base import Training
from vmr_zoo.methods.mmn import MMN
from vmr_zoo.types import Batch, Prediction

Reading = Literal["full", "static", "dynamic"]
Probe = Literal["static", "full", "none"]
SequenceModel = Literal["transformer", "lstm"]


class VisualContext(nn.Module):
    """Visual context injection, Eq. 1-2."""

    def __init__(
        self,
        *,
        video_dim: int,
        dim: int,
        heads: int,
        feedforward_dim: int,
        dropout: float,
        probe: Probe,
        detach_context: bool,
    ) -> None:
        """Builds the decoder.

        Args:
            video_dim: width of the frame features; where it differs from `dim`, a linear layer projects them.
                Both are 512 in CLIP ViT-B/32's joint space; features=r2_tuning has its 768 before the
                projection into it.
            dim: D, width of the sentence vectors.
            heads: attention heads of the decoder.
            feedforward_dim: width of its position-wise network.
            dropout: in the decoder.
            probe: what asks the frames: the "static" query (Eq. 1), the "full" one, or "none", a learned
                vector (Table 3: "w/ Q^s", "w/ Q", "w/o Q").
            detach_context: whether Eq. 2 leaves x-tilde alone.

        Raises:
            VmrError: for an unknown probe.
        """
        super().__init__()
        if probe not in ("static", "full", "none"):
            raise unknown("visual_context.probe", probe, ("static", "full", "none"))
        self.probe, self.detach_context = probe, detach_context
        self.frames = nn.Identity() if video_dim == dim else nn.Linear(video_dim, dim)
        self.learned = nn.Parameter(torch.randn(dim) * dim**-0.5) if probe == "none" else None
        self.decoder = QueryDecoderLayer(dim, heads, feedforward_dim, dropout=dropout)
        self.project = nn.Linear(dim, dim)

    def forward(
        self, frames: Tensor, full: Tensor, static: Tensor, dynamic: Tensor, usable: Tensor
    ) -> Tensor:
        """Computes L_vc.

        Args:
            frames: (S, P, Dv), X^v of each sentence's video.
            full: (S, D), x^q.
            static: (S, D), x^qs.
            dynamic: (S, D), x^qd.
            usable: (S,) bool, which sentences count.

        Returns:
            A scalar, the mean over usable sentences.
        """
        if self.learned is None:
            probe = (static if self.probe == "static" else full).unsqueeze(1)
        else:
            probe = self.learned.expand(len(frames), 1, -1)
        memory = self.frames(frames)
        everywhere = torch.ones(memory.shape[:2], dtype=torch.bool, device=memory.device)
        context = self.decoder(probe, torch.zeros_like(probe), memory, memory, everywhere).squeeze(1)  # Eq. 1
        if self.detach_context:
            context = context.detach()
        difference = (self.project(dynamic) - context).square().mean(1)  # Eq. 2
        return (difference * usable).sum() / usable.sum().clamp(min=1)


class SpatialDynamic(nn.Module):
    """Spatial dynamic injection, Eq. 3-5."""

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
    ) -> None:
        """Builds the heatmap and the sequence model.

        Args:
            video_dim: width of a frame's global feature.
            patch_dim: width of a patch.
            patch_count: H * W.
            dim: D, width of the sentence vectors and of everything here.
            frames: how many frames are looked at.
            sequence: "transformer", the mean of an encoder's states, or "lstm", its last state (Table 3).
            heads: attention heads of the encoder.
            feedforward_dim: width of its position-wise network.
            dropout: in the encoder.

        Raises:
            VmrError: for an unknown sequence model.
        """
        super().__init__()
        if sequence not in ("transformer", "lstm"):
            raise unknown("spatial_dynamic.sequence", sequence, ("transformer", "lstm"))
        self.count, self.dim = frames, dim
        self.whole = nn.Linear(video_dim, dim)
        self.patch = nn.Linear(patch_dim, dim)
        self.flatten = nn.Linear(patch_count, dim)
        self.encoder = self.lstm = None
        if sequence == "transformer":
            self.encoder = Encoder(dim, heads, feedforward_dim, 1, dropout=dropout)
        else:
            self.lstm = nn.LSTM(dim, dim, batch_first=True)
        self.project = nn.Linear(dim, dim)

    def frames(self, mask: Tensor) -> Tensor:
        """Picks the middle frame of each of F segments, (V, F), from a mask (V, Lv)."""
        middle = (torch.arange(self.count, device=mask.device) + 0.5) / self.count
        return (middle * mask.sum(1, keepdim=True)).long()

    def heatmaps(self, whole: Tensor, patches: Tensor) -> Tensor:
        """Correlates each frame with its patches, Eq. 3.

        FC(x) . FC(patch) is computed as (FC(x) W) . patch + FC(x) . b, which multiplies H * W times less.

        Args:
            whole: (V, F, Dv), global features.
            patches: (V, F, H * W, Dp).

        Returns:
            M, (V, F, H * W).
        """
        query = self.whole(whole)
        maps = (patches @ (query @ self.patch.weight).unsqueeze(3)).squeeze(3)
        return (maps + (query @ self.patch.bias).unsqueeze(2)) / self.dim**0.5

    def dynamics(self, maps: Tensor) -> Tensor:
        """Follows the heatmaps (V, F, H * W) through time: m-tilde of Eq. 4, (V, D)."""
        states = self.flatten(maps)
        if self.lstm is not None:
            return self.lstm(states)[1][0].squeeze(0)
        assert self.encoder is not None
        mask = torch.ones(states.shape[:2], dtype=torch.bool, device=states.device)
        return self.encoder(states, mask, sine_position(mask, self.dim)).mean(1)

    def forward(self, maps: Tensor, video: Tensor, dynamic: Tensor, usable: Tensor) -> Tensor:
        """Computes L_sd.

        Args:
            maps: (V, F, H * W).
            video: (S,) which of the videos each sentence is on.
            dynamic: (S, D), x^qd.
            usable: (S,) bool, which sentences count.

        Returns:
            A scalar, the mean over pairs of usable sentences on different videos (Eq. 5, 11).
        """
        pairs = (video.unsqueeze(1) != video) & usable.unsqueeze(1) & usable
        return correlation_consistency(self.dynamics(maps)[video], self.project(dynamic), pairs)


class VDI(MMN):
    """VDI."""

    def __init__(
        self,
        *,
        video_dim: int,
        patch_dim: int | None,
        patch_count: int | None,
        text: GivenTokens | TransformerText,
        segments: int,
        last_frame: LastFrame,
        clips: int,
        diagonals: list[int],
        dim: int | None,
        map_dim: int,
        map_kernel: int,
        map_layers: int,
        joint_dim: int,
        iou_scale: float,
        iou_low: float,
        iou_high: float,
        contrast: MutualContrast,
        late_epoch: int,
        late_factor: float,
        fusion_power: float,
        nms_iou: float,
        nms_unit: NmsUnit,
        answers: int,
        text_rate: float,
        frozen_text_epochs: int,
        visual_context: Callable[..., VisualContext] | None,
        spatial_dynamic: Callable[..., SpatialDynamic] | None,
        retrieve_by: Reading,
        training: Training,
    ) -> None:
        """Builds the network; arguments that are not listed are MMN's.

        Args:
            video_dim: see `MMN`.
            patch_dim: width of a patch feature; None where there are none.
            patch_count: patches in a clip.
            text: see `MMN`; the injections need one that is trained.
            segments: see `MMN`.
            last_frame: see `MMN`.
            clips: see `MMN`.
            diagonals: see `MMN`.
            dim: see `MMN`; None here: VDI deletes the linear layer, "to maintain the feature structure of
                CLIP".
            map_dim: see `MMN`.
            map_kernel: see `MMN`.
            map_layers: see `MMN`.
            joint_dim: see `MMN`.
            iou_scale: see `MMN`.
            iou_low: see `MMN`.
            iou_high: see `MMN`.
            contrast: see `MMN`.
            late_epoch: see `MMN`.
            late_factor: see `MMN`.
            fusion_power: see `MMN`.
            nms_iou: see `MMN`.
            nms_unit: see `MMN`.
            answers: see `MMN`.
            text_rate: see `MMN`.
            frozen_text_epochs: see `MMN`.
            visual_context: makes Eq. 1-2, widths excepted; None leaves them out.
            spatial_dynamic: makes Eq. 3-5, widths excepted; None leaves them out.
            retrieve_by: what is looked for when answering: the "full" query, or its "static" or "dynamic"
                part (Figure 3).
            training: see `Method`.

        Raises:
            VmrError: for an unknown reading, or if there is no text encoder to inject anything into.
        """
        super().__init__(
            video_dim=video_dim,
            text=text,
            segments=segments,
            last_frame=last_frame,
            clips=clips,
            diagonals=diagonals,
            dim=dim,
            map_dim=map_dim,
            map_kernel=map_kernel,
            map_layers=map_layers,
            joint_dim=joint_dim,
            iou_scale=iou_scale,
            iou_low=iou_low,
            iou_high=iou_high,
            contrast=contrast,
            late_epoch=late_epoch,
            late_factor=late_factor,
            fusion_power=fusion_power,
            nms_iou=nms_iou,
            nms_unit=nms_unit,
            answers=answers,
            text_rate=text_rate,
            frozen_text_epochs=frozen_text_epochs,
            training=training,
        )
        if retrieve_by not in ("full", "static", "dynamic"):
            raise unknown("retrieve_by", retrieve_by, ("full", "static", "dynamic"))
        injects = visual_context is not None or spatial_dynamic is not None
        if injects and not self._trained_text:
            raise VmrError(
                "VDI injects into a text encoder that is trained, and method.text trains nothing. Take "
                "another one, or turn both off (method.visual_context=null method.spatial_dynamic=null and "
                "their weights)."
            )
        self.retrieve_by = retrieve_by
        if injects or retrieve_by != "full":
            self.needs = self.needs | {"noun_mask"}
        self.visual_context = None
        if visual_context is not None:
            self.visual_context = visual_context(video_dim=video_dim, dim=text.dim)
        self.spatial_dynamic = None
        if spatial_dynamic is not None:
            self.needs = self.needs | {"patches"}
            if patch_dim is not None:  # without patches, the data module refuses to serve them, and says so
                self.spatial_dynamic = spatial_dynamic(
                    video_dim=video_dim, patch_dim=patch_dim, patch_count=patch_count, dim=text.dim
                )

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Computes MMN's losses, "visual_context" (Eq. 2) and "spatial_dynamic" (Eq. 5)."""
        if self.visual_context is None and self.spatial_dynamic is None:
            return super().losses(batch)
        readings = [self.reading(batch, name) for name in ("full", "static", "dynamic")]
        full, static, dynamic = self.text(batch, torch.stack(readings))
        usable = readings[1].any(1) & readings[2].any(1)
        moments, sentences = self.moments(batch), self.sentences(full)
        losses = self.matching_losses(moments, sentences, batch)
        if self.visual_context is not None:
            frames = moments.frames[moments.video]
            losses["visual_context"] = self.visual_context(frames, full, static, dynamic, usable)
        if self.spatial_dynamic is not None:
            losses["spatial_dynamic"] = self.spatial_dynamic(
                self.heatmaps(batch), moments.video, dynamic, usable
            )
        return losses

    def reading(self, batch: Batch, name: Reading) -> Tensor:
        """Says which tokens a reading of the queries sees, (S, Lq): Q, Q^s (nouns) or Q^d (the rest)."""
        mask = batch["query_mask"]
        if name == "full":
            return mask
        return mask & (batch["noun_mask"] if name == "static" else ~batch["noun_mask"])

    def heatmaps(self, batch: Batch) -> Tensor:
        """Computes M of Eq. 3 for the frames looked at of each distinct video, (V, F, H * W)."""
        if self.spatial_dynamic is None:
            raise VmrError("Heatmaps are part of method.spatial_dynamic, which is off.")
        first = distinct_videos(batch).first
        frame = self.spatial_dynamic.frames(batch["video_mask"][first])
        row = first.unsqueeze(1)
        return self.spatial_dynamic.heatmaps(batch["video"][row, frame], batch["patches"][row, frame])

    def predict(self, batch: Batch, *, details: bool = False) -> Prediction:
        """Ranks the candidates by their fused score with what is looked for.

        Args:
            batch: see `Batch`.
            details: also return `score_map` and, where the batch has `patches`, `heatmap`, M of Eq. 3.
        """
        moments, sentences = self(batch, self.reading(batch, self.retrieve_by))
        prediction = self.rank(batch, moments, sentences, details)
        if details and self.spatial_dynamic is not None and "patches" in batch:
            prediction["details"]["heatmap"] = self.heatmaps(batch)[moments.video]
        return prediction
