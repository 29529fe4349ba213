"""Stopping, resuming, continuing and moving runs; trainings that are no results."""

from __future__ import annotations

import contextlib
import csv
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from safetensors.torch import load_file

import toy
from golden.find import golden_case
from vmr_zoo.engine import training
from vmr_zoo.engine.progress import EpochBar, describe_seconds, progress
from vmr_zoo.runs import sweep
from vmr_zoo.runs.status import read_status

TESTS = Path(__file__).parent


def state(run: Path) -> str:
    return str(read_status(run)["state"])


def header(run: Path) -> dict:
    return json.loads((run / "metrics.json").read_text())["header"]


def results(run: Path) -> tuple:
    """Everything that an interruption must not change: predictions, weights, the curve."""
    weights = {name: value.tolist() for name, value in load_file(run / "model.safetensors").items()}
    return (run / "predictions.jsonl").read_bytes(), weights, (run / "metrics.csv").read_bytes()


class StopIn(Callback):
    """Sends a signal from the N-th call of one hook."""

    def __init__(self, hook: str, call: int, number: int = signal.SIGTERM) -> None:
        self.calls = 0

        def act(*args: object, **kwargs: object) -> None:
            self.calls += 1
            if self.calls == call:
                os.kill(os.getpid(), number)

        setattr(self, hook, act)


@pytest.mark.parametrize(
    ("hook", "call"),
    [
        ("on_train_start", 1),
        ("on_train_batch_end", 2),
        ("on_validation_batch_end", 1),
        ("on_train_epoch_end", 1),
        ("on_train_end", 1),
    ],
)
def test_a_stop_at_any_moment_stops_and_resumes_bit_for_bit(train_toy, whole, hook, call):
    stop = [
        "+callbacks.h._target_=test_runs.StopIn",
        f"+callbacks.h.hook={hook}",
        f"+callbacks.h.call={call}",
    ]
    code, run = train_toy("trainer.max_epochs=4", *stop)
    assert (code, state(run)) == (143, "interrupted")
    assert train_toy("trainer.max_epochs=4", "resume=true")[0] == 0
    assert results(run) == results(whole), "the curve is one, and the epoch's mean losses are whole"


def test_a_stop_while_predicting_stops(train_toy, whole, monkeypatch):
    predict = training.predict_rows

    def interrupted(trainer, *args):
        trainer.callbacks.append(StopIn("on_predict_batch_end", 1))
        return predict(trainer, *args)

    with monkeypatch.context() as patch:
        patch.setattr(training, "predict_rows", interrupted)
        code, run = train_toy("trainer.max_epochs=4")
    assert (code, state(run)) == (143, "interrupted")
    assert train_toy("trainer.max_epochs=4", "resume=true")[0] == 0
    assert results(run) == results(whole)


def test_a_renamed_run_resumes_to_the_same_weights(train_toy, tmp_path):
    """The best epoch comes before the interruption: with this rate, later ones are worse."""
    rate = ("trainer.max_epochs=5", "method.training.optimizer.lr=0.05")
    _, whole = train_toy(*rate, name="whole")
    best = header(whole)["best_epoch"]
    assert best < 5, "choose another rate"
    stop = [
        "+callbacks.stop._target_=toy.At",
        f"+callbacks.stop.step={3 * best + 1}",
        "+callbacks.stop.signal=15",
    ]
    assert train_toy(*rate, *stop, name="cut")[0] == 143
    (tmp_path / "cut").rename(tmp_path / "moved")
    assert train_toy(*rate, "resume=true", name="moved")[0] == 0
    assert results(tmp_path / "moved") == results(whole)
    assert header(tmp_path / "moved")["best_epoch"] == best


def test_a_finished_run_is_continued_to_more_epochs(train_toy, whole, vmr, capsys):
    _, run = train_toy("trainer.max_epochs=2")
    before = {
        name: (run / name).read_bytes() for name in ("metrics.json", "predictions.jsonl", "model.safetensors")
    }
    assert vmr("eval", f"run={run}", "split=iid") == 0
    assert train_toy("trainer.max_epochs=1", "resume=true")[0] == 2
    assert "trainer.max_epochs was 2, now 1" in capsys.readouterr().err
    assert train_toy("trainer.max_epochs=4", "method.training.optimizer.lr=1", "resume=true")[0] == 2
    assert "More epochs are possible if nothing else changes" in capsys.readouterr().err
    assert train_toy("trainer.max_epochs=4", "resume=true")[0] == 0
    assert "epoch 4/4" in capsys.readouterr().err
    assert results(run) == results(whole)
    assert header(run)["epochs"] == 4
    earlier = run / "epochs-2"
    assert {name: (earlier / name).read_bytes() for name in before} == before
    assert (earlier / "eval" / "iid-001").is_dir()
    assert not (run / "eval").exists(), "it evaluated other weights"


