"""The run directory: everything that a run leaves, and everything that evaluation and reports read.

Every file is written under a temporary name and renamed, so an interrupted run leaves complete files only.
Nothing here removes an earlier result.

    config.yaml         the composed configuration, resolved except for `${paths.…}`, and its layout version
    status.json         running, interrupted, failed, pruned, debug or finished; the seconds trained so far
    metrics.json        "header" (identity and cost of the run) and the metrics of each split
    predictions.jsonl   the predictions behind the metrics, in seconds
    model.safetensors   the weights that predicted
    manifest.json       the description of the features
    annotations.json    for each split, the number of sentences and a digest of them with their moments
    environment.json    packages, git revision, hardware, seed, threads, preloaded libraries
    checkpoints/        best.ckpt and last.ckpt, with the optimizer's state
    metrics.csv         the training curves
    loggers.json        the run's ids in Weights & Biases and MLflow, with which a resume continues there
    overrides.yaml      what was typed for each session, with its date and the chosen files of conf/
    train.log           everything that was logged, each session after a dated line
    origin.json         of a run from the hub: repository and commit; it is rebuilt under stricter rules
    extracted/N/        of a run from the hub: manifest.json of the features that it was trained on
    epochs-N/           the results after N epochs, of a run that was continued to more
    earlier-001/        an earlier debugging run of the same name (debug=NAME)
    eval/SPLIT-001/     added by `vmr eval`: metrics.json, predictions.jsonl, environment.json, and
                        details.safetensors with details=true; SPLIT-on-DATA-001 with data=DATA
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout
from omegaconf import DictConfig, OmegaConf

from vmr_zoo.config.allowed import FORMER_NAMES, check_names
from vmr_zoo.config.foreign import restricted
from vmr_zoo.errors import VmrError
from vmr_zoo.utils.files import WriteError, atomic_write, read_text, writing
from vmr_zoo.utils.hashing import sha256_of
from vmr_zoo.utils.secrets import SECRET_FORMS
from vmr_zoo.utils.trees import leaf_values, leaves, map_leaves

CONFIG = "config.yaml"
STATUS = "status.json"
METRICS = "metrics.json"
PREDICTIONS = "predictions.jsonl"
DETAILS_FILE = "details.safetensors"
WEIGHTS = "model.safetensors"
MANIFEST = "manifest.json"
ANNOTATIONS = "annotations.json"
ENVIRONMENT = "environment.json"
ORIGIN = "origin.json"
LOGGERS = "loggers.json"
LAST = Path("checkpoints") / "last.ckpt"
EVALUATIONS = "eval"
EXTRACTED = "extracted"
HEADER = "header"
EXTERNAL = "external"
"""Key of the header of a row from elsewhere (`vmr score run=DIR`), and its method: it has no weights."""
TRANSFER = "transfer"
"""Key of the header of results on other data: which data the run was trained and tested on."""
ELSEWHERE = "on-"
"""Begins the part of a folder's name below `eval` that says on which other data the run was tested."""
NO_ANSWER = "no_answer"
"""Key of the header of results with sentences without an answer: how these were chosen and rejected. It also
begins the part of a folder's name below `eval` that says so."""
SIMULATED = "simulated"
"""The `origin` in the header of a run whose features describe no video."""
DIGEST = "weights_sha256"
"""Key of the header: the SHA-256 of the weights that the metrics belong to."""
LOCK = ".lock"

LAYOUT = 2
"""Version of config.yaml. Version 1, of vmr_zoo 0.1, names classes and keys that no longer exist."""

_LAYOUT_KEY = "layout"

_LARGEST_JSON = 64 * 2**20
_LARGEST_CONFIG = 2**18
_DEEPEST_CONFIG = 50
"""Bounds of what is parsed, since a run may come from anywhere. Configurations have about 20 kB."""

_STORED_PATH = re.compile(r"^\$\{paths\.\w+\}")
"""The only interpolation in config.yaml."""


def read_json(path: Path) -> Any:
    """Reads a JSON file of a run directory.

    Raises:
        VmrError: if it is missing or broken.
    """
    try:
        return json.loads(read_text(path, _LARGEST_JSON))
    except FileNotFoundError:
        raise VmrError(
            f"{path.parent} has no {path.name}: it is not a run directory, or its run did not finish."
        ) from None
    except (ValueError, RecursionError) as error:
        raise VmrError(f"{path} is not valid JSON: {error}.") from error
    except OSError as error:
        raise VmrError(f"{path} cannot be read: {error.strerror}.") from error


@contextlib.contextmanager
def create_and_lock(path: Path) -> Iterator[None]:
    """Creates and exclusively locks a run directory; the system releases the lock when the process dies.

    Removes the lock file at the end, and the directory if nothing was written into it.

    Raises:
        VmrError: if another process holds the lock, or the directory cannot be written.
    """
    lock = FileLock(path / LOCK)
    try:
        created = [folder for folder in (path, *path.parents) if not folder.exists()]
        path.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise VmrError(
            f"Another process is using the run directory {path}. Wait until it ends, or choose another "
            "directory with run=DIR or seed=N."
        ) from None
    except OSError as error:
        raise UnwritableRun(path, error) from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            (path / LOCK).unlink()  # a waiting FileLock notices that the file is gone
        lock.release()
        with contextlib.suppress(OSError):
            for folder in created:
                folder.rmdir()


