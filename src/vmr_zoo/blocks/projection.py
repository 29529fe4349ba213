"""Feed-forward parts: input projection, MLP, position-wise network, Xavier initialisation."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor, nn

from vmr_zoo.blocks.dropout import Dropout

Activation = Callable[[], nn.Module]


@dataclass(frozen=True)
class LayerSizes:
    """Sizes of the layers of a transformer.

    Attributes:
        dim: D, width of the model.
        heads: attention heads.
        feedforward_dim: width inside the position-wise networks.
        activation: builds the activation module of each position-wise network, such as `torch.nn.ReLU` or
            `torch.nn.PReLU` (one learned slope).
        dropout: in attention, residuals and position-wise networks.
    """

    dim: int
    heads: int
    feedforward_dim: int
    activation: Activation
    dropout: float


class InputProjection(nn.Sequential):
    """Projects features to the model's width: `layers` times [LayerNorm, dropout, Linear], ReLU between."""

    def __init__(self, in_dim: int, dim: int, layers: int = 2, dropout: float = 0.5) -> None:
        """Builds the stack.

        Args:
            in_dim: width of the features.
            dim: width of the model.
            layers: number of projections; the last one has no ReLU.
            dropout: before each Linear, in training.
        """
        parts: list[nn.Module] = []
        for i in range(layers):
            width = in_dim if i == 0 else dim
            parts += [nn.LayerNorm(width), Dropout(dropout), nn.Linear(width, dim)]
            if i < layers - 1:
                parts.append(nn.ReLU())
        super().__init__(*parts)


class MLP(nn.Module):
    """`layers` Linear maps with ReLU between them."""

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int, layers: int) -> None:
        """Builds the maps from in_dim through hidden_dim to out_dim."""
        super().__init__()
        widths = [in_dim] + [hidden_dim] * (layers - 1) + [out_dim]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        """Maps (..., in_dim) to (..., out_dim)."""
        for layer in self.layers[:-1]:
            x = layer(x).relu()
        return self.layers[-1](x)


class FeedForward(nn.Module):
    """The Transformer's position-wise network: Linear, activation, dropout, Linear."""

    def __init__(self, sizes: LayerSizes) -> None:
        """Builds the two maps."""
        super().__init__()
        self.linear1 = nn.Linear(sizes.dim, sizes.feedforward_dim)
        self.activation = sizes.activation()
        self.dropout = Dropout(sizes.dropout)
        self.linear2 = nn.Linear(sizes.feedforward_dim, sizes.dim)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (..., D) to (..., D)."""
        return self.linear2(self.dropout(self.activation(self.linear1(x))))


def copies(layer: nn.Module, count: int) -> nn.ModuleList:
    """Stacks `count` copies of a layer: as in DETR's code, all layers start with the weights of the first."""
    return nn.ModuleList(copy.deepcopy(layer) for _ in range(count))


def xavier_matrices(module: nn.Module) -> None:
    """Initialises every parameter with more than one dimension from Xavier-uniform, as DETR does."""
    for parameter in module.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)
