"""Where the configuration lies, the resolvers it uses, and how to compose it without the command line.

Nothing here imports torch: `vmr --help` and `vmr score` start with this file.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from vmr_zoo.errors import VmrError, unknown

VARIANTS = ("paper", "released")

_NOT_IN_RUN_NAME = {
    "data",
    "features",
    "method",
    "variant",
    "seed",
    "run",
    "resume",
    "search",
    "threads",
    "logger",
    "callbacks",
}
_NOT_IN_RUN_NAME_PREFIXES = (
    "paths.",
    "logger.",
    "callbacks.",
    "hydra.",
    "hydra/",
    "choices.",
    "data.residency",
    "data.num_workers",
    "features.packed",
    "trainer.accelerator",
    "trainer.enable_",
)
_LONGEST_RUN_NAME = 120


def config_dir() -> Path:
    """Finds `conf/`: the checkout's when the package lies in one, else the copy inside the package.

    Returns:
        An absolute directory that holds `train.yaml`.

    Raises:
        VmrError: if neither exists, which means a broken installation.
    """
    candidates = shipped("conf")
    for candidate in candidates:
        if (candidate / "train.yaml").is_file():
            return candidate
    raise VmrError(
        f"No configuration found; looked for train.yaml in {' and '.join(map(str, candidates))}. "
        "Install vmr_zoo again (pip install --force-reinstall)."
    )


def shipped(folder: str) -> list[Path]:
    """Returns where a folder of the checkout that is shipped inside the package may lie, in order.

    The checkout's comes first: editable installs leave a stale copy inside the package.
    """
    package = Path(__file__).resolve().parents[1]
    checkout = package.parents[1]
    inside = [package / folder]
    return [checkout / folder, *inside] if (checkout / "pyproject.toml").is_file() else inside


def check_variant(variant: object) -> None:
    """Refuses a `variant` that is neither "paper" nor "released".

    Raises:
        VmrError: names the valid ones.
    """
    if variant not in VARIANTS:
        raise unknown("variant", str(variant), VARIANTS)


def by_variant(paper: Any, released: Any, *, _root_: DictConfig) -> Any:
    """Resolves `${by_variant:A,B}`: A under `variant: paper`, B under `variant: released`.

    Args:
        paper: the value that follows the paper.
        released: the value that follows the authors' released code.
        _root_: the whole configuration, passed in by OmegaConf; its `variant` decides.

    Returns:
        One of the two values.

    Raises:
        VmrError: if `variant` is missing or unknown.
    """
    variant = _root_.get("variant")
    check_variant(variant)
    return paper if variant == "paper" else released


def run_name(method: str, variant: str, overrides: Iterable[str]) -> str:
    """Names a run after what sets it apart from the others on the same data.

    Args:
        method: the chosen file in `conf/method`.
        variant: "paper" or "released".
        overrides: what the command line changed. Data, features, method, variant and seed have their own
            place in the path; paths, loggers and callbacks do not change a result, nor does features.packed:
            if packing changed a number, the features have another name.

    Returns:
        Such as `bm_detr-paper` or `bm_detr-paper+decoder_memory-raw+no_shift`: one directory name, of
        characters that `run=DIR` takes without quotes.
    """
    parts = []
    for override in sorted(overrides):
        key, _, value = override.lstrip("+~").partition("=")
        if key in _NOT_IN_RUN_NAME or key.startswith(_NOT_IN_RUN_NAME_PREFIXES):
            continue
        if key in ("experiment", "ablation"):
            items = [item.strip().split("/")[-1] for item in value.strip("[]").split(",")]
            parts += [item for item in items if item not in ("", "full")]
        else:
            parts.append(f"{key.split('.')[-1]}-{value}")
    name = "+".join([f"{method}-{variant}", *(re.sub(r"[^\w.@-]+", "_", part) for part in parts)])
    if len(name) > _LONGEST_RUN_NAME:
        digest = hashlib.sha256(name.encode()).hexdigest()[:8]
        name = f"{name[:_LONGEST_RUN_NAME]}+{digest}"
    return name


def _run_name_here(*, _root_: DictConfig) -> str:
    """Resolves `${run_name:}` from what the Hydra job that is running was asked for."""
    from hydra.core.hydra_config import HydraConfig

    return run_name(str(_choice("method")), str(_root_.variant), list(HydraConfig.get().overrides.task))


def _choice(group: str) -> str | None:
    """Resolves `${choice:GROUP}`: the name of the file chosen in a config group, None for no choice."""
    from hydra.core.hydra_config import HydraConfig

    name = HydraConfig.get().runtime.choices.get(group)
    return None if name in (None, "null") else str(name)


def wandb_offline() -> bool:
    """Says whether Weights & Biases has no key on this machine, so that its logger stays offline."""
    if os.environ.get("WANDB_MODE"):
        return os.environ["WANDB_MODE"] in ("offline", "dryrun")
    if os.environ.get("WANDB_API_KEY"):
        return False
    import netrc
    from urllib.parse import urlsplit

    server = os.environ.get("WANDB_BASE_URL")
    hosts = [urlsplit(server).netloc] if server else ["api.forge.coreweave.com", "api.wandb.ai"]
    try:
        keys = netrc.netrc(os.environ.get("NETRC"))
    except (OSError, netrc.NetrcParseError):
        return True
    return not any(keys.authenticators(host) for host in hosts)


def wandb_group(experiment: str | None, otherwise: str) -> str:
    """Resolves `${wandb_group:EXPERIMENT,OTHERWISE}`: what runs are shown together with.

    Args:
        experiment: what `experiment=` chose, or None.
        otherwise: for a run of neither a study nor an experiment.

    Returns:
        The name of the study, which is the folder given as `--config-dir`; else one of the arguments.
    """
    from hydra.core.hydra_config import HydraConfig

    if HydraConfig.initialized():
        for source in HydraConfig.get().runtime.config_sources:
            if source.provider == "command-line":
                return Path(source.path).name
    return experiment or otherwise


def in_sweep() -> bool:
    """Resolves `${in_sweep:}`: whether the Hydra job that is running is one of a sweep."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    return HydraConfig.initialized() and HydraConfig.get().mode is RunMode.MULTIRUN


