"""One clear message for every error that the user can fix."""

from __future__ import annotations

import contextlib
import re
import shlex
from collections.abc import Sequence
from difflib import SequenceMatcher
from typing import Any

from vmr_zoo.config.arguments import overrides_of
from vmr_zoo.config.groups import members, unknown_member
from vmr_zoo.config.values import takes_argument
from vmr_zoo.errors import VmrError, causes, did_you_mean, first_line, nearest, unknown

_LIBRARIES = {
    "wandb.": "Weights & Biases (logger=csv trains without it)",
    "mlflow.": "MLflow (logger=csv trains without it)",
    "lightning.": "Lightning",
    "torch": "The GPU is full (a smaller data.batch_size needs less)",
}
_LIBRARY_ERRORS = {
    "UsageError",
    "CommError",
    "AuthenticationError",
    "MlflowException",
    "MisconfigurationException",
    "OutOfMemoryError",
}
"""Exceptions of libraries by which they refuse what a user chose."""


_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Characters that a terminal obeys, but for the end of a line and the tabulator."""


def complain(message: str) -> None:
    """Prints a message to standard error, in red on a terminal. It may quote a file of somebody else's."""
    from rich.console import Console
    from rich.text import Text

    message = _CONTROL.sub("�", message)
    console = Console(stderr=True, soft_wrap=True)
    console.print(Text.assemble(("vmr: ", "bold red"), message))


def explain(error: BaseException, verb: str, overrides: Sequence[str]) -> str | None:
    """Turns a user-fixable error into one message.

    Args:
        error: the exception.
        verb: the verb that ran.
        overrides: its arguments, to find the nearest valid key.

    Returns:
        The message; None for an internal error: keep the traceback.
    """
    chain = list(causes(error))
    for cause in chain:
        if isinstance(cause, VmrError):
            return str(cause)
    for cause in chain:
        for module, prefix in _LIBRARIES.items():
            if type(cause).__module__.startswith(module) and type(cause).__name__ in _LIBRARY_ERRORS:
                return f"{prefix}: {first_line(cause)}"
    from vmr_zoo.utils.files import WriteError, unwritable_cause

    if full := unwritable_cause(error):
        return str(WriteError(full.filename or "a file", full))
    for cause in chain:
        if isinstance(cause, PermissionError | NotADirectoryError) and cause.filename:
            reason = str(cause.strerror).lower()
            return f"Cannot read {cause.filename}: {reason}. Allow it, or name another file."
    from hydra.errors import (
        ConfigCompositionException,
        HydraException,
        InstantiationException,
        MissingConfigException,
        OverrideParseException,
    )
    from omegaconf.errors import (
        InterpolationToMissingValueError,
        MissingMandatoryValue,
        OmegaConfBaseException,
    )

    if isinstance(error, OverrideParseException):
        return f"Cannot read '{error.override}': expected key=value. {error.message.splitlines()[0]}"
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options is not None:
        return _unknown_member(error.missing_cfg_file, error.options, overrides)
    if missing := re.search(r"Could not load '([^']+)'", str(error)):  # of a list
        return _unknown_member(missing.group(1), [], overrides)
    if str(error).startswith("Ambiguous value for argument"):
        return _several_values(str(error), verb, overrides)
    if isinstance(error, ConfigCompositionException):
        return _unknown_key(str(error), verb, overrides)
    if isinstance(error, InstantiationException):
        return _failed_construction(error)
    if isinstance(error, MissingMandatoryValue | InterpolationToMissingValueError):
        named = re.search(r"Missing mandatory value: (\S+)", str(error))
        key = named.group(1) if named else str(error.full_key)
        key = re.sub(r"^data\.features\b", "features", key)  # data.features refers to features
        return f"vmr {verb} needs a value for '{key}': add {key}=…"
    if isinstance(error, OmegaConfBaseException | HydraException):
        return first_line(error)
    return None


def exit_code(error: BaseException) -> int:
    """Returns the exit code of an explained error: 3 if a file cannot be written, else 2."""
    from vmr_zoo.utils.files import WriteError, unwritable_cause

    found = next((cause for cause in causes(error) if isinstance(cause, VmrError)), None)
    if found is not None:
        return found.exit_code
    return VmrError.exit_code if unwritable_cause(error) is None else WriteError.exit_code


def _unknown_member(file: str, options: Sequence[str], overrides: Sequence[str]) -> str:
    """Suggests members of the group that an override names; GROUP=FOLDER/NAME is a member, too."""
    typed = [key for _, key, _ in overrides_of(overrides)]
    group, _, name = file.rpartition("/")
    if not members(group.partition("/")[0]):  # of Hydra, or of a folder of the user
        return str(unknown(group, name, [option for option in options if option != "default"]))
    also = options if group in typed else []
    while "/" in group and group not in typed:
        group, _, folder = group.rpartition("/")
        name = f"{folder}/{name}"
    return str(unknown_member(group, name, also))


