"""The metrics as a torchmetrics class: what validation computes from predictions and batches."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric

from vmr_zoo.metrics.per_query import metric_names, query_scores
from vmr_zoo.metrics.settings import R1_THRESHOLDS, R5_THRESHOLDS, MetricSettings, Rounding
from vmr_zoo.types import Batch, Prediction


class MomentMetrics(Metric):
    """R1@m, R5@m, mIoU, mAP@0.5, mAP@0.75, mAP and mAP by moment length, in per cent.

    The states are sums over queries and counts of queries, so processes add up to the exact mean. Highlight
    metrics need every annotator's rating, of which a batch holds the sum: they are computed from the
    predictions file (`vmr_zoo.engine.scoring.score_rows`), never here.

    Attributes:
        settings: what is measured; `vmr score` reads the same.
        names: the metrics in order.
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
    ) -> None:
        """Takes the fields of `MetricSettings`.

        Args:
            r1_thresholds: IoU thresholds m of R1@m.
            r5_thresholds: IoU thresholds m of R5@m.
            windows: how many windows per query average precision reads.
            highlights: whether the predictions file is scored for highlights too.
            rounding: how predicted seconds are rounded; None for `Rounding()`, four decimals.

        Raises:
            VmrError: for a threshold outside (0, 1].
        """
        super().__init__()
        self.settings = MetricSettings(
            tuple(r1_thresholds), tuple(r5_thresholds), windows, highlights, rounding or Rounding()
        )
        self.names = metric_names(self.settings)
        self.add_state("sums", torch.zeros(len(self.names), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("counts", torch.zeros(len(self.names), dtype=torch.float64), dist_reduce_fx="sum")

    def windows(self, prediction: Prediction, batch: Batch) -> NDArray[np.float64]:
        """Converts predicted spans to the seconds that are scored and written to predictions.jsonl.

        Args:
            prediction: `spans` (B, K, 2) fractions of the duration.
            batch: `duration` (B,) seconds.

        Returns:
            (B, K, 2) start and end in seconds, rounded as the data set asks.
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
        # The batch holds float32 fractions; three decimals give back the published seconds, so that a hit
        # exactly at a threshold counts here as it does in `vmr score`.
        scores = query_scores(
            self.windows(prediction, batch), targets.round(3), batch["span_mask"].cpu().numpy(), self.settings
        )
        table = torch.from_numpy(np.stack([scores[name] for name in self.names]))
        self.sums += table.nansum(1).to(self.sums)
        self.counts += table.isfinite().sum(1).to(self.counts)

    def compute(self) -> dict[str, Tensor]:
        """Returns the percentages by metric name, 0-d tensors; NaN for a metric that applied to no query."""
        return dict(zip(self.names, 100 * self.sums / self.counts, strict=True))
