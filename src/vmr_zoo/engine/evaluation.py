"""`vmr eval`: rebuild a run from its directory alone, predict and score splits, which training shares."""

from __future__ import annotations

import contextlib
import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning
import numpy as np
from hydra.utils import instantiate
from lightning.pytorch.callbacks import Callback, ProgressBar
from omegaconf import DictConfig, ListConfig, OmegaConf
from torch import Tensor

from vmr_zoo.data.annotations.protocols import find_split, refuse_other_protocol
from vmr_zoo.data.annotations.records import SELECTION
from vmr_zoo.data.batches.datamodule import FOR_DETAILS, TRAINING_ONLY
from vmr_zoo.data.features.store import compare_manifests
from vmr_zoo.engine.callbacks import progress
from vmr_zoo.engine.scoring import score_rows
from vmr_zoo.errors import VmrError, unknown
from vmr_zoo.report.leaderboard import wide_console
from vmr_zoo.runs import directory
from vmr_zoo.runs.directory import HEADER
from vmr_zoo.types import DETAILS
from vmr_zoo.utils.files import atomic_path

if TYPE_CHECKING:
    from vmr_zoo.data.batches.datamodule import VMRDataModule
    from vmr_zoo.engine.probes import Probe
    from vmr_zoo.methods.base import Method
    from vmr_zoo.types import Batch

DETAILS_FILE = "details.safetensors"
SHOWN = ("R1@0.3", "R1@0.5", "R1@0.7", "R5@0.5", "R5@0.7", "mIoU", "mAP", "highlight_mAP", "HIT@1")


def main(cfg: DictConfig) -> int:
    """Scores a trained run.

    Args:
        cfg: what `conf/eval.yaml` composes.

    Returns:
        0 once the results are written.

    Raises:
        VmrError: if the run is incomplete, its features changed, another protocol is asked for, or a probe
            has nothing to ask instead.
    """
    run = Path(cfg.run)
    stored = directory.load_config(run, paths=cfg.paths)
    if cfg.get("data") is not None:
        refuse_other_protocol(stored.data.name, cfg.data.name, stored.paths.annotations)
    header = dict(directory.read_json(run / directory.METRICS)[HEADER])
    changes = _change(stored, cfg.change or {})
    if changes:
        header |= {"change": changes, "name": f"{header['name']} with {', '.join(changes)}"}
    probe: Probe | None = instantiate(cfg.probe) if cfg.get("probe") else None
    if probe is not None:
        asked_with = probe.name.replace("_", " ")
        header |= {"probe": probe.name, "name": f"{header['name']} asked with {asked_with}"}

    method: Method = instantiate(stored.method)
    # What only training reads, or details, need not be there.
    needs = method.needs - TRAINING_ONLY - (frozenset() if cfg.details else FOR_DETAILS)
    data: VMRDataModule = instantiate(stored.data, needs=needs)
    wanted = _wanted(data, cfg.split)
    features = data.features
    compare_manifests(directory.read_json(run / directory.MANIFEST), features.manifest())
    load_weights(method, run / directory.WEIGHTS, changes)
    data.prepare_data()

    trainer = predictor(stored.trainer, run)
    metrics = {}
    for split in wanted:
        details: dict[str, Tensor] | None = {} if cfg.details else None
        asked: Mapping[str, str] = {}
        if probe is not None:
            data.features, asked = probe(features, data.split(split))
        rows = predict_rows(trainer, method, data, split, details)
        if asked:
            rows = [{**row, "asked": asked[row["query_id"]]} for row in rows]
        metrics[split] = score(rows, data, split, method)
        target = directory.next_free(run / "eval", split if probe is None else f"{split}-{probe.name}")
        directory.write_rows(target / directory.PREDICTIONS, rows)
        directory.write_json(target / directory.METRICS, {HEADER: header, split: metrics[split]})
        directory.write_json(target / directory.ENVIRONMENT, directory.environment(stored.seed))
        if details is not None:
            _write_details(target / DETAILS_FILE, details)
    print_metrics(header, metrics)
    return 0


def predictor(node: DictConfig, run: Path) -> lightning.Trainer:
    """Builds the trainer that predicts: one process on one device, whatever it took to train.

    Args:
        node: the run's `trainer`.
        run: its directory.
    """
    bar = progress()
    devices = node.get("devices")
    with quiet():
        trainer: lightning.Trainer = instantiate(
            node,
            devices=[devices[0]] if isinstance(devices, ListConfig) else 1,
            num_nodes=1,
            strategy="auto",
            callbacks=[bar],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=isinstance(bar, ProgressBar),
            default_root_dir=str(run),
        )
    return trainer


