"""`vmr score`: scores a file of predictions against the ground truth, without a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmr_zoo.engine.score_file import score_file

if TYPE_CHECKING:
    from omegaconf import DictConfig


def main(cfg: DictConfig) -> int:
    """Runs the verb on the configuration composed from `conf/score.yaml`."""
    score_file(cfg)
    return 0
