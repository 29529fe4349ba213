"""Network sizes of the Moment-DETR family, and builders of its parts."""

from __future__ import annotations

from dataclasses import dataclass

from vmr_zoo.blocks.decoder import AnchorDecoder, QueryDecoder
from vmr_zoo.blocks.encoder import Encoder
from vmr_zoo.blocks.joint_encoder import JointEncoder
from vmr_zoo.blocks.projection import InputProjection, LayerSizes


@dataclass(frozen=True)
class DETRNetwork(LayerSizes):
    """Sizes of a transformer encoder and decoder with projected inputs, from which a method builds its parts.

    Attributes, besides those of `LayerSizes`:
        input_dropout: in the input projections.
        projection_layers: Linear maps per input projection.
        encoder_layers: self-attention layers of the encoder.
        decoder_layers: layers of the decoder.
        queries: M, the number of predicted moments.
        scale_positions: every encoder layer scales its positions by a network of its input (DAB-DETR).
    """

    input_dropout: float
    projection_layers: int
    encoder_layers: int
    decoder_layers: int
    queries: int
    scale_positions: bool = False

    def input_projection(self, features_dim: int) -> InputProjection:
        """Projects features of width `features_dim` to D."""
        return InputProjection(features_dim, self.dim, self.projection_layers, self.input_dropout)

    def encoder(self) -> Encoder:
        """Builds the self-attention encoder."""
        return Encoder(self, self.encoder_layers, scale_positions=self.scale_positions)

    def joint_encoder(self, video_dim: int, query_dim: int) -> JointEncoder:
        """Builds the encoder of video and query in one sequence; `video_dim` is without TEF."""
        return JointEncoder(
            video_dim + 2,
            query_dim,
            self.encoder(),
            self.dim,
            projection_layers=self.projection_layers,
            input_dropout=self.input_dropout,
        )

    def query_decoder(self) -> QueryDecoder:
        """Builds the decoder with learned query positions."""
        return QueryDecoder(self, self.decoder_layers, self.queries)

    def anchor_decoder(self, *, refine: bool, width_first: bool = False) -> AnchorDecoder:
        """Builds the decoder with learnable spans; `refine` and `width_first` as in `AnchorDecoder`."""
        return AnchorDecoder(self, self.decoder_layers, self.queries, refine=refine, width_first=width_first)
