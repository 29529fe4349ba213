from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import types
import zipfile
from pathlib import Path

import pytest

import toy
from vmr_zoo.cli import main
from vmr_zoo.cli.explain import explain
from vmr_zoo.config.compose import config_dir
from vmr_zoo.errors import VmrError, causes

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["trian"], ["verb 'trian'", "Did you mean train"]),
        (["train", "method=bm_dter"], ["method 'bm_dter'", "bm_detr"]),
        (["train", "data=charadse_cd"], ["data 'charadse_cd'", "charades_cd"]),
        (
            ["train", "data=charades_cd", "features=action_label"],
            ["features 'action_label'", "action_labels"],
        ),
        (
            ["train", "data=charades_cd", "trainer.max_epoch=3"],
            ["key 'trainer.max_epoch'", "trainer.max_epochs"],
        ),
        (["train", "data=charades_cd", "metod=bm_detr"], ["key 'metod'", "method"]),
        (["train", "data=charades_cd", "max_epochs=3"], ["key 'max_epochs'", "trainer.max_epochs"]),
        (["train", "debugg=step"], ["Did you mean debug"]),
        (["train", "method.trainng.optimizer.lr=1"], ["Did you mean method.training.optimizer.lr"]),
        (
            ["train", "method.trainng.loss_weights.span_l1=1"],
            ["Did you mean method.training.loss_weights.span_l1"],
        ),
        (["train", "data=charades_cd", "sed=1", "metod=x"], ["key 'sed'", "seed"]),
        (["train", "data=charades_cd", "variant=papre"], ["variant 'papre'", "paper"]),
        (
            ["train", "data=charades_cd", "method=predict_all", "+method.colour=red"],
            ["PredictAll", "'colour'"],
        ),
        (["train", "data=charades_cd", "ablation=bm_detr/no_such"], ["bm_detr/no_such"]),
        (
            ["train", "data=charades_cd", "recipe=shapes/bm_dter"],
            ["recipe 'shapes/bm_dter'", "shapes/bm_detr"],
        ),
        (["train", "seed="], ["seed", "found ''"]),
        (
            ["train", toy.SEARCH, "data=toy", "method=toy", "trainer.accelerator=hamster"],
            ["Cannot build trainer", "hamster"],
        ),
        (["train", "data(=x"], ["Cannot read 'data(=x'"]),
        (["eval"], ["'run'"]),
        (["train", "method=mesm,tea", "seed=1"], ["Say -m to run both: vmr train -m method=mesm,tea seed=1"]),
        (["train", "ablation=mesm/table5_en"], ["ablation 'mesm/table5_en'", "Did you mean mesm/table5_enc"]),
        (["train", "ablation=[mesm/table5_en]"], ["Did you mean mesm/table5_enc"]),
        (["train", "experiment=mesm/charades"], ["Did you mean mesm/charades_cg"]),
        (["train", "experiment=foo"], ["names below bm_detr, emb"]),
        (["train", "ablation=tea/table4_add", "method=mesm"], ["'method/merge'", "Say method=tea"]),
        (
            ["embed", "features/query=clip", "data=shapes"],
            ["'features/query'", "text_encoder@features.query"],
        ),
        (["train", "+method/x=y"], ["'method/x' is no group"]),
        (["train", "trainer.limit_train_batches=3"], ["+trainer.limit_train_batches=3"]),
        (["train", "-m", "seed=0,1", "--cfg", "job"], ["leave out -m"]),
        (["train", "--cgf", "job"], ["option '--cgf'", "--cfg"]),
        (["train", "method.training.optimizer.lr=abc"], ["a number, more than 0; found abc"]),
        (
            ["train", "method.network.dim=wide"],
            ["method.network.dim to be a whole number, at least 1 (or null); found wide"],
        ),
        (["train", "method.training.loss_weights.span_l1=x"], ["span_l1 to be a number or null"]),
        (["train", "seed=4294967296"], ["at most 4294967295"]),
        (["train", "threads=0"], ["threads to be a whole number, at least 1"]),
        (["train", "trainer.precision=bf16-true"], ["Did you mean", "bf16-mixed"]),
        (["train", "compile=yes"], ["compile 'yes'", "false, true"]),
        (["extract", "device=banana", "encoder=grid"], ["device 'banana'", "cuda"]),
        (["completion", "tcsh"], ["shell 'tcsh'", "bash, fish, zsh"]),
        (["score", "data=charades_cd", f"predictions={__file__}", "splt=iid"], ["key 'splt'", "split"]),
    ],
)
def test_a_mistake_gets_one_message_and_exit_code_2(args, expected, capsys):
    assert main.main(args) == 2
    shown = capsys.readouterr()
    assert shown.err.count("vmr: ") == 1
    assert "Traceback" not in shown.err + shown.out
    for part in expected:
        assert part in shown.err


def test_full_error_shows_the_traceback(monkeypatch):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(VmrError):
        main.main(["trian"])
    with pytest.raises(Exception, match="bm_dter"):
        main.main(["train", "method=bm_dter"])


def test_internal_errors_keep_their_traceback(monkeypatch):
    def broken(cfg):
        raise ZeroDivisionError

    monkeypatch.setitem(sys.modules, "broken_verb", types.SimpleNamespace(main=broken))
    monkeypatch.setitem(main.VERBS, "report", ("broken_verb", ""))
    with pytest.raises(ZeroDivisionError):
        main.main(["report"])


def test_errors_that_are_each_others_cause_are_explained_once():
    first, second = ValueError("first"), VmrError("second")
    first.__context__, second.__context__ = second, first
    assert explain(first, "train", []) == "second"
    assert list(causes(second)) == [second, first]


