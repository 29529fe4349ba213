"""FW-MESM: frames enhanced by the words (Eq. 1), with layers that also reconstruct masked words (Eq. 2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from vmr_zoo.blocks.cross_encoder import attention_mask
from vmr_zoo.blocks.detr_network import DETRNetwork
from vmr_zoo.blocks.dropout import Dropout
from vmr_zoo.utils.switches import check_switches


@check_switches
@dataclass(frozen=True)
class FrameWord:
    """Settings of FW-MESM.

    Attributes:
        layers: cross-attention layers.
        vocabulary: word classes; words that are rarer in the training split count as unknown.
        separate_tail: reconstruct words with norms and position-wise networks of their own, and share only
            the attention (released for TACoS).
        unknown_word: replace unknown words by a learned vector before masking (released).
        reconstruct_from: keys of Eq. 2: all frames, "video" (paper), or those of the true moment, "segment"
            (released).
        label_smoothing: of Eq. 2.
        end_classes: classes of their own for the start and the end token of a sentence (released, with CLIP).
        draw: words to mask are drawn with "equal" probability (paper), or nouns, verbs, adjectives and
            adverbs twice as often as others, and start and end never, "by_tag" (released).
    """

    layers: int
    vocabulary: int
    separate_tail: bool
    unknown_word: bool
    reconstruct_from: Literal["video", "segment"]
    label_smoothing: float
    end_classes: bool
    draw: Literal["equal", "by_tag"]

    @property
    def tails(self) -> int:
        """Sets of norms and position-wise networks in the cross-modal encoder."""
        return 2 if self.separate_tail else 1

    def word_head(self, network: DETRNetwork) -> nn.Sequential:
        """Builds the classifier whose softmax is P of Eq. 2; class 0 is the unknown word."""
        return nn.Sequential(
            nn.LayerNorm(network.dim),
            Dropout(network.input_dropout),
            nn.Linear(network.dim, network.dim),
            nn.ReLU(),
            nn.Linear(network.dim, self.vocabulary + (3 if self.end_classes else 1)),
        )

    def mask_words(self, words: Tensor, query_mask: Tensor, masked: Tensor) -> WordMasking:
        """Returns the labels, and which words are replaced, when the words `masked` are hidden.

        Args:
            words: (B, Lq) `query_words` of the batch.
            query_mask: (B, Lq), True = valid.
            masked: (B, Lq) bool.
        """
        # Start and end are -1 and -2.
        ends = self.vocabulary - words if self.end_classes else 0
        labels = torch.where(words > self.vocabulary, 0, torch.where(words < 0, ends, words))
        return WordMasking(labels, (labels == 0) & query_mask & self.unknown_word, masked)


class WordMasking(NamedTuple):
    """The words that are hidden from the reconstruction, and their labels.

    Attributes:
        labels: (B, Lq) word classes, 0 = unknown.
        unknown: (B, Lq) bool, words that the unknown vector replaces.
        masked: (B, Lq) bool, words that the mask vector replaces.
    """

    labels: Tensor
    unknown: Tensor
    masked: Tensor


def draw_words(mask: Tensor, weights: Tensor | None = None) -> Tensor:
    """Draws a third of the words of each row, at least one; none from a single word.

    Args:
        mask: (B, Lq), True = valid.
        weights: (B, Lq), words are drawn one after the other in proportion to these; 0: never. None: all
            alike.

    Returns:
        (B, Lq) bool.
    """
    # Drawn position by position: more padding does not change what the positions before it get.
    keys = torch.rand(mask.shape[1], mask.shape[0], device=mask.device).T
    if weights is not None:
        # The first of independent exponential times: in proportion to the rates, without replacement.
        mask_drawn, keys = mask & (weights > 0), -torch.log1p(-keys) / weights
    else:
        mask_drawn = mask
    keys = keys.masked_fill(~mask_drawn, torch.inf)
    count = mask.sum(1, keepdim=True)
    wanted = torch.where(count > 1, (count // 3).clamp(min=1), 0)
    return (keys.argsort(1).argsort(1) < wanted) & mask_drawn


def segment_mask(query_mask: Tensor, inside: Tensor, heads: int) -> Tensor:
    """Builds the released mask of Eq. 2's keys: `attention_mask`, "head_order", on the segment alone.

    There the clips of a segment come first in the sequence of keys; here they stay where they are.

    Args:
        query_mask: (B, Lq), True = valid.
        inside: (B, Lv), the clips of the segment.
        heads: H.

    Returns:
        (B, H, Lq, Lv), True = may be attended to.
    """
    segment = torch.arange(inside.shape[1], device=inside.device) < inside.sum(1, keepdim=True)
    allowed = attention_mask(query_mask, segment, heads, "head_order")
    place = (inside.cumsum(1) - 1).clamp(min=0)
    return allowed.gather(3, place[:, None, None].expand_as(allowed)) & inside[:, None, None]
