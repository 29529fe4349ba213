"""`vmr train`: trains a method on a data set and predicts every test split."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from vmr_zoo.runs.directory import relocatable
from vmr_zoo.runs.sweep import position

if TYPE_CHECKING:
    from omegaconf import DictConfig

log = logging.getLogger(__name__)


def main(cfg: DictConfig) -> int:
    """Runs the verb on the configuration composed from `conf/train.yaml`."""
    relocatable(cfg)  # refuses what a run may not store, such as a secret, before its name is printed
    # Importing torch takes seconds.
    log.info(f"{position()}{cfg.name} on {cfg.data.name} ({cfg.features.name}), seed {cfg.seed} -> {cfg.run}")
    from vmr_zoo.engine.training import train

    train(cfg)
    return 0
