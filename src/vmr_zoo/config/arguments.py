"""Arguments of the command line: a path, a sentence or a name reaches Hydra as it was typed.

Hydra parses the value of `key=value`: 12_05 is the number 1205, `a, b` two values, `null` nothing. For keys
that `vmr_zoo.config.keys` lists as text, the value is quoted first where Hydra would change it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence

from vmr_zoo.config.keys import Text, kind_of
from vmr_zoo.errors import unknown

_OPTIONS_WITH_VALUE = {
    *("--config-dir", "-cd", "--config-name", "-cn", "--config-path", "-cp", "--package", "-p"),
    *("--cfg", "-c", "--info", "-i"),
}
_OPTIONS: dict[str, tuple[str, ...]] = {
    "--cfg": ("job", "hydra", "all"),
    "--info": ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath"),
    **dict.fromkeys(("--hydra-help", "--version", "--resolve", "--package", "--run", "--multirun"), ()),
    **dict.fromkeys(("--shell-completion", "--config-path", "--config-name", "--config-dir"), ()),
    **dict.fromkeys(("--experimental-rerun", "--json", "--help"), ()),
    **dict.fromkeys(("-h", "-p", "-r", "-m", "-sc", "-cp", "-cn", "-cd"), ()),
}
_OPTIONS |= {"-c": _OPTIONS["--cfg"], "-i": _OPTIONS["--info"]}
"""Options of every verb, with the values that they take; none: not one of a few."""
_SEARCH_RANGES = "hydra.sweeper.params."
_QUOTED = re.compile(r"'(\\.|[^'\\])*'|\"(\\.|[^\"\\])*\"", re.DOTALL)
_SWEEP_FUNCTION = re.compile(r"(choice|range|interval|glob|sort|shuffle|tag)\(.*\)", re.DOTALL)


def is_sweep(args: Sequence[str]) -> bool:
    """Returns whether commas separate the values of a sweep."""
    return any(arg in ("-m", "--multirun", "hydra.mode=MULTIRUN") for arg in args)


def check_options(args: Sequence[str]) -> None:
    """Refuses an unknown option, or an option with an unknown value.

    Raises:
        VmrError: lists the valid ones.
    """
    for arg, following in zip(args, [*args[1:], ""], strict=False):
        name, equals, value = arg.partition("=")
        if not arg.startswith("-"):
            continue
        if name not in _OPTIONS:
            raise unknown("option", name, _OPTIONS)
        value = value if equals else following
        needs_value = name in ("--cfg", "-c") or equals
        if _OPTIONS[name] and value not in _OPTIONS[name] and (needs_value or (value and "=" not in value)):
            raise unknown(f"value of {name}", value, _OPTIONS[name])


def options_first(args: Sequence[str]) -> list[str]:
    """Moves options before the overrides: Hydra's parser refuses overrides on both sides of an option."""
    overrides = {position for position, _ in _positional(args)}
    options = [arg for position, arg in enumerate(args) if position not in overrides]
    bare = {"--info": "--info=all", "-i": "--info=all"}  # it would take the next argument for its value
    following = [*options[1:], "-"][: len(options)]
    options = [
        bare.get(arg, arg) if after.startswith("-") else arg
        for arg, after in zip(options, following, strict=False)
    ]
    return [*options, *(args[position] for position in sorted(overrides))]


def composes_only(args: Sequence[str]) -> bool:
    """Returns whether the options print a configuration and run nothing."""
    names = {"--cfg", "-c", "--info", "-i", "--hydra-help", "-sc", "--shell-completion"}
    return bool(names & {arg.partition("=")[0] for arg in args})


def overrides_of(args: Sequence[str]) -> Iterator[tuple[int, str, str]]:
    """Yields position, key and typed value of each `key=value` among the arguments."""
    for position, arg in _positional(args):
        key, equals, value = arg.partition("=")
        if equals and not key.startswith("~"):
            yield position, key.lstrip("+"), value


def as_typed(verb: str, args: Sequence[str]) -> list[str]:
    """Returns the arguments of a verb with text quoted for Hydra where it would change it.

    Args:
        verb: such as "predict".
        args: the arguments after the verb.

    Returns:
        As many arguments. 'quoted' values stay; with -m, commas separate values.
    """
    quoted = list(args)
    sweep = is_sweep(args)
    for position, key, value in overrides_of(args):
        kind = kind_of(verb, key)
        if isinstance(kind, Text):
            prefix = args[position][: len(args[position]) - len(value)]
            quoted[position] = prefix + _quote(value, kind, sweep)
        elif key.startswith(_SEARCH_RANGES):
            # The keys of this mapping contain dots, which an override takes for levels.
            text = value if _QUOTED.fullmatch(value) else _with_quotes(value)
            quoted[position] = f"++{_SEARCH_RANGES[:-1]}={{{key.removeprefix(_SEARCH_RANGES)}:{text}}}"
    return quoted


