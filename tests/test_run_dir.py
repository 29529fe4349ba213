from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from omegaconf import OmegaConf

import toy
from vmr_zoo.config.allowed import FORMER_NAMES
from vmr_zoo.errors import VmrError
from vmr_zoo.runs import directory
from vmr_zoo.runs.environment import describe_environment
from vmr_zoo.runs.status import selection_curve
from vmr_zoo.utils.files import write_json, write_rows


def test_a_stored_configuration_follows_its_paths(tmp_path):
    cfg = OmegaConf.create(
        {
            "paths": {"annotations": "/old/data", "features": "/old/data/features", "unset": None},
            "data": {
                "root": "${paths.annotations}/charades",
                "files": ["${paths.features}"],
                "label": "/older/data",
            },
            "method": {"name": "any"},
            "run": str(tmp_path),
        }
    )
    directory.write_config(tmp_path, directory.relocatable(cfg))
    stored = directory.load_config(tmp_path, build=False)
    stored.paths.annotations, stored.paths.features = "/new", "/new2"
    assert stored.data.root == "/new/charades"
    assert stored.data.files == ["/new2"]
    assert stored.data.label == "/older/data"
    assert directory.load_config(tmp_path).data.root == "/old/data/charades"


def test_nan_is_stored_as_null_at_any_depth(tmp_path):
    write_json(tmp_path / "x.json", {"a": [1.0, float("nan")], "b": {"c": float("inf")}})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": [1.0, None], "b": {"c": None}}


def test_an_unwritable_value_leaves_no_file(tmp_path):
    with pytest.raises(TypeError):
        write_rows(tmp_path / "rows.jsonl", [{"a": 1}, {"a": object()}])
    assert list(tmp_path.iterdir()) == []


def test_the_environment_suffices_to_repeat_the_run(monkeypatch):
    monkeypatch.setenv("LD_PRELOAD", "/home/me/mkl_as_intel.so:libjemalloc.so.2")
    found = describe_environment(seed=3)
    assert found["seed"] == 3
    assert found["packages"]["torch"]
    assert found["torch_threads"] >= 1
    assert found["preloaded"] == ["mkl_as_intel.so", "libjemalloc.so.2"]
    assert found["git"] is None or len(found["git"]["revision"]) == 40


def test_next_free_never_returns_what_exists(tmp_path):
    for name in ("iid-001", "iid-002", "iid-004"):
        (tmp_path / name).mkdir()
    assert directory.next_free(tmp_path, "iid").name == "iid-003"


def test_evaluations_at_once_have_folders_of_their_own_and_leave_no_empty_one(tmp_path, monkeypatch):
    with directory.claim_evaluation(tmp_path, "iid") as first:
        with directory.claim_evaluation(tmp_path, "iid") as second:
            (second / "metrics.json").touch()
        assert (first.name, second.name) == ("iid-001", "iid-002")
        answers = iter([second, tmp_path / "eval" / "iid-003"])
        monkeypatch.setattr(directory, "next_free", lambda *_: next(answers))
        with directory.claim_evaluation(tmp_path, "iid") as third:
            assert third.name == "iid-003"  # another process was faster
    assert list((tmp_path / "eval").iterdir()) == [second]


def test_a_copy_gives_way_to_a_complete_one_alone(tmp_path):
    building, place = tmp_path / "building", tmp_path / "place"
    for folder in (building, place):
        folder.mkdir()
        (folder / "metrics.json").touch()
    with pytest.raises(VmrError, match="Move what is there"):
        directory.install(building, place)
    (place / directory.ORIGIN).touch()
    directory.install(building, place)
    assert building.exists()


def test_a_curve_spans_sessions_even_without_a_whole_epoch(tmp_path):
    (tmp_path / "metrics-001.csv").write_text("epoch,step,train/loss\n0,1,0.5\n")
    lines = "epoch,selection/mIoU,step\n0,10.5,2\n1,,3\n1,12.0,4\n2,1"
    (tmp_path / "metrics-002.csv").write_bytes(lines.encode() + b"\xff")  # a damaged byte
    (tmp_path / "metrics.csv").write_text("epoch,selection/mIoU,step\n1,11.0,4\n2,13.0,6\n")
    assert selection_curve(tmp_path, "mIoU") == {0: 10.5, 1: 11.0, 2: 13.0}


