"""Presets that users know from other templates: debugging runs, trainers, callbacks, the record of a run."""

from __future__ import annotations

import json
import logging
import shutil
import warnings
from pathlib import Path

import pytest
import yaml
from lightning.pytorch.callbacks import Callback

import toy
from vmr_zoo.cli.completion import complete
from vmr_zoo.cli.help import page
from vmr_zoo.cli.main import VERBS
from vmr_zoo.config.run_names import run_name
from vmr_zoo.errors import VmrError
from vmr_zoo.runs import directory, resume
from vmr_zoo.runs.status import read_status

SETTINGS = [toy.SEARCH, "data=toy", "method=toy", "trainer=cpu"]
STILL = "method.training.optimizer.lr=1e-30"  # nothing improves after the first epoch


def header(run: Path) -> dict:
    return json.loads((run / "metrics.json").read_text())["header"]


def results(run: Path) -> tuple[bytes, ...]:
    return tuple(
        (run / name).read_bytes() for name in ("predictions.jsonl", "model.safetensors", "metrics.csv")
    )


def words(text: str) -> str:
    return " ".join(text.split())


def test_a_debugging_run_is_marked_and_in_its_own_place(vmr, trained_toy, tmp_path, capsys):
    root = tmp_path / "runs"
    assert vmr("train", *SETTINGS, "debug=limit") == 0
    assert "DEBUGGING RUN, no result: debug=limit" in capsys.readouterr().out
    assert [path.name for path in root.iterdir()] == ["debug"]
    (run,) = root.glob("debug/toy-toy/toy-paper+debug-limit/seed0")
    assert header(run)["debug"].startswith("debug=limit, trainer.limit_train_batches=3")
    assert read_status(run)["state"] == "debug"
    assert not (run / "wandb").exists(), "only a chosen logger leaves this machine"

    assert vmr("report", f"runs={root}") == 2, "there is nothing else"
    assert "(1 debug)" in words(capsys.readouterr().err)
    assert vmr("push", f"run={run}", "repo=a/b", f"out={tmp_path}/card") == 2
    assert "is a debugging run" in words(capsys.readouterr().err)

    first = results(run)
    assert vmr("train", *SETTINGS, "debug=limit") == 0, "repeating it needs no other directory"
    assert results(run / "earlier-001") == results(run) == first
    before = results(trained_toy)
    assert vmr("train", *SETTINGS, "debug=limit", f"run={trained_toy}") == 2
    assert "is not empty" in capsys.readouterr().err
    assert results(trained_toy) == before


def test_a_profile_is_in_the_run_directory(vmr, tmp_path, capsys):
    assert vmr("train", *SETTINGS, "debug=profiler") == 0
    (file,) = tmp_path.rglob("fit-profile.txt")
    assert "run_training_batch" in file.read_text()
    assert f"Profile: {file}" in capsys.readouterr().err.replace("\n", "")


def test_one_step_writes_nothing_and_no_search_debugs(vmr, tmp_path, capsys):
    assert vmr("train", *SETTINGS, "debug=step") == 0
    assert "training, validation and prediction work" in capsys.readouterr().err
    assert vmr("train", *SETTINGS[:2], "search=toy", "debug=limit") == 2
    assert "a search chooses by results" in words(capsys.readouterr().err)
    assert not list(tmp_path.rglob("status.json"))


@pytest.mark.parametrize(("rate", "code"), [("0.02", 0), ("1e-30", 2)], ids=["learns", "does not"])
def test_overfitting_repeats_one_batch_whose_loss_must_fall(train_toy, monkeypatch, capsys, rate, code):
    seen = []
    losses = toy.ToyMethod.losses

    def watched(self, batch):
        seen.append(tuple(batch["query_id"]))
        return losses(self, batch)

    monkeypatch.setattr(toy.ToyMethod, "losses", watched)
    overfit = ["debug=overfit", f"method.training.optimizer.lr={rate}", "trainer.max_epochs=2"]
    found, run = train_toy(*overfit)
    assert found == code
    shown = words(capsys.readouterr().err)
    assert ("The loss on one batch fell from" if code == 0 else "on one batch did not fall: from") in shown
    assert read_status(run)["state"] == ("debug" if code == 0 else "failed")
    assert len(seen) == 40
    assert len(set(seen)) == 1


def test_trainer_presets_choose_the_device_and_say_what_is_missing(vmr, trained_toy, tmp_path, capsys):
    for preset in ("cpu", "gpu", "mps"):
        assert run_name("toy", "paper", [f"trainer={preset}"]) == "toy-paper", "another device, the same run"
    assert run_name("toy", "paper", ["trainer=ddp"]) == "toy-paper+trainer-ddp"
    assert vmr("train", *SETTINGS[:3], "trainer=mps", "logger=csv", f"run={tmp_path}/mps") == 2
    shown = words(capsys.readouterr().err)
    assert "Lightning cannot start with trainer.accelerator=mps" in shown
    assert "trainer=cpu runs on every machine" in shown

    run = tmp_path / "moved here"
    shutil.copytree(trained_toy, run)
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("accelerator: cpu", "accelerator: mps"))
    assert vmr("eval", f"run={run}", "split=iid") == 0
    assert "lacks trainer.accelerator=mps" in words(capsys.readouterr().err)