FORMER_KEYS = {
    "method.dim": "method.network.dim",
    "method.feedforward_dim": "method.network.feedforward_dim",
    "method.heads": "method.network.heads",
    "method.optimizer": "method.training.optimizer",
    "method.scheduler": "method.training.scheduler",
    "method.loss_weights": "method.training.loss_weights",
}
"""Keys of vmr_zoo 0.1 that moved, with all keys below them."""


def with_present_keys(args: Sequence[str]) -> tuple[list[str], list[str]]:
    """Replaces the keys of vmr_zoo 0.1 that moved.

    Returns:
        As many arguments, and a sentence about each key that was replaced.
    """
    present, notes = list(args), []
    for position, key, _ in overrides_of(args):
        for former, now in FORMER_KEYS.items():
            if key == former or key.startswith(f"{former}."):
                present[position] = args[position].replace(former, now, 1)
                notes.append(f"{former} is now {now}.")
    return present, notes


def _positional(args: Sequence[str]) -> Iterator[tuple[int, str]]:
    """Yields position and text of the arguments that are neither options nor values of options."""
    option: str | None = None
    for position, arg in enumerate(args):
        optional = option in ("--info", "-i") and "=" in arg
        is_value = option in _OPTIONS_WITH_VALUE and not optional
        option = arg if arg.startswith("-") and not is_value else None
        if option is None and not is_value:
            yield position, arg


def search_paths(overrides: Iterable[str]) -> list[str]:
    """Returns those of Hydra's own overrides that name further folders of configuration files."""
    return [text for text in overrides if text.startswith("hydra.searchpath=")]


def texts_of(verb: str, args: Sequence[str]) -> Iterator[tuple[str, Text, str]]:
    """Yields key, kind and each single text typed for a key that takes text, without Hydra's quotes."""
    sweep = is_sweep(args)
    for _, key, value in overrides_of(args):
        kind = kind_of(verb, key)
        if isinstance(kind, Text) and not (sweep and _SWEEP_FUNCTION.fullmatch(value)):
            for one in _split(value) if sweep else [value]:
                yield key, kind, unquoted(one)


def listed_texts(value: str) -> list[str]:
    """Returns the texts of a list as typed.

    >>> listed_texts("[runs/a,'runs/b, c']")
    ['runs/a', 'runs/b, c']
    """
    return [unquoted(item.strip()) for item in _split(value[1:-1])]


def unquoted(value: str) -> str:
    """Removes the quotes of Hydra's grammar around a value, if it has any."""
    return re.sub(r"\\(['\"])", r"\1", value[1:-1]) if _QUOTED.fullmatch(value) else value


def without_interpolation(text: str) -> str:
    """Escapes "${" in a text, which OmegaConf then reads as it is."""
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", text)


def _quote(value: str, kind: Text, sweep: bool) -> str:
    """Quotes the value of a text key, or each of the values of a sweep."""
    if sweep and _SWEEP_FUNCTION.fullmatch(value):
        return value
    return ",".join(_quote_one(one, kind, sweep) for one in (_split(value) if sweep else [value]))


def _quote_one(value: str, kind: Text, sweep: bool) -> str:
    if value == "" or (kind.null and value == "null"):
        return value
    literal = kind.sentence or not sweep  # "${" starts no interpolation
    if _QUOTED.fullmatch(value):
        return re.sub(r"(?<!\\)((?:\\\\)*)\$\{", r"\1\\${", value) if literal else value
    named = not kind.sentence and os.path.exists(value)  # a file whose name looks like a list
    if kind.several and not named and re.fullmatch(r"\[.*\]", value, re.DOTALL):
        items = [item.strip() for item in _split(value[1:-1])]
        return f"[{','.join(_quote_one(item, Text(sentence=kind.sentence), sweep) for item in items)}]"
    if "${" in value and literal:
        value = without_interpolation(value)
    elif _unchanged(value):
        return value
    return _with_quotes(value)


def _with_quotes(value: str) -> str:
    """Quotes a text in Hydra's grammar."""
    from hydra.core.override_parser.types import Quote, QuotedString

    return QuotedString(value, Quote.single).with_quotes()


def _unchanged(value: str) -> bool:
    """Returns whether Hydra reads the value as it was typed."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        (override,) = OverridesParser.create().parse_overrides([f"key={value}"])
    except HydraException:
        return False
    return type(override.value()) is str and override.value() == value


def _split(text: str) -> list[str]:
    """Splits at commas outside of quotes and brackets. A quote opens only where a value starts."""
    parts, depth, at = [""], 0, 0
    while at < len(text):
        quoted = _QUOTED.match(text, at) if not parts[-1].strip() and not depth else None
        if quoted:
            parts[-1] += quoted.group()
            at = quoted.end()
            continue
        char = text[at]
        depth = max(0, depth + (char in "[{(") - (char in "]})"))
        if char == "," and not depth:
            parts.append("")
        else:
            parts[-1] += char
        at += 1
    return parts