def test_a_directory_without_a_run_is_refused(tmp_path):
    with pytest.raises(VmrError, match=r"no config\.yaml"):
        directory.load_config(tmp_path)
    (tmp_path / "metrics.json").write_text("{")
    with pytest.raises(VmrError, match="not valid JSON"):
        directory.read_json(tmp_path / "metrics.json")


def run_of_the_earlier_layout(folder: Path, state: str = "finished") -> Path:
    """A run directory as vmr_zoo 0.1 left it: no layout in config.yaml, classes that no longer exist."""
    config = {
        "paths": {"annotations": None, "features": None, "cache": None},
        "method": {"_target_": "vmr_zoo.methods.moment_detr.MomentDETR", "optimizer": {"lr": 0.0001}},
        "features": {"_target_": "vmr_zoo.data.features.FeatureSet", "name": "toy"},
        "data": {
            "_target_": "vmr_zoo.data.datamodule.VMRDataModule",
            "name": "toy",
            "selection_metric": "mIoU",
        },
        "metrics": {"r1_thresholds": [0.5], "r5_thresholds": [0.5], "windows": 5},
        "seed": 0,
    }
    header = {
        "name": "moment_detr-paper", "method": "moment_detr", "variant": "paper", "experiment": None,
        "ablation": None, "protocol": "toy", "features": "toy", "origin": "simulated",
        "selection": "published", "selection_metric": "mIoU", "rounding": "none", "seed": 0,
        "parameters": 10, "epochs": 2, "best_epoch": 1, "train_seconds": 1.0,
    }  # fmt: skip
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(config)))
    write_json(folder / "status.json", {"state": state, "train_seconds": 1.0, "message": ""})
    write_json(folder / "environment.json", {"packages": {"vmr_zoo": "0.1.0"}})
    write_json(
        folder / "metrics.json", {"header": header, "iid": {"mIoU": 41.25}, "selection": {"mIoU": 40.0}}
    )
    return folder


@pytest.mark.parametrize(
    ("state", "verb"),
    [
        ("finished", ["eval"]),
        ("finished", ["predict", f"video={__file__}", "query=a star"]),
        ("finished", ["train", "resume=true"]),
        ("interrupted", ["train", "resume=true"]),
    ],
)
def test_a_run_of_the_earlier_layout_is_refused_by_name(vmr, tmp_path, capsys, state, verb):
    run = run_of_the_earlier_layout(tmp_path / "old", state)
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    toy_run = [toy.SEARCH, "data=toy", "method=toy", "logger=none", "trainer.accelerator=cpu"]
    assert vmr(*verb, f"run={run}", *(toy_run if verb[0] == "train" else [])) == 2
    message = capsys.readouterr().err
    assert f"{run} is a run of vmr_zoo 0.1.0 (run layout 1)" in message
    assert f"expects layout {directory.LAYOUT}. Train it again" in message
    assert "Traceback" not in message
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


def test_the_report_still_shows_a_run_of_the_earlier_layout(vmr, tmp_path):
    run_of_the_earlier_layout(tmp_path / "runs" / "old")
    out = tmp_path / "board.csv"
    assert vmr("report", f"runs={tmp_path}/runs", "columns=[mIoU]", "format=csv", f"out={out}") == 0
    assert "41.25" in out.read_text()


def test_a_class_that_moved_since_an_earlier_version_is_found(vmr, trained_toy, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained_toy, run)
    text = (run / "config.yaml").read_text()
    used = {former: now for former, now in FORMER_NAMES.items() if f"_target_: {now}\n" in text}
    assert used
    for former, now in used.items():
        text = text.replace(f"_target_: {now}\n", f"_target_: {former}\n")
    (run / "config.yaml").write_text(text)
    assert vmr("eval", f"run={run}", "split=iid") == 0
