"""docs/fidelity.md names every switch that `variant` turns, and both of its values."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from vmr_zoo.config.compose import config_dir

CONF = config_dir()
PAGE = Path(__file__).parents[1] / "docs" / "fidelity.md"
BY_VARIANT = re.compile(r"\$\{by_variant:([^,}]+),([^,}]+)\}")


class Switch(NamedTuple):
    file: str
    name: str  # as the page writes it: without "method."
    method: str | None  # whose section has to name it; None: any
    values: tuple[str, ...]


def leaves(node: object, path: tuple[str, ...] = ()) -> Iterator[tuple[str, str]]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield from leaves(value, (*path, str(key)))
    elif isinstance(node, list):
        for value in node:
            yield from leaves(value, path)
    elif isinstance(node, str):
        yield ".".join(path), node


def shown(value: str) -> str:
    """Numbers as they are read, so that 1.0e-8 is also 1e-8."""
    try:
        return str(float(value))
    except ValueError:
        return value


def switches() -> list[Switch]:
    found = []
    for file in sorted(CONF.rglob("*.yaml")):
        group, *rest = file.relative_to(CONF).with_suffix("").parts
        prefix = f"{group}." if group in ("method", "data", "features") else ""
        method = rest[0] if group in ("method", "experiment") else None
        for path, value in leaves(yaml.safe_load(file.read_text())):
            if match := BY_VARIANT.search(value):
                name = (prefix + path).removeprefix("method.")
                values = tuple(shown(part.strip()) for part in match.groups())
                found.append(Switch(str(file.relative_to(CONF)), name, method, values))
    return found


def section_lines(page: str, method: str | None) -> list[str]:
    """The lines of the sections whose heading names a method; of all sections without one."""
    lines = []
    for section in page.split("\n## ")[1:]:
        heading, *body = section.splitlines()
        if method is None or method in heading.lower().replace("-", "_").split():
            lines += body
    return lines


def states(line: str, switch: Switch) -> bool:
    """Whether a row names the switch, in full or under `method.`, and both values."""
    if not re.search(rf"`(?:method\.)?{re.escape(switch.name)}`", line):
        return False
    words = {shown(word) for word in re.findall(r"[\w.+-]*\w", line)}
    return words.issuperset(switch.values)


def missing(page: str) -> list[Switch]:
    return [
        switch
        for switch in switches()
        if not any(states(line, switch) for line in section_lines(page, switch.method))
    ]


def test_every_switch_has_its_row():
    absent = [
        f"{s.file}: `{s.name}` = {' | '.join(s.values)}" for s in missing(PAGE.read_text(encoding="utf-8"))
    ]
    assert not absent, f"docs/fidelity.md lacks a row in the right section for {absent}"


def test_switches_are_found_where_they_stand():
    found = {(s.file, s.name, s.values) for s in switches()}
    assert {
        ("method/bm_detr.yaml", "decoder_memory", ("weighted", "raw")),
        ("method/mesm.yaml", "contrast.overlap", ("iou", "giou")),
        ("data/default.yaml", "data.shift.max_duration", ("60.0", "null")),
        ("features/i3d.yaml", "features.video.max_clips", ("null", "75.0")),
        ("experiment/mesm/tacos.yaml", "loss_weights.margin", ("null", "1.0")),
    } <= found


def test_all_of_conf_is_searched():
    text = sum(
        line.split("#")[0].count("${by_variant:")
        for file in CONF.rglob("*.yaml")
        for line in file.read_text().splitlines()
    )
    assert len(switches()) == text > 0


@pytest.mark.parametrize(
    ("old", "new", "name"),
    [
        ("`decoder_memory`", "`decoder`", "decoder_memory"),
        ("`padding_mask` = `own_row`", "`padding_mask` = `row`", "padding_mask"),
        ("`data.bucket_batches`", "`bucket_batches`", "data.bucket_batches"),
        ("## MMN", "## NMM", "nms_unit"),
    ],
)
def test_a_row_that_lacks_name_value_or_section_is_missed(old, new, name):
    page = PAGE.read_text(encoding="utf-8")
    assert old in page
    assert name in {switch.name for switch in missing(page.replace(old, new))}
