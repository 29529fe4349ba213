"""Moment retrieval metrics as a torchmetrics class, for validation during training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric

from vmr_zoo.metrics.per_query import metric_names, query_scores
from vmr_zoo.metrics.settings import MAP_THRESHOLDS, R1_THRESHOLDS, R5_THRESHOLDS, MetricSettings, Rounding
from vmr_zoo.types import Batch, Prediction


class MomentMetrics(Metric):
    """R1@m, R5@m, mIoU, mAP@m, mAP and mAP by moment length, in per cent.

    The states are sums over queries and numbers of queries, so reducing over processes gives the exact mean.
    Highlight metrics are not computed here: they need the rating of each annotator, and a batch holds only
    their sum. `vmr_zoo.engine.scoring.score_rows` computes them from the predictions file. Sets of moments
    need a score that is chosen on the whole selection split (`vmr_zoo.engine.moment_sets`).

    Attributes:
        settings: which metrics are computed; shared with `vmr score`.
        names: metric names in order.
    """

    higher_is_better = True
    full_state_update = False
    sums: Tensor
    counts: Tensor

    def __init__(
        self,
        r1_thresholds: Sequence[float] = R1_THRESHOLDS,
        r5_thresholds: Sequence[float] = R5_THRESHOLDS,
        windows: int = 10,
        highlights: bool = False,
        rounding: Rounding | None = None,
        map_thresholds: Sequence[float] = MAP_THRESHOLDS,
        sets: str | float | None = None,
    ) -> None:
        """Builds the settings and the states.

        Args:
            r1_thresholds: IoU thresholds m of R1@m.
            r5_thresholds: IoU thresholds m of R5@m.
            windows: windows per query that average precision uses.
            highlights: whether highlights are scored from the predictions file.
            rounding: rounding of predicted seconds; None for `Rounding()`, four decimals.
            map_thresholds: IoU thresholds m of mAP@m.
            sets: which windows count as the set of moments of a query; None: sets are not scored.

        Raises:
            VmrError: for a value that `MetricSettings` refuses.
        """
        super().__init__()
        self.settings = MetricSettings(
            tuple(r1_thresholds),
            tuple(r5_thresholds),
            tuple(map_thresholds),
            windows,
            highlights,
            rounding or Rounding(),
            sets,
        )
        self.names = metric_names(self.settings)
        self.add_state("sums", torch.zeros(len(self.names), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("counts", torch.zeros(len(self.names), dtype=torch.float64), dist_reduce_fx="sum")

    def windows(self, prediction: Prediction, batch: Batch) -> NDArray[np.float64]:
        """Converts predicted spans to seconds, as they are scored and written to predictions.jsonl.

        Args:
            prediction: `spans` (B, K, 2) fractions of the duration.
            batch: `duration` (B,) seconds.

        Returns:
            (B, K, 2) start and end in seconds, rounded as configured for the data set.
        """
        seconds = prediction["spans"].detach().float() * batch["duration"].float()[:, None, None]
        return self.settings.rounding.apply(seconds.cpu().double().numpy())

    def update(self, prediction: Prediction, batch: Batch) -> None:
        """Adds one batch.

        Args:
            prediction: `spans` (B, K, 2) fractions of the duration, best first.
            batch: `spans` (B, N, 2) fractions, `span_mask` (B, N), `duration` (B,) seconds.
        """
        targets = (batch["spans"].double() * batch["duration"].double()[:, None, None]).cpu().numpy()
        # The batch holds float32 fractions. Three decimals recover the annotated seconds, so a hit exactly at
        # a threshold counts here as in `vmr score`.
        scores = query_scores(
            self.windows(prediction, batch), targets.round(3), batch["span_mask"].cpu().numpy(), self.settings
        )
        table = torch.from_numpy(np.stack([scores[name] for name in self.names]))
        self.sums += table.nansum(1).to(self.sums)
        self.counts += table.isfinite().sum(1).to(self.counts)

    def compute(self) -> dict[str, Tensor]:
        """Returns percentages by metric name, 0-d tensors; NaN for a metric that applies to no query."""
        return dict(zip(self.names, 100 * self.sums / self.counts, strict=True))
