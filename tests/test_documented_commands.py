"""Every `vmr` command of README, docs and the help pages composes as printed, and passes the checks."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from vmr_zoo.cli.completion import script
from vmr_zoo.cli.main import VERBS
from vmr_zoo.config.arguments import _split, as_typed, check_options, is_sweep, overrides_of
from vmr_zoo.config.compose import compose, config_dir
from vmr_zoo.config.files import groups_of, read_yaml
from vmr_zoo.config.values import check_values

pytestmark = pytest.mark.no_cover
ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
PAGES += sorted([*(ROOT / "docs").rglob("*.md"), *(ROOT / "experiments").rglob("*.md")])


def in_blocks(text: str) -> Iterator[str]:
    """Yields the lines of fenced blocks, continued lines joined."""
    for block in re.findall(r"(?ms)^```(?:bash|sh|console)?\n(.*?)^```", text):
        yield from re.sub(r"\\\n\s*", " ", block).splitlines()


def commands() -> list[str]:
    lines = [line for page in PAGES for line in in_blocks(page.read_text(encoding="utf-8"))]
    for verb in VERBS:
        header = read_yaml(config_dir() / f"{verb}.yaml")["hydra"]["help"]["header"]
        lines += re.sub(r"\\\n\s*", " ", header).splitlines()[1:]
    found = [line.strip().removeprefix("$ ").split(" | ")[0] for line in lines]
    return sorted({line for line in found if re.match(r"vmr [a-z]+ |vmr gpu", line)})


def arguments(command: str) -> list[str]:
    """Returns the arguments; two spaces and more separate a remark on a help page."""
    typed = re.split(r"\s{2,}(?=[a-z…])(?!\S+=)", command.replace(";", " #"))[0]
    return [word for word in shlex.split(typed, comments=True)[1:] if word != "…"]


def test_commands_are_found() -> None:
    assert len(commands()) > 100


@pytest.mark.parametrize("command", commands())
def test_a_documented_command_composes_and_passes_the_checks(
    command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 8)
    verb, *args = arguments(command)
    if verb == "completion":
        assert script(args[0])
        return
    assert verb in VERBS
    args = ["json=true" if arg == "--json" else arg for arg in args]
    check_options(args)
    if "--help" in args or "--config-name" in args:  # test_studies composes the sweeps of studies
        if "--config-dir" in args:
            folder, name = (args[args.index(option) + 1] for option in ("--config-dir", "--config-name"))
            assert name.startswith("$") or (ROOT / folder / f"{name}.yaml").is_file()  # $: of a loop
        return
    typed = as_typed(verb, args)
    chosen = []
    for position, key, value in overrides_of(typed):
        one = _split(value)[-1] if is_sweep(args) else value
        text = typed[position]
        chosen.append(text[: len(text) - len(value)] + one if key in text else text)
    tree = compose(verb, [text for text in chosen if not text.lstrip("+").startswith("hydra")])
    check_values(verb, tree, [text for text in chosen if text.partition("=")[0] not in groups_of(verb)])
