"""Translates the names of weights from the authors' code to ours."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from vmr_zoo.errors import VmrError, abbreviate

Replacement = str | Callable[[re.Match[str]], str]


@dataclass(frozen=True)
class WeightNames:
    """Translates the names in the authors' state dict.

    Attributes:
        rules: (regular expression, replacement); the first rule that matches the whole name applies.
        unused: regular expressions of weights that only the authors' network has, with the reason.
        rows: number of first rows to keep, by our name, of weights whose other rows the authors compute but
            do not use.
    """

    rules: Sequence[tuple[str, Replacement]]
    unused: Mapping[str, str] = field(default_factory=dict)
    rows: Mapping[str, int] = field(default_factory=dict)

    def ours(self, name: str) -> str | None:
        """Translates one name.

        Args:
            name: the authors' name.

        Returns:
            Our name; None for a weight that our network does not have.

        Raises:
            VmrError: if no rule matches the name.
        """
        if self._why_unused(name) is not None:
            return None
        for pattern, replacement in self.rules:
            match = re.fullmatch(pattern, name)
            if match:
                return match.expand(replacement) if isinstance(replacement, str) else replacement(match)
        raise VmrError(
            f"The checkpoint contains the weight '{name}', which the authors' network does not have. Is it a "
            "checkpoint of this method, from the released code?"
        )

    def _why_unused(self, name: str) -> str | None:
        reasons = (why for pattern, why in self.unused.items() if re.fullmatch(pattern, name))
        return next(reasons, None)

    def left_out(self, weights: Iterable[str]) -> dict[str, list[str]]:
        """Returns the weights that are not imported, by reason.

        Args:
            weights: the authors' names.
        """
        found: dict[str, list[str]] = {}
        for name in weights:
            why = self._why_unused(name)
            if why is not None:
                found.setdefault(why, []).append(name)
        return found

    def keep(self, name: str, weight: Tensor) -> Tensor:
        """Cuts a weight to the rows that we use; `name` is our name."""
        return weight[: self.rows[name]] if name in self.rows else weight

    def load(self, module: nn.Module, weights: Mapping[str, Tensor]) -> None:
        """Copies the authors' weights into a module; all of its weights must be present and fit.

        Args:
            module: our module.
            weights: the weights by the authors' names.

        Raises:
            VmrError: for unknown or missing weights, or wrong shapes.
        """
        translated: dict[str, Tensor] = {}
        for name, weight in weights.items():
            target = self.ours(name)
            if target is not None:
                translated[target] = self.keep(target, weight)
        kept = module.state_dict().keys()  # without buffers that the configuration determines
        wanted = {
            name: weight
            for name, weight in (*module.named_parameters(), *module.named_buffers())
            if name in kept
        }
        _refuse("lacks the weights", wanted.keys() - translated.keys())
        _refuse("has the unexpected weights", translated.keys() - wanted.keys())
        misshapen = [
            f"{name}: {tuple(translated[name].shape)} instead of {tuple(parameter.shape)}"
            for name, parameter in wanted.items()
            if translated[name].shape != parameter.shape
        ]
        _refuse("does not fit the configuration in the weights", misshapen)
        with torch.no_grad():
            for name, parameter in wanted.items():
                parameter.copy_(translated[name])


def _refuse(what: str, names: Iterable[str]) -> None:
    listed = sorted(names)
    if listed:
        raise VmrError(f"The authors' checkpoint {what} {abbreviate(listed)} (our names).")
