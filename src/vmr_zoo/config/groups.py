"""The groups of `conf/` and their members, read from the names of files: no file is opened."""

from __future__ import annotations

from collections.abc import Sequence

from vmr_zoo.config.compose import config_dir
from vmr_zoo.errors import VmrError, did_you_mean, nearest, unknown

_PARTS = {"base", "default"}
"""Files and folders that others include; nobody selects them."""

_NESTED = ("ablation", "experiment", "recipe")
"""Groups whose members are in folders, such as `ablation=mesm/table5_enc`."""


def members(group: str) -> list[str]:
    """Lists what `GROUP=NAME` can select.

    Args:
        group: such as "method" or "features/query".

    Returns:
        Sorted names such as "mesm" or "mesm/table5_enc".
    """
    folder = config_dir() / group
    found = {path.stem for path in folder.glob("*.yaml")} - _PARTS
    if not found or group in _NESTED:
        nested = {str(path.relative_to(folder).with_suffix("")) for path in folder.glob("*/*.yaml")}
        found |= {name for name in nested if name.split("/")[0] not in _PARTS}
    return sorted(found)


def unknown_member(group: str, name: str, also: Sequence[str] = ()) -> VmrError:
    """Builds the error for `GROUP=NAME` without such a file.

    Args:
        group: the group.
        name: what was typed.
        also: valid names beside those of `conf/`.

    Returns:
        An error that suggests similar names, and lists those of the same folder or all.
    """
    valid = sorted({*members(group), *also} - _PARTS)
    folder = name.partition("/")[0] + "/"
    beside = [member for member in valid if member.startswith(folder)]
    if beside or len(valid) <= 40:
        return unknown(group, name, beside or valid)
    folders_of = sorted({member.partition("/")[0] for member in valid})
    hint = did_you_mean(nearest(name, valid))
    return VmrError(f"Unknown {group} '{name}'.{hint} Valid: names below {', '.join(folders_of)}.")


def check_recipe() -> None:
    """Refuses an unknown `recipe=NAME`. The defaults list marks the recipe as optional and would ignore it.

    Raises:
        VmrError: lists the valid ones.
    """
    from hydra.core.hydra_config import HydraConfig

    names = ["none", *members("recipe")]
    for text in HydraConfig.get().overrides.task:
        if text.startswith("recipe=") and text.removeprefix("recipe=") not in names:
            raise unknown("recipe", text.removeprefix("recipe="), names)
