"""Sweeps: finished jobs are skipped, failures reported, killed jobs resumed, and results never damaged."""

from __future__ import annotations

import csv
import errno
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from lightning.pytorch.callbacks import Callback
from safetensors.torch import load_file

import toy
from vmr_zoo.cli import main
from vmr_zoo.errors import VmrError
from vmr_zoo.runs.directory import create_and_lock
from vmr_zoo.runs.status import read_status, record_failure
from vmr_zoo.utils import files

TOY = (toy.SEARCH, "data=toy", "logger=csv", "trainer.accelerator=cpu", "trainer.max_epochs=2")
TESTS = Path(__file__).parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{TESTS}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}


def state(run: Path) -> str:
    return read_status(run)["state"]


def stamp(run: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in run.iterdir() if path.is_file()}


@pytest.mark.parametrize("launcher", ["basic", pytest.param("joblib", marks=pytest.mark.slow)])
def test_rerunning_a_sweep_resumes_it(vmr, tmp_path, capsys, launcher):
    """The job with an invalid seed fails, is recorded and reported; the rerun tries only that one."""
    sweep = [
        "train", "-m", *TOY, "method=predict_all", "seed=0,abc,1", f"paths.runs={tmp_path}",
        f"hydra/launcher={launcher}",
    ]  # fmt: skip
    assert vmr(*sweep) == 1
    runs = tmp_path / "toy-toy" / "predict_all-paper+max_epochs-2"
    shown = capsys.readouterr().err
    assert "finished" in shown
    assert "seed=abc" in shown
    assert json.loads((runs / "seedabc" / "status.json").read_text())["message"].startswith("Expected seed")
    before = {name: stamp(runs / name) for name in ("seed0", "seed1")}
    assert {state(runs / name) for name in before} == {"finished"}
    assert not list(tmp_path.glob(".sweep-*"))

    assert vmr(*sweep) == 1
    assert {name: stamp(runs / name) for name in before} == before
    assert "skipped" in capsys.readouterr().err
    assert vmr(*(arg.replace(",abc", "") for arg in sweep)) == 0
    assert vmr(*sweep, "method.unused=1") == 2, "a mistake in every job is one mistake"
    assert vmr(*(arg.replace(",abc", "") for arg in sweep), "data.batch_size=3", f"run={runs}/seed0") == 1
    assert state(runs / "seed0") == "finished", "other settings fail, and harm no result"


def test_a_directory_that_only_records_a_failure_is_free(train_toy, tmp_path):
    record_failure(tmp_path / "run", "no features")
    assert state(tmp_path / "run") == "failed"
    code, run = train_toy(method="predict_all")
    assert code == 0
    assert state(run) == "finished"


def test_two_runs_do_not_share_a_directory(train_toy, tmp_path, capsys):
    with create_and_lock(tmp_path / "run"):
        assert train_toy(method="predict_all")[0] == 2
        assert "Another process is using" in capsys.readouterr().err
        assert train_toy("resume=true", method="predict_all")[0] == 2
        record_failure(tmp_path / "run", "not mine")
        assert state(tmp_path / "run") == "new"
    assert not (tmp_path / "run").exists(), "an untouched directory leaves no trace"
    assert train_toy(method="predict_all")[0] == 0


