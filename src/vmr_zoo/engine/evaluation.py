"""Evaluates a run, rebuilt from its directory alone."""

from __future__ import annotations

import json
import logging
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from vmr_zoo.config.allowed import check_names
from vmr_zoo.data.annotations.protocols import find_split
from vmr_zoo.data.annotations.records import SELECTION
from vmr_zoo.data.batches.datamodule import FOR_DETAILS, TRAINING_ONLY
from vmr_zoo.data.features.manifest import compare_manifests
from vmr_zoo.engine import moment_sets
from vmr_zoo.engine.frame_probability import FrameProbability
from vmr_zoo.engine.no_answer import find_rejection_test
from vmr_zoo.engine.prediction import (
    predict_rows,
    prediction_trainer,
    print_metrics,
    score_split,
    scored_splits,
    write_evaluation,
)
from vmr_zoo.engine.transfer import Transfer, find_transfer
from vmr_zoo.engine.weights import load_weights
from vmr_zoo.errors import VmrError, unknown
from vmr_zoo.runs import directory
from vmr_zoo.runs.directory import HEADER
from vmr_zoo.runs.resume import changed_annotations, split_digests
from vmr_zoo.utils.files import atomic_path
from vmr_zoo.utils.trees import walk

if TYPE_CHECKING:
    from vmr_zoo.data.batches.datamodule import VMRDataModule
    from vmr_zoo.engine.probes import Probe
    from vmr_zoo.methods.base import Method

log = logging.getLogger(__name__)


def evaluate(cfg: DictConfig) -> None:
    """Predicts and scores splits of a trained run, and writes the results below RUN/eval.

    Args:
        cfg: composed from `conf/eval.yaml`.

    Raises:
        VmrError: if the run is incomplete, its features changed, other data share videos with the training
            data, or a probe does not suit the method or the split.
    """
    run = Path(cfg.run)
    stored = directory.load_config(run, paths=cfg.paths)
    rejection = find_rejection_test(stored, cfg)
    transfer = find_transfer(stored, cfg) if rejection is None else None
    if transfer is not None:
        stored = transfer.config
    header = dict(directory.read_json(run / directory.METRICS)[HEADER])
    if changes := _change_arguments(stored, cfg.change or {}):
        header |= {"change": changes, "name": f"{header['name']} with {', '.join(changes)}"}
    probe: Probe | None = instantiate(cfg.probe) if cfg.get("probe") else None
    if probe is not None:
        header |= probe.header_entry(header["name"])
    # Inputs of training or details alone need not be available.
    unread = TRAINING_ONLY - {"negative_query"} if cfg.frame_probability else TRAINING_ONLY
    unread |= frozenset() if cfg.details else FOR_DETAILS
    method, data = rebuild(stored, run, unread, changes, transfer)
    if probe is not None:
        probe.check(method.needs)
    header |= moment_sets.header_entry(run, header, method.metrics.settings)
    header[directory.DIGEST] = directory.weights_digest(run)
    splits = _requested_splits(data, cfg.split, transfer is not None or rejection is not None)
    if transfer is not None:
        header |= transfer.prepare(run, data, method, splits, cfg.details)
    else:
        whole = rejection is not None or cfg.details  # these two read further splits
        data.protocol = data.protocol if whole else data.protocol.only(splits)
        data.prepare_data(None if whole else splits)
        read = [*splits, SELECTION] if rejection else splits
        if changed := _changed_annotations(run, data, read, cfg.other_annotations):
            header |= {"name": f"{header['name']} on other annotations", "annotations": changed}

    trainer = prediction_trainer(stored.trainer, run)
    if rejection is not None:
        rejection.run(trainer, method, data, splits, header, run)
        return
    features, metrics, written = data.features, dict[str, dict[str, float]](), list[str]()
    for split in splits:
        sentences: Mapping[str, str] = {}
        if probe is not None:
            data.features, sentences = probe(features, data.split(split))
        where = [split, *([transfer.folder] if transfer else []), *([probe.name] if probe else [])]
        with directory.claim_evaluation(run, "-".join(where)) as target:
            metrics[split] = _evaluate_split(trainer, method, data, split, sentences, header, target, cfg)
        written.append(str(target))
    print_metrics(header, metrics)
    if transfer is None and (probe is not None or changes):
        unchanged = directory.read_json(run / directory.METRICS)
        print_metrics(unchanged[HEADER], {split: unchanged[split] for split in splits if split in unchanged})
    more = " evals=true" if probe is not None or changes else ""
    log.info(f"Wrote {', '.join(written)}. Next: vmr report {shlex.quote(f'runs={run}')}{more}")