def test_a_method_that_follows_its_number_of_epochs_is_not_continued(train_toy, monkeypatch, capsys):
    _, run = train_toy("trainer.max_epochs=2")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    monkeypatch.setattr(toy.ToyMethod, "follows_epochs", True)
    assert train_toy("trainer.max_epochs=4", "resume=true")[0] == 2
    assert "follows a schedule over all epochs" in " ".join(capsys.readouterr().err.split())
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("trainer.max_epochs=0", "took no step (trainer.max_epochs=0)"),
        ("+trainer.limit_train_batches=0", "took no step"),
        ("+trainer.limit_val_batches=0", "No validation ran (trainer.limit_val_batches=0)"),
        ("trainer.check_val_every_n_epoch=3", "No validation ran (trainer.check_val_every_n_epoch=3"),
        ("+trainer.max_steps=2", "No validation ran (see"),
        ("callbacks.checkpoint.mode=min", "Choose the metric with data.selection_metric=NAME"),
        ("callbacks.checkpoint.monitor=selection/R1@0.3", "found monitor=selection/R1@0.3, mode=max"),
    ],
)
def test_a_training_without_step_or_validation_is_no_result(train_toy, capsys, argument, message):
    code, run = train_toy(argument)
    assert code == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (run / "metrics.json").exists()
    assert state(run) in ("new", "failed")
    if "epochs" not in argument:
        assert train_toy(argument, method="predict_all", name="all")[0] == 0, "it has nothing to learn"


def test_what_is_wrong_with_the_command_is_said_before_anything_is_read(train_toy, monkeypatch, capsys):
    train_toy("data.selection_metric=R1@0.6", name="new")
    assert "Unknown data.selection_metric 'R1@0.6'. Did you mean" in " ".join(capsys.readouterr().err.split())
    train_toy("+trainer.max_steps=2", name="stopped")
    monkeypatch.setattr(training, "_build", lambda *_: pytest.fail("data was read"))
    assert train_toy("seed=7", "resume=true", name="stopped")[0] == 2
    assert ", now 7" in " ".join(capsys.readouterr().err.split())


def test_weights_that_nothing_selected_have_a_table_of_their_own(train_toy, vmr, tmp_path, capsys):
    train_toy(name="runs/selected")
    _, run = train_toy("callbacks.checkpoint=null", "+trainer.limit_val_batches=0", name="runs/last")
    assert state(run) == "debug", "limit_val_batches is a debugging argument"
    _, run = train_toy("callbacks.checkpoint=null", name="runs/other")
    assert header(run)["selection"] == "none (weights of the last epoch)"
    assert "no checkpoint was selected" in capsys.readouterr().out
    out = tmp_path / "board.md"
    assert vmr("report", f"runs={tmp_path}/runs", "columns=[mIoU]", "format=markdown", f"out={out}") == 0
    assert out.read_text().count("###") == 2


@pytest.mark.parametrize(
    "argument",
    [
        "+trainer.limit_train_batches=2",
        "+trainer.limit_val_batches=1",
    ],
)
def test_a_debugging_run_says_so_and_is_in_no_leaderboard(train_toy, vmr, tmp_path, capsys, argument):
    code, run = train_toy(argument, name="runs/debug")
    assert (code, state(run)) == (0, "debug")
    assert argument[1:] in header(run)["debug"]
    assert "DEBUGGING RUN, no result" in capsys.readouterr().out
    train_toy(name="runs/whole")
    capsys.readouterr()
    out = tmp_path / "board.csv"
    assert vmr("report", f"runs={tmp_path}/runs", "format=csv", f"out={out}") == 0
    assert argument.partition("=")[0].split("_")[-1] not in out.read_text()
    shown = " ".join(capsys.readouterr().err.split())
    assert "1 debug" in shown
    assert argument[1:] in shown.replace(" ", "")
    assert train_toy(argument, "resume=true", name="runs/debug")[0] == 0, "it is done"


