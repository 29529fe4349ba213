"""The OmegaConf resolvers that `conf/` uses."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from vmr_zoo.config.keys import VARIANTS
from vmr_zoo.config.run_names import run_name
from vmr_zoo.config.switch_table import row_names
from vmr_zoo.errors import VmrError, unknown
from vmr_zoo.utils.trees import walk


def register_resolvers() -> None:
    """Registers the resolvers with OmegaConf. Repeated calls are harmless."""
    resolvers: dict[str, Callable[..., Any]] = {
        "by_variant": by_variant,
        "run_name": _current_run_name,
        "study_name": _current_study_name,
        "choice": _chosen_file,
        "in_sweep": in_sweep,
        "extracted": extracted,
        "folder_of": folder_of,
        "sweep_jobs": sweep_jobs,
        "wandb_group": wandb_group,
        "wandb_agent": wandb_agent,
        "switch_rows": row_names,
    }
    for name, resolver in resolvers.items():
        OmegaConf.register_new_resolver(name, resolver, replace=True)


def by_variant(paper: Any, released: Any, *, _root_: DictConfig) -> Any:
    """Resolves `${by_variant:A,B}`: A under `variant: paper`, B under `variant: released`.

    Args:
        paper: the value that follows the paper.
        released: the value that follows the authors' released code.
        _root_: the whole configuration, passed in by OmegaConf.

    Returns:
        One of the two values.

    Raises:
        VmrError: if `variant` is missing or unknown.
    """
    variant = _root_.get("variant")
    if variant not in VARIANTS:
        raise unknown("variant", str(variant), VARIANTS)
    return paper if variant == "paper" else released


def wandb_group(experiment: str | None, otherwise: str) -> str:
    """Resolves `${wandb_group:EXPERIMENT,OTHERWISE}`: the group of a run on Weights & Biases.

    Args:
        experiment: the chosen experiment, or None.
        otherwise: the group of a run that belongs to neither a study nor an experiment.

    Returns:
        The name of the study (the folder given as `--config-dir`), else one of the arguments.
    """
    from hydra.core.hydra_config import HydraConfig

    if HydraConfig.initialized():
        for source in HydraConfig.get().runtime.config_sources:
            if source.provider == "command-line":
                return Path(source.path).name
    return experiment or otherwise


def wandb_agent(variable: str) -> str:
    """Resolves `${wandb_agent:VARIABLE}`: an id that `wandb agent` gives the runs that it starts.

    Args:
        variable: WANDB_SWEEP_ID or WANDB_RUN_ID.

    Raises:
        VmrError: if the environment variable is missing, or is no id, since it becomes the name of a folder.
    """
    value = os.environ.get(variable, "")
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", value):
        raise VmrError(
            f"Expected an id in the environment variable {variable}, which `wandb agent` sets; found "
            f"'{value}'. search=wandb is for the runs that it starts (docs/loggers.md)."
        )
    return value


def in_sweep() -> bool:
    """Resolves `${in_sweep:}`: whether the current Hydra job belongs to a sweep."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    return HydraConfig.initialized() and HydraConfig.get().mode is RunMode.MULTIRUN


def sweep_jobs(threads: int | None) -> int:
    """Resolves `${sweep_jobs:THREADS}`: how many jobs of a sweep run in parallel.

    Args:
        threads: torch threads of each job; None: all cores.

    Returns:
        As many jobs as the cores allow; 1 on a machine with a GPU.
    """
    if threads is None:
        return 1
    import joblib
    import torch

    return 1 if torch.cuda.is_available() else max(1, joblib.cpu_count() // threads)


def extracted(key: str, folders: Sequence[str]) -> Any:
    """Resolves `${extracted:KEY,FOLDERS}`: an entry of the manifests that `vmr extract` wrote."""
    from vmr_zoo.video.manifest import combined_entry

    value = combined_entry(key, folders)
    return OmegaConf.create(value) if isinstance(value, list | dict) else value


def folder_of(*files: str | Mapping[str, str] | None) -> str:
    """Resolves `${folder_of:FILE,…}`: the name of the folder that holds the first file that is not null."""
    for given in files:
        if given is not None and not isinstance(given, str | Mapping):
            raise VmrError(f"Expected test=FILE or test={{NAME:FILE,…}}, found {given}. Name each split.")
    first = next(file for file in files if file)
    file = first if isinstance(first, str) else next(iter(first.values()))
    return Path(file).expanduser().resolve().parent.name


def _chosen_file(group: str) -> str | None:
    """Resolves `${choice:GROUP}`: the file chosen in a config group; None for none and for ablation=full."""
    from hydra.core.hydra_config import HydraConfig

    name = HydraConfig.get().runtime.choices.get(group)
    return None if name in (None, "null", "full") else str(name)


def _current_run_name(*, _root_: DictConfig) -> str:
    """Resolves `${run_name:}` from the overrides of the current Hydra job."""
    from hydra.core.hydra_config import HydraConfig

    overrides = list(HydraConfig.get().overrides.task)
    return run_name(str(_chosen_file("method")), str(_root_.variant), overrides, _keys(_root_))


def _current_study_name(*, _root_: DictConfig) -> str:
    """Resolves `${study_name:}`: the run name without the keys that a search varies, equal for all trials.

    The process that starts the search resolves it too, before it has a job.
    """
    from hydra.core.hydra_config import HydraConfig

    hydra = _root_.get("hydra") or HydraConfig.get()
    varied = hydra.sweeper.get("params") or {}
    overrides = [text for text in hydra.overrides.task if text.partition("=")[0] not in varied]
    method = str(hydra.runtime.choices.get("method"))
    return run_name(method, str(_root_.variant), overrides, _keys(_root_))


def _keys(root: DictConfig) -> list[str]:
    """Returns every key of the job's configuration, without those of Hydra's own."""
    tree: Any = OmegaConf.to_container(root, resolve=False)
    return [key for key, _ in walk({name: node for name, node in tree.items() if name != "hydra"})]
