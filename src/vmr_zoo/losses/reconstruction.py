"""Word reconstruction (MESM Eq. 2)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def word_reconstruction(logits: Tensor, labels: Tensor, mask: Tensor, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of every word of a sentence, masked or not, against what it was.

    Args:
        logits: (B, Lq, V).
        labels: (B, Lq) word classes.
        mask: (B, Lq), True = valid.
        smoothing: share of the label that is spread evenly over all classes; 0 in the paper.

    Returns:
        Mean over the words of a sentence, then over the sentences.
    """
    entropy = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none", label_smoothing=smoothing)
    return ((entropy * mask).sum(1) / mask.sum(1).clamp(min=1)).mean()