def test_a_full_disk_leaves_earlier_results_intact(train_toy, monkeypatch, capsys):
    _, whole = train_toy("trainer.max_epochs=3", name="whole")
    room = [True]
    write, save = files.os.replace, torch.save

    def full(*args):
        if not room[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(*args)

    def save_and_fill(*args, **kwargs):
        save(*args, **kwargs)
        room[0] = saved.append(1) or len(saved) < 4  # a best and a last checkpoint each epoch

    saved: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        patch.setattr(torch, "save", save_and_fill)
        code, run = train_toy("trainer.max_epochs=3")
    assert code == 3
    message = capsys.readouterr().err
    assert "No space left on device" in message
    assert str(run) in message
    assert torch.load(run / "checkpoints/last.ckpt", weights_only=True)["epoch"] == 0
    assert train_toy("trainer.max_epochs=3", "resume=true")[0] == 0
    a, b = load_file(whole / "model.safetensors"), load_file(run / "model.safetensors")
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_run_is_not_resumed_on_other_features_or_annotations(train_toy, monkeypatch, capsys):
    crash = ["+callbacks.stop._target_=toy.At", "+callbacks.stop.step=4", "+callbacks.stop.signal=0"]
    code, run = train_toy(*crash)
    assert (code, state(run)) == (2, "failed")
    before = stamp(run)
    capsys.readouterr()
    whole = toy.protocol()
    short = replace(whole, train=replace(whole.train, queries=whole.train.queries[:-1]))
    others = {
        "video.order: trained on ['toy'], now ['other']": (toy.Video, "manifest", {"order": ["other"]}),
        "train (then 24 sentences, ": (toy, "protocol", short),
    }
    for message, (owner, name, value) in others.items():
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, lambda *args, value=value, **options: value)
            assert train_toy("resume=true")[0] == 2
        shown = " ".join(capsys.readouterr().err.split())
        assert message in shown
        assert f"Cannot resume {run}" in shown
        assert stamp(run) == before
    assert train_toy("resume=true")[0] == 0


def test_a_directory_that_cannot_be_written_says_so(train_toy, tmp_path, capsys, monkeypatch):
    (tmp_path / "file").write_text("no directory")
    assert train_toy(name="file/run", method="predict_all")[0] == 3
    assert "Cannot write into the run directory" in capsys.readouterr().err

    _, run = train_toy(method="predict_all")
    before = stamp(run)

    def refuse(*args, **kwargs):
        raise PermissionError(errno.EROFS, os.strerror(errno.EROFS))

    with monkeypatch.context() as patch:
        patch.setattr(FileLock, "acquire", refuse)
        assert train_toy("resume=true", method="predict_all")[0] == 3
    assert "Read-only file system" in capsys.readouterr().err
    assert stamp(run) == before