class UnwritableRun(WriteError):
    """A run directory that cannot be written."""

    def __init__(self, path: str | Path, cause: OSError) -> None:
        super().__init__(str(path), cause)
        self.message = (
            f"Cannot write into the run directory {path}: {cause.strerror or cause}. The files in it are "
            "complete. Free some space or fix the permissions and continue with resume=true, or choose "
            "another directory with run=DIR."
        )


def install(building: Path, place: Path) -> None:
    """Renames a finished copy of a run from elsewhere to its place, unless another process was faster.

    Raises:
        WriteError: if it cannot be renamed, and there is no complete copy, which `ORIGIN` marks.
    """
    try:
        building.rename(place)
    except OSError as error:
        if not (place / ORIGIN).is_file():
            raise WriteError(str(place), error) from error


def next_free(parent: Path, stem: str, suffix: str = "") -> Path:
    """Returns the first of `stem-001`, `stem-002`, … below `parent` that does not exist."""
    number = 1
    while os.path.lexists(parent / f"{stem}-{number:03d}{suffix}"):
        number += 1
    return parent / f"{stem}-{number:03d}{suffix}"


@contextlib.contextmanager
def claim_evaluation(run: Path, stem: str) -> Iterator[Path]:
    """Creates the first free of `stem-001`, `stem-002`, … below RUN/eval, so that no other process takes it.

    Removes it again if the body writes nothing into it.

    Raises:
        WriteError: if it cannot be created.
    """
    with writing(run / EVALUATIONS):
        (run / EVALUATIONS).mkdir(exist_ok=True)
        while True:
            folder = next_free(run / EVALUATIONS, stem)
            with contextlib.suppress(FileExistsError):  # another process was faster
                folder.mkdir()
                break
    try:
        yield folder
    finally:
        with contextlib.suppress(OSError):  # it is not empty
            folder.rmdir()


def relocatable(cfg: DictConfig) -> dict[str, Any]:
    """Resolves a configuration except for paths, which become `${paths.…}` again.

    A run directory that moves to another machine then needs new values in one place.

    Args:
        cfg: a composed configuration with a `paths` node.

    Returns:
        A plain tree.

    Raises:
        VmrError: if a value is a key or token, or one outside `paths` comes from an environment variable,
            which may be a secret, or a value contains "${", or the name of the run leads out of its folder.
    """
    _refuse_environment(OmegaConf.to_container(cfg, resolve=False))
    for key in ("name", "data.name", "features.name"):  # folders of the run directory
        name = str(OmegaConf.select(cfg, key))
        if "/" in name or name in (".", ".."):
            raise VmrError(
                f"Expected {key} to be the name of one folder, found '{name}'. To choose the run "
                "directory, set run=DIR or paths.runs=DIR."
            )
    resolved: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    paths: dict[str, str] = {k: str(v) for k, v in resolved.get("paths", {}).items() if v}
    longest_first = sorted(paths.items(), key=lambda item: -len(item[1]))

    def relative(value: Any) -> Any:
        if isinstance(value, str):
            _plain_path(value)
            for name, path in longest_first:
                if value == path or value.startswith(path.rstrip("/") + "/"):
                    return f"${{paths.{name}}}{value[len(path.rstrip('/')) :]}"
        return value

    return {
        key: value if key in ("paths", "run") else map_leaves(relative, value)
        for key, value in resolved.items()
    }


def _refuse_environment(tree: Any) -> None:
    """Refuses keys, and `${oc.env:…}` outside `paths`: config.yaml and wandb would show the value."""
    # The names of the run repeat other values: last, so the message names the key that was typed.
    for key, value in sorted(leaves(tree).items(), key=lambda item: item[0] in ("name", "run")):
        if any(isinstance(x, str) and SECRET_FORMS.search(x) for x in leaf_values(value)):
            raise VmrError(
                f"{key} holds a key, a token or a password, and the run would store it. Leave it out: "
                "libraries read theirs from an environment variable or from the file of their login."
            )
    for key, value in leaves({name: node for name, node in tree.items() if name != "paths"}).items():
        if any(isinstance(x, str) and "oc.env" in x for x in leaf_values(value)):
            raise VmrError(
                f"{key}={value} reads an environment variable, and the run would store its value. Only "
                "paths.… may; write the value itself if it is no secret."
            )


def _plain_path(value: str) -> str:
    """Refuses a value with "${", such as a path: OmegaConf would expand it wherever it is read again."""
    if "${" in value:
        raise VmrError(f"Expected a path or a value without '${{', found '{value}'. Rename the folder.")
    return value


def write_config(path: Path, config: Mapping[str, Any]) -> None:
    """Writes config.yaml.

    Args:
        path: the run directory; created if missing.
        config: from `relocatable`.
    """
    atomic_write(path / CONFIG, OmegaConf.to_yaml(OmegaConf.create({_LAYOUT_KEY: LAYOUT, **config})))


