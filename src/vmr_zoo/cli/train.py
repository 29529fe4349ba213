"""`vmr train`: trains a method on a data set and predicts every test split."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmr_zoo.engine.training import train

if TYPE_CHECKING:
    from omegaconf import DictConfig


def main(cfg: DictConfig) -> int:
    """Runs the verb on the configuration composed from `conf/train.yaml`."""
    train(cfg)
    return 0
