"""What `vmr push` publishes of a run: a folder without checkpoints, secrets, and paths of this machine."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from vmr_zoo.config.foreign import portable
from vmr_zoo.errors import VmrError
from vmr_zoo.runs import directory
from vmr_zoo.runs.hub import EXTRACTED_FILE, FILES, check_weights
from vmr_zoo.runs.status import read_status
from vmr_zoo.utils.files import atomic_write, write_json
from vmr_zoo.utils.secrets import SECRET_FORMS, secret_variables
from vmr_zoo.utils.trees import map_leaves

CARD = "README.md"

_PATHS = {
    "annotations": "data/annotations",
    "features": "data/features",
    "cache": "~/.cache/vmr_zoo",
    "runs": "runs",
}
"""Stand for the paths of the machine that trained; a run of the hub is rebuilt with those of its user."""

_PACKAGES = (
    "vmr_zoo",
    "torch",
    "lightning",
    "numpy",
    "transformers",
    "open_clip_torch",
    "sentence-transformers",
)
"""The packages that decide a result; a list of all would show what else is installed here."""

_ENVIRONMENT = ("seed", "python", "gpus", "cuda", "torch_threads", "preloaded")


@dataclass(frozen=True)
class Staged:
    """A folder to publish.

    Attributes:
        header: that of metrics.json.
        metrics: percentages by split and metric.
        config: the published configuration, plain.
        manifest: that of the features.
        environment: the published part.
        moved: what places of this machine became, by their old values.
        left_out: files that are too large, with the reason.
    """

    header: dict[str, Any]
    metrics: dict[str, dict[str, float | None]]
    config: dict[str, Any]
    manifest: dict[str, Any]
    environment: dict[str, Any]
    moved: dict[str, str]
    left_out: dict[str, str]


def stage(run: Path, folder: Path) -> Staged:
    """Writes what is published of a run, all but its card.

    Args:
        run: a finished run of this machine.
        folder: an empty folder.

    Raises:
        VmrError: if the run is not finished, is somebody else's, has no scores, or its weights are not those
            that were scored.
    """
    header, metrics = _results(run)
    header, config, moved = without_places(run, header)
    directory.write_config(folder, config)
    write_json(folder / directory.METRICS, {directory.HEADER: header, **metrics})
    manifest = directory.read_json(run / directory.MANIFEST)
    write_json(folder / directory.MANIFEST, manifest)
    status = read_status(run)
    write_json(folder / directory.STATUS, {**status, "message": ""})
    if (run / directory.ANNOTATIONS).is_file():
        write_json(folder / directory.ANNOTATIONS, directory.read_json(run / directory.ANNOTATIONS))
    environment = _environment(run)
    write_json(folder / directory.ENVIRONMENT, environment)
    _copy_manifests(run, folder)
    generated = str(config["data"]["protocol"].get("_target_")).startswith("vmr_zoo.data.worlds.")
    left_out = _copy_predictions(run, folder, generated)
    try:
        os.link(run / directory.WEIGHTS, folder / directory.WEIGHTS)
    except OSError:
        shutil.copyfile(run / directory.WEIGHTS, folder / directory.WEIGHTS)
    return Staged(header, metrics, config, manifest, environment, moved, left_out)


def without_places(
    run: Path, described: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any], dict[str, str]]:
    """Removes the places of this machine from the description of a run.

    Args:
        run: a run of this machine.
        described: what is published beside its configuration, such as the header of its metrics.json.

    Returns:
        The same without places, the configuration, and what places became by their old values.
    """
    stored = OmegaConf.to_container(directory.load_config(run, build=False))
    config, moved = portable(stored)  # type: ignore[arg-type]
    config = {**config, "trainer": {"_target_": "lightning.Trainer", **config["trainer"]}, "paths": _PATHS}
    here = {**moved, str(run.resolve()): "RUN", str(run): "RUN", str(Path.home()): "~"}
    return map_leaves(lambda value: _without(value, here), described), config, moved


def _results(run: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns header and metrics of a finished run whose weights are those of its metrics."""
    if (run / directory.ORIGIN).is_file():
        origin = directory.read_json(run / directory.ORIGIN)
        if "repository" not in origin:
            raise VmrError(f"{run} is a copy from Weights & Biases, without weights. Push the run directory.")
        raise VmrError(f"{run} is a copy of hf://{origin['repository']}: it is published already.")
    state = read_status(run)
    if state["state"] == "debug":
        what = state.get("message") or "debug"
        raise VmrError(f"{run} is a debugging run ({what:.200}), which is never published.")
    if state["state"] not in ("finished", "new") or not (run / directory.METRICS).is_file():
        reason = f" ({state['message']:.200})" if state.get("message") else ""
        raise VmrError(
            f"{run} is not finished: its state is {state['state']}{reason}. A run is published with its "
            "scores. Continue it with vmr train … resume=true."
        )
    content = directory.read_json(run / directory.METRICS)
    header = content.pop(directory.HEADER)
    if not content or header.get("debug"):
        what = f"a debugging run ({header['debug']})" if header.get("debug") else "without scores"
        raise VmrError(f"{run} is {what}; a run is published with its scores. Train it with vmr train.")
    if not (run / directory.WEIGHTS).is_file():
        raise VmrError(f"{run} has no {directory.WEIGHTS}. Copy the run again, or train it again.")
    if directory.DIGEST not in header:
        _check_by_evaluation(run, content)
        header[directory.DIGEST] = directory.weights_digest(run)
    else:
        check_weights(run, str(run))
    return header, content


