"""Callbacks that time the steps of training and prediction.

They take timestamps in Lightning's hooks; on a GPU as CUDA events, so neither the host nor the GPU waits.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback

if TYPE_CHECKING:
    from vmr_zoo.types import Batch


class _Clock(Callback):
    """Takes timestamps of batches.

    Attributes:
        warmup: batches before the first that counts; the loading time of the first batch is unknown.
        queries, videos: how many of them each counted batch holds.
        cpu_seconds: CPU time of the counted batches.
    """

    def __init__(self, warmup: int) -> None:
        self.warmup = warmup
        self.queries: list[int] = []
        self.videos: list[int] = []
        self._marks: dict[str, list[Any]] = {}
        self._loaded: list[tuple[Any, Any]] = []
        self._ended: Any = None
        self._seen = 0
        self._cpu = 0.0
        self.cpu_seconds = 0.0

    @property
    def counts(self) -> bool:
        """Whether the current batch is past the warm-up."""
        return self._seen > self.warmup

    def _now(self, module: lightning.LightningModule) -> Any:
        if module.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _mark(self, name: str, module: lightning.LightningModule) -> None:
        if self.counts:
            self._marks.setdefault(name, []).append(self._now(module))

    def _start(self, module: lightning.LightningModule, batch: Batch) -> None:
        self._seen += 1
        if self.counts:
            self.queries.append(len(batch["query_id"]))
            self.videos.append(len(set(batch["video_id"])))
            self._loaded.append((self._ended, self._now(module)))
        self._cpu = time.process_time()
        self._mark("start", module)

    def _end(self, module: lightning.LightningModule) -> None:
        self._mark("end", module)
        if self.counts:
            self.cpu_seconds += time.process_time() - self._cpu
        self._ended = self._now(module)

    def per(self) -> dict[str, list[float]]:
        """Returns the seconds of each query, and of each video: its share of the batch, loading included."""
        whole = [a + b for a, b in zip(self._between("start", "end"), self._loader, strict=True)]
        return {
            # Once for each query: a last batch of one must not weigh as much as a full one.
            unit: [
                seconds / count for seconds, count in zip(whole, counts, strict=True) for _ in range(count)
            ]
            for unit, counts in (("query", self.queries), ("video", self.videos))
        }

    def _between(self, start: str, end: str) -> list[float]:
        return [_seconds(a, b) for a, b in zip(self._marks[start], self._marks[end], strict=True)]

    @property
    def _loader(self) -> list[float]:
        return [0.0 if a is None else _seconds(a, b) for a, b in self._loaded]


def _seconds(start: Any, end: Any) -> float:
    if isinstance(start, float):
        return float(end - start)
    end.synchronize()
    return float(start.elapsed_time(end)) / 1000


class StepClock(_Clock):
    """Times the phases of training steps."""

    def on_train_batch_start(
        self, trainer: Any, pl_module: lightning.LightningModule, batch: Any, *_: Any, **__: Any
    ) -> None:
        """The batch is loaded."""
        self._start(pl_module, batch)

    def on_before_zero_grad(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, optimizer: Any
    ) -> None:
        """The losses are computed."""
        self._mark("forward", pl_module)

    def on_after_backward(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """The gradients are computed."""
        self._mark("backward", pl_module)

    def on_train_batch_end(
        self, trainer: Any, pl_module: lightning.LightningModule, *_: Any, **__: Any
    ) -> None:
        """The weights are updated."""
        self._end(pl_module)

    def seconds(self) -> dict[str, list[float]]:
        """Returns a value per step: "step" is forward, backward and optimizer (with clipping)."""
        return {
            "step": self._between("start", "end"),
            "forward": self._between("start", "forward"),
            "backward": self._between("forward", "backward"),
            "optimizer": self._between("backward", "end"),
            "loader": self._loader,
        }


class PredictClock(_Clock):
    """Times predictions."""

    def on_predict_batch_start(
        self, trainer: Any, pl_module: lightning.LightningModule, batch: Any, *_: Any, **__: Any
    ) -> None:
        """The batch is loaded."""
        self._start(pl_module, batch)

    def on_predict_batch_end(
        self, trainer: Any, pl_module: lightning.LightningModule, *_: Any, **__: Any
    ) -> None:
        """The prediction is made."""
        self._end(pl_module)

    def seconds(self) -> dict[str, list[float]]:
        """Returns a value per batch."""
        return {"batch": self._between("start", "end"), "loader": self._loader}
