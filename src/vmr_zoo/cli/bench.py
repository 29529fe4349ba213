"""`vmr bench`: measures training-step and inference time, memory and FLOPs of a method."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmr_zoo.engine.bench import benchmark

if TYPE_CHECKING:
    from omegaconf import DictConfig


def main(cfg: DictConfig) -> int:
    """Runs the verb on the configuration composed from `conf/bench.yaml`."""
    print(f"Wrote {benchmark(cfg)}. Next: vmr bench -m method=A,B … measures others into the same table.")
    return 0
