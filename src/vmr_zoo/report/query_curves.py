"""Reads the curves over clips that `vmr eval … details=true` stored for queries of a run."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from pathlib import Path

from vmr_zoo.errors import VmrError
from vmr_zoo.report.runs import Run
from vmr_zoo.runs.directory import DETAILS_FILE, EVALUATIONS, HEADER, METRICS, PREDICTIONS, read_json

Curves = dict[str, list[float]]
"""Values by name of the detail, one per clip."""


def stored_curves(run: Run, split: str, query_ids: Collection[str]) -> dict[str, Curves]:
    """Returns the curves of some queries; empty if no evaluation of the split stored details.

    Args:
        run: of several evaluations, the newest one counts.
        split: the split.
        query_ids: the queries.

    Raises:
        VmrError: if the files of the evaluation are broken.
    """
    folder = next(_evaluations(run, split), None)
    if folder is None:
        return {}
    from safetensors import SafetensorError, safe_open

    from vmr_zoo.types import DETAILS

    curves: dict[str, Curves] = {}
    try:
        with (
            (folder / PREDICTIONS).open(encoding="utf-8") as lines,
            safe_open(folder / DETAILS_FILE, "np") as details,
        ):
            stored = set(details.keys())
            timed = sorted(name for name, axes in DETAILS.items() if axes == ("clip",))
            for number, line in enumerate(lines):
                query_id = str(json.loads(line)["query_id"])
                if query_id in query_ids:
                    keys = {name: f"{number}/{name}" for name in timed if f"{number}/{name}" in stored}
                    curves[query_id] = {
                        name: [float(f"{x:.3g}") for x in details.get_tensor(key).tolist()]
                        for name, key in keys.items()
                    }
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise VmrError(
            f"{folder} holds no readable {PREDICTIONS} and {DETAILS_FILE} ({error}). Delete it, and say vmr "
            "eval … details=true again."
        ) from error
    return curves


def _evaluations(run: Run, split: str) -> Iterator[Path]:
    """Yields the evaluations of a split with details, newest first: without a probe, without changes."""
    if run.evals:
        yield from (folder for folder in run.evals if _is_of(folder, split))
        return
    for folder in sorted((run.directory / EVALUATIONS).glob(f"{split}-*"), reverse=True):
        if _is_of(folder, split) and not read_json(folder / METRICS)[HEADER].get("change"):
            yield folder


def _is_of(folder: Path, split: str) -> bool:
    own = re.fullmatch(re.escape(split) + r"-\d+", folder.name)
    return own is not None and (folder / DETAILS_FILE).is_file()
