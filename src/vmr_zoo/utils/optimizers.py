"""Optimizers that released code uses and torch lacks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch


class TransformersAdamW(torch.optim.Optimizer):
    """AdamW as in transformers 4.11: epsilon before the bias correction, weight decay after the step."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 5e-4,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
    ) -> None:
        """Stores the defaults of all groups.

        Args:
            params: parameters or groups.
            lr: learning rate.
            betas: decay rates of the running means of gradient and squared gradient.
            eps: added to the root of the squared gradient's mean.
            weight_decay: fraction of a weight, times the learning rate, that a step subtracts.
        """
        # A list from the configuration, kept as it is, would make a checkpoint that `weights_only` refuses.
        defaults = {"lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Takes one step and returns the closure's loss, if there is a closure."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            weights = [p for p in group["params"] if p.grad is not None]
            if not weights:
                continue
            for weight in weights:
                state = self.state[weight]
                if not state:
                    state["step"] = 0
                    state["mean"], state["square"] = torch.zeros_like(weight), torch.zeros_like(weight)
                state["step"] += 1
            grads = [p.grad for p in weights]
            means = [self.state[p]["mean"] for p in weights]
            squares = [self.state[p]["square"] for p in weights]
            beta1, beta2 = group["betas"]
            torch._foreach_lerp_(means, grads, 1 - beta1)
            torch._foreach_mul_(squares, beta2)
            torch._foreach_addcmul_(squares, grads, grads, 1 - beta2)
            roots = torch._foreach_sqrt(squares)
            torch._foreach_add_(roots, group["eps"])
            sizes = [
                -group["lr"]
                * (1 - beta2 ** self.state[p]["step"]) ** 0.5
                / (1 - beta1 ** self.state[p]["step"])
                for p in weights
            ]
            torch._foreach_addcdiv_(weights, means, roots, sizes)
            if group["weight_decay"]:
                torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
        return loss
