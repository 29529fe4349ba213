"""Weights & Biases in reports: reads runs from an online project, and logs leaderboards to one.

`engine.wandb_logger` logs the header and the results of a run; the same `Run` is rebuilt from them as from a
run directory. What needs predictions also downloads the files of the run, into `CACHE/wandb/DIGEST`, a run
directory like any other; origin.json marks it as one that may be somebody else's.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vmr_zoo.config.foreign import own_paths
from vmr_zoo.engine.wandb_layout import (
    ARTIFACT_TYPE,
    FILES,
    FINAL,
    SPLITS,
    UPLOADED,
    artifact_name,
    wandb_offline,
)
from vmr_zoo.errors import VmrError, first_line
from vmr_zoo.report.data_tables import rows_of_means
from vmr_zoo.report.leaderboard import TABLE_KEYS, Leaderboard
from vmr_zoo.report.runs import REQUIRED_KEYS, Run, wrong_types
from vmr_zoo.runs import hub
from vmr_zoo.runs.directory import CONFIG, HEADER, METRICS, ORIGIN, PREDICTIONS, install
from vmr_zoo.utils.console import progress
from vmr_zoo.utils.files import check_regular, write_json
from vmr_zoo.utils.hashing import sha256_of

log = logging.getLogger(__name__)

_IDENTITY = (*TABLE_KEYS, "name", "seed")
"""Header keys in which two different runs differ."""

_REQUIRED = {*REQUIRED_KEYS, "train_seconds"}
"""Header keys that distinguish runs of `vmr train` from other runs of a project."""

_PAGE = 200
"""Runs per request."""

_TIMEOUT = 60
"""Seconds that a request may take."""

_NEEDED = {CONFIG, METRICS, PREDICTIONS}
"""The files without which a downloaded run is of no use."""

_LARGEST = {"metrics.csv": 2**26, **hub.FILES}
"""Bytes that each file has at most."""


@dataclass(frozen=True)
class OnlineRun(Run):
    """A run of an online project.

    Attributes:
        address: ENTITY/PROJECT/ID.
        files: the SHA-256 of each file that was uploaded; empty if it has not all that a report needs.
    """

    address: str = ""
    files: Mapping[str, str] = field(default_factory=dict)


def fetch_runs(entity: str | None, project: str) -> list[Run]:
    """Reads the finished runs of an online project, page by page.

    If several runs agree in name, data and seed, such as a run that was synced twice or repeated, only the
    newest is returned.

    Args:
        entity: user or team; None: the default of the API key.
        project: name of the project.

    Returns:
        The runs without their directories, oldest first.

    Raises:
        VmrError: if wandb is not installed, has no API key or cannot be reached, if the project does not
            exist, or if none of its finished runs has a header.
    """
    wandb = _wandb()
    path = project if entity is None else f"{entity}/{project}"
    try:
        # lazy=True would send one more request per run for its configuration and summary.
        pages = wandb.Api(timeout=_TIMEOUT).runs(
            path, filters={"state": "finished"}, order="+created_at", per_page=_PAGE, lazy=False
        )
        listed = list(progress(pages, f"Reading {path}", total=len(pages)))
    except Exception as error:  # of wandb, of its service (a private class) or of the network
        raise _cannot_read(path, error) from error
    runs = [run for run in map(_rebuild_run, listed) if run is not None]
    if not runs:
        raise VmrError(
            f"No run to report in '{path}' on Weights & Biases: it has {len(listed)} finished run(s), none "
            "with the header that `vmr train` logs. Upload offline runs with `wandb sync`, or choose another "
            "project=… or entity=…"
        )
    newest = {tuple(str(run.header[key]) for key in _IDENTITY): run for run in runs}
    if len(newest) < len(runs):
        log.warning(
            f"{len(runs) - len(newest)} run(s) ignored: a newer run has the same name, data and seed."
        )
    return list(newest.values())


def _rebuild_run(run: Any) -> OnlineRun | None:
    """Rebuilds a run from its configuration and summary; None for runs that `vmr train` did not log."""
    header = run.config.get(HEADER)
    if run.state != "finished" or not isinstance(header, dict) or not header.keys() >= _REQUIRED:
        return None
    if wrong_types(header):
        return None
    metrics: dict[str, dict[str, float]] = {split: {} for split in run.config.get(SPLITS) or []}
    for key, value in run.summary.items():
        parts = key.split("/", 2)
        if len(parts) == 3 and parts[0] == FINAL and isinstance(value, int | float):
            metrics.setdefault(parts[1], {})[parts[2]] = value
    address = f"{run.entity}/{run.project}/{run.id}"
    return OnlineRun(None, header, metrics, address=address, files=_uploaded(run))


def _uploaded(run: Any) -> dict[str, str]:
    """Returns the digests of the files of a run; none unless they are files that runs have."""
    files = run.config.get(UPLOADED)
    if not isinstance(files, dict) or not _NEEDED <= files.keys() <= set(FILES):
        return {}
    valid = all(isinstance(one, str) and re.fullmatch(r"[0-9a-f]{64}", one) for one in files.values())
    return dict(files) if valid else {}


def with_files(runs: Sequence[Run]) -> list[Run]:
    """Downloads predictions, configuration and metrics of online runs; those in the cache are kept.

    Args:
        runs: from `fetch_runs`.

    Returns:
        The runs with a directory.

    Raises:
        VmrError: if a run has no such files, they cannot be downloaded, or differ from what the run recorded.
    """
    online = [run for run in runs if isinstance(run, OnlineRun)]
    lacking = [run for run in online if not run.files]
    if lacking:
        raise VmrError(
            f"{len(lacking)} of {len(online)} runs on Weights & Biases have no predictions there, such as "
            f"{lacking[0].address}: vmr_zoo 0.2.0 or logger.wandb.upload=false logged them. Leave them out "
            "with where={…}, or use source=runs."
        )
    root = Path(own_paths()["cache"]).expanduser() / "wandb"
    shown = progress(online, "Reading files")
    client = functools.cache(lambda: _wandb().Api(timeout=_TIMEOUT))  # which asks the server who it is
    return [replace(run, path=_local_folder(run, root, client)) for run in shown]


def _local_folder(run: OnlineRun, root: Path, client: Callable[[], Any]) -> Path:
    """Returns the directory with the files of a run, which is downloaded once."""
    identity = json.dumps([run.address, sorted(run.files.items())])
    folder = root / hashlib.sha256(identity.encode()).hexdigest()[:32]  # no name from a server becomes a path
    if (folder / ORIGIN).is_file():
        return folder
    project, _, run_id = run.address.rpartition("/")
    name = f"{project}/{artifact_name(run_id)}:latest"
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root, prefix=".tmp-") as temporary:
        building = Path(temporary) / "run"
        building.mkdir()
        try:
            artifact = client().artifact(name, type=ARTIFACT_TYPE)
            for file in run.files:
                _download(artifact, name, file, building)
        except VmrError:
            raise
        except Exception as error:  # of wandb, of its service or of the network
            raise _cannot_read(name, error) from error
        for file, digest in run.files.items():
            if sha256_of(building / file) != digest:
                raise VmrError(
                    f"{name}: {file} is not the file that the run recorded (SHA-256 {digest}). Run the same "
                    "command again; if it stays so, somebody has replaced the file."
                )
        hub.check_texts(building, name)
        write_json(building / ORIGIN, {"wandb": run.address})
        install(building, folder)
    return folder


def _download(artifact: Any, name: str, file: str, folder: Path) -> None:
    """Downloads a file of an artifact: one of known name and bounded size, never one that it refers to."""
    try:
        entry = artifact.get_entry(file)
    except KeyError:
        raise VmrError(f"{name} has no {file}, which its run recorded. Use source=runs.") from None
    if entry.ref is not None or (entry.size or 0) > _LARGEST[file]:
        raise VmrError(
            f"{name}: {file} refers to {entry.ref!s:.200} or has {entry.size} bytes; expected a file of at "
            f"most {_LARGEST[file]:,} bytes. Nothing was downloaded."
        )
    entry.download(root=str(folder), skip_cache=True)
    if check_regular(folder / file) > _LARGEST[file]:
        raise VmrError(f"{name}: {file} is larger than {_LARGEST[file]:,} bytes.")


def _wandb() -> Any:
    os.environ.setdefault("WANDB_SILENT", "true")
    try:
        import wandb
    except ImportError as error:
        raise VmrError(
            f"Weights & Biases cannot be imported ({error}). Install it: pip install wandb."
        ) from error
    return wandb


def _cannot_read(path: str, error: Exception) -> VmrError:
    """Explains an error of the API: ValueError for an unknown project, UsageError for a missing key."""
    from wandb.errors import UsageError

    if isinstance(error, UsageError):
        hint = "Run `wandb login`, or set WANDB_API_KEY."
    elif isinstance(error, ValueError):
        hint = "Check entity=… and project=…, and whether the API key may read them."
    else:
        hint = "Check the network, WANDB_API_KEY, entity=… and project=…"
    return VmrError(f"Cannot read '{path}' from Weights & Biases: {first_line(error).rstrip('.')}. {hint}")


def log_leaderboards(boards: Sequence[Leaderboard], entity: str | None, project: str, folder: Path) -> str:
    """Logs each table to one run of the job type "leaderboard", offline without an API key.

    Args:
        boards: the tables.
        entity: user or team; None: the default of the API key.
        project: name of the project.
        folder: an offline run is written to `wandb` below this folder.

    Returns:
        A line that says where the tables were logged.

    Raises:
        VmrError: if wandb is not installed or cannot be reached.
    """
    wandb = _wandb()
    tables = dict(zip(_table_names(boards), boards, strict=True))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        run = wandb.init(
            entity=entity,
            project=project,
            job_type="leaderboard",
            name="leaderboard",
            dir=str(folder),
            mode="offline" if wandb_offline() else None,
            config={"tables": {name: board.title for name, board in tables.items()}},
        )
        run.log({name: wandb.Table(*_columns_and_rows(board)) for name, board in tables.items()})
        run.finish()
    except wandb.errors.Error as error:
        raise VmrError(
            f"Cannot log to '{project}' on Weights & Biases: {first_line(error).rstrip('.')}. Check the "
            "network and the API key, or set WANDB_MODE=offline."
        ) from error
    if run.offline:
        return f"Logged to Weights & Biases, offline; upload with `wandb sync {Path(run.dir).parent}`."
    return f"Logged to Weights & Biases: {run.url}"


def _table_names(boards: Sequence[Leaderboard]) -> list[str]:
    """Names each table after protocol and features, in characters that wandb accepts in keys."""
    names: list[str] = []
    for board in boards:
        header = board.rows[0].runs[0].header
        # wandb names an artifact of at most 128 characters after run and table.
        stem = re.sub(r"[^\w.-]+", "_", f"{header['protocol']}-{header['features']}")[:80]
        # Tables of the same protocol and features differ in origin, selection rule or rounding.
        same = sum(name == stem or name.startswith(f"{stem}.") for name in names)
        names.append(f"{stem}.{same + 1}" if same else stem)
    return names


def _columns_and_rows(board: Leaderboard) -> tuple[list[str], list[list[Any]]]:
    """Returns the columns and rows of a table as data; None where there is no number."""
    frame = rows_of_means([board]).drop(columns="table")
    return list(frame.columns), frame.where(frame.notna(), None).to_numpy().tolist()