def test_early_stopping_by_name_and_more_epochs_after_the_plateau(train_toy):
    stop = ["callbacks=early_stopping", "callbacks.plateau.patience=1", STILL]
    code, run = train_toy(*stop, "trainer.max_epochs=5", "callbacks.model_summary.show=true")
    assert (code, header(run)["epochs"]) == (0, 2)
    assert "Sequential" in (run / "train.log").read_text()
    before = results(run)
    assert train_toy(*stop, "trainer.max_epochs=8", "resume=true")[0] == 0
    assert results(run) == before, "with eight epochs from the start, it would have stopped there, too"
    assert header(run)["epochs"] == 2

    first, second = yaml.safe_load((run / "overrides.yaml").read_text())
    assert {STILL, "trainer.max_epochs=5", "callbacks=early_stopping"} <= set(first["overrides"])
    assert first["choices"]["callbacks"] == "early_stopping"
    assert "raised" not in first
    assert second["raised"] == {"from": 5, "to": 8}
    assert header(run)["raised"] == [f"from 5 to 8 epochs on {second['started']}"]
    titles = [line for line in (run / "train.log").read_text().splitlines() if line.startswith("===")]
    assert ["started: " in title for title in titles] == [True, False]
    assert "resumed: " in titles[1]


@pytest.mark.parametrize(
    ("name", "then", "now", "reason"),
    [
        ("CosineAnnealingLR", {"T_max": 2}, {"T_max": 4}, "follows the number of epochs"),
        ("OneCycleLR", {"total_steps": 2}, {"total_steps": 2}, "ends after 2 epochs"),
        ("StepLR", {"step_size": 1}, {"step_size": 1}, None),
        ("StepLR", {"step_size": 1}, {"step_size": 2}, "follows the number of epochs"),
    ],
)
def test_a_schedule_over_all_epochs_is_not_continued(tmp_path, name, then, now, reason):
    def config(epochs: int, arguments: dict) -> dict:
        node = {"_target_": f"torch.optim.lr_scheduler.{name}", **arguments}
        return {"trainer": {"max_epochs": epochs}, "method": {"training": {"scheduler": node}}}

    directory.write_config(tmp_path, config(2, then))
    if reason is None:
        assert resume.check_same_settings(tmp_path, config(4, now)) == 2
        return
    with pytest.raises(VmrError, match=f"its schedule, {name}, {reason}"):
        resume.check_same_settings(tmp_path, config(4, now))
    with pytest.raises(VmrError, match="other settings"):
        resume.check_same_settings(tmp_path, {**config(4, now), "seed": 1})


class Talks(Callback):
    """Logs, warns, and names a secret."""

    def on_train_start(self, trainer, pl_module) -> None:
        logging.getLogger("somebody").warning("the key is %s", "SECRETVALUE")
        warnings.warn("mind the gap", stacklevel=1)


@pytest.mark.filterwarnings("ignore:mind the gap")
def test_the_log_file_has_what_is_logged_of_its_own_job_and_no_secret(vmr, tmp_path, monkeypatch):
    monkeypatch.setenv("MY_API_KEY", "SECRETVALUE")
    talks = ["logger=csv", "+callbacks.talks._target_=test_presets.Talks", "trainer.max_epochs=1"]
    crash = ["method.break_at=0,-1", "hydra/launcher=basic"]
    assert vmr("train", "-m", *SETTINGS, *talks, *crash, f"paths.runs={tmp_path}") == 1
    logs = {"break_at--1" in str(path): path.read_text() for path in tmp_path.rglob("train.log")}
    for text in logs.values():
        assert "WARNING the key is [MY_API_KEY]" in text
        assert text.count("=== ") == 1
    assert "VmrError: The loss became nan" in logs[False]
    assert "epoch 1/1" not in logs[False]
    assert "epoch 1/1" in logs[True]


def test_a_run_stores_no_token(train_toy, capsys):
    code, run = train_toy("+note=hf_abcdefghijklmnopqrstuvwxyz")
    assert code == 2
    shown = capsys.readouterr()
    assert "note holds a key" in words(shown.err)
    assert "hf_abc" not in shown.err + shown.out
    assert not run.exists()


def test_help_and_completion_know_the_presets():
    text = page("train", [])
    for group, names in (
        ("trainer", "cpu, ddp, gpu, mps"),
        ("callbacks", "early_stopping"),
        ("debug", "limit, overfit, profiler, profiler_advanced, profiler_torch, step"),
    ):
        (line,) = [line for line in text.splitlines() if line.startswith(f"  {group} ")]
        assert line.split(None, 1)[1] == names
    assert "Every GPU of this machine" in page("train", ["trainer=ddp"])
    assert complete("vmr train debug=ov", "", tuple(VERBS)) == ["debug=overfit"]
    assert complete("vmr train callbacks.plateau.stops=t", "", tuple(VERBS)) == [
        "callbacks.plateau.stops=true"
    ]