@pytest.mark.slow
def test_a_killed_and_rerun_sweep_equals_an_uninterrupted_one(vmr, tmp_path):
    """Twenty jobs, two in parallel; SIGKILL to every process once nine are done."""

    def table(runs: str) -> list[dict[str, str]]:
        out = tmp_path / f"{runs}.csv"
        assert vmr("report", f"runs={tmp_path / runs}", "format=csv", f"out={out}") == 0
        with out.open(newline="") as lines:
            rows = list(csv.DictReader(lines))
        assert {row["seeds"] for row in rows} == {"10"}
        return [{k: v for k, v in row.items() if not k.endswith(("_ms", "seconds"))} for row in rows]

    sweep = [
        "train", "-m", *TOY, "method=toy", "method.training.optimizer.lr=0.01,0.05",
        "seed=0,1,2,3,4,5,6,7,8,9",
        "trainer.max_epochs=8",
    ]  # fmt: skip
    assert vmr(*sweep, f"paths.runs={tmp_path}/alone") == 0

    command = [
        sys.executable,
        "-m",
        "vmr_zoo.cli.main",
        *sweep,
        f"paths.runs={tmp_path}/cut",
        "hydra.launcher.n_jobs=2",
    ]
    started = subprocess.Popen(
        command, env=ENVIRONMENT, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 500

    def states() -> list[str]:
        return [state(path.parent) for path in tmp_path.glob("cut/*/*/*/status.json")]

    while (now := states()).count("finished") < 9 or "running" not in now:
        assert started.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(started.pid, signal.SIGKILL)
    assert started.wait() == -signal.SIGKILL
    assert "running" in states(), "the kill came amidst a run"
    assert 9 <= states().count("finished") < 20

    again = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert "skipped" in again.stderr
    assert table("cut") == table("alone")


def _train(args: list[str]) -> None:
    sys.exit(main.main(["train", *args]))


@pytest.mark.slow
def test_killing_and_resuming_is_bit_identical_to_an_uninterrupted_run(train_toy, tmp_path):
    """Three SIGKILLs at random steps."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["vmr_zoo.engine.training", "toy"])
    steps = sorted(random.SystemRandom().sample(range(1, 12), 3))  # four epochs of three steps

    def train(*args: str) -> int | None:
        job = context.Process(
            target=_train,
            args=(
                [
                    *TOY[:-1],
                    "method=toy",
                    "trainer.max_epochs=4",
                    "resume=true",
                    f"run={tmp_path}/cut",
                    *args,
                ],
            ),
        )
        job.start()
        job.join()
        return job.exitcode

    for step in steps:
        at = [f"+callbacks.stop.step={step}", f"+callbacks.stop.signal={int(signal.SIGKILL)}"]
        assert train("+callbacks.stop._target_=toy.At", *at) == -signal.SIGKILL
        assert state(tmp_path / "cut") == "running"
    assert train() == 0

    _, whole = train_toy("trainer.max_epochs=4", name="whole")
    results = []
    for run in (whole, tmp_path / "cut"):
        metrics = json.loads((run / "metrics.json").read_text())
        metrics["header"] = {k: v for k, v in metrics["header"].items() if not k.endswith(("seconds", "_ms"))}
        results.append(
            (metrics, (run / "predictions.jsonl").read_bytes(), load_file(run / "model.safetensors"))
        )
    (a, a_rows, a_weights), (b, b_rows, b_weights) = results
    assert a == b, steps
    assert a_rows == b_rows, steps
    assert all(torch.equal(a_weights[name], b_weights[name]) for name in a_weights), steps


class Mishap(Callback):
    """Crashes for one seed; for another, pre-empts once as Slurm does, by SIGUSR2."""

    def __init__(self, seed: int, crash: int, preempt: int, marker: str) -> None:
        self.seed, self.crash, self.preempt, self.marker = seed, crash, preempt, Path(marker)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:  # type: ignore[no-untyped-def]
        if self.seed == self.crash:
            raise VmrError("crashed")
        if self.seed == self.preempt and trainer.global_step == 4 and not self.marker.exists():
            self.marker.touch()
            os.kill(os.getpid(), signal.SIGUSR2)


@pytest.mark.slow
def test_submitit_runs_a_sweep_with_a_crash_and_a_preemption(vmr, train_toy, tmp_path, monkeypatch, capsys):
    pytest.importorskip("submitit", reason="pip install 'vmr_zoo[sweep]'")
    monkeypatch.setenv("PYTHONPATH", ENVIRONMENT["PYTHONPATH"])
    marker = tmp_path / "preempted"
    code = vmr(
        "train", "-m", *TOY, "method=toy", "seed=0,1,2,3", "hydra/launcher=submitit_local",
        f"paths.runs={tmp_path}/runs", "+callbacks.mishap._target_=test_sweep.Mishap",
        "+callbacks.mishap.seed=${seed}", "+callbacks.mishap.crash=2", "+callbacks.mishap.preempt=3",
        f"+callbacks.mishap.marker={marker}",
    )  # fmt: skip
    assert code == 1
    runs = tmp_path / "runs" / "toy-toy" / "toy-paper+max_epochs-2"
    states = {seed: state(runs / f"seed{seed}") for seed in range(4)}
    assert states == {0: "finished", 1: "finished", 2: "failed", 3: "finished"}
    assert marker.exists()
    assert not list((runs / "seed3").glob("metrics-*.csv")), "one curve over both sessions"
    assert "crashed" in capsys.readouterr().err
    _, whole = train_toy("seed=3", name="whole")
    assert (whole / "predictions.jsonl").read_bytes() == (runs / "seed3" / "predictions.jsonl").read_bytes()


def test_parallel_jobs_that_differ_but_share_a_run_directory_do_not_look_done(tmp_path):
    jobs = [
        "train",
        "-m",
        *TOY,
        "method=toy",
        "method.training.optimizer.lr=0.01,0.05",
        f"run={tmp_path}/same",
    ]
    command = [sys.executable, "-m", "vmr_zoo.cli.main", *jobs, "hydra.launcher.n_jobs=2"]
    found = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert found.returncode == 1, found.stderr
    assert "method.training.optimizer.lr was" in found.stderr
    assert state(tmp_path / "same") == "finished"
