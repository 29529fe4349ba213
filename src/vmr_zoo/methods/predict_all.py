"""PredictAll: always predicts the whole video; ignores video and query.

Paper: Yuan et al. 2021, "A Closer Look at Temporal Sentence Grounding in Videos: Dataset and Metric",
https://arxiv.org/abs/2101.09028. It exposes how much a metric rewards long predictions: they overlap every
long moment.

Does not differ from the paper. Of the five predictions per query that the contract requires, four are empty.
"""

from __future__ import annotations

import torch

from vmr_zoo.methods.base import Training
from vmr_zoo.methods.one_pass import OnePass
from vmr_zoo.types import Batch, Prediction


class PredictAll(OnePass):
    """Predicts the whole video; has no parameters."""

    def __init__(self, *, training: Training) -> None:
        """Stores what validation computes."""
        super().__init__(training, samples=5)

    def predict(self, batch: Batch, *, details: bool = False) -> Prediction:
        """Returns the span (0, 1) with score 1, then empty spans; there are no details."""
        duration = batch["duration"]
        spans = torch.zeros(len(duration), self.samples, 2, device=duration.device)
        spans[:, 0, 1] = 1
        return {"spans": spans, "scores": spans[..., 1].clone()}
