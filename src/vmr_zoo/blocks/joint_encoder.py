"""Video and query in one sequence: project each, concatenate along time, encode jointly (Moment-DETR)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from vmr_zoo.blocks.encoder import Encoder
from vmr_zoo.blocks.position import append_tef, sine_position
from vmr_zoo.blocks.projection import InputProjection


class Encoded(NamedTuple):
    """A jointly encoded video and query.

    Attributes:
        memory: (B, Lv + Lq, D), clips first.
        mask: (B, Lv + Lq), True = valid.
        position: (B, Lv + Lq, D), zero for the query.
        clips: Lv.
    """

    memory: Tensor
    mask: Tensor
    position: Tensor
    clips: int

    @property
    def video(self) -> Tensor:
        """The clips in the memory, (B, Lv, D)."""
        return self.memory[:, : self.clips]

    @property
    def query(self) -> Tensor:
        """The tokens in the memory, (B, Lq, D)."""
        return self.memory[:, self.clips :]


class JointEncoder(nn.Module):
    """Projects video and query to one width and encodes their concatenation.

    The two steps are separate calls because one projected video may be encoded with several queries.
    """

    def __init__(
        self,
        video_dim: int,
        query_dim: int,
        encoder: Encoder,
        dim: int,
        *,
        projection_layers: int = 2,
        input_dropout: float = 0.5,
    ) -> None:
        """Builds the projections around an encoder.

        Args:
            video_dim: width of the clip features, including TEF.
            query_dim: width of the token features.
            encoder: the encoder.
            dim: D, its width.
            projection_layers: Linear maps per projection.
            input_dropout: in the projections.
        """
        super().__init__()
        self.dim = dim
        self.project_video = InputProjection(video_dim, dim, projection_layers, input_dropout)
        self.project_query = InputProjection(query_dim, dim, projection_layers, input_dropout)
        self.encoder = encoder

    def project_clips(self, video: Tensor, mask: Tensor) -> Tensor:
        """Appends TEF to clips (B, Lv, Dv) and projects them, to (B, Lv, D); `mask` (B, Lv), True = valid."""
        return self.project_video(append_tef(video, mask))

    def forward(self, video: Tensor, video_mask: Tensor, query: Tensor, query_mask: Tensor) -> Encoded:
        """Encodes a projected video with a projected query.

        Args:
            video: (B, Lv, D) projected clips.
            video_mask: (B, Lv), True = valid.
            query: (B, Lq, D) projected tokens.
            query_mask: (B, Lq), True = valid.

        Returns:
            The memory with its mask and positions, which are sine for clips and zero for tokens.
        """
        mask = torch.cat((video_mask, query_mask), 1)
        position = torch.cat((sine_position(video_mask, self.dim), torch.zeros_like(query)), 1)
        memory = self.encoder(torch.cat((video, query), 1), mask, position)
        return Encoded(memory, mask, position, video.shape[1])
