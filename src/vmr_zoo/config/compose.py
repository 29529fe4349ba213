"""Finds `conf/` and composes its configurations without the command line.

Nothing here imports torch: `vmr --help` and `vmr score` start with this file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from vmr_zoo.config.arguments import without_interpolation
from vmr_zoo.config.resolvers import register_resolvers
from vmr_zoo.config.switch_table import apply_row
from vmr_zoo.errors import VmrError


def config_dir() -> Path:
    """Finds `conf/`: the checkout's if the package is located in one, else the copy inside the package.

    Returns:
        An absolute directory that holds `train.yaml`.

    Raises:
        VmrError: if neither exists; the installation is broken.
    """
    candidates = shipped_folders("conf")
    for candidate in candidates:
        if (candidate / "train.yaml").is_file():
            return candidate
    raise VmrError(
        f"No configuration found; looked for train.yaml in {' and '.join(map(str, candidates))}. "
        "Install vmr_zoo again (pip install --force-reinstall)."
    )


def shipped_folders(name: str) -> list[Path]:
    """Returns the possible locations of a folder of the checkout that the package ships, in order.

    The checkout's comes first: editable installs leave a stale copy inside the package.
    """
    package = Path(__file__).resolve().parents[1]
    checkout = package.parents[1]
    inside = [package / name]
    return [checkout / name, *inside] if (checkout / "pyproject.toml").is_file() else inside


def compose(verb: str, overrides: Sequence[str] = ()) -> DictConfig:
    """Composes the configuration of `vmr VERB OVERRIDES…` without running it.

    Args:
        verb: a primary configuration such as "train".
        overrides: as on the command line.

    Returns:
        The job's configuration. Interpolations that need Hydra's own state are resolved.

    Raises:
        hydra.errors.HydraException: as Hydra raises on the command line.
    """
    with _initialised(verb):
        return _compose_job(verb, overrides)


def compose_with_choices(verb: str, overrides: Sequence[str]) -> tuple[DictConfig, list[str]]:
    """Composes a configuration, and lists the groups that it selects files from, such as "features/query".

    Raises:
        hydra.errors.HydraException: as Hydra raises on the command line.
    """
    import hydra

    with _initialised(verb):
        cfg = hydra.compose(verb, list(overrides), return_hydra_config=True)
    return cfg, list(cfg.hydra.runtime.choices)


@contextmanager
def _initialised(verb: str) -> Iterator[None]:
    """Lets Hydra compose outside of a job."""
    import hydra
    from hydra.core.global_hydra import GlobalHydra

    register_resolvers()
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(config_dir()), version_base="1.3", job_name=verb):
        yield


def recompose(overrides: Sequence[str]) -> DictConfig:
    """Composes the configuration of the current Hydra job once more.

    Args:
        overrides: in addition to those of the job; they win.

    Returns:
        As `compose`.

    Raises:
        hydra.errors.HydraException: as Hydra raises on the command line.
    """
    from hydra.core.hydra_config import HydraConfig

    job = HydraConfig.get()
    return _compose_job(str(job.job.config_name), [*job.overrides.task, *overrides])


def _compose_job(name: str, overrides: Sequence[str]) -> DictConfig:
    """Composes in the current search path, as if for a job."""
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import open_dict

    before = HydraConfig.instance().cfg
    cfg = hydra.compose(name, list(overrides), return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    try:
        resolve_job_keys(cfg)
    finally:
        HydraConfig.instance().cfg = before
    with open_dict(cfg):
        del cfg["hydra"]
    return cfg


def resolve_job_keys(cfg: DictConfig) -> None:
    """Resolves the keys that depend on the current Hydra job, in place: they stay valid after it."""
    choices = cfg.get("choices", {})
    for node, keys in ((cfg, ("name", "run", "resume")), (choices, list(choices))):
        for key in keys:
            if key in node and OmegaConf.is_interpolation(node, key):
                value = node[key]
                node[key] = without_interpolation(value) if isinstance(value, str) else value
    apply_row(cfg)


def build(node: DictConfig) -> Any:
    """Instantiates a node; raises a `VmrError` from a constructor as it is, without Hydra's wrapping."""
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate
    from omegaconf.errors import MissingMandatoryValue

    try:
        return instantiate(node)
    except InstantiationException as error:
        if isinstance(error.__cause__, VmrError):
            raise error.__cause__ from None
        raise
    except MissingMandatoryValue:
        # Hydra names the key that refers to the missing one; this names the missing one itself.
        OmegaConf.to_container(node, resolve=True, throw_on_missing=True)
        raise
