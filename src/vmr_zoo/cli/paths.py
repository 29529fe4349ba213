"""Files and folders named on the command line, checked before anything is imported."""

from __future__ import annotations

import difflib
import glob
import re
from collections.abc import Sequence
from pathlib import Path

from vmr_zoo.config.arguments import composes_only, listed_texts, overrides_of, texts_of, unquoted
from vmr_zoo.config.keys import Text, kind_of
from vmr_zoo.errors import VmrError, did_you_mean

_HUB = re.compile(r"hf://[^\s,'\"\]]*")


def check_paths(verb: str, args: Sequence[str]) -> None:
    """Refuses arguments that name a missing file, folder or run.

    Args:
        verb: the verb.
        args: the arguments after it, as typed.

    Raises:
        VmrError: names the argument and similar files.
    """
    if composes_only(args) or "source=wandb" in args:
        return
    for key, kind, text in texts_of(verb, args):
        if kind.exists is None or not text or "${" in text or (kind.null and text == "null"):
            continue
        listed = text.startswith("[") and text.endswith("]") and kind.several
        if kind.exists == "videos":
            if not listed and not Path(text).exists() and not glob.has_magic(text):
                raise VmrError(
                    f"Found no video for {key}={text}: no such file or folder.{_similar(Path(text))}"
                )
        elif kind.exists == "run":
            for run in listed_texts(text) if listed else [text]:
                _check_run(key, run)
        else:
            for path in listed_texts(text) if listed and not Path(text).exists() else [text]:
                _check_place(key, kind.exists, Path(path))


def local_runs(verb: str, args: Sequence[str]) -> list[str]:
    """Replaces each run of the hub by the directory that it is downloaded into.

    Args:
        verb: the verb.
        args: the arguments after it, as typed.

    Raises:
        VmrError: as `runs.hub.local_run` raises.
    """
    local = list(args)
    if composes_only(args):
        return local
    given = {key: unquoted(value) for _, key, value in overrides_of(args)}
    cache = given.get("paths.cache")
    for position, key, value in overrides_of(args):
        kind = kind_of(verb, key)
        if isinstance(kind, Text) and kind.exists == "run" and _HUB.search(value):
            from vmr_zoo.runs.hub import local_run

            found = _HUB.sub(lambda one: str(local_run(one[0], None if cache == "null" else cache)), value)
            local[position] = args[position].removesuffix(value) + found
    return local


def _check_run(key: str, text: str) -> None:
    if _HUB.fullmatch(text):
        from vmr_zoo.runs.hub import parse_address

        parse_address(text)
        return
    run = Path(text)
    if (run / "config.yaml").is_file():
        return
    below = sorted(
        path.parent for pattern in ("*", "*/*", "*/*/*") for path in run.glob(f"{pattern}/config.yaml")
    )
    found = (
        f" It contains runs: {', '.join(map(str, below[:3]))}{', …' if len(below) > 3 else ''}."
        if below
        else ""
    )
    what = f"{run} has no config.yaml" if run.is_dir() else f"No such folder: {key}={run}"
    hint = found or ("" if run.is_dir() else _similar(run))
    raise VmrError(f"{what}: expected {key}=DIR, a directory that `vmr train` created.{hint}")


def _check_place(key: str, expected: str, path: Path) -> None:
    if not path.exists():
        raise VmrError(f"No such {expected}: {key}={path}.{_similar(path)}")
    if expected == "file" and path.is_dir():
        raise VmrError(f"Expected a file for {key}; {path} is a folder.")


def _similar(path: Path) -> str:
    """Suggests names in the same folder."""
    try:
        names = [other.name for other in path.parent.iterdir()]
    except OSError:
        return f" The folder {path.parent} does not exist either." if not path.parent.exists() else ""
    close = difflib.get_close_matches(path.name, names)
    return did_you_mean(path.parent / name for name in close)
