"""PredictAll: always predicts the whole video; ignores video and query.

Paper: Yuan et al. 2021, "A Closer Look at Temporal Sentence Grounding in Videos: Dataset and Metric",
https://arxiv.org/abs/2101.09028. It exposes how much a metric rewards long predictions: they overlap every
long moment.

Does not differ from the paper. Of the five predictions per query that the contract requires, four are empty.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vmr_zoo.methods.base import Method, Training
from vmr_zoo.types import Batch, Prediction

K = 5


class PredictAll(Method):
    """Predicts the whole video; has no parameters."""

    family = "Baselines"

    def __init__(self, *, training: Training) -> None:
        """Stores what validation computes."""
        super().__init__(training)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Returns no losses."""
        return {}

    def training_step(self, batch: Batch, batch_idx: int) -> None:  # type: ignore[override]
        """Does nothing."""

    def on_train_epoch_end(self) -> None:
        """Stops after the first epoch; another would change nothing."""
        self.trainer.should_stop = True

    def predict(self, batch: Batch, *, details: bool = False) -> Prediction:
        """Returns the span (0, 1) with score 1, then empty spans; there are no details."""
        duration = batch["duration"]
        spans = torch.zeros(len(duration), K, 2, device=duration.device)
        spans[:, 0, 1] = 1
        prediction: Prediction = {"spans": spans, "scores": spans[..., 1].clone()}
        if details:
            prediction["details"] = {}
        return prediction