@pytest.mark.parametrize("method", ["toy", "predict_all"])
def test_fast_dev_run_passes_through_everything_and_writes_nothing(train_toy, tmp_path, capsys, method):
    for _ in range(2):
        code, run = train_toy("+trainer.fast_dev_run=true", method=method)
        assert code == 0
        assert not run.exists()
        assert "training, validation and prediction work" in capsys.readouterr().err


def test_a_job_named_twice_runs_once(vmr, tmp_path, capsys):
    jobs = [toy.SEARCH, "data=toy", "logger=csv", "trainer.accelerator=cpu", "trainer.max_epochs=1"]
    twice = ["method=predict_all,predict_all", "seed=0,0", f"paths.runs={tmp_path}", "resume=false"]
    assert vmr("train", "-m", *jobs, *twice, "hydra/launcher=basic") == 0
    shown = capsys.readouterr().err
    assert "4 jobs" in shown
    assert "named twice" in shown
    assert len(list(tmp_path.rglob("metrics.json"))) == 1
    assert "[1/4] " in shown
    assert f"Next: vmr report runs={tmp_path}" in shown.replace("\n", "")


def test_the_next_command_is_quoted_for_a_shell(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    sweep.print_summary([sweep.JobReport("seed=0", "finished", "my runs [x]/seed0")], "train")
    assert "Next: vmr report 'runs=my runs [x]'" in capsys.readouterr().err


@pytest.mark.parametrize(("verb", "advice"), [("train", "to resume"), ("eval", "would repeat the others")])
def test_a_failed_sweep_says_whether_the_same_command_resumes_it(verb, advice, capsys):
    sweep.print_summary([sweep.JobReport("seed=0", "failed"), sweep.JobReport("seed=1", "finished")], verb)
    assert advice in " ".join(capsys.readouterr().err.split())


def test_a_run_belongs_to_the_first_of_two_jobs_even_if_it_failed(tmp_path):
    def claim(run, number, error=None):
        with contextlib.suppress(ValueError), sweep.claim(tmp_path, Path(run), number) as mine:
            claims.append(mine)
            if error:
                raise error

    claims: list[bool] = []
    claim("runs/a", 3, ValueError())
    claim("runs/a", 5)
    claim("runs/./a", 3)
    claim("runs/b", 5)
    assert claims == [True, False, True, True]


def test_a_job_waits_for_the_other_and_does_its_run_if_that_was_killed(tmp_path):
    def wait():
        with sweep.claim(tmp_path, tmp_path / "run", 5) as mine:
            claims.append(mine)

    claims: list[bool] = []
    owner = subprocess.Popen([sys.executable, "-c", _HOLD, str(tmp_path)], stdout=subprocess.PIPE)
    assert owner.stdout.readline() == b"True\n"
    sweep.JobReport("a", "started").write(tmp_path, 3)
    waiting = threading.Thread(target=wait, daemon=True)
    waiting.start()
    waiting.join(0.5)
    assert not claims
    owner.kill()
    waiting.join(60)
    assert claims == [True]
    owner.communicate()


_HOLD = """
import sys, time
from pathlib import Path
from vmr_zoo.runs import sweep
folder = Path(sys.argv[1])
with sweep.claim(folder, folder / "run", 3) as mine:
    print(mine, flush=True)
    time.sleep(600)
"""


def test_jobs_that_never_started_are_in_the_summary(vmr, tmp_path, capsys):
    jobs = [
        toy.SEARCH,
        "data=toy",
        "method=toy",
        "logger=csv",
        "trainer.accelerator=cpu",
        "trainer.max_epochs=1",
    ]
    stop = ["+callbacks.stop._target_=toy.At", "+callbacks.stop.step=1", "+callbacks.stop.signal=2"]
    code = vmr("train", "-m", *jobs, *stop, "seed=0,1,2", f"paths.runs={tmp_path}", "hydra/launcher=basic")
    assert code == 130
    shown = capsys.readouterr().err
    assert "3 jobs" in shown
    assert "not started" in shown
    assert "seed=1" in shown
    assert "seed=2" in shown
    assert not list(tmp_path.glob(".sweep-*"))


_PARENT = """
import multiprocessing, os, time
def child(path):
    from vmr_zoo.utils.parallel import end_with_parent
    end_with_parent()
    open(path, "w").write(str(os.getpid()))
    time.sleep(60)
if __name__ == "__main__":
    multiprocessing.get_context("spawn").Process(target=child, args=("{path}",)).start()
    time.sleep(60)
"""


def test_a_job_ends_when_its_parent_is_killed(tmp_path):
    script, path = tmp_path / "parent.py", tmp_path / "pid"
    script.write_text(_PARENT.format(path=path))
    parent = subprocess.Popen([sys.executable, str(script)], start_new_session=True)
    deadline = time.monotonic() + 60
    while not (path.is_file() and path.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    child = int(path.read_text())
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 20
    while Path(f"/proc/{child}").exists() and "Z" not in Path(f"/proc/{child}/stat").read_text().split()[2]:
        assert time.monotonic() < deadline
        time.sleep(0.1)


# Of train: test_sweep.py; of fetch, extract and embed: their own tests.
@pytest.mark.parametrize("verb", ["report", "eval", "score", "parity", "doctor"])
def test_a_full_disk_is_one_message_and_exit_code_3(vmr, trained_toy, tmp_path, monkeypatch, capsys, verb):
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    run = shutil.copytree(trained_toy, tmp_path / "run")
    out = f"out={tmp_path / 'out'}"
    truth = tmp_path / "truth.jsonl"
    truth.write_text(
        '{"qid": 1, "vid": "v", "query": "a dog", "duration": 9, "relevant_windows": [[0, 4]]}\n'
    )
    (tmp_path / "rows.jsonl").write_text('{"qid": 1, "vid": "v", "pred_relevant_windows": [[0, 4, 1]]}\n')
    arguments = {
        "report": [f"runs={run}", "format=csv", f"{out}.csv"],
        "eval": [f"run={run}", "split=ood"],
        "score": ["data=jsonl", f"test={truth}", "split=test", f"predictions={tmp_path}/rows.jsonl", out],
        "parity": ["method=moment_detr", f"case={golden_case('moment_detr_a.npz')}", out],
        "doctor": [toy.SEARCH, "data=toy", out],
    }
    monkeypatch.setattr(os, "replace", full)
    assert vmr(verb, *arguments[verb]) == 3
    shown = capsys.readouterr().err
    assert "No space left on device" in shown
    assert "Traceback" not in shown


def test_an_old_curve_in_several_files_becomes_one(train_toy, whole):
    """Earlier versions wrote a file per session, the first ones numbered."""
    stop = ["+callbacks.stop._target_=toy.At", "+callbacks.stop.step=7", "+callbacks.stop.signal=15"]
    _, run = train_toy("trainer.max_epochs=4", *stop)
    title, *lines = (run / "metrics.csv").read_text().splitlines(keepends=True)
    column = title.split(",").index("step")
    late = [int(line.split(",")[column]) >= 3 for line in lines]
    for name, kept in (("metrics-001.csv", False), ("metrics.csv", True)):
        rows = [line for line, is_late in zip(lines, late, strict=True) if is_late == kept]
        (run / name).write_text(title + "".join(rows) + "1,")  # cut by a kill
    assert train_toy("trainer.max_epochs=4", "resume=true")[0] == 0
    assert results(run) == results(whole)
    assert not list(run.glob("metrics-*.csv"))
    with (run / "metrics.csv").open(newline="") as file:
        steps = [int(row["step"]) for row in csv.DictReader(file)]
    assert steps == sorted(steps)


def test_progress_says_what_is_left_and_a_terminal_gets_one_bar(train_toy, capsys, monkeypatch):
    assert type(progress("x")).__name__ == "EpochLines"
    assert [describe_seconds(x) for x in (8.4, 100, 9000)] == ["8 s", "2 min", "2.5 h"]
    monkeypatch.setattr("vmr_zoo.engine.progress.has_terminal", lambda: True)
    monkeypatch.setattr("vmr_zoo.engine.prediction.has_terminal", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    assert isinstance(progress("x"), EpochBar)
    code, _ = train_toy()
    assert code == 0
    shown = capsys.readouterr().err
    assert "epoch 1/2" in shown
    assert " left" in shown
    assert max(len(line) for line in shown.splitlines() if "/run" not in line) <= 80


def test_the_sums_of_an_epoch_are_part_of_a_checkpoint(train_toy):
    stop = ["+callbacks.stop._target_=toy.At", "+callbacks.stop.step=4", "+callbacks.stop.signal=15"]
    _, run = train_toy("trainer.max_epochs=4", *stop)
    sums = torch.load(run / "checkpoints/last.ckpt", weights_only=True)["loss_sums"]
    assert set(sums) == {"span", "odd", "loss"}
