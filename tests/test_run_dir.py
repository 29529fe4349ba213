from __future__ import annotations

import json

import pytest
from omegaconf import OmegaConf

from vmr_zoo.errors import VmrError
from vmr_zoo.runs import directory


def test_a_stored_configuration_follows_its_paths(tmp_path):
    cfg = OmegaConf.create(
        {
            "paths": {"annotations": "/old/data", "features": "/old/data/features", "unset": None},
            "data": {
                "root": "${paths.annotations}/charades",
                "files": ["${paths.features}"],
                "name": "/older/data",
            },
            "run": str(tmp_path),
        }
    )
    directory.open_new(tmp_path, directory.relocatable(cfg), resume=False)
    stored = directory.load_config(tmp_path, resolve=False)
    stored.paths.annotations, stored.paths.features = "/new", "/new2"
    assert stored.data.root == "/new/charades"
    assert stored.data.files == ["/new2"]
    assert stored.data.name == "/older/data"
    assert directory.load_config(tmp_path).data.root == "/old/data/charades"


def test_nan_is_stored_as_null_at_any_depth(tmp_path):
    directory.write_json(tmp_path / "x.json", {"a": [1.0, float("nan")], "b": {"c": float("inf")}})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": [1.0, None], "b": {"c": None}}


def test_an_unwritable_value_leaves_no_file(tmp_path):
    with pytest.raises(TypeError):
        directory.write_rows(tmp_path / "rows.jsonl", [{"a": 1}, {"a": object()}])
    assert list(tmp_path.iterdir()) == []


def test_environment_says_what_a_reader_needs_to_repeat_the_run():
    found = directory.environment(seed=3)
    assert found["seed"] == 3
    assert found["packages"]["torch"]
    assert found["torch_threads"] >= 1
    assert found["git"] is None or len(found["git"]["revision"]) == 40


def test_next_free_never_returns_what_exists(tmp_path):
    for name in ("iid-001", "iid-002", "iid-004"):
        (tmp_path / name).mkdir()
    assert directory.next_free(tmp_path, "iid").name == "iid-003"


def test_a_curve_is_read_over_sessions_one_of_which_ended_before_its_first_epoch(tmp_path):
    (tmp_path / "metrics-001.csv").write_text("epoch,step,train/loss\n0,1,0.5\n")
    lines = "epoch,selection/mIoU,step\n0,10.5,2\n1,,3\n1,12.0,4\n2,1"
    (tmp_path / "metrics-002.csv").write_text(lines)
    (tmp_path / "metrics.csv").write_text("epoch,selection/mIoU,step\n1,11.0,4\n2,13.0,6\n")
    assert directory.curve(tmp_path, "mIoU") == {0: 10.5, 1: 11.0, 2: 13.0}


def test_a_directory_that_is_no_run_says_so(tmp_path):
    with pytest.raises(VmrError, match=r"no config\.yaml"):
        directory.load_config(tmp_path)
    (tmp_path / "metrics.json").write_text("{")
    with pytest.raises(VmrError, match="not valid JSON"):
        directory.read_json(tmp_path / "metrics.json")
