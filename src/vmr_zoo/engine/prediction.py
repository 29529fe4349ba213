"""Predicts and scores the splits of a run: shared by training and evaluation."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from omegaconf import DictConfig, ListConfig
from torch import Tensor

from vmr_zoo.data.annotations.records import SELECTION, selecting_split
from vmr_zoo.engine.frame_probability import FrameProbability
from vmr_zoo.engine.progress import PredictionBar, has_terminal
from vmr_zoo.engine.scoring import score_rows
from vmr_zoo.engine.submission import SALIENCY, WINDOWS, truth_row
from vmr_zoo.engine.trainers import build_trainer, find_callback, quiet_lightning
from vmr_zoo.metrics.per_query import is_window
from vmr_zoo.metrics.settings import shown_metrics
from vmr_zoo.runs import directory
from vmr_zoo.runs.environment import describe_environment
from vmr_zoo.types import DETAILS
from vmr_zoo.utils.console import wide_console
from vmr_zoo.utils.files import write_json, write_rows

if TYPE_CHECKING:
    from vmr_zoo.data.batches.datamodule import VMRDataModule
    from vmr_zoo.methods.base import Method
    from vmr_zoo.types import Batch

log = logging.getLogger(__name__)

Collector = Callable[[Any, Any, "Batch"], None]
"""Gets a method, its predictions and their batch."""


def prediction_trainer(node: DictConfig, run: Path, batches: float = 1.0) -> lightning.Trainer:
    """Builds a trainer for prediction: one process on one device, whatever training used.

    Args:
        node: the run's `trainer`.
        run: its directory.
        batches: how much of each split is predicted, as `trainer.limit_test_batches` says it: a share, or a
            whole number of batches. Everything by default, however little a debugging run trained on.
    """
    devices = node.get("devices")
    accelerator = node.get("accelerator", "auto")
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if not {"cuda": cuda, "mps": mps, "gpu": cuda or mps}.get(accelerator, True):
        log.warning(f"This machine lacks trainer.accelerator={accelerator} of the run: predicting without.")
        accelerator, devices = "auto", 1
    return build_trainer(
        node,
        [PredictionBar()] if has_terminal() else [],
        accelerator=accelerator,
        devices=[devices[0]] if isinstance(devices, ListConfig) else 1,
        num_nodes=1,
        strategy="auto",
        enable_checkpointing=False,
        profiler=None,  # it was for training
        overfit_batches=0.0,
        limit_predict_batches=batches,
        default_root_dir=str(run),
    )


def scored_splits(data: VMRDataModule) -> list[str]:
    """Returns the splits that a run is scored on: every test split, then the selection split."""
    return list(dict.fromkeys(data.split(name).name for name in (*data.test_names, SELECTION)))


def predict_rows(
    trainer: lightning.Trainer,
    method: Method,
    data: VMRDataModule,
    split: str,
    details: dict[str, Tensor] | None = None,
    frame_probability: FrameProbability | None = None,
    further: Sequence[Collector] = (),
) -> list[dict[str, Any]]:
    """Predicts a split.

    Args:
        trainer: decides device and precision.
        method: with the weights to use.
        data: serves the split.
        split: "selection" or a test split.
        details: receives the details of each row as `<row>/<name>`, rows counted from 0, without padding;
            None: details and their inputs are not computed.
        frame_probability: measures the frame probability, with negative queries if the method uses them.
        further: get the predicted batches, too.

    Returns:
        The rows of predictions.jsonl: the query, its ground truth, and ranked windows in seconds, rounded as
        the data set requires.
    """
    collector = _RowCollector(data, split)
    method.details = details is not None or frame_probability is not None
    if bar := find_callback(trainer, PredictionBar):
        bar.split = split
    measured = [] if frame_probability is None else [frame_probability.add]
    callback = _Collecting([collector.add, *measured, *further])
    trainer.callbacks.append(callback)  # type: ignore[attr-defined]
    try:
        with quiet_lightning():
            loader = data.eval_dataloader(
                split, details=method.details, negatives=frame_probability is not None
            )
            trainer.predict(method, dataloaders=loader, return_predictions=False)
    finally:
        trainer.callbacks.remove(callback)  # type: ignore[attr-defined]
        method.details = False
    if details is not None:
        details.update(collector.details)
    return collector.rows


def write_evaluation(
    target: Path,
    rows: Iterable[Mapping[str, Any]],
    header: Mapping[str, Any],
    split: str,
    metrics: Mapping[str, float],
    seed: int,
) -> None:
    """Writes the results of `vmr eval` on one split.

    Args:
        target: the folder.
        rows: of predictions.jsonl.
        header: of metrics.json.
        split: the split.
        metrics: percentages by name.
        seed: of the run.
    """
    write_rows(target / directory.PREDICTIONS, rows)
    write_json(target / directory.METRICS, {directory.HEADER: header, split: metrics})
    write_json(target / directory.ENVIRONMENT, describe_environment(seed))


def score_split(
    rows: Sequence[Mapping[str, Any]], data: VMRDataModule, split: str, method: Method, partly: bool = False
) -> dict[str, float]:
    """Scores the rows of one split with the code of `vmr score`.

    Args:
        rows: from `predict_rows`.
        data: holds the ground truth.
        split: their split.
        method: its metrics decide what is measured.
        partly: whether only the predicted queries count, for a debugging run; else a missing one is an error.

    Returns:
        Percentages by metric name.
    """
    truth = data.split(split)
    if partly:
        predicted = {row["query_id"] for row in rows}
        truth = replace(truth, queries=tuple(one for one in truth.queries if one.query_id in predicted))
    return score_rows(rows, truth, method.metrics.settings)


def print_metrics(header: Mapping[str, Any], metrics: Mapping[str, Mapping[str, float]]) -> None:
    """Prints a table of splits by metrics."""
    from rich.markup import escape
    from rich.table import Table
    from rich.text import Text

    shown = shown_metrics(metrics)
    simulated = f", {header['origin'].upper()} features" if header["origin"] == directory.SIMULATED else ""
    subject = f"{header['name']} on {header['protocol']} ({header['features']}{simulated})"
    rising = "; still improving when training ended" if header.get("plateau") is False else ""
    title, caption = f"{subject}, seed {header['seed']}", f"per cent; {_describe_weights(header)}{rising}"
    table = Table(title=escape(title), caption=escape(caption))
    table.add_column("split")
    for name in shown:
        table.add_column(name, justify="right")
    for split, values in metrics.items():
        table.add_row(split, *(f"{values[name]:.2f}" if name in values else "" for name in shown))
    console = wide_console()
    console.print(table)
    for warning in header.get("warnings", ()):
        console.print(Text(f"WARNING: {warning}", "bold red"))
    if header.get("debug"):
        console.print(Text(f"DEBUGGING RUN, no result: {header['debug']}", "bold red"))


def _describe_weights(header: Mapping[str, Any]) -> str:
    """Says how the weights behind a table were selected."""
    split = selecting_split(header["selection"])
    if not split:
        return "weights of the last epoch, no checkpoint was selected"
    epoch = f"epoch {header['best_epoch']} of {header['epochs']}, " if header.get("best_epoch") else ""
    return f"weights of {epoch}best {header['selection_metric']} on {split}"


class _Collecting(Callback):
    """Hands the batches that Lightning predicts to collectors."""

    def __init__(self, collectors: Sequence[Collector]) -> None:
        self.collectors = collectors

    def on_predict_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Batch, *_: Any, **__: Any
    ) -> None:
        for collect in self.collectors:
            collect(pl_module, outputs, batch)


class _RowCollector:
    """Collects the rows of predictions.jsonl."""

    def __init__(self, data: VMRDataModule, split: str) -> None:
        self.split = split
        self.queries = {query.query_id: query for query in data.split(split).queries}
        self.rows: list[dict[str, Any]] = []
        self.details: dict[str, Tensor] = {}

    def add(self, method: Method, outputs: Any, batch: Batch) -> None:
        windows = method.metrics.windows(outputs, batch)
        scores = outputs["scores"].detach().float().cpu().numpy().astype(np.float64)
        saliency = outputs["saliency"].detach().float().cpu().numpy() if "saliency" in outputs else None
        details = {name: x.detach().float().cpu() for name, x in outputs.get("details", {}).items()}
        clips, words = (batch[mask].sum(1).tolist() for mask in ("video_mask", "query_mask"))
        real = is_window(windows[..., 0], windows[..., 1], scores)
        # A row keeps at least one window.
        real[:, 0] = True
        for i, query_id in enumerate(batch["query_id"]):
            ranked = np.concatenate((windows[i], scores[i][:, None]), 1)[real[i]]
            row = truth_row(self.split, self.queries[query_id])
            row[WINDOWS] = [[start, end, float(f"{score:.7g}")] for start, end, score in ranked.tolist()]
            if saliency is not None:
                row[SALIENCY] = [float(f"{x:.6g}") for x in saliency[i, : clips[i]].tolist()]
            lengths = {"clip": clips[i], "word": words[i], "moment": len(ranked)}
            for name, values in details.items():
                # An unpadded axis has no length here; an axis of pooled clips may be shorter than its length.
                cut = tuple(slice(lengths.get(axis)) for axis in DETAILS[name])
                self.details[f"{len(self.rows)}/{name}"] = values[i][cut].contiguous().clone()
            self.rows.append(row)
