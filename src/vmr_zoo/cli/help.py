"""The page of `vmr VERB --help`: what the files of `conf/` say about a verb, with their comments."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from pathlib import Path

from vmr_zoo.config.compose import config_dir
from vmr_zoo.config.files import groups_of, read_yaml
from vmr_zoo.config.groups import members, unknown_member

_SHOWN = ("paths", "trainer")
"""Groups whose keys, those of their default file, are part of the page."""

_LONGEST_LIST = 20

_FOOTER = """\
Notation    key=value replaces, +key=value adds, ~key removes. A path or a sentence arrives as typed; several
            sentences are [one,two].
Sweeps      vmr {verb} -m key=a,b,c runs every combination.
Inspect     vmr {verb} --help GROUP=NAME prints that file. --cfg job prints the composed configuration,
            --info defaults its sources.
Debugging   HYDRA_FULL_ERROR=1 shows the traceback behind a message. --hydra-help lists Hydra's options."""


def page(verb: str, args: Sequence[str]) -> str:
    """Returns the help page of a verb.

    Args:
        verb: the verb.
        args: its arguments. With GROUP=NAME the result is that file of `conf/`.

    Raises:
        VmrError: for an unknown member of a group.
    """
    groups = groups_of(verb)
    selected = [arg.partition("=") for arg in args if arg.partition("=")[0] in groups and "=" in arg]
    if selected:
        return "\n\n".join(_file(group, name) for group, _, name in selected)
    file = config_dir() / f"{verb}.yaml"
    header = read_yaml(file).get("hydra", {}).get("help", {}).get("header", f"vmr {verb}").strip()
    parts = [header, "== Keys (key=value) ==\n" + _keys(file)]
    for group in _SHOWN:
        if group in groups:
            shown = _keys(config_dir() / group / "default.yaml")
            parts.append(f"== {group}.KEY=value ==\n{shown}")
    choices = [(group, default) for group, default in groups.items() if members(group)]
    if choices:
        parts.append("== Choices (group=name) ==\n" + "\n".join(_choice(*choice) for choice in choices))
    return "\n\n".join([*parts, _FOOTER.format(verb=verb)])


def _file(group: str, name: str) -> str:
    """Returns a file of a group as it stands."""
    path = config_dir() / group / f"{name}.yaml"
    if not path.is_file():
        raise unknown_member(group, name)
    return f"== {group}={name} ==\n{path.read_text(encoding='utf-8').rstrip()}"


def _keys(file: Path) -> str:
    """Returns the keys of a file with their comments: what follows the defaults list, without `hydra:`."""
    text = file.read_text(encoding="utf-8")
    text = re.sub(r"(?m)\A(#.*\n)*", "", text)
    text = re.sub(r"(?m)^(defaults|hydra):.*\n((?:[ \t-].*)?\n)*", "", text)
    return re.sub(r"(?m)^_target_:.*\n", "", text).strip("\n")


def _choice(group: str, default: str | None) -> str:
    """Formats a group and its members; only the folders of many."""
    names = members(group)
    if len(names) > _LONGEST_LIST and any("/" in name for name in names):
        folders = [name.partition("/")[0] for name in names if "/" in name]
        names = [name for name in names if "/" not in name]
        names += [f"{folder}/… ({folders.count(folder)})" for folder in sorted(set(folders))]
    chosen = f"  (default {default})" if default and "$" not in default and default != "default" else ""
    return textwrap.fill(
        ", ".join(names) + chosen,
        width=110,
        initial_indent=f"  {group:<24} ",
        subsequent_indent=" " * 27,
        break_on_hyphens=False,
        break_long_words=False,
    )