def weights_digest(path: Path) -> str:
    """Returns the SHA-256 of the weights of a run, in hexadecimal."""
    return sha256_of(path / WEIGHTS)


def load_config(
    path: Path, build: bool = True, paths: Mapping[str, str | Path | None] | None = None
) -> DictConfig:
    """Reads the configuration of a run.

    Args:
        path: the run directory.
        build: whether objects will be built from it: resolves `${paths.…}`, and refuses names of classes that
            are not allowed.
        paths: locations that differ from those of the run, by their name in `paths`; None: the run's own. A
            cache in the environment variable VMR_CACHE also replaces that of the run. A run of the hub has
            no locations of its own: this user's apply.

    Raises:
        VmrError: if there is none, it has another layout version, or it must not be built.
    """
    if not (path / CONFIG).is_file():
        raise VmrError(f"{path} has no {CONFIG}: expected run=DIR, a directory that `vmr train` created.")
    cfg = parse_config(read_config(path), path / CONFIG)
    _check_layout(path, cfg.pop(_LAYOUT_KEY, 1))
    if build:
        if "method" not in cfg and not (path / WEIGHTS).is_file():
            raise VmrError(
                f"{path} holds predictions from elsewhere, which `vmr score` wrote, and no model to run. "
                "Expected run=DIR, a directory that `vmr train` created."
            )
        tree = map_leaves(lambda value: FORMER_NAMES.get(value, value), OmegaConf.to_container(cfg))
        if (path / ORIGIN).is_file():
            tree = restricted(tree, str(path / CONFIG))
        check_names(tree, str(path / CONFIG))
        cfg = OmegaConf.create(tree)
        given = {name: place for name, place in (paths or {}).items() if place}
        for name, place in ({"cache": os.environ.get("VMR_CACHE")} | given).items():
            if place:
                cfg.paths[name] = _plain_path(str(place))
        OmegaConf.resolve(cfg)
        if (path / ORIGIN).is_file():
            _use_shipped_manifests(cfg, path / EXTRACTED)
    return cfg


def _use_shipped_manifests(cfg: DictConfig, shipped: Path) -> None:
    """Reads the manifests that a run of the hub brings where this user has no features of `vmr extract`.

    A new video can be encoded and searched without them; an evaluation says which are missing.
    """
    places = (
        f"{root}.{part}.folders" for root in ("features", "data.features") for part in ("video", "patches")
    )
    for folders in filter(None, (OmegaConf.select(cfg, key) for key in places)):
        for number, folder in enumerate(folders):
            own = Path(folder).expanduser() / "manifest.json"
            if (shipped / str(number) / own.name).is_file() and not own.is_file():
                folders[number] = str(shipped / str(number))


def read_config(path: Path) -> str:
    """Returns the text of a run's config.yaml, which exists."""
    return read_text(path / CONFIG, _LARGEST_CONFIG)


def parse_config(text: str, source: Path) -> DictConfig:
    """Parses a run's config.yaml, or a part of it, which may come from anywhere.

    Args:
        text: YAML.
        source: the file, for errors.

    Raises:
        VmrError: if it is not YAML as `write_config` writes it: it has no aliases, which can stand for more
            values than memory holds, little depth, and no interpolation but `${paths.NAME}`.
    """
    try:
        _check_shape(text)
        cfg = OmegaConf.create(text)
        strings = list(leaf_values(OmegaConf.to_container(cfg)))
    except Exception as error:  # yaml's and OmegaConf's own
        reason = " ".join(str(error).split())
        raise VmrError(
            f"{source} is not the configuration of a run ({reason:.300}). Copy the run again."
        ) from error
    if not isinstance(cfg, DictConfig):
        raise VmrError(f"{source} holds a list; expected a configuration. Copy the run again.")
    for value in strings:
        if isinstance(value, str) and "${" in _STORED_PATH.sub("", value):
            raise VmrError(
                f"{source} holds '{value:.200}'. The configuration of a run refers to nothing but "
                "${paths.NAME}, once at the start of a value. Copy the run again."
            )
    return cfg


def _check_shape(text: str) -> None:
    """Refuses aliases, which can stand for more values than memory holds, and deep nesting."""
    depth = 0
    for event in yaml.parse(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        if isinstance(event, yaml.AliasEvent):
            raise VmrError(f"an alias, *{event.anchor}")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST_CONFIG:
            raise VmrError(f"more than {_DEEPEST_CONFIG} levels")


def _check_layout(path: Path, layout: Any) -> None:
    """Refuses a run whose configuration has another layout version."""
    if layout == LAYOUT:
        return
    version = "0.1" if layout == 1 else "another version"
    if (path / ENVIRONMENT).is_file():
        version = read_json(path / ENVIRONMENT).get("packages", {}).get("vmr_zoo", version)
    raise VmrError(
        f"{path} is a run of vmr_zoo {version} (run layout {layout}); vmr_zoo {metadata.version('vmr_zoo')} "
        f"expects layout {LAYOUT}. Train it again with the same command and another run=DIR, or use it with "
        f"vmr_zoo {version}. `vmr report` still shows its results."
    )
