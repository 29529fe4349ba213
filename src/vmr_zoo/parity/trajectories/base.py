"""What an adapter of a trajectory provides: inputs and losses of each step, and the recipe to compare."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor

from vmr_zoo.methods.base import Method
from vmr_zoo.parity.case import Case, Number, Released
from vmr_zoo.types import Batch

Draws = TypeVar("Draws")


@dataclass(frozen=True)
class StepInputs(Generic[Draws]):
    """What one training step starts from.

    Attributes:
        batch: the contract's batch.
        draws: what was drawn at random.
        numbers: arrays of the step that follow from others, recomputed, by the case's keys.
        violations: number of entries that cannot be as stored, by key.
        notes: why an input decides no number, by key; it can be wrong unnoticed within `violations`.
    """

    batch: Batch
    draws: Draws
    numbers: dict[str, Number] = field(default_factory=dict)
    violations: dict[str, int] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Losses:
    """The losses of one step.

    Attributes:
        ours: unweighted scalars by our names, whose weighted sum the step minimises.
        curves: numbers by the authors' names, such as "loss/loss_span".
    """

    ours: dict[str, Tensor]
    curves: dict[str, Tensor]


class ReleasedTrajectory(ABC, Generic[Draws]):
    """Adapter of the trajectories of one method's released code.

    The case determines sizes and dropout; the recipe is the experiment's, and is compared with the case's.

    Attributes:
        sizes: keys below `method` that the case determines.
        counts: the authors' terms that count matches: compared exactly.
        approximate: the authors' terms that differ from ours by their guards against log(0). They, and all
            that follows from them, are compared with `float64_tolerance`.
        float64_tolerance: relative tolerance of those in float64.
        rates: names of the curves with the learning rate of each parameter group, in order.
        only: options that must have these values, if the case has them.
        optimizers: our optimizer by the authors' name of theirs.
    """

    sizes: frozenset[str]
    counts: frozenset[str] = frozenset()
    approximate: frozenset[str] = frozenset()
    float64_tolerance: float = 1e-9
    rates: tuple[str, ...] = ("lr",)
    only: ClassVar[Mapping[str, Any]] = {}
    optimizers: ClassVar[Mapping[str, type[torch.optim.Optimizer]]] = {"torch.optim.AdamW": torch.optim.AdamW}

    def __init__(self, released: Released) -> None:
        """Takes the adapter of the released code, which translates names and options."""
        self.released = released

    def overrides(self, case: Case, folder: Path) -> list[str]:
        """Returns Hydra overrides beside the experiment, for parts that the case has in small.

        Args:
            case: the case.
            folder: an empty folder for files that the overrides name.
        """
        return []

    def settings(self, case: Case) -> dict[str, Any]:
        """Returns the authors' values by our key below `method`; `sizes` are among them."""
        return self.released.settings(case.options, case.group("init"))

    @abstractmethod
    def recipe(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the authors' values by our dotted key, beside those of `settings`."""

    @abstractmethod
    def epochs(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Returns numbers of epochs at which the authors' training changes, by our key below `method`."""

    @abstractmethod
    def loss_weights(self, options: Mapping[str, Any]) -> dict[str, float]:
        """Returns the authors' loss weights by our name of the loss, of all losses that are on."""

    def prepare(self, method: Method, case: Case) -> None:
        """Reads from the case what `step` needs beside the arrays of a step; nothing by default."""

    def constants(self, method: Method) -> dict[str, Tensor]:
        """Returns weights of the authors' that are no weights here, recomputed, by their names."""
        return {}

    @abstractmethod
    def step(self, method: Method, case: Case) -> StepInputs[Draws]:
        """Builds the inputs of one step.

        Args:
            method: the method.
            case: the arrays of the step; arrays read through `case[...]` count as inputs.
        """

    @abstractmethod
    def losses(self, method: Method, batch: Batch, draws: Draws) -> Losses:
        """Computes the losses of one step on the recorded draws.

        Args:
            method: the method.
            batch: the batch of `step`, as the trainer provides it.
            draws: those of `step`.
        """
