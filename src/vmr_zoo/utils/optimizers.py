"""Optimizers that released code uses and torch lacks."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw


class TransformersAdamW(torch.optim.Optimizer):
    """AdamW as in transformers 4.11: epsilon before the bias correction, weight decay after the step."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 5e-4,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
        fused: bool = False,
    ) -> None:
        """Stores the defaults of all groups.

        Args:
            params: parameters or groups.
            lr: learning rate.
            betas: decay rates of the running means of gradient and squared gradient.
            eps: added to the root of the squared gradient's mean.
            weight_decay: fraction of a weight, times the learning rate, that a step subtracts.
            fused: update all weights in one kernel.
        """
        # A list from the configuration, kept as it is, would make a checkpoint that `weights_only` refuses.
        defaults = {"lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay, "fused": fused}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Takes one step and returns the closure's loss, if there is a closure."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            by_count: dict[int, list[Tensor]] = defaultdict(list)
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["step"] = 0
                    state["mean"], state["square"] = torch.zeros_like(weight), torch.zeros_like(weight)
                state["step"] += 1
                by_count[state["step"]].append(weight)
            for count, weights in by_count.items():
                self._update(weights, count, group)
        return loss

    def _update(self, weights: list[Tensor], count: int, group: dict[str, Any]) -> None:
        """Updates weights of one group.

        With learning rate a, bias corrections b1 = 1 - beta1^t and b2 = 1 - beta2^t, and decay d:
        w <- (1 - a d) (w - a sqrt(b2) / b1 m / (sqrt(v) + eps)). Torch's AdamW computes
        w <- (1 - a d) w - a / b1 m / (sqrt(v / b2) + eps). After infinitely many steps its b1 and b2 are 1;
        the rest enters through the learning rate.

        Args:
            weights: weights with a gradient.
            count: how often they have been updated, this time included (t).
            group: their settings.
        """
        (beta1, beta2), lr, decay = group["betas"], group["lr"], group["weight_decay"]
        ratio = math.sqrt(1 - beta2**count) / (1 - beta1**count) * (1 - lr * decay)
        endless = torch.full((), math.inf, device=weights[0].device if group["fused"] else "cpu")
        adamw(
            weights,
            [weight.grad for weight in weights if weight.grad is not None],
            [self.state[weight]["mean"] for weight in weights],
            [self.state[weight]["square"] for weight in weights],
            [],
            [endless] * len(weights),
            foreach=not group["fused"],
            fused=group["fused"],
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=lr * ratio,
            weight_decay=decay / ratio,
            eps=group["eps"],
            maximize=False,
        )
