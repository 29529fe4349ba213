"""The base class of all methods: it owns logging, validation metrics and the optimizer."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import lightning
import torch
from torch import Tensor, nn

from vmr_zoo.errors import VmrError
from vmr_zoo.metrics.moment import MomentMetrics
from vmr_zoo.types import Batch, Prediction

OptimizerFactory = Callable[[Iterable[Any]], torch.optim.Optimizer]
SchedulerFactory = Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler]


@dataclass(frozen=True)
class Training:
    """How a method is trained and validated.

    Attributes:
        metrics: the validation metrics, with the thresholds and the rounding of the data set.
        loss_weights: weight by loss name; None turns a loss off. The names are those returned by the method's
            `losses`, without the `/auxN` of intermediate decoder layers, which share the weight of their
            parent. A loss that is turned off may be absent from `losses`.
        optimizer: called with the parameter groups; None for a method without parameters.
        scheduler: called with the optimizer and stepped once per epoch; None keeps the learning rate.
        monitor: the logged metric that `scheduler` watches, if it is a `ReduceLROnPlateau`.
    """

    metrics: MomentMetrics
    loss_weights: Mapping[str, float | None] = field(default_factory=dict)
    optimizer: OptimizerFactory | None = None
    scheduler: SchedulerFactory | None = None
    monitor: str | None = None


class Method(lightning.LightningModule):
    """A moment retrieval method.

    A subclass sets `family` and `needs`, builds its network in `__init__`, and implements `losses` and
    `predict`.

    Attributes:
        family: what kind of method it is, in a few words: reports list rows of one family together.
        answer_evidence: what `answer_score` is, in a few words.
        follows_epochs: whether a schedule over all epochs changes each of them: more epochs then make
            another training.
        needs: the optional batch fields that the method reads, a subset of `vmr_zoo.types.NEEDS`; an instance
            may set its own if a switch drops one.
        loss_weights: weight by loss name; None turns a loss off.
        details: whether `predict_step` also returns details; the caller sets it.
        last_losses: the detached losses of the latest training step, used to report non-finite losses.
    """

    family = ""
    answer_evidence = "score of the best moment"
    needs: frozenset[str] = frozenset()
    follows_epochs = False

    def __init__(self, training: Training) -> None:
        """Stores loss weights, metrics, optimizer and scheduler of `training`."""
        super().__init__()
        self.loss_weights = dict(training.loss_weights)
        self.metrics = training.metrics
        self._optimizer = training.optimizer
        self._scheduler = training.scheduler
        self._monitor = training.monitor
        self.details = False
        self.last_losses: dict[str, Tensor] = {}
        # Sums of the losses over the queries of this epoch, with the number of queries.
        self._sums: dict[str, tuple[Tensor, int]] = {}

    @abstractmethod
    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Returns unweighted scalar losses by name; leaves the batch unmodified."""

    @abstractmethod
    def predict(self, batch: Batch, *, details: bool = False) -> Prediction:
        """Returns ranked moments for each row; leaves the batch unmodified.

        Args:
            batch: the batch.
            details: also return attention and other curves to plot; spans and scores stay the same.
        """

    def answer_score(self, prediction: Prediction, batch: Batch) -> Tensor:
        """Returns how sure the method is that each video holds the moment: (B,), finite, higher is surer.

        `vmr eval no_answer=…` rejects the queries with low scores. This one is the score of the best moment;
        a method with a better one overrides it and `answer_evidence`.

        Args:
            prediction: what `predict` returned for the batch.
            batch: the batch.
        """
        return prediction["scores"][:, 0]

    def weight(self, name: str) -> float | None:
        """Returns the weight of a loss; None means that it is turned off.

        Raises:
            VmrError: if `loss_weights` does not name it.
        """
        if name not in self.loss_weights:
            raise VmrError(
                f"{type(self).__name__} has a loss '{name}', but method.training.loss_weights names only "
                f"{', '.join(sorted(self.loss_weights))}. Add it (null turns it off)."
            )
        return self.loss_weights[name]

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Returns the optimizer's parameter groups; methods with several learning rates override it."""
        return [{"params": [p for p in self.parameters() if p.requires_grad]}]

    def total_loss(self, losses: Mapping[str, Tensor]) -> Tensor:
        """Weights and sums the losses.

        Args:
            losses: unweighted scalars by name.

        Returns:
            The weighted sum, a scalar.

        Raises:
            VmrError: if a loss has no weight, a weight no loss, or every loss is turned off.
        """
        terms = []
        parents = set()
        for name, value in losses.items():
            parent = name.split("/")[0]
            parents.add(parent)
            weight = self.weight(parent)
            if weight is not None:
                terms.append(weight * value)
        idle = [
            name for name, weight in self.loss_weights.items() if weight is not None and name not in parents
        ]
        if idle:
            raise VmrError(
                f"method.training.loss_weights has weights for {', '.join(idle)}, but {type(self).__name__} "
                f"does not compute them in this configuration. It computes {', '.join(sorted(parents))}. "
                "Set the others to null."
            )
        if not terms:
            raise VmrError(f"Every loss of {type(self).__name__} is turned off: {self.loss_weights}.")
        return torch.stack(terms).sum()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Computes the losses of one batch, and logs the epoch's mean losses with the last one."""
        losses = self.losses(batch)
        total = self.total_loss(losses)
        self.last_losses = {name: value.detach() for name, value in losses.items()}
        if batch_idx == 0:
            self._sums.clear()
        size = len(batch["query_id"])
        for name, value in {**self.last_losses, "loss": total.detach()}.items():
            before, count = self._sums.get(name, (torch.zeros_like(value), 0))
            self._sums[name] = (before + size * value.float(), count + size)
        if self.trainer.is_last_batch:
            self._log_mean_losses()
        return total

    def _log_mean_losses(self) -> None:
        """Logs the mean of each loss over the queries of the epoch.

        Once per epoch, because Lightning takes a third of a millisecond to log a value.
        """
        for name, (value, count) in self._sums.items():
            self.log(
                f"train/{name}",
                value / count,
                on_epoch=True,
                on_step=False,
                prog_bar=name == "loss",
                batch_size=1,
            )
        self._sums.clear()

    def on_train_epoch_end(self) -> None:
        """Logs the losses of an epoch that ended early."""
        self._log_mean_losses()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Stores the sums of an epoch that is not over yet; a resumed epoch goes on with them."""
        checkpoint["loss_sums"] = {
            name: (value.clone(), count) for name, (value, count) in self._sums.items()
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores the sums; checkpoints of earlier versions have none."""
        self._sums = {
            name: (value, count) for name, (value, count) in checkpoint.get("loss_sums", {}).items()
        }

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Predicts one batch of the selection split."""
        self.metrics.update(self.predict(batch), batch)

    def on_validation_epoch_end(self) -> None:
        """Logs the selection metrics as `selection/<name>`."""
        values = self.metrics.compute()
        self.metrics.reset()
        self.log_dict({f"selection/{name}": value for name, value in values.items()})

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """Predicts one batch of a test split; adds the ids of queries and videos."""
        prediction = self.predict(batch, details=self.details)
        return {**prediction, "query_id": batch["query_id"], "video_id": batch["video_id"]}

    def configure_optimizers(self) -> Any:
        """Builds the optimizer and the per-epoch scheduler, if any."""
        if self._optimizer is None:
            return None
        try:
            optimizer: Any = self._optimizer(self.parameter_groups())
        except (TypeError, ValueError, RuntimeError) as error:
            raise VmrError(f"Cannot build method.training.optimizer: {error}") from error
        if getattr(optimizer, "_step_supports_amp_scaling", False):
            # A fused optimizer unscales float16 gradients in its step. Lightning therefore refuses to clip
            # them, even in bfloat16, where nothing is scaled. With False it unscales first, then clips.
            optimizer._step_supports_amp_scaling = False
        if self._scheduler is None:
            return optimizer
        scheduler = {"scheduler": self._scheduler(optimizer), "interval": "epoch"}
        return {"optimizer": optimizer, "lr_scheduler": {**scheduler, "monitor": self._monitor}}


def parameter_count(module: nn.Module) -> int:
    """Counts the trainable parameters."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)
