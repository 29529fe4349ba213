"""Fine-grained semantic alignment (FS): pooled video and query attract each other, Eq. 9-11 and 17."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from vmr_zoo.utils.switches import check_switches


class AttentivePooling(nn.Module):
    """Mean of a sequence, weighted by a softmax over one learned score per element (Eq. 9-10).

    The score is linear. With `hidden` (released) it is Linear, tanh, Linear, and one more Linear map follows
    the mean.
    """

    def __init__(self, dim: int, *, hidden: bool) -> None:
        """Builds the scorer for vectors of width `dim`."""
        super().__init__()
        last = nn.Linear(dim, 1, bias=False)
        self.score = nn.Sequential(nn.Linear(dim, dim, bias=False), nn.Tanh(), last) if hidden else last
        self.out = nn.Linear(dim, dim) if hidden else nn.Identity()

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Pools (B, L, D) with mask (B, L), True = valid, at least one per row, to (B, D)."""
        score = self.score(x).squeeze(-1).masked_fill(~mask, float("-inf"))
        return self.out((score.softmax(1).unsqueeze(1) @ x).squeeze(1))  # Eq. 9-10


@check_switches
@dataclass(frozen=True)
class SemanticAlignment:
    """How video and query are pooled and contrasted.

    Attributes:
        pooling: Eq. 9-11 as written ("linear", paper), or with a hidden layer in the scorer and two more
            Linear maps before the comparison ("projected", released).
        pooling_dim: E, width of the pooled vectors with `pooling="projected"`.
        temperature: tau of Eq. 17.
        positive_in_denominator: whether the denominator of Eq. 17 includes the row's own pair (InfoNCE,
            released) or not (paper).
    """

    pooling: Literal["linear", "projected"]
    pooling_dim: int
    temperature: float
    positive_in_denominator: bool

    def attentive_pooling(self, dim: int) -> AttentivePooling:
        """Builds the pooling of vectors of width `dim`."""
        return AttentivePooling(dim, hidden=self.pooling == "projected")

    def projection(self, dim: int) -> nn.Module:
        """Builds the map of a pooled vector to the space in which video and query are compared."""
        return nn.Linear(dim, self.pooling_dim) if self.pooling == "projected" else nn.Identity()

    def loss(self, pooled: tuple[Tensor, Tensor], copies: int) -> Tensor:
        """Semantic alignment loss, Eq. 17.

        Args:
            pooled: video and query vectors, (R, E) each, of length 1.
            copies: how many copies of the batch the R rows hold. Each is contrasted on its own, since a video
                and its shifted copy are no negative pair.

        Returns:
            Mean over the copies, a scalar.
        """
        contrasts = [
            pair_contrast(
                video,
                query,
                temperature=self.temperature,
                positive_in_denominator=self.positive_in_denominator,
            )
            for video, query in zip(*(vectors.chunk(copies) for vectors in pooled), strict=True)
        ]
        return torch.stack(contrasts).mean()


def pair_contrast(
    left: Tensor, right: Tensor, *, temperature: float, positive_in_denominator: bool
) -> Tensor:
    """Encourages each left vector to be closer to its own right vector than to those of other rows (Eq. 17).

    Args:
        left: (B, D) unit vectors.
        right: (B, D) unit vectors.
        temperature: tau.
        positive_in_denominator: True is InfoNCE (van den Oord et al. 2018). Without the own pair in the
            denominator the loss can fall below zero.

    Returns:
        Mean over the rows, a scalar. A batch of one row has no negative pair and gives 0.
    """
    similarity = left @ right.T / temperature  # Eq. 11 over tau
    own = similarity.diagonal()
    if len(left) == 1:
        return 0 * own.sum()
    if not positive_in_denominator:
        eye = torch.eye(len(left), dtype=torch.bool, device=left.device)
        similarity = similarity.masked_fill(eye, -torch.inf)
    return (similarity.logsumexp(1) - own).mean()  # Eq. 17
