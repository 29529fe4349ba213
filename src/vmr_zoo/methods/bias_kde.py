"""Bias-based: moments drawn from the distribution of the training moments; ignores video and query.

Paper: Yuan et al. 2021, "A Closer Look at Temporal Sentence Grounding in Videos: Dataset and Metric",
https://arxiv.org/abs/2101.09028: a Gaussian kernel density estimate of the normalised (start, end) of the
training moments, from which locations are drawn. The paper was not available; this follows that description.

Our choices: predictions are ranked in the order of the draws, which keeps the first an unbiased draw; draws
are clipped to the video; the bandwidth is Scott's rule, SciPy's default. The draws depend on the seed and the
query id.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch
from scipy.stats import gaussian_kde
from torch import Tensor

from vmr_zoo.errors import VmrError
from vmr_zoo.methods.base import Training
from vmr_zoo.methods.one_pass import OnePass
from vmr_zoo.types import Batch, Prediction


class BiasKDE(OnePass):
    """Draws moments from a kernel density of the training moments; has no trainable parameters.

    Attributes:
        moments: (N, 2) the normalised training moments, a buffer that is part of checkpoints.
    """

    moments: Tensor

    def __init__(self, *, training: Training, seed: int = 0, samples: int = 10) -> None:
        """Starts without a density; one pass over the training split provides it.

        Args:
            training: what validation computes.
            seed: of the draws.
            samples: number of moments drawn per query, at least 5.

        Raises:
            VmrError: if `samples` is below 5.
        """
        super().__init__(training, samples)
        self.seed = seed
        self.register_buffer("moments", torch.zeros(0, 2))
        self._seen: list[Tensor] = []

    def fit_density(self, moments: Tensor) -> None:
        """Fits the density to (N, 2) normalised moments.

        Raises:
            VmrError: if there are fewer than three, or all are on a line: a density on a plane needs more.
        """
        points = moments.double().cpu().numpy().T
        if len(moments) < 3 or np.linalg.eigvalsh(np.cov(points))[0] < 1e-9:
            raise VmrError(
                "Expected training moments whose starts and ends vary independently, found "
                f"{len(moments)} that do not. bias_kde needs a larger training split."
            )
        self.moments = moments.float()
        self.__dict__.pop("_density", None)

    def training_step(self, batch: Batch, batch_idx: int) -> None:  # type: ignore[override]
        """Collects the moments of one batch."""
        self._seen.append(batch["spans"][batch["span_mask"]])

    def on_validation_epoch_start(self) -> None:
        """Fits the density after the training split, before the selection split."""
        if self._seen:
            self.fit_density(torch.cat(self._seen))
            self._seen.clear()

    @cached_property
    def _density(self) -> gaussian_kde:
        if not len(self.moments):
            raise VmrError(
                "bias_kde has seen no training moments. Train it first: vmr train method=bias_kde …"
            )
        return gaussian_kde(self.moments.double().cpu().numpy().T)

    def predict(self, batch: Batch, *, details: bool = False) -> Prediction:
        """Draws `samples` moments per query, ranked in the order of the draws; there are no details."""
        spans = np.zeros((len(batch["query_id"]), self.samples, 2), dtype=np.float32)
        scores = np.zeros(spans.shape[:2], dtype=np.float32)
        for row, query_id in enumerate(batch["query_id"]):
            rng = np.random.default_rng([self.seed, zlib.crc32(query_id.encode())])
            # Some draws fall outside the video or end before they start: draw more than are kept.
            drawn = self._density.resample(4 * self.samples, seed=rng).T.clip(0, 1)
            kept = drawn[drawn[:, 1] > drawn[:, 0]][: self.samples]
            spans[row, : len(kept)] = kept
            scores[row, : len(kept)] = 1 - np.arange(len(kept)) / self.samples
        device = batch["video_mask"].device
        return {
            "spans": torch.from_numpy(spans).to(device),
            "scores": torch.from_numpy(scores).to(device),
        }

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        """Resizes the buffer to the number of moments in the checkpoint."""
        stored = state_dict.get(f"{prefix}moments")
        if isinstance(stored, Tensor):
            self.moments = torch.zeros_like(stored)
            self.__dict__.pop("_density", None)
        super()._load_from_state_dict(state_dict, prefix, *args)
