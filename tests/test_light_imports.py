"""Training loads neither pandas nor the report, not even through a library."""

from __future__ import annotations

import os
import subprocess
import sys

import toy


def test_training_loads_neither_pandas_nor_the_report(tmp_path):
    code = (
        "import sys; from vmr_zoo.cli.main import main; code = main(sys.argv[1:]);"
        "print('loaded:', *sys.modules); sys.exit(code)"
    )
    args = ["train", toy.SEARCH, "data=toy", "method=toy", "logger=csv", f"run={tmp_path}/run"]
    small = ["trainer.accelerator=cpu", "trainer.max_epochs=1"]
    shown = subprocess.run(
        [sys.executable, "-c", code, *args, *small],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(toy.CONF.parents[1])},
    )
    assert shown.returncode == 0, shown.stderr
    assert (tmp_path / "run" / "metrics.json").is_file()
    modules = shown.stdout.rsplit("loaded: ", 1)[1].split()
    assert {"lightning", "vmr_zoo.engine.training", "toy"} <= set(modules)
    assert not [name for name in modules if name.startswith(("pandas", "vmr_zoo.report", "vmr_zoo.parity"))]
    assert not {"wandb", "tensorboard", "mlflow"} & set(modules)  # none was chosen


def test_reports_load_neither_torch_nor_a_logger():
    code = "import sys, vmr_zoo.cli.report; print(*sys.modules)"
    modules = set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.split())
    assert "vmr_zoo.report.wandb_runs" in modules
    assert not {"torch", "lightning", "wandb"} & modules