def _check_by_evaluation(run: Path, metrics: Mapping[str, Any]) -> None:
    """Refuses a run of an earlier version, without a digest, unless `vmr eval` repeated its metrics."""
    found = directory.weights_digest(run)
    for file in sorted((run / directory.EVALUATIONS).glob(f"*/{directory.METRICS}")):
        evaluated = directory.read_json(file)
        header = evaluated.pop(directory.HEADER)
        other = {"change", "probe", "annotations", directory.TRANSFER}
        if header.get(directory.DIGEST) == found and not other & header.keys():
            shared = sorted(evaluated.keys() & metrics.keys())
            for split in shared:
                if not _equal(evaluated[split], metrics[split]):
                    raise VmrError(
                        f"{file} differs from {run / directory.METRICS} on {split}: other weights."
                    )
            if shared:
                return
    raise VmrError(
        f"{run} was trained by an earlier version of vmr_zoo, which did not record the weights that its "
        f"metrics belong to. Repeat them once: vmr eval run={run} split=selection"
    )


def _equal(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Compares percentages; another machine rounds a few sentences otherwise."""
    return one.keys() == other.keys() and all(abs((one[k] or 0) - (other[k] or 0)) < 0.5 for k in one)


def _without(value: Any, here: Mapping[str, str]) -> Any:
    """Replaces places of this machine in a text."""
    if isinstance(value, str):
        for old in sorted(here, key=len, reverse=True):
            if len(old) > 1:
                value = value.replace(old, here[old])
    return value


def _environment(run: Path) -> dict[str, Any]:
    if not (run / directory.ENVIRONMENT).is_file():
        return {}
    found = directory.read_json(run / directory.ENVIRONMENT)
    git = found.get("git") or {}
    return {
        **{key: found[key] for key in _ENVIRONMENT if key in found},
        "git": {key: git[key] for key in ("revision", "dirty") if key in git} or None,
        "packages": {
            name: found["packages"][name] for name in _PACKAGES if name in found.get("packages", {})
        },
    }


def _copy_manifests(run: Path, folder: Path) -> None:
    """Copies the manifests of folders of `vmr extract`: with them, a new video can be encoded elsewhere."""
    from vmr_zoo.video.manifest import read_manifest

    video = directory.load_config(run, build=False).features.get("video") or {}
    for number, place in enumerate(video.get("folders") or ()):
        manifest = read_manifest(place)
        encoder = {"_target_": manifest["encoder"]["_target_"]}  # the rest is in config.yaml
        write_json(folder / EXTRACTED_FILE.format(number), {**manifest, "encoder": encoder})


def _copy_predictions(run: Path, folder: Path, generated: bool) -> dict[str, str]:
    """Copies the predictions, without what is the annotators': sentences and moments.

    Returns:
        The file and the reason, if it is too large.
    """
    source = run / directory.PREDICTIONS
    if not source.is_file():
        return {}
    if source.stat().st_size > FILES[directory.PREDICTIONS]:
        return {directory.PREDICTIONS: f"{source.stat().st_size / 2**20:.0f} MiB"}
    rows = []
    with source.open(encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            rows.append(
                json.dumps(row if generated else {**row, "query": "", "moments": []}, ensure_ascii=False)
            )
    atomic_write(folder / directory.PREDICTIONS, "\n".join(rows) + "\n")
    return {}


def check_secrets(folder: Path) -> None:
    """Refuses a folder in which a text holds a key, a token, or a path of this user.

    Raises:
        VmrError: names the file, never the secret.
    """
    login = ""
    with suppress(ImportError):
        from huggingface_hub import get_token

        login = get_token() or ""
    known = secret_variables(**{"hf auth login": login})
    home = str(Path.home())
    for path, text in _texts(folder):
        names = [name for name, value in known.items() if value in text]
        if found := SECRET_FORMS.search(text):
            names.append(f"a key that starts with {found[0][:5]}")
        if names:
            raise VmrError(
                f"Nothing was published: {path.name} would contain a secret ({', '.join(names)}). Remove it "
                "from the run's files, and withdraw the key if others could read it."
            )
        if len(home) > 1 and re.search(rf"{re.escape(home)}(?![\w-])", text):
            raise VmrError(
                f"Nothing was published: {path.name} would contain a path below {home}. Remove it from the "
                "run's files."
            )


def _texts(folder: Path) -> Iterator[tuple[Path, str]]:
    for path in sorted(folder.iterdir()):
        if path.name != directory.WEIGHTS:
            yield path, path.read_text(encoding="utf-8")
    # The header of safetensors may hold a text, too.
    with (folder / directory.WEIGHTS).open("rb") as file:
        size = min(int.from_bytes(file.read(8), "little"), 2**24)
        yield folder / directory.WEIGHTS, file.read(size).decode("utf-8", "replace")