def _several_values(message: str, verb: str, overrides: Sequence[str]) -> str:
    """Suggests -m for key=a,b."""
    found = re.search(r"argument '(([^=]+)=(.*))'", message.splitlines()[0])
    override, key, value = found.groups() if found else ("key=a,b", "key", "a,b")
    count = value.count(",") + 1
    runs = "both" if count == 2 else f"all {count}"
    words = " ".join(shlex.quote(text) for text in overrides)
    return (
        f"{override} has {count} values. Say -m to run {runs}: vmr {verb} -m {words}\n"
        f"For one value with commas, quote it: \"{key}='{value}'\"; a list is {key}=[{value}]."
    )


def _unknown_key(message: str, verb: str, overrides: Sequence[str]) -> str:
    """Suggests the keys nearest to the one that Hydra could not override."""
    found = re.search(
        r"[Cc]ould not (?:override|append to config|delete from config)[^'`]*['`]([^'`]+)['`]", message
    )
    if not found:
        return " ".join(message.split("\n")[:2]).strip()
    key = found.group(1).split("@")[0]
    typed = [name.split("@")[0] for _, name, _ in overrides_of(overrides)]
    if "/" in key and key not in typed:
        return _overlay_of_another_method(key, overrides)
    if key not in typed:
        return (
            f"The search space names '{key}', which the configuration does not set. Is it that of another "
            "method? Choose search=METHOD like method=METHOD."
        )
    valid, cfg, groups = _valid_keys(
        verb, [o for o in overrides if o.lstrip("+~").partition("=")[0].split("@")[0] != key]
    )
    if "/" in key or members(key):
        return _group_not_included(key, verb, groups)
    if cfg is not None and takes_argument(cfg, key):
        value = next(value for _, name, value in overrides_of(overrides) if name == key)
        return f"The configuration files do not set '{key}'. Add it as +{key}={value}."
    # The choices that Hydra records repeat the groups, which may be empty and so no keys of their own.
    valid = [name for name in valid if not name.startswith("hydra.runtime.")]
    valid += [name for name in groups if "@" not in name and not name.startswith("hydra")]
    leaf = key.rsplit(".", 1)[-1]
    same_leaf = sorted(
        (name for name in valid if name.rsplit(".", 1)[-1] == leaf),
        key=lambda name: -SequenceMatcher(None, key, name).ratio(),
    )
    close = list(dict.fromkeys([*same_leaf, *nearest(key, valid)]))[:4]
    hint = did_you_mean(close)
    return f"Unknown key '{key}' for vmr {verb}.{hint} `vmr {verb} --cfg job` prints every key."


def _overlay_of_another_method(key: str, overrides: Sequence[str]) -> str:
    """Explains an ablation or experiment that selects a file of a group that the method does not have."""
    named = ("ablation", "experiment")
    typed = [f"{name}={value}" for _, name, value in overrides_of(overrides) if name in named]
    owners = sorted({text.partition("=")[2].strip("[").partition("/")[0] for text in typed if "/" in text})
    needed = f" Say method={' or method='.join(owners)}." if owners else ""
    file = " or ".join(typed) or "A file"
    return f"{file} selects '{key}', a group that this method does not have.{needed}"


def _group_not_included(key: str, verb: str, groups: Sequence[str]) -> str:
    """Explains GROUP=NAME where the selected files do not include the group."""
    group, _, part = key.rpartition("/")
    close = [name for name in groups if "@" in name and name.endswith((f".{part}", f".{part}.encoder"))]
    instead = f" To change it: {close[0]}=NAME." if close else ""
    reason = f"the file selected in '{group}' includes no such group" if group else "it takes no such group"
    plain = ", ".join(sorted(name for name in groups if "@" not in name and not name.startswith("hydra")))
    return f"'{key}' has no effect in this vmr {verb}: {reason}.{instead} Groups here: {plain}."


def _valid_keys(verb: str, overrides: Sequence[str]) -> tuple[list[str], Any, list[str]]:
    """Lists every key, and the groups, of the configuration that the other overrides compose."""
    from omegaconf import OmegaConf

    from vmr_zoo.config.compose import compose_with_choices, config_dir
    from vmr_zoo.utils.trees import walk

    plain = [o for o in overrides if not o.startswith("-") and "hydra." not in o]
    for attempt in (
        plain,
        [],
    ):  # a second wrong key fails the first; the defaults of the verb then have to do
        with contextlib.suppress(Exception):
            cfg, choices = compose_with_choices(verb, attempt)
            tree: Any = OmegaConf.to_container(cfg)
            return [key for key, _ in walk(tree)], cfg, choices
    return [path.name for path in config_dir().iterdir() if path.is_dir()], None, []


def _failed_construction(error: BaseException) -> str:
    """Explains why a constructor refused its arguments, which come from the configuration."""
    chain = list(causes(error))
    for cause in chain:
        found = re.search(
            r"(\S+)\.?__init__\(\) (got an unexpected keyword argument .*|missing .*)", str(cause)
        )
        if isinstance(cause, TypeError) and found:
            return (
                f"{found.group(1).rstrip('.')} {found.group(2)}. The configuration and the constructor "
                "disagree: check the overlay files (experiment, ablation) and + overrides for a misspelt key."
            )
    node = re.search(r"full_key: (\S+)", str(error))
    reason = first_line(chain[-1])
    return (
        f"Cannot build {node.group(1) if node else 'an object'} from the configuration: {reason} "
        "(HYDRA_FULL_ERROR=1 shows the traceback)"
    )
