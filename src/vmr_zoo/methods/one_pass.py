"""Base of the baselines: one pass over the training split, or none, in place of gradients."""

from __future__ import annotations

from torch import Tensor

from vmr_zoo.errors import VmrError
from vmr_zoo.methods.base import Method, Training
from vmr_zoo.types import Batch


class OnePass(Method):
    """A method without losses: training stops after the first epoch.

    Attributes:
        samples: number of moments per query.
    """

    family = "Baselines"

    def __init__(self, training: Training, samples: int) -> None:
        """Stores what validation computes, and the number of moments.

        Raises:
            VmrError: if `samples` is below 5.
        """
        super().__init__(training)
        if samples < 5:
            raise VmrError(f"Expected method.samples >= 5, since R5 needs five predictions; found {samples}.")
        self.samples = samples

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Returns no losses."""
        return {}

    def training_step(self, batch: Batch, batch_idx: int) -> None:  # type: ignore[override]
        """Does nothing; a method that collects something from the training split overrides it."""

    def on_train_epoch_end(self) -> None:
        """Stops after the first epoch; another would change nothing."""
        self.trainer.should_stop = True
