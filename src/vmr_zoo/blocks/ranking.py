"""Ranks the slots of a set predictor as moments."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from vmr_zoo.spans import to_start_end

_MIN_ANSWERS = 5


def rank(logits: Tensor, spans: Tensor, scale: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Ranks the slots of a set predictor by their foreground probability.

    Args:
        logits: (B, M, 2), index 0 = foreground.
        spans: (B, M, 2) centre and width.
        scale: (B,) factor from the spans to fractions of the duration; None is 1.

    Returns:
        spans (B, K, 2), start and end clamped to [0, 1], best first, and scores (B, K), descending.
        K = max(M, 5); missing moments are empty spans of score 0.
    """
    scores, order = _order(logits)
    ends = to_start_end(spans.gather(1, order.unsqueeze(-1).expand(-1, -1, 2)))
    if scale is not None:
        ends = ends * scale[:, None, None]
    ends = ends.clamp(0, 1)
    missing = max(0, _MIN_ANSWERS - scores.shape[1])
    return F.pad(ends, (0, 0, 0, missing)), F.pad(scores, (0, missing))


def like_ranked(values: Tensor, logits: Tensor) -> Tensor:
    """Puts per-slot values into the order of `rank`.

    Args:
        values: (B, M, L).
        logits: (B, M, 2), the argument of `rank`.

    Returns:
        (B, K, L), zeros at missing moments.
    """
    order = _order(logits)[1]
    missing = max(0, _MIN_ANSWERS - values.shape[1])
    return F.pad(values.gather(1, order.unsqueeze(-1).expand_as(values)), (0, 0, 0, missing))


def _order(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the foreground probabilities of (B, M, 2) logits, descending, and the slot of each."""
    scores, order = logits.softmax(-1)[..., 0].sort(dim=1, descending=True, stable=True)
    return scores, order
