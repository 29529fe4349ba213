"""From data files to batches: cases of the authors' loaders pass, and fail if anything in them changes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import DictConfig, OmegaConf

from batches import shrink
from golden.find import arrays, golden_case, saved, with_last_altered
from vmr_zoo.config.compose import compose
from vmr_zoo.errors import VmrError
from vmr_zoo.parity.case import Case
from vmr_zoo.parity.files import check_files, our_data, write_files

CASES = {
    "moment_detr_qvhighlights_files_a": "moment_detr/qvhighlights",
    "qd_detr_qvhighlights_files_a": "qd_detr/qvhighlights",
    "bm_detr_qvhighlights_files_a": "bm_detr/qvhighlights",
    "bm_detr_charades_files_a": "bm_detr/charades_sta",
    "bm_detr_charades_c3d_files_a": "bm_detr/charades_sta_c3d",
}
"""Experiment by case."""
COMMITTED = ["qd_detr_qvhighlights_files_a", "bm_detr_charades_c3d_files_a"]


def parity(name: str) -> DictConfig:
    return compose("parity", [f"method={CASES[name].split('/')[0]}", "case=x"])


@pytest.mark.parametrize("name", CASES)
def test_every_array_of_the_released_batches_is_recomputed(name: str) -> None:
    case = Case(golden_case(f"files/{name}.npz"))
    verdicts = check_files(parity(name), case)
    assert [v for v in verdicts if not v.passed] == []
    assert {v.key for v in verdicts} == {key for key in case.keys if key.startswith("batch/")}


@pytest.mark.parametrize("name", CASES)
def test_the_experiment_has_the_limits_of_the_recipe(name: str) -> None:
    options = json.loads(str(arrays(f"files/{name}.npz")["config"]))
    cfg = compose("train", [f"experiment={CASES[name]}", "variant=released", "paths.cache=x"])
    keys = {
        "bsz": "data.batch_size",
        "eval_bsz": "data.eval_batch_size",
        "max_windows": "data.max_moments",
        "clip_len": "features.clip_seconds",
        "max_v_l": "features.video.max_clips",
        "max_q_l": "features.query.max_tokens",
    }
    assert {ours: OmegaConf.select(cfg, ours) for ours in keys.values()} == {
        ours: options[theirs] for theirs, ours in keys.items()
    }


DRIVES_OTHERS = ("/qid", "negative_qid", "shifted_relevant_windows")
"""Arrays by which rows and draws are chosen: other arrays depend on them."""


@pytest.mark.parametrize("name", COMMITTED)
def test_one_altered_number_in_any_array_of_a_batch_fails(name: str, tmp_path: Path) -> None:
    content = arrays(f"files/{name}.npz")
    altered = {key: with_last_altered(array) for key, array in content.items() if key.startswith("batch/")}
    driving = [key for key in altered if key.endswith(DRIVES_OTHERS)]
    others = {key: array for key, array in altered.items() if key not in driving}
    with our_data(parity(name), Case(golden_case(f"files/{name}.npz"))) as ours:
        shrink(ours.cfg.method)  # its sizes do not matter

        def failed(changes: dict[str, np.ndarray[Any, Any]]) -> set[str]:
            return {v.key for v in ours.check(saved(content | changes, tmp_path)) if not v.passed}

        assert failed(others) == set(others)
        for key in driving:
            assert key in failed({key: altered[key]})


@pytest.mark.parametrize(
    ("name", "file", "old", "new", "fails"),
    [
        ("bm_detr_charades_c3d_files_a", "train", "[[5.0, 9.0]]", "[[5.0, 9.5]]", {"span_labels"}),
        ("bm_detr_charades_c3d_files_a", "train", "[[5.0, 9.0]]", "[[5.0, 8.9]]", {"match_labels"}),
        ("bm_detr_charades_c3d_files_a", "train", "[[50.5, 60.2]]", "[[0.5, 98]]", {"rows_kept_qid"}),
        ("bm_detr_charades_c3d_files_a", "train", '"neg_query_ids": [2, 1]', '"x": 0', {"negative_qid"}),
        ("qd_detr_qvhighlights_files_a", "train", "[[2, 8], [90, 100]]", "[[2, 8]]", {"span_labels"}),
        ("qd_detr_qvhighlights_files_a", "val", "[[4, 2, 0]", "[[1, 2, 0]", {"saliency_all_labels"}),
    ],
)
def test_an_altered_annotation_fails(
    name: str, file: str, old: str, new: str, fails: set[str], tmp_path: Path
) -> None:
    content = arrays(f"files/{name}.npz")
    key = next(key for key in content if key.startswith("text/") and file in key)
    text = str(content[key])
    assert text.count(old) == 1
    verdicts = check_files(parity(name), saved(content | {key: np.array(text.replace(old, new))}, tmp_path))
    assert fails <= {v.key.rpartition("/")[2] for v in verdicts if not v.passed}


@pytest.mark.parametrize(
    ("file", "key"), [("c3d_features/AAAA1.npy", "src_vid"), ("qid2.npz#last_hidden_state", "src_txt")]
)
def test_an_altered_feature_fails(file: str, key: str, tmp_path: Path) -> None:
    content = arrays("files/bm_detr_charades_c3d_files_a.npz")
    name = next(name for name in content if name.endswith(file))
    altered = content[name].copy()
    altered[3, 0] += 1
    case = saved(content | {name: altered}, tmp_path)
    failed = {v.key for v in check_files(parity("bm_detr_charades_c3d_files_a"), case) if not v.passed}
    assert f"batch/train_rows/{key}" in failed


def test_a_batch_with_one_video_twice_fails(tmp_path: Path) -> None:
    content = arrays("files/bm_detr_charades_c3d_files_a.npz")
    qids = content["batch/train/qid"].copy()
    assert 13 in qids
    assert 0 in qids
    qids[qids == 13] = 1  # on the same video as 0
    case = saved(content | {"batch/train/qid": qids}, tmp_path)
    failed = [v for v in check_files(parity("bm_detr_charades_c3d_files_a"), case) if not v.passed]
    assert "(4,), stored (5,)" in {v.note for v in failed}


@pytest.mark.parametrize("key", ["text/../x", "text//tmp/x", "files/a/../../x.npy", "files/a\\b.npy"])
def test_no_file_is_written_outside_the_folder(key: str, tmp_path: Path) -> None:
    case = saved({"config": np.array("{}"), key: np.array("x")}, tmp_path)
    with pytest.raises(VmrError, match="expected a path below"):
        write_files(case, tmp_path / "inside")
