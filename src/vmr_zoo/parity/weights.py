"""Names of weights in the authors' code, and in ours."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from vmr_zoo.errors import VmrError, some

Replacement = str | Callable[[re.Match[str]], str]


@dataclass(frozen=True)
class WeightNames:
    """How to translate the names in the authors' state dict.

    Attributes:
        rules: (regular expression, replacement), tried in order; the first that matches the whole name holds.
        unused: regular expressions of weights that the authors' network has and ours does not, with the
            reason.
        rows: weights of which we keep the first rows only, by our name: the authors compute the others and
            drop them.
    """

    rules: Sequence[tuple[str, Replacement]]
    unused: Mapping[str, str] = field(default_factory=dict)
    rows: Mapping[str, int] = field(default_factory=dict)

    def ours(self, name: str) -> str | None:
        """Translates one name.

        Args:
            name: the authors' name.

        Returns:
            Our name, None for a weight that ours does not have.

        Raises:
            VmrError: if no rule knows the name.
        """
        if self._why_unused(name) is not None:
            return None
        for pattern, replacement in self.rules:
            match = re.fullmatch(pattern, name)
            if match:
                return match.expand(replacement) if isinstance(replacement, str) else replacement(match)
        raise VmrError(
            f"The checkpoint holds the weight '{name}', which is not part of the authors' network as "
            "vmr_zoo knows it. Is it a checkpoint of this method, and of the released code?"
        )

    def _why_unused(self, name: str) -> str | None:
        reasons = (why for pattern, why in self.unused.items() if re.fullmatch(pattern, name))
        return next(reasons, None)

    def left_out(self, weights: Iterable[str]) -> dict[str, list[str]]:
        """Lists the weights that are not taken over.

        Args:
            weights: the authors' names.

        Returns:
            Names by the reason.
        """
        found: dict[str, list[str]] = {}
        for name in weights:
            why = self._why_unused(name)
            if why is not None:
                found.setdefault(why, []).append(name)
        return found

    def keep(self, name: str, weight: Tensor) -> Tensor:
        """Cuts an authors' weight to the rows that we keep under `name`, our name."""
        return weight[: self.rows[name]] if name in self.rows else weight

    def load(self, module: nn.Module, weights: Mapping[str, Tensor]) -> None:
        """Copies the authors' weights into a module of ours; every one of ours must be there, and fit.

        Args:
            module: ours.
            weights: by the authors' names.

        Raises:
            VmrError: for unknown, missing or misshapen weights.
        """
        translated: dict[str, Tensor] = {}
        for name, weight in weights.items():
            target = self.ours(name)
            if target is not None:
                translated[target] = self.keep(target, weight)
        kept = module.state_dict().keys()  # not what the configuration alone decides
        wanted = {
            name: weight
            for name, weight in (*module.named_parameters(), *module.named_buffers())
            if name in kept
        }
        _refuse("lacks, as we name them, the", wanted.keys() - translated.keys())
        _refuse("has, as we name them, the surplus", translated.keys() - wanted.keys())
        misshapen = [
            f"{name}: {tuple(translated[name].shape)} instead of {tuple(parameter.shape)}"
            for name, parameter in wanted.items()
            if translated[name].shape != parameter.shape
        ]
        _refuse("does not fit the configuration in", misshapen)
        with torch.no_grad():
            for name, parameter in wanted.items():
                parameter.copy_(translated[name])


def _refuse(what: str, names: Iterable[str]) -> None:
    listed = sorted(names)
    if listed:
        raise VmrError(f"The authors' checkpoint {what} weights {some(listed)}.")
