"""`vmr import`: converts a checkpoint of the authors' code into a run directory for `vmr eval`."""

from __future__ import annotations

import logging
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from vmr_zoo.config.arguments import search_paths
from vmr_zoo.errors import VmrError
from vmr_zoo.methods.base import parameter_count
from vmr_zoo.parity.checkpoint_import import import_checkpoint

log = logging.getLogger(__name__)


def main(cfg: DictConfig) -> int:
    """Runs `vmr import method=… checkpoint=FILE out=DIR`.

    Args:
        cfg: the configuration composed from conf/import.yaml.

    Returns:
        0 once the run directory is written.

    Raises:
        VmrError: if the method has no released code, or the checkpoint does not fit.
    """
    if cfg.get("released") is None:
        raise VmrError("This method has no released code to import from. Methods that have: conf/released/.")
    job = HydraConfig.get()
    overrides = [*search_paths(job.overrides.hydra), *job.overrides.task]
    if not any(text.startswith("method=") for text in overrides):
        overrides.append(f"method={job.runtime.choices['method']}")
    checkpoint, out = Path(cfg.checkpoint), Path(cfg.out)
    method = import_checkpoint(checkpoint, out, hydra.utils.instantiate(cfg.released), overrides)
    log.info(f"{parameter_count(method)} parameters of {checkpoint.name} -> {out}")
    log.info(f"Score it: vmr eval run={out}")
    return 0