def test_the_exit_code_of_a_verb_is_the_exit_code(monkeypatch):
    monkeypatch.setitem(sys.modules, "fussy_verb", types.SimpleNamespace(main=lambda cfg: 1))
    monkeypatch.setitem(main.VERBS, "report", ("fussy_verb", ""))
    assert main.main(["report"]) == 1
    assert main.main(["report", "-m", "format=table,csv"]) == 1


def test_one_failed_job_does_not_stop_a_sweep(vmr, tmp_path, capsys):
    code = vmr(
        "train", "-m", toy.SEARCH, "data=toy", "method=predict_all", "variant=papre,paper", "logger=none",
        "trainer.accelerator=cpu", f"paths.runs={tmp_path}",
    )  # fmt: skip
    assert code == 1
    shown = capsys.readouterr().err
    assert "Unknown variant 'papre'" in shown
    failed = tmp_path / "toy-toy" / "predict_all-papre" / "seed0"
    assert [path.name for path in failed.iterdir()] == ["status.json"]
    assert json.loads((failed / "status.json").read_text())["state"] == "failed"
    assert (tmp_path / "toy-toy" / "predict_all-paper" / "seed0" / "metrics.json").is_file()


def test_help_names_every_verb_and_each_verb_its_choices(capsys):
    assert main.main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(verb in shown for verb in main.VERBS)
    assert main.main(["train", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "vmr train method=bm_detr" in shown
    assert "bias_kde" in shown
    assert "# paper | released: the preset of a method's switches" in shown
    assert main.main(["report", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "# table | markdown" in shown
    assert "bias_kde" not in shown
    assert main.main(["train", "--help", "method=mesm"]) == 0
    assert capsys.readouterr().out.startswith("== method=mesm ==\n# MESM")


def test_cfg_prints_the_composed_configuration(capsys):
    assert main.main(["train", "data=charades_cd", "method=predict_all", "--cfg", "job"]) == 0
    assert "vmr_zoo.data.annotations.protocols.charades_cd" in capsys.readouterr().out


def test_a_mistake_that_needs_no_configuration_is_reported_before_hydra_is_imported(tmp_path):
    (tmp_path / "seed0").mkdir()
    (tmp_path / "seed0" / "config.yaml").touch()
    (tmp_path / "clip.mp4").touch()
    found = f"{tmp_path}/seed0"
    commands = {
        ("--version",): "",
        ("predict", "--help"): "",
        ("trian",): "Did you mean train",
        ("eval", f"run={tmp_path}"): f"It contains runs: {found}.",
        ("predict", f"run={found}", f"video={tmp_path}/clip.mp"): f"Did you mean {tmp_path}/clip.mp4",
        ("extract", "videos=nowhere", "encoder=grid"): "Found no video for videos=nowhere",
        ("score", "predictions=none.jsonl"): "No such file: predictions=none.jsonl",
        ("report", "runs=nowhere"): "No such folder: runs=nowhere",
    }
    code = (
        "import sys; from vmr_zoo.cli.main import main; main(sys.argv[1:]);"
        "assert not {'hydra', 'torch', 'numpy'} & set(sys.modules)"
    )
    for args, expected in commands.items():
        shown = subprocess.run(
            [sys.executable, "-c", code, *args], check=True, capture_output=True, text=True, cwd=ROOT
        )
        assert expected in shown.stderr


def test_options_and_overrides_mix(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "quiet_verb", types.SimpleNamespace(main=lambda cfg: cfg.browse - 1))
    monkeypatch.setitem(main.VERBS, "report", ("quiet_verb", ""))
    assert main.main(["report", "browse=1", "-m", "format=csv,table"]) == 0
    assert main.main(["report", "browse=3", "--cfg", "job", "format=csv"]) == 0
    assert "browse: 3" in capsys.readouterr().out


def test_help_never_waits_for_hydra_or_torch():
    code = (
        "import sys; from vmr_zoo.cli.main import main; main(['--help']);"
        "assert not {'hydra', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=ROOT)


def test_the_checkout_wins_over_a_stale_copy_in_the_package():
    assert config_dir() == ROOT / "conf"


@pytest.mark.slow
def test_a_wheel_works_outside_any_checkout(tmp_path):
    pytest.importorskip("hatchling", reason="building a wheel needs hatchling (the dev extra has it)")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT, check=True, capture_output=True,
    )  # fmt: skip
    (wheel,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    shipped = {
        path.relative_to(site / "vmr_zoo" / "conf") for path in (site / "vmr_zoo" / "conf").rglob("*.yaml")
    }
    assert shipped == {path.relative_to(ROOT / "conf") for path in (ROOT / "conf").rglob("*.yaml")}
    environment = {**os.environ, "PYTHONPATH": str(site)}
    for args in (
        ["--help"],
        ["train", "--help"],
        ["train", "data=charades_cd", "method=bias_kde", "--cfg", "job"],
    ):
        shown = subprocess.run(
            [sys.executable, "-m", "vmr_zoo.cli.main", *args],
            cwd=tmp_path, env=environment, capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        assert "bias_kde" in shown
    found = subprocess.run(
        [sys.executable, "-c", "from vmr_zoo.config.compose import config_dir; print(config_dir())"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    assert Path(found) == site / "vmr_zoo" / "conf"


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="no glibc")
def test_freed_memory_is_kept_for_the_next_allocation():
    """Allocates 64 MB twenty times: otherwise every allocation faults in its pages."""
    code = """
import resource
import numpy as np
from vmr_zoo.utils.machine import keep_freed_memory

keep_freed_memory()
faults = []
for _ in range(20):
    np.ones(8 << 20)
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
print(faults[-1] - faults[1])
"""
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert int(found.stdout) < 64