def _write_details(path: Path, details: dict[str, Tensor]) -> None:
    """Writes the details of a split, `<row>/<name>`, and tells which names there are."""
    from safetensors.torch import save_file

    with atomic_path(path) as temporary:
        save_file(details, temporary)
    names = sorted({key.partition("/")[2] for key in details})
    print(f"{path}: {', '.join(names) or 'no details, this method has none'}")


def _wanted(data: VMRDataModule, asked: str | Sequence[str]) -> list[str]:
    """Returns the names of the splits asked for, each valid."""
    if asked == "all":
        return splits_of(data)
    names = []
    for name in [asked] if isinstance(asked, str) else asked:
        split = find_split(data.protocol, name)
        if split is data.protocol.train:
            raise VmrError(
                f"Expected split=selection or a test split, found split={name}. "
                "A run is not scored on what it was trained on."
            )
        names.append(SELECTION if split is data.protocol.selection else split.name)
    return names


def _change(stored: DictConfig, change: Any) -> list[str]:
    """Changes arguments of the method before it is built, in place.

    Args:
        stored: the run's configuration, resolved.
        change: values by dotted key, from the command line.

    Returns:
        "key=value" for each.

    Raises:
        VmrError: if there is no such argument, or it is none of the method's.
    """
    if not isinstance(change, Mapping):
        raise VmrError(
            f"Expected values by key, such as change={{method.nms_iou:0.3}}, found change={change}."
        )
    change = {key: OmegaConf.to_container(x) if OmegaConf.is_config(x) else x for key, x in change.items()}
    known = _keys(stored.method, "method.")
    for key, value in change.items():
        if not str(key).startswith("method."):
            raise VmrError(
                f"change={{…}} takes arguments of the method (method.…), found {key}: a run is scored on the "
                "data that it was trained for."
            )
        if key not in known:
            raise unknown("argument of the method", key, known)
        OmegaConf.update(stored, key, value, merge=False)
    return [f"{key}={json.dumps(value).strip(chr(34))}" for key, value in change.items()]


def _keys(node: DictConfig, prefix: str) -> list[str]:
    """Lists dotted keys at any depth, less those of Hydra's own."""
    found = []
    for key in map(str, node):
        if not key.startswith("_"):
            found.append(f"{prefix}{key}")
            found += _keys(node[key], f"{prefix}{key}.") if isinstance(node[key], DictConfig) else []
    return found


def load_weights(method: Method, path: Path, changes: Sequence[str] = ()) -> None:
    """Loads a safetensors export into a method built from the same configuration."""
    from safetensors import SafetensorError
    from safetensors.torch import load_model

    if not path.is_file():
        raise VmrError(
            f"{path.parent} has no {path.name}: its run did not finish. "
            "Continue it with vmr train … resume=true."
        )
    try:
        load_model(method, str(path))
    except SafetensorError as error:
        raise VmrError(
            f"{path} is no safetensors file ({error}). It holds the weights of the run: copy it again, or "
            "train the run again."
        ) from error
    except RuntimeError as error:
        changed = f" with {', '.join(changes)}" if changes else ""
        raise VmrError(
            f"{path} does not fit the method in {directory.CONFIG} beside it{changed}: {error}"
        ) from error


def splits_of(data: VMRDataModule) -> list[str]:
    """Returns what a run is scored on: every test split, then the selection split."""
    return list(dict.fromkeys(data.split(name).name for name in (*data.test_names, SELECTION)))