def rebuild(
    stored: DictConfig,
    run: Path,
    unread: frozenset[str],
    changes: Sequence[str] = (),
    transfer: Transfer | None = None,
) -> tuple[Method, VMRDataModule]:
    """Rebuilds the method of a run, with its weights, and its data.

    Args:
        stored: the run's configuration, resolved.
        run: its directory.
        unread: needs of the method that the data will not serve.
        changes: the arguments of the method in `stored` that differ from the run's.
        transfer: why the data in `stored` are not the run's; None: they are.

    Raises:
        VmrError: if the features changed, or the weights do not fit.
    """
    method: Method = instantiate(stored.method)
    data: VMRDataModule = instantiate(stored.data, needs=method.needs - unread)
    free = frozenset() if transfer is None else transfer.free(data)
    compare_manifests(directory.read_json(run / directory.MANIFEST), data.features.manifest(), free)
    load_weights(method, run / directory.WEIGHTS, changes)
    return method, data


def _changed_annotations(run: Path, data: VMRDataModule, splits: Sequence[str], wanted: bool) -> list[str]:
    """Returns which annotations differ from those of the run; refuses them unless the user wants them."""
    changed = changed_annotations(run, split_digests(data.protocol.splits), splits)
    if changed and not wanted:
        advice = " To score the run on these, under a name that says so, add other_annotations=true."
        raise annotations_differ(run, changed, advice)
    return changed


def annotations_differ(run: Path, changed: Sequence[str], advice: str = "") -> VmrError:
    """Builds the error for annotations that are not those of a run, with further advice."""
    return VmrError(
        f"The annotations differ from those that {run} was scored with: {'; '.join(changed)}. Restore them "
        f"(paths.annotations).{advice}"
    )


def _evaluate_split(
    trainer: lightning.Trainer,
    method: Method,
    data: VMRDataModule,
    split: str,
    sentences: Mapping[str, str],
    header: Mapping[str, Any],
    target: Path,
    cfg: DictConfig,
) -> dict[str, float]:
    """Writes predictions, metrics and details of one split into `target`, and returns the metrics."""
    details: dict[str, Tensor] | None = {} if cfg.details else None
    frames = FrameProbability() if cfg.frame_probability else None
    rows = predict_rows(trainer, method, data, split, details, frames)
    if sentences:
        rows = [{**row, "asked": sentences[row["query_id"]]} for row in rows]
    metrics = score_split(rows, data, split, method) | (frames.metrics() if frames else {})
    metrics |= moment_sets.set_metrics(rows, moment_sets.rule_from_header(header)).get(split, {})
    write_evaluation(target, rows, header, split, metrics, data.seed)
    if details is not None:
        _write_details(target / directory.DETAILS_FILE, details)
    return metrics


def _write_details(path: Path, details: dict[str, Tensor]) -> None:
    """Writes the details of a split as `<row>/<name>`, and prints their names."""
    from safetensors.torch import save_file

    with atomic_path(path) as temporary:
        save_file(details, temporary)
    names = sorted({key.partition("/")[2] for key in details})
    print(f"{path}: {', '.join(names) or 'no details, this method has none'}")


def _requested_splits(data: VMRDataModule, requested: str | Sequence[str], tests_alone: bool) -> list[str]:
    """Returns the names of the requested splits, each valid; `tests_alone`: "all" leaves out selection."""
    if requested == "all":
        return list(data.test_names) if tests_alone else scored_splits(data)
    names = []
    for name in [requested] if isinstance(requested, str) else requested:
        split = find_split(data.protocol, name)
        if split is data.protocol.train:
            raise VmrError(
                f"Expected split=selection or a test split, found split={name}. "
                "A run is not scored on what it was trained on."
            )
        names.append(SELECTION if split is data.protocol.selection else split.name)
    return names


def _change_arguments(stored: DictConfig, change: Any) -> list[str]:
    """Changes arguments of the method before it is built, in place.

    Args:
        stored: the run's configuration, resolved.
        change: values by dotted key, from the command line.

    Returns:
        "key=value" for each.

    Raises:
        VmrError: if a key is unknown or not below `method`.
    """
    if not isinstance(change, Mapping):
        raise VmrError(
            f"Expected values by key, such as change={{method.ranking.nms_iou:0.3}}, found change={change}."
        )
    change = {key: OmegaConf.to_container(x) if OmegaConf.is_config(x) else x for key, x in change.items()}
    known = [
        key
        for key, _ in walk({"method": OmegaConf.to_container(stored.method)})
        if "." in key and not key.rpartition(".")[2].startswith("_")
    ]
    for key, value in change.items():
        if not str(key).startswith("method."):
            raise VmrError(
                f"change={{…}} takes arguments of the method (method.…), found {key}: a run is scored on the "
                "data that it was trained for."
            )
        if key not in known:
            raise unknown("argument of the method", key, known)
        OmegaConf.update(stored, key, value, merge=False)
    check_names(OmegaConf.to_container(stored.method), "change={…}")
    return [f"{key}={json.dumps(value).strip(chr(34))}" for key, value in change.items()]
