"""The family of a row, such as DETR: pages and LaTeX tables list rows of one family together."""

from __future__ import annotations

import functools
import importlib

from vmr_zoo.config.allowed import allowed_names
from vmr_zoo.engine.elsewhere import FAMILY as ELSEWHERE
from vmr_zoo.report.run_settings import setting
from vmr_zoo.report.runs import Run

BASELINES = "Baselines"
"""The family of methods that ignore video or query; it and rows from elsewhere come last."""

_METHODS = "vmr_zoo.methods."


def find_family(run: Run) -> str:
    """Returns the family that the method of a run declares; "" if it declares none.

    It is in the header of a run. Runs before this key name the class of their method, which has it.
    """
    declared = run.header.get("family")
    if isinstance(declared, str):
        return declared
    return _declared_family(str(setting(run, "method._target_", "")))


@functools.cache
def _declared_family(target: str) -> str:
    if not target.startswith(_METHODS) or target not in allowed_names():
        return ""
    module, _, name = target.rpartition(".")
    return str(getattr(importlib.import_module(module), name).family)


def family_order(family: str) -> int:
    """Returns 0 for trained methods; larger numbers come later."""
    return (BASELINES, ELSEWHERE).index(family) + 1 if family in (BASELINES, ELSEWHERE) else 0
