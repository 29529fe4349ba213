"""Prints how well the package keeps its limits of size, direction and language; part of `make lint`.

    python tests/structure.py

Exits with 1 if a figure exceeds its limit. `tests/test_import_order.py` uses the import graph.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "vmr_zoo"

ROOT_FILES, FILE_LINES, FUNCTION_LINES = 5, 500, 60
CONSTRUCTOR_LINES, CONSTRUCTOR_PARAMETERS = 50, 14

PROSE = ("src", "conf", "docs", "experiments", "README.md", "CONTRIBUTING.md", "CHANGELOG.md")
BANNED = re.compile(
    r"\b(mend(s|ed|ing)?|anew|whoever|whosoever|told|tells|owed|affairs?|hitherto|thereof|whence|wherein|nought"
    r"|is asked for|for want of|of which it|what it is worth)\b",
    re.IGNORECASE,
)
"""Words and phrases that read as translated or dated."""


class Figure(NamedTuple):
    """One line of the table.

    Attributes:
        name: what was counted.
        value: the count.
        limit: the largest value that passes.
        where: the worst place, or all places over the limit.
    """

    name: str
    value: int
    limit: int
    where: str


def sources() -> list[Path]:
    """Returns every Python file of the package."""
    return sorted(PACKAGE.rglob("*.py"))


def module_of(path: Path) -> str:
    """Returns the dotted name of a file, such as "vmr_zoo.data.text.cache"."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> set[str]:
    """Returns the modules of the package that a file imports, lazy imports included.

    Imports for type checkers only do not count.

    Raises:
        AssertionError: for a relative import.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            node.body = []
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import; write vmr_zoo.… in full"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            found |= {arg.value for arg in node.args if isinstance(arg, ast.Constant)}
    return {name for name in found if name.startswith("vmr_zoo.")}


def graph() -> dict[str, set[str]]:
    """Returns for each module of the package the modules that it imports."""
    modules = {module_of(path) for path in sources()}

    def resolve(name: str) -> str:
        while name not in modules:
            name = name.rpartition(".")[0]
        return name

    return {
        module_of(path): {resolve(name) for name in imports(path)} - {module_of(path), "vmr_zoo"}
        for path in sources()
    }


def cycles(arrows: dict[str, set[str]]) -> list[list[str]]:
    """Returns the groups of modules that import each other, directly or through others."""
    reach: dict[str, set[str]] = {}
    for start in arrows:
        seen: set[str] = set()
        todo = [start]
        while todo:
            for name in arrows.get(todo.pop(), ()):
                if name not in seen:
                    seen.add(name)
                    todo.append(name)
        reach[start] = seen
    groups = {tuple(sorted(b for b in reach if b == a or (b in reach[a] and a in reach[b]))) for a in reach}
    return [list(group) for group in sorted(groups) if len(group) > 1]


def functions() -> Iterator[tuple[Path, str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Yields every function of the package with the name of its class, "" outside a class."""
    for path in sources():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        owner = {
            id(child): node.name
            for node in ast.walk(tree)
            if isinstance(node, ast.ClassDef)
            for child in node.body
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield path, owner.get(id(node), ""), node


def prose_files() -> list[Path]:
    """Returns the tracked text files whose language is checked."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *PROSE],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    suffixes = {".py", ".yaml", ".md", ".html", ".ipynb", ""}
    return [ROOT / name for name in listed if Path(name).suffix in suffixes and (ROOT / name).is_file()]


def banned_words(paths: Iterable[Path]) -> list[str]:
    """Returns "file:line word" for each banned word."""
    found = []
    for path in paths:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            found += [f"{path.relative_to(ROOT)}:{number} {match.group()}" for match in BANNED.finditer(line)]
    return found


def _largest(name: str, sizes: list[tuple[int, str]], limit: int) -> Figure:
    over = [f"{where} ({size})" for size, where in sorted(sizes, reverse=True) if size > limit]
    size, where = max(sizes)
    return Figure(name, size, limit, ", ".join(over) or where)


def figures() -> list[Figure]:
    """Measures the package."""
    root = sorted(path.name for path in PACKAGE.glob("*.py"))
    files = [
        (len(p.read_text(encoding="utf-8").splitlines()), str(p.relative_to(PACKAGE))) for p in sources()
    ]
    lengths, constructor_lengths, parameters = [], [], []
    for path, owner, node in functions():
        name = f"{path.relative_to(PACKAGE)}:{owner + '.' if owner else ''}{node.name}"
        lines = (node.end_lineno or node.lineno) - node.lineno + 1
        lengths.append((lines, name))
        if node.name == "__init__" and path.is_relative_to(PACKAGE / "methods"):
            constructor_lengths.append((lines, name))
            parameters.append((len(node.args.args) + len(node.args.kwonlyargs) - 1, name))
    rings = cycles(graph())
    words = banned_words(prose_files())
    return [
        Figure("files at the root", len(root), ROOT_FILES, ", ".join(root)),
        _largest("longest file", files, FILE_LINES),
        _largest("longest function", lengths, FUNCTION_LINES),
        _largest("longest constructor in methods/", constructor_lengths, CONSTRUCTOR_LINES),
        _largest("most parameters in methods/", parameters, CONSTRUCTOR_PARAMETERS),
        Figure("import cycles", len(rings), 0, "; ".join(" <-> ".join(ring) for ring in rings)),
        Figure("banned words", len(words), 0, "; ".join(words[:10])),
    ]


def main() -> int:
    """Prints the table; returns the exit code."""
    measured = figures()
    for name, value, limit, where in measured:
        print(f"{'ok  ' if value <= limit else 'OVER'} {name:<33}{value:>5} of {limit:<5}{where}")
    return int(any(figure.value > figure.limit for figure in measured))


if __name__ == "__main__":
    sys.exit(main())