class _Rows(Callback):
    """Collects the rows of predictions.jsonl while Lightning predicts."""

    def __init__(self, data: VMRDataModule, split: str, method: Method) -> None:
        self.split = split
        self.queries = {query.query_id: query for query in data.split(split).queries}
        self.method = method
        self.rows: list[dict[str, Any]] = []
        self.details: dict[str, Tensor] = {}

    def on_predict_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        windows = self.method.metrics.windows(outputs, batch)
        scores = outputs["scores"].detach().float().cpu().numpy().astype(np.float64)
        saliency = outputs["saliency"].detach().float().cpu().numpy() if "saliency" in outputs else None
        details = {name: x.detach().float().cpu() for name, x in outputs.get("details", {}).items()}
        clips, words = (batch[mask].sum(1).tolist() for mask in ("video_mask", "query_mask"))
        # A short list ends in empty spans of score 0, which are no predictions; one row holds at least one
        # window.
        real = (scores != 0) | (windows[..., 1] > windows[..., 0])
        real[:, 0] = True
        for i, query_id in enumerate(batch["query_id"]):
            query = self.queries[query_id]
            ranked = np.concatenate((windows[i], scores[i][:, None]), 1)[real[i]]
            row = {
                "split": self.split,
                "query_id": query_id,
                "video_id": query.video_id,
                "query": query.text,
                "duration": query.duration,
                "moments": [list(moment) for moment in query.moments],
                "pred_relevant_windows": [
                    [start, end, float(f"{s:.7g}")] for start, end, s in ranked.tolist()
                ],
            }
            if saliency is not None:
                row["pred_saliency_scores"] = [float(f"{x:.6g}") for x in saliency[i, : clips[i]].tolist()]
            lengths = {"clip": clips[i], "word": words[i], "moment": len(ranked)}
            for name, values in details.items():
                # An axis that is not padded has no length here; one of pooled clips may be shorter than that.
                cut = tuple(slice(lengths.get(axis)) for axis in DETAILS[name])
                self.details[f"{len(self.rows)}/{name}"] = values[i][cut].contiguous().clone()
            self.rows.append(row)


def predict_rows(
    trainer: lightning.Trainer,
    method: Method,
    data: VMRDataModule,
    split: str,
    details: dict[str, Tensor] | None = None,
) -> list[dict[str, Any]]:
    """Predicts a split.

    Args:
        trainer: decides device and precision.
        method: with the weights to use.
        data: serves the split.
        split: "selection" or a test split.
        details: gets the details of each row under `<row>/<name>`, rows counted from 0, without padding; None
            spares the method their computation and the data module what only they are made of.

    Returns:
        The rows of predictions.jsonl: the query, its ground truth, and ranked windows in seconds, rounded as
        the data set asks.
    """
    rows = _Rows(data, split, method)
    method.details = details is not None
    trainer.callbacks.append(rows)  # type: ignore[attr-defined]
    try:
        with quiet():
            loader = data.eval_dataloader(split, details=method.details)
            trainer.predict(method, dataloaders=loader, return_predictions=False)
    finally:
        trainer.callbacks.remove(rows)  # type: ignore[attr-defined]
        method.details = False
    if details is not None:
        details.update(rows.details)
    return rows.rows


def score(
    rows: Sequence[Mapping[str, Any]], data: VMRDataModule, split: str, method: Method
) -> dict[str, float]:
    """Scores the rows of one split by the code of `vmr score`.

    Args:
        rows: what `predict_rows` returned.
        data: holds the ground truth.
        split: their split.
        method: whose metrics say what is measured.

    Returns:
        Percentages by metric name.
    """
    return score_rows(rows, data.split(split), method.metrics.settings)


def print_metrics(header: Mapping[str, Any], metrics: Mapping[str, Mapping[str, float]]) -> None:
    """Prints a table of splits by metrics."""
    from rich.table import Table

    shown = [name for name in SHOWN if any(name in values for values in metrics.values())]
    simulated = f", {header['origin'].upper()} features" if header["origin"] == "simulated" else ""
    what = f"{header['name']} on {header['protocol']} ({header['features']}{simulated})"
    table = Table(
        title=f"{what}, seed {header['seed']}",
        caption=f"per cent; checkpoint selected by {header['selection_metric']} on: {header['selection']}",
    )
    table.add_column("split")
    for name in shown:
        table.add_column(name, justify="right")
    for split, values in metrics.items():
        table.add_row(split, *(f"{values[name]:.2f}" if name in values else "" for name in shown))
    wide_console().print(table)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences Lightning where it tells what is meant to be so."""
    chatter = [
        logging.getLogger(name) for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric")
    ]
    levels = [logger.level for logger in chatter]
    with warnings.catch_warnings():
        for meant in (
            ".*does not have many workers.*",  # features lie in memory
            ".*Experiment logs directory .* exists and is not empty.*",  # it is the run directory
            ".*Checkpoint directory .* exists and is not empty.*",
            ".*configure_optimizers. returned .None.*",  # a baseline without parameters
            ".*number of training batches .* is smaller than the logging interval.*",
            ".*GPU available but not used.*",
            ".*`training_step` returned `None`.*",
            ".*`parameters` is an empty generator.*",
            ".*isinstance.treespec, LeafSpec.. is deprecated.*",
        ):
            warnings.filterwarnings("ignore", message=meant)
        for logger in chatter:
            logger.setLevel(logging.WARNING)
        try:
            yield
        finally:
            for logger, level in zip(chatter, levels, strict=True):
                logger.setLevel(level)