def _study_name_here(*, _root_: DictConfig) -> str:
    """Resolves `${study_name:}`: the run's name without what a search varies, the same for all its trials."""
    from hydra.core.hydra_config import HydraConfig

    varied = HydraConfig.get().sweeper.get("params") or {}
    overrides = [text for text in HydraConfig.get().overrides.task if text.partition("=")[0] not in varied]
    return run_name(str(_choice("method")), str(_root_.variant), overrides)


def sweep_jobs(threads: int | None) -> int:
    """Resolves `${sweep_jobs:THREADS}`: how many jobs of a sweep run at a time.

    Args:
        threads: what each job takes; None: all, or a GPU does the work.

    Returns:
        As many as the cores allow; 1 on a machine with a GPU.
    """
    if threads is None:
        return 1
    import joblib
    import torch

    return 1 if torch.cuda.is_available() else max(1, joblib.cpu_count() // threads)


def extracted(key: str, folders: Sequence[str]) -> Any:
    """Resolves `${extracted:KEY,FOLDERS}`: what the manifests of folders that `vmr extract` filled say."""
    from vmr_zoo.video.manifest import declared

    value = declared(key, folders)
    return OmegaConf.create(value) if isinstance(value, list | dict) else value


def register_resolvers() -> None:
    """Registers the resolvers of `conf/` with OmegaConf; calling it again does no harm."""
    OmegaConf.register_new_resolver("by_variant", by_variant, replace=True)
    OmegaConf.register_new_resolver("run_name", _run_name_here, replace=True)
    OmegaConf.register_new_resolver("choice", _choice, replace=True)
    OmegaConf.register_new_resolver("in_sweep", in_sweep, replace=True)
    OmegaConf.register_new_resolver("study_name", _study_name_here, replace=True)
    OmegaConf.register_new_resolver("extracted", extracted, replace=True)
    OmegaConf.register_new_resolver("sweep_jobs", sweep_jobs, replace=True)
    OmegaConf.register_new_resolver("wandb_offline", wandb_offline, replace=True)
    OmegaConf.register_new_resolver("wandb_group", wandb_group, replace=True)


def compose(verb: str, overrides: Sequence[str] = ()) -> DictConfig:
    """Composes what `vmr VERB OVERRIDES…` would run with, without running it.

    Args:
        verb: a primary configuration such as "train".
        overrides: as on the command line.

    Returns:
        The configuration of the job, its interpolations that need Hydra's own state already resolved.

    Raises:
        hydra.errors.HydraException: as Hydra raises on the command line.
    """
    import hydra
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import open_dict

    register_resolvers()
    GlobalHydra.instance().clear()
    before = HydraConfig.instance().cfg
    with hydra.initialize_config_dir(str(config_dir()), version_base="1.3", job_name=verb):
        cfg = hydra.compose(verb, list(overrides), return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    try:
        settle(cfg)
    finally:
        HydraConfig.instance().cfg = before
    with open_dict(cfg):
        del cfg["hydra"]
    return cfg


def check_recipe() -> None:
    """Refuses a recipe asked for by name that does not exist: the defaults list only tries to find one.

    Raises:
        VmrError: names those that exist.
    """
    from hydra.core.hydra_config import HydraConfig

    overrides = HydraConfig.get().overrides.task
    asked = [text.removeprefix("recipe=") for text in overrides if text.startswith("recipe=")]
    if not asked:
        return
    folder = config_dir() / "recipe"
    names = ["none", *(str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.yaml"))]
    for name in asked:
        if name not in names:
            raise unknown("recipe", name, names)


def build(node: DictConfig) -> Any:
    """Instantiates a node; a mistake that the user can mend comes out as it was raised."""
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    try:
        return instantiate(node)
    except InstantiationException as error:
        if isinstance(error.__cause__, VmrError):
            raise error.__cause__ from None
        raise


def settle(cfg: DictConfig) -> None:
    """Replaces the keys that depend on the Hydra job by their values, in place, so that they outlive it."""
    choices = cfg.get("choices", {})
    for node, keys in ((cfg, ("name", "run", "resume")), (choices, list(choices))):
        for key in keys:
            if key in node and OmegaConf.is_interpolation(node, key):
                node[key] = node[key]
