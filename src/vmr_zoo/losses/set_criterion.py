"""Set prediction losses (DETR, Moment-DETR): matching of slots to targets, span and class losses."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vmr_zoo.blocks.matcher import hungarian_match
from vmr_zoo.spans import giou, pairwise, to_start_end

FOREGROUND, BACKGROUND = 0, 1


class SetCriterion(nn.Module):
    """Matches predicted slots to targets and computes the set losses.

    Spans are compared as (centre, width) by L1 and as (start, end) by generalised IoU.
    """

    def __init__(
        self,
        *,
        cost_l1: float,
        cost_giou: float,
        cost_class: float,
        background_weight: float = 0.1,
        every_layer: bool = False,
    ) -> None:
        """Stores the weights.

        Args:
            cost_l1: of the summed L1 distance in the matching cost.
            cost_giou: of the negative generalised IoU in the matching cost.
            cost_class: of the negative foreground probability in the matching cost.
            background_weight: of a slot without a target in the class loss.
            every_layer: apply the losses to every decoder layer instead of the last one.
        """
        super().__init__()
        self.cost_l1, self.cost_giou, self.cost_class = cost_l1, cost_giou, cost_class
        self.background_weight = background_weight
        self.every_layer = every_layer

    @torch.no_grad()
    def match(
        self, logits: Tensor, spans: Tensor, targets: Tensor, target_mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Finds the cheapest assignment (BM-DETR Eq. 12-13).

        The predictions of several layers, (layers, B, M, 2), are matched at once, to (layers, B, N).

        Args:
            logits: (B, M, 2), index 0 = foreground.
            spans: (B, M, 2) centre and width.
            targets: (B, N, 2) centre and width.
            target_mask: (B, N), True = valid.

        Returns:
            slots (B, N) int64 and matched (B, N) bool, as in `hungarian_match`.
        """
        probability = logits.softmax(-1)[..., FOREGROUND]
        l1 = (pairwise(spans) - targets.unsqueeze(1)).abs().sum(-1)
        overlap = giou(pairwise(to_start_end(spans)), to_start_end(targets).unsqueeze(1))
        cost = self.cost_l1 * l1 - self.cost_giou * overlap - self.cost_class * probability.unsqueeze(-1)
        if cost.dim() == 3:
            return hungarian_match(cost, target_mask)
        slots, matched = hungarian_match(cost.flatten(0, 1), target_mask.repeat(len(cost), 1))
        return slots.unflatten(0, cost.shape[:2]), matched.unflatten(0, cost.shape[:2])

    def forward(
        self, logits: Tensor, spans: Tensor, targets: Tensor, target_mask: Tensor
    ) -> dict[str, Tensor]:
        """Computes the losses of one set of predictions.

        Args:
            logits: (B, M, 2), index 0 = foreground.
            spans: (B, M, 2) centre and width.
            targets: (B, N, 2) centre and width.
            target_mask: (B, N), True = valid.

        Returns:
            Scalars: "span_l1", mean over the matched pairs and both coordinates; "span_giou", mean of
            1 - gIoU over the matched pairs; "label", two-way cross-entropy with down-weighted background,
            mean over B * M (not over the weights); "class_error", the percentage of matched slots that are
            classified as background, without gradient.
        """
        matching = self.match(logits, spans, targets, target_mask)
        every = self._losses(logits[None], spans[None], targets, *matching)
        return {name: values[0] for name, values in every.items()}

    def _losses(
        self, logits: Tensor, spans: Tensor, targets: Tensor, slots: Tensor, matched: Tensor
    ) -> dict[str, tuple[Tensor, ...]]:
        """Computes the losses of several layers and their matchings: for each name a scalar per layer."""
        layers = len(logits)
        slots, matched = slots.view(layers, *targets.shape[:2]), matched.view(layers, *targets.shape[:2])
        chosen = spans.gather(2, slots.unsqueeze(-1).expand(-1, -1, -1, 2))
        count = matched.sum((1, 2)).clamp(min=1)
        l1 = ((chosen - targets).abs() * matched.unsqueeze(-1)).sum((1, 2, 3)) / (2 * count)
        overlap = giou(to_start_end(chosen), to_start_end(targets))
        lost = ((1 - overlap) * matched).sum((1, 2)) / count

        foreground = torch.zeros(logits.shape[:3], dtype=torch.int, device=logits.device)
        # Unmatched targets point at slot 0 too. "or" is independent of the order of the scatters.
        foreground = foreground.scatter_reduce(2, slots, matched.int(), "amax").bool()
        weight = torch.where(foreground, 1.0, self.background_weight)
        entropy = F.cross_entropy(logits.flatten(0, 2), (~foreground).long().flatten(), reduction="none")
        label = (entropy.view(weight.shape) * weight).mean((1, 2))

        hit = (logits.argmax(-1) == FOREGROUND).gather(2, slots) & matched
        error = 100 - 100 * hit.sum((1, 2)) / count
        found = {"span_l1": l1, "span_giou": lost, "label": label, "class_error": error}
        return {name: values.unbind() for name, values in found.items()}

    def over_layers(
        self, logits: Tensor, spans: Tensor, targets: Tensor, target_mask: Tensor
    ) -> dict[str, Tensor]:
        """Computes the losses of the last decoder layer, or of every layer with `every_layer`.

        Args:
            logits: (layers, B, M, 2).
            spans: (layers, B, M, 2).
            targets: (B, N, 2) centre and width.
            target_mask: (B, N), True = valid.

        Returns:
            The scalars of `forward`; names of layers before the last end in "/aux0", "/aux1", ….
        """
        losses: dict[str, Tensor] = {}
        last = len(logits) - 1
        layers = range(0 if self.every_layer else last, last + 1)
        logits, spans = logits[layers.start :], spans[layers.start :]
        found = self._losses(logits, spans, targets, *self.match(logits, spans, targets, target_mask))
        for place, layer in enumerate(layers):
            suffix = "" if layer == last else f"/aux{layer}"
            losses |= {name + suffix: values[place] for name, values in found.items()}
        return losses
