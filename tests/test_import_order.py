"""Who may import whom: docs/contract.md. Read from the sources, so that a lazy import counts too."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "vmr_zoo"
BASE = {"types", "spans", "errors", "files", "parallel"}
ALLOWED = {
    **dict.fromkeys(BASE, BASE),
    "blocks": BASE | {"blocks"},
    "losses": BASE | {"blocks", "losses"},
    "metrics": BASE | {"metrics"},
    "video": BASE | {"video"},
    "data": BASE | {"data", "video"},
    "methods": BASE | {"blocks", "losses", "metrics", "methods"},
}


def imports(path: Path) -> set[str]:
    """Returns the modules of the package that a file imports, less what only type checkers see."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            node.body = []
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            raise AssertionError(f"{path}: relative import; write vmr_zoo.… in full")
    return {name for name in found if name.startswith("vmr_zoo.")}


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(path):
    part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if part not in ALLOWED:
        # Entry points know no concrete method: Hydra builds it.
        concrete = {
            name for name in imports(path) if name.startswith("vmr_zoo.methods.") and ".base" not in name
        }
        assert part == "released" or not concrete
        return
    wrong = {name for name in imports(path) if name.split(".")[1] not in ALLOWED[part]}
    assert not wrong, f"{path.relative_to(PACKAGE)} must not import {sorted(wrong)}"


def test_the_test_sees_a_wrong_import(tmp_path):
    bad = tmp_path / "bad.py"
    bad.write_text("def f():\n    from vmr_zoo.data import datamodule\n")
    assert "vmr_zoo.data.batches.datamodule" in imports(bad)
