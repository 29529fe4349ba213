from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import types
import zipfile
from pathlib import Path

import pytest

import toy
from vmr_zoo.cli import main
from vmr_zoo.config.compose import config_dir
from vmr_zoo.errors import VmrError

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
        (["train", "method.optimizer.lr=1"], ["Did you mean method.training.optimizer.lr"]),
        (["train", "method.loss_weights.span_l1=1"], ["Did you mean method.training.loss_weights.span_l1"]),
        (["train", "data=charades_cd", "sed=1", "metod=x"], ["key 'sed'", "seed"]),
        (["train", "data=charades_cd", "variant=papre"], ["variant 'papre'", "paper"]),
        (
            ["train", "data=charades_cd", "method=predict_all", "+method.colour=red"],
            ["PredictAll", "'colour'"],
        ),
        (["train", "data=charades_cd", "ablation=bm_detr/no_such"], ["'no_such'"]),
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
        (["score", "data=charades_cd", "predictions=x.jsonl", "splt=iid"], ["key 'splt'", "split"]),
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
    with pytest.raises(SystemExit) as stop:
        main.main(["train", "--help"])
    assert not stop.value.code
    shown = capsys.readouterr().out
    assert "vmr train method=bm_detr" in shown
    assert "bias_kde" in shown


def test_cfg_prints_the_composed_configuration(capsys):
    assert main.main(["train", "data=charades_cd", "method=predict_all", "--cfg", "job"]) == 0
    assert "vmr_zoo.data.annotations.protocols.charades_cd" in capsys.readouterr().out


def test_completion_offers_verbs_and_a_verbs_choices(monkeypatch, capsys):
    assert main.main(["completion", "bash"]) == 0
    assert "train" in capsys.readouterr().out
    monkeypatch.setenv("COMP_LINE", "vmr data=charades_c")
    assert main.main(["train", "-sc", "query=bash"]) == 0
    assert set(capsys.readouterr().out.split()) == {"data=charades_cd", "data=charades_cg"}


def test_completion_script_runs_in_bash(tmp_path):
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("no bash")
    stub = tmp_path / "vmr"
    # Replaces the command and logs how the script calls it.
    stub.write_text(
        '#!/bin/bash\necho "[$COMP_LINE][$1][$2][$3]" >> "$0.log"; echo data=charades_cd data=charades_cg\n'
    )
    stub.chmod(0o755)
    script = tmp_path / "completion.sh"
    script.write_text(main._COMPLETION.replace("VERBS", " ".join(main.VERBS)))
    ask = (
        f'source {script}; COMP_LINE="vmr tra"; COMP_WORDS=(vmr tra); COMP_CWORD=1; _vmr;'
        'echo "${COMPREPLY[@]}";'
        'COMP_LINE="vmr train data=charades_c"; COMP_WORDS=(vmr train data=charades_c); COMP_CWORD=2; _vmr;'
        'echo "${COMPREPLY[@]}"'
    )
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    shown = subprocess.run(
        [bash, "-c", ask], capture_output=True, text=True, env=environment, check=True
    ).stdout
    assert shown.splitlines() == ["train", "data=charades_cd data=charades_cg"]
    assert (tmp_path / "vmr.log").read_text().strip() == "[vmr data=charades_c][train][-sc][query=bash]"


def test_score_and_help_never_wait_for_torch():
    code = (
        "import sys; from vmr_zoo.cli.main import main; main(['--help']); assert 'hydra' not in sys.modules;"
        "assert main(['score', 'data=charades_cd', 'predictions=none.jsonl', 'split=iid']) == 2;"
        "assert 'torch' not in sys.modules, 'torch was imported'"
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
