"""Sweeps: what is done is skipped, what failed is told, what was killed goes on, and no result is harmed."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import toy
from vmr_zoo import files, run_dir
from vmr_zoo.callbacks import should_prune

TOY = (toy.SEARCH, "data=toy", "logger=csv", "trainer.accelerator=cpu", "trainer.max_epochs=2")
TESTS = Path(__file__).parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{TESTS}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}


def state(run: Path) -> str:
    return run_dir.status(run)["state"]


def stamp(run: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in run.iterdir() if path.is_file()}


@pytest.mark.parametrize("launcher", ["basic", "joblib"])
def test_a_sweep_run_again_does_only_what_is_missing(vmr, tmp_path, capsys, launcher):
    """Three seeds and one that is none: failed, recorded, told; the second time only that is tried."""
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
    run_dir.record_failure(tmp_path / "run", "no features")
    assert state(tmp_path / "run") == "failed"
    code, run = train_toy(method="predict_all")
    assert code == 0
    assert state(run) == "finished"


def test_two_runs_do_not_share_a_directory(train_toy, tmp_path, capsys):
    with run_dir.hold(tmp_path / "run"):
        assert train_toy(method="predict_all")[0] == 2
        assert "Another process is at work" in capsys.readouterr().err
        assert train_toy("resume=true", method="predict_all")[0] == 2
        run_dir.record_failure(tmp_path / "run", "not mine")
        assert state(tmp_path / "run") == "new"
    assert not (tmp_path / "run").exists(), "an untouched directory leaves no trace"
    assert train_toy(method="predict_all")[0] == 0


def test_a_full_disk_leaves_what_was_there(train_toy, monkeypatch, capsys):
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
    assert code == 2
    message = capsys.readouterr().err
    assert "No space left on device" in message
    assert str(run) in message
    assert torch.load(run / "checkpoints/last.ckpt", weights_only=True)["epoch"] == 0
    assert train_toy("trainer.max_epochs=3", "resume=true")[0] == 0
    a, b = load_file(whole / "model.safetensors"), load_file(run / "model.safetensors")
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_directory_that_cannot_be_written_says_so(train_toy, tmp_path, capsys, monkeypatch):
    (tmp_path / "file").write_text("no directory")
    assert train_toy(name="file/run", method="predict_all")[0] == 2
    assert "Cannot write into the run directory" in capsys.readouterr().err

    _, run = train_toy(method="predict_all")
    before = stamp(run)

    def refuse(*args, **kwargs):
        raise PermissionError(errno.EROFS, os.strerror(errno.EROFS))

    with monkeypatch.context() as patch:
        patch.setattr(run_dir.FileLock, "acquire", refuse)
        assert train_toy("resume=true", method="predict_all")[0] == 2
    assert "Read-only file system" in capsys.readouterr().err
    assert stamp(run) == before


def test_only_a_trial_below_the_median_is_pruned():
    siblings = [{0: 10.0, 1: 20.0}, {0: 12.0, 1: 30.0}, {0: 14.0, 1: 40.0}]
    assert should_prune({0: 11.0, 1: 29.0}, siblings, startup=3, warmup=1)
    assert not should_prune({0: 11.0, 1: 31.0}, siblings, startup=3, warmup=1)
    assert not should_prune({0: 11.0}, siblings, startup=3, warmup=1), "warming up"
    assert not should_prune({0: 11.0, 1: 29.0}, siblings, startup=4, warmup=1), "too few to compare with"
