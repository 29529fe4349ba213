"""`vmr eval`: scores a trained run on splits of its protocol, or of other data."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmr_zoo.engine.evaluation import evaluate

if TYPE_CHECKING:
    from omegaconf import DictConfig


def main(cfg: DictConfig) -> int:
    """Runs the verb on the configuration composed from `conf/eval.yaml`."""
    evaluate(cfg)
    return 0
