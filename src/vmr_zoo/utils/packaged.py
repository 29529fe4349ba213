"""Models whose weights are part of this package."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

PACKAGED = ("shapes_clip",)
"""Folders below `vmr_zoo/weights`, in the layout of open_clip."""

_LOCAL = "local-dir:"


def open_clip_name(model: str) -> str:
    """Returns the name by which open_clip finds a model: "local-dir:FOLDER" for a packaged one."""
    return f"{_LOCAL}{Path(__file__).parents[1] / 'weights' / model}" if model in PACKAGED else model


def open_clip_folder(model: str) -> Path | None:
    """Returns the folder of a packaged model or of "local-dir:FOLDER"; None for any other name."""
    name = open_clip_name(model)
    return Path(name.removeprefix(_LOCAL)).expanduser() if name.startswith(_LOCAL) else None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hides open_clip's info messages; warnings stay."""
    before = logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        yield
    finally:
        logging.disable(before)
