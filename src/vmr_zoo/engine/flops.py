"""Floating-point operations: those of a training step, and the machine's own rate."""

from __future__ import annotations

import statistics
from itertools import islice
from typing import TYPE_CHECKING

import lightning
import torch
from torch.utils.flop_counter import FlopCounterMode

from vmr_zoo.engine.device import mean_seconds

if TYPE_CHECKING:
    from vmr_zoo.data.batches.datamodule import VMRDataModule
    from vmr_zoo.methods.base import Method
    from vmr_zoo.types import Batch

_MATRIX_SIZE = {"cpu": 1024, "cuda": 8192}


def count_flops(
    method: Method, data: VMRDataModule, trainer: lightning.Trainer, skip: int, steps: int
) -> tuple[float, dict[str, float]]:
    """Counts the floating-point operations of training steps, forward and backward.

    Torch counts matrix products, convolutions and fused attention, but neither recurrent layers nor
    elementwise operations.

    Args:
        method: on its device.
        data: set up for training.
        trainer: decides the precision.
        skip: leading batches to leave out.
        steps: how many to count.

    Returns:
        The mean over the steps, and the mean composition of their batches: "query" and "video" (how many),
        "clips" (padded length) and "padding" (share of padded clips).
    """
    sizes: dict[str, list[float]] = {"query": [], "video": [], "clips": [], "padding": []}
    total = 0
    loader = data.train_dataloader()
    batches: list[Batch] = list(islice(loader, skip, skip + steps)) or list(islice(loader, steps))
    plugin = trainer.strategy.precision_plugin
    method.train()
    for batch in batches:
        mask = batch["video_mask"]
        sizes["query"].append(len(batch["query_id"]))
        sizes["video"].append(len(set(batch["video_id"])))
        sizes["clips"].append(mask.shape[1])
        sizes["padding"].append(1 - float(mask.float().mean()))
        on_device = trainer.strategy.batch_to_device(batch, method.device)
        with FlopCounterMode(display=False) as counter:
            with plugin.forward_context():
                loss = method.total_loss(method.losses(on_device))
            loss.backward()
        total += counter.get_total_flops()
        method.zero_grad()
    return total / len(batches), {name: statistics.fmean(values) for name, values in sizes.items()}


def matrix_rate(device: torch.device, precision: str) -> float:
    """Measures the machine's rate of plain matrix products, in FLOP/s, on torch's current threads.

    Args:
        device: to measure.
        precision: Lightning's name of the training precision; decides the matrices' type.
    """
    half = {"bf16": torch.bfloat16, "16": torch.float16}
    dtype = next((kind for name, kind in half.items() if precision.startswith(name)), torch.float32)
    size = _MATRIX_SIZE[device.type]
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    c = torch.empty_like(a)

    times = [mean_seconds(lambda: torch.mm(a, b, out=c), 2, device) for _ in range(5)]
    return 2 * size**3 / statistics.median(times)
