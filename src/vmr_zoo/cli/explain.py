"""One clear message for every error that the user can fix."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from typing import Any

from vmr_zoo.errors import VmrError, nearest, unknown


def complain(message: str) -> None:
    """Prints a message to standard error, in red on a terminal."""
    from rich.console import Console
    from rich.text import Text

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
    for cause in _causes(error):
        if isinstance(cause, VmrError):
            return str(cause)
    from hydra.errors import (
        ConfigCompositionException,
        HydraException,
        InstantiationException,
        MissingConfigException,
        OverrideParseException,
    )
    from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

    if isinstance(error, OverrideParseException):
        return f"Cannot read '{error.override}': expected key=value. {error.message.splitlines()[0]}"
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options is not None:
        group, _, name = error.missing_cfg_file.rpartition("/")
        return str(unknown(group, name, [option for option in error.options if option != "default"]))
    if isinstance(error, ConfigCompositionException):
        return _unknown_key(str(error), verb, overrides)
    if isinstance(error, InstantiationException):
        return _failed_construction(error)
    if isinstance(error, MissingMandatoryValue):
        key = getattr(error, "full_key", None) or str(error).rsplit(" ", 1)[-1]
        key = re.sub(r"^data\.features\b", "features", key)  # data.features refers to features
        return f"vmr {verb} needs a value for '{key}': add {key}=…"
    if isinstance(error, OmegaConfBaseException | HydraException):
        return str(error).strip().splitlines()[0]
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yields the error and the errors that it was raised from, outermost first."""
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)


def _unknown_key(message: str, verb: str, overrides: Sequence[str]) -> str:
    """Suggests the keys nearest to the one that Hydra could not override."""
    found = re.search(
        r"[Cc]ould not (?:override|append to config|delete from config)[^'`]*['`]([^'`]+)['`]", message
    )
    if not found:
        return " ".join(message.split("\n")[:2]).strip()
    key = found.group(1).split("@")[0]
    valid = _valid_keys(verb, [o for o in overrides if o.lstrip("+~").partition("=")[0].split("@")[0] != key])
    leaf = key.rsplit(".", 1)[-1]
    same_leaf = sorted(
        (name for name in valid if name.rsplit(".", 1)[-1] == leaf),
        key=lambda name: -SequenceMatcher(None, key, name).ratio(),
    )
    close = list(dict.fromkeys([*same_leaf, *nearest(key, valid)]))[:4]
    hint = f" Did you mean {' or '.join(close)}?" if close else ""
    return f"Unknown key '{key}' for vmr {verb}.{hint} `vmr {verb} --cfg job` prints every key."


def _valid_keys(verb: str, overrides: Sequence[str]) -> list[str]:
    """Lists every key of the configuration that the other overrides compose."""
    from omegaconf import OmegaConf

    from vmr_zoo.config.compose import compose, config_dir
    from vmr_zoo.utils.trees import walk

    plain = [o for o in overrides if not o.startswith("-") and "hydra." not in o]
    for attempt in (
        plain,
        [],
    ):  # a second wrong key fails the first; the defaults of the verb then have to do
        with contextlib.suppress(Exception):
            tree: Any = OmegaConf.to_container(compose(verb, attempt))
            return [key for key, _ in walk(tree)]
    return [path.name for path in config_dir().iterdir() if path.is_dir()]


def _failed_construction(error: BaseException) -> str:
    """Explains why a constructor refused its arguments, which come from the configuration."""
    causes = list(_causes(error))
    for cause in causes:
        found = re.search(
            r"(\S+)\.?__init__\(\) (got an unexpected keyword argument .*|missing .*)", str(cause)
        )
        if isinstance(cause, TypeError) and found:
            return (
                f"{found.group(1).rstrip('.')} {found.group(2)}. The configuration and the constructor "
                "disagree: check the overlay files (experiment, ablation) and + overrides for a misspelt key."
            )
    node = re.search(r"full_key: (\S+)", str(error))
    reason = str(causes[-1]).strip().splitlines()[0]
    return (
        f"Cannot build {node.group(1) if node else 'an object'} from the configuration: {reason} "
        "(HYDRA_FULL_ERROR=1 shows the traceback)"
    )
