"""Two processes on a CPU train one run and get the metrics of one process."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import toy


def train(run: Path, *args: str) -> dict:
    """Trains on the toy data set by the command line, which DDP runs again for each process."""
    tests = Path(__file__).parent
    command = [
        sys.executable,
        "-m",
        "vmr_zoo.cli.main",
        "train",
        toy.SEARCH,
        "data=toy",
        "method=toy",
        "logger=csv",
    ]
    options = ["trainer.accelerator=cpu", "trainer.max_epochs=2", f"run={run}", *args]
    environment = {**os.environ, "PYTHONPATH": f"{tests}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    done = subprocess.run([*command, *options], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads((run / "metrics.json").read_text())


@pytest.mark.slow
def test_two_processes_get_the_metrics_of_one_and_leave_one_run(tmp_path):
    ddp = ["trainer=ddp", "trainer.devices=2"]
    still = ["method.training.optimizer.lr=1e-30", "data.eval_batch_size=2"]  # the weights never change
    one, two = train(tmp_path / "one", *still), train(tmp_path / "two", *still, *ddp)
    for metrics in (one, two):
        own = ("name", "overrides", "step_ms", "inference_ms")
        metrics["header"] = {
            k: v for k, v in metrics["header"].items() if k not in own and not k.endswith("seconds")
        }
    assert one["header"].pop("steps") > two["header"].pop("steps")  # which have twice the queries
    assert one == two
    selected = []
    for name in ("one", "two"):
        with (tmp_path / name / "metrics.csv").open() as file:
            selected.append([row["selection/mIoU"] for row in csv.DictReader(file) if row["selection/mIoU"]])
    assert selected[0] == selected[1]
    assert len(selected[0]) == 2


@pytest.mark.slow
def test_two_processes_learn_like_one_with_two_batches_per_step(tmp_path):
    same = ["data.batch_size=4", "data.eval_batch_size=2", "method.dropout=0"]
    one = train(tmp_path / "one", *same, "+trainer.accumulate_grad_batches=2")
    two = train(tmp_path / "two", *same, "trainer=ddp", "trainer.devices=2")
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("one", "two")]
    for name, values in weights[0].items():
        torch.testing.assert_close(weights[1][name], values)
    for split in ("iid", "ood", "selection"):
        assert two[split] == pytest.approx(one[split], abs=1e-2)
    assert json.loads((tmp_path / "two" / "status.json").read_text())["state"] == "finished"
