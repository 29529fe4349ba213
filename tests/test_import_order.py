"""Who may import whom: docs/contract.md. Read from the sources, so that a lazy import counts too."""

from __future__ import annotations

from pathlib import Path

import pytest

import structure

CONTRACT = {"types", "spans", "errors", "utils"}
BELOW_DATA = CONTRACT | {"video", "config"}
BELOW_RUNS = BELOW_DATA | {"data", "metrics"}
BELOW_ENGINE = BELOW_RUNS | {"narrators", "runs", "methods"}
ALLOWED = {
    "types": {"types"},
    "errors": {"errors"},
    "spans": CONTRACT,
    "utils": CONTRACT,
    "blocks": CONTRACT | {"blocks"},
    "losses": CONTRACT | {"blocks", "losses"},
    "metrics": CONTRACT | {"metrics"},
    "video": CONTRACT | {"video"},
    "methods": CONTRACT | {"blocks", "losses", "metrics", "methods"},
    "config": CONTRACT | {"video", "config"},
    "data": BELOW_DATA | {"data"},
    "narrators": BELOW_DATA | {"data", "narrators"},
    "runs": BELOW_RUNS | {"runs"},
    "engine": BELOW_ENGINE | {"engine"},
    "parity": BELOW_ENGINE | {"blocks", "losses", "engine", "parity"},
    "report": BELOW_RUNS | {"runs", "engine", "report"},
    "demo": CONTRACT | {"video", "engine", "demo"},
    "cli": BELOW_ENGINE | {"engine", "parity", "report", "demo", "cli"},
}
INSIDE_DATA = {
    "text": {"text"},
    "annotations": {"text", "annotations"},
    "features": {"text", "annotations", "features"},
    "narrations": {"text", "annotations", "features", "narrations"},
    "batches": {"text", "annotations", "features", "batches"},
    "worlds": {"text", "annotations", "features", "narrations", "worlds"},
    "readers": {"annotations"},
}
GRAPH = structure.graph()


def room(module: str, depth: int = 1) -> str:
    parts = module.split(".")
    return parts[depth] if len(parts) > depth else ""


def test_imports_go_one_way():
    wrong = {
        (module, name)
        for module in GRAPH.keys() - {"vmr_zoo"}  # the package's own names are lazy attributes
        for name in GRAPH[module]
        if room(name) not in ALLOWED[room(module)]
    }
    assert not wrong


def test_inside_data_imports_go_one_way():
    wrong = {
        (module, name)
        for module in GRAPH
        if module.startswith("vmr_zoo.data.")
        for name in GRAPH[module]
        if room(name) == "data" and room(name, 2) not in INSIDE_DATA[room(module, 2)]
    }
    assert not wrong


def test_only_parity_knows_a_method_by_name():
    """Hydra builds the method; commands, runs and the engine know the base class alone."""
    wrong = {
        (module, name)
        for module in GRAPH
        if room(module) not in ("methods", "parity")
        for name in GRAPH[module]
        if room(name) == "methods" and name != "vmr_zoo.methods.base"
    }
    assert not wrong


def test_there_are_no_cycles():
    assert structure.cycles(GRAPH) == []


def test_every_room_has_its_rule():
    folders = {path.name for path in structure.PACKAGE.iterdir() if (path / "__init__.py").is_file()}
    files = {path.stem for path in structure.PACKAGE.glob("*.py")} - {"__init__"}
    assert folders | files == set(ALLOWED)


def test_a_lazy_import_and_a_cycle_are_seen(tmp_path: Path):
    bad = tmp_path / "bad.py"
    bad.write_text("def f():\n    from vmr_zoo.data.batches import datamodule\n")
    assert structure.imports(bad) == {"vmr_zoo.data.batches.datamodule"}
    assert structure.cycles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]


def test_a_banned_word_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    page = tmp_path / "page.md"
    page.write_text("A slip, mended.\nRecommended.\n")
    monkeypatch.setattr(structure, "ROOT", tmp_path)
    assert structure.banned_words([page]) == ["page.md:1 mended"]
