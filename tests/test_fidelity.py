"""The page of each method names every switch that `variant` sets, and both of its values."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from vmr_zoo.config.compose import config_dir

CONF = config_dir()
DOCS = Path(__file__).parents[1] / "docs"
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


def pages() -> dict[str, str]:
    """The text of each method's page, and the page for all methods under ""."""
    found = {path.stem: path.read_text(encoding="utf-8") for path in (DOCS / "methods").glob("*.md")}
    return found | {"": (DOCS / "fidelity.md").read_text(encoding="utf-8")}


def lines(texts: dict[str, str], method: str | None) -> list[str]:
    """The lines of a method's page, or of all pages without a method."""
    named = texts.values() if method is None else [texts.get(method, "")]
    return [line for text in named for line in text.splitlines()]


def states(line: str, switch: Switch) -> bool:
    """Whether a row names the switch, in full or under `method.`, and both values."""
    if not re.search(rf"`(?:method\.)?{re.escape(switch.name)}`", line):
        return False
    words = {shown(word) for word in re.findall(r"[\w.+-]*\w", line)}
    return words.issuperset(switch.values)


def missing(texts: dict[str, str]) -> list[Switch]:
    return [
        switch
        for switch in switches()
        if not any(states(line, switch) for line in lines(texts, switch.method))
    ]


def test_every_switch_has_its_row():
    absent = [f"{s.file}: `{s.name}` = {' | '.join(s.values)}" for s in missing(pages())]
    assert not absent, f"docs/methods/ lacks a row on the right page for {absent}"


def test_switches_are_found_where_they_stand():
    found = {(s.file, s.name, s.values) for s in switches()}
    assert {
        ("method/bm_detr.yaml", "decoder_memory", ("weighted", "raw")),
        ("method/mesm.yaml", "segment_sentence.contrast.overlap", ("iou", "giou")),
        ("data/default.yaml", "data.shift.max_duration", ("60.0", "null")),
        ("features/c3d.yaml", "features.video.max_clips", ("null", "75.0")),
        ("experiment/mesm/tacos.yaml", "training.loss_weights.margin", ("null", "1.0")),
    } <= found


def test_all_of_conf_is_searched():
    text = sum(
        line.split("#")[0].count("${by_variant:")
        for file in CONF.rglob("*.yaml")
        for line in file.read_text().splitlines()
    )
    assert len(switches()) == text > 0


@pytest.mark.parametrize(
    ("method", "old", "new", "name"),
    [
        ("bm_detr", "`decoder_memory`", "`decoder`", "decoder_memory"),
        ("qd_detr", "`own_row`", "`row`", "aligner.padding_mask"),
        ("", "`data.bucket_batches`", "`bucket_batches`", "data.bucket_batches"),
        ("mmn", "`ranking.nms_unit`", "`nms_unit`", "ranking.nms_unit"),
    ],
)
def test_a_row_that_lacks_name_or_value_is_missed(method, old, new, name):
    texts = pages()
    assert old in texts[method]
    texts[method] = texts[method].replace(old, new)
    assert name in {switch.name for switch in missing(texts)}


def test_no_table_is_longer_than_a_person_reads():
    for name, text in pages().items():
        for table in re.findall(r"(?:^\|.*\n)+", text, re.M):
            assert table.count("\n") - 2 <= 20, f"{name}: {table.splitlines()[0]}"
