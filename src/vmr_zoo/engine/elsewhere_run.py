"""Writes scored predictions of another program as a run directory, which `vmr report` reads as a row.

It has config.yaml (data, metrics, how the files were read), metrics.json (with the model), predictions.jsonl
and annotations.json, and no weights. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from vmr_zoo.engine.elsewhere import FAMILY, RANKED, SCORED
from vmr_zoo.engine.moment_sets import HEADER_KEY
from vmr_zoo.errors import VmrError
from vmr_zoo.runs import directory
from vmr_zoo.runs.directory import EXTERNAL, HEADER
from vmr_zoo.runs.resume import refuse_used, split_digests
from vmr_zoo.utils.files import write_json, write_rows
from vmr_zoo.utils.hashing import sha256_of
from vmr_zoo.utils.text import one_line

if TYPE_CHECKING:
    from vmr_zoo.data.annotations.records import Protocol
    from vmr_zoo.engine.score_file import ScoredSplit

UNKNOWN = "unknown"

_DESCRIBED = ("revision", "prompt", "fps", "pixels")
_LONGEST_NAME, _LONGEST_VALUE = 100, 4000


def check_run(run: Path, model: Any) -> None:
    """Refuses a run directory in use, and a row without a name, before anything is scored.

    Raises:
        VmrError: names what to set.
    """
    if not model or not str(model.get("name") or "").strip():
        raise VmrError(
            "run=DIR makes a row of a leaderboard, which needs the name of the model: model.name=NAME; also "
            "model.revision, model.prompt, model.fps and model.pixels, if they are known."
        )
    _check_free(run)


def _check_free(run: Path) -> None:
    refuse_used(run, lambda name: name == directory.LOCK, "Choose another with run=DIR.")


def write_run(
    run: Path, cfg: Any, protocol: Protocol, results: Sequence[ScoredSplit], files: Sequence[Path]
) -> None:
    """Writes the run directory; metrics.json, which makes it a run, comes last.

    Args:
        run: the directory; new, or empty.
        cfg: composed from `conf/score.yaml`.
        protocol: the data.
        results: the scored splits, with their rows.
        files: the files of predictions.

    Raises:
        VmrError: if another process writes it, or it cannot be written.
    """
    header = _header(cfg, protocol, results, files)
    scored = {one.split.name: one.split for one in results}
    kept = {key: cfg[key] for key in ("metrics", "paths", "seed", "split", "unit", "missing", "extra")}
    data = {"name": cfg.data.name, "protocol": OmegaConf.to_container(cfg.data.protocol, resolve=True)}
    config = directory.relocatable(OmegaConf.create({"run": str(run), "data": data, **kept}))
    with directory.create_and_lock(run):
        _check_free(run)
        directory.write_config(run, config)
        write_json(run / directory.ANNOTATIONS, split_digests(scored))
        write_rows(run / directory.PREDICTIONS, [row for one in results for row in one.rows])
        metrics = {one.split.name: one.scores.metrics for one in results}
        write_json(run / directory.METRICS, {HEADER: header, **metrics})


def _header(
    cfg: Any, protocol: Protocol, results: Sequence[ScoredSplit], files: Sequence[Path]
) -> dict[str, Any]:
    """Identifies the row. It has no features and no selection of our own (`report.elsewhere`)."""
    model: Mapping[str, Any] = cfg.model
    unscored = any(one.tally.unscored for one in results)
    rule = next((one.rule for one in results if one.rule is not None), None)
    parameters = model.get("parameters")
    rendered = OmegaConf.select(cfg, "features.origin") == "rendered"
    return {
        "name": one_line(str(model["name"])).strip()[:_LONGEST_NAME],
        "family": FAMILY,
        "method": EXTERNAL,
        "variant": EXTERNAL,
        "experiment": None,
        "ablation": None,
        "protocol": protocol.name,
        **({"settings": protocol.settings} if protocol.settings else {}),
        "features": "none",
        "origin": "rendered" if rendered else "real",
        "selection": EXTERNAL,
        "rounding": "as submitted",
        "seed": int(cfg.seed),
        "parameters": None if parameters is None else int(parameters),
        **({"warnings": list(protocol.doubts)} if protocol.doubts else {}),
        **({HEADER_KEY: rule.header} if rule is not None else {}),
        EXTERNAL: {
            "model": one_line(str(model["name"])).strip()[:_LONGEST_NAME],
            **{key: _described(model.get(key)) for key in _DESCRIBED},
            "unit": cfg.unit or "seconds",
            "scores": RANKED if unscored else SCORED,
            "splits": {one.split.name: one.tally.header for one in results},
            "rounding": {one.split.name: one.scores.rounding for one in results},
            "files": [{"name": path.name, "sha256": sha256_of(path)} for path in files],
            "scored_by": f"vmr_zoo {metadata.version('vmr_zoo')}",
        },
    }


def _described(value: Any) -> str | float:
    """Returns a property of the model as text on one line, or a number; `UNKNOWN` if nobody said it."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    return one_line(str(value)).strip()[:_LONGEST_VALUE] if value not in (None, "") else UNKNOWN
