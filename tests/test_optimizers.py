from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vmr_zoo.utils.optimizers import TransformersAdamW

LR, DECAY, EPS, BETAS = 0.01, 0.1, 1e-3, (0.9, 0.99)
STEPS = 6


def gradients(step: int) -> list[Tensor | None]:
    """Of two weights; the second has none in every other step."""
    generator = torch.Generator().manual_seed(step)
    first, second = (torch.randn(size, generator=generator, dtype=torch.float64) for size in ((3, 5), (4,)))
    return [first, second if step % 2 else None]


def written_out() -> list[Tensor]:
    """Both weights after `STEPS` steps whose learning rate falls to 0."""
    weights = [torch.ones(3, 5, dtype=torch.float64), torch.ones(4, dtype=torch.float64)]
    state = [(0.0, 0.0, 0), (0.0, 0.0, 0)]
    for step in range(STEPS):
        lr = LR * (1 - step / (STEPS - 1))
        for i, grad in enumerate(gradients(step)):
            if grad is None:
                continue
            mean, square, count = state[i]
            mean = BETAS[0] * mean + (1 - BETAS[0]) * grad
            square = BETAS[1] * square + (1 - BETAS[1]) * grad**2
            count += 1
            state[i] = (mean, square, count)
            size = lr * (1 - BETAS[1] ** count) ** 0.5 / (1 - BETAS[0] ** count)
            weights[i] = weights[i] - size * mean / (square.sqrt() + EPS)
            weights[i] = weights[i] - lr * DECAY * weights[i]
    return weights


@pytest.mark.parametrize("fused", [False, True])
def test_adamw_of_transformers_computes_its_equation_and_resumes(fused: bool) -> None:
    weights = [torch.nn.Parameter(torch.ones(size, dtype=torch.float64)) for size in ((3, 5), (4,))]

    def build() -> TransformersAdamW:
        return TransformersAdamW(weights, lr=LR, betas=BETAS, eps=EPS, weight_decay=DECAY, fused=fused)

    optimizer = build()
    for step in range(STEPS):
        if step == STEPS // 2:
            state = optimizer.state_dict()
            optimizer = build()
            optimizer.load_state_dict(state)
        optimizer.param_groups[0]["lr"] = LR * (1 - step / (STEPS - 1))
        for weight, grad in zip(weights, gradients(step), strict=True):
            weight.grad = grad
        optimizer.step()
    for weight, expected in zip(weights, written_out(), strict=True):
        torch.testing.assert_close(weight.detach(), expected, atol=1e-12, rtol=0)
