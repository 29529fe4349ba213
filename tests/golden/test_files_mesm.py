"""From MESM's data files to its batches: the cases pass, and no number in them can change unnoticed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf

from golden.find import arrays
from vmr_zoo.config.compose import compose
from vmr_zoo.parity.case import Case
from vmr_zoo.parity.files import our_data

CASES = {"mesm_charades_files_a": "charades_sta", "mesm_tacos_files_a": "tacos"}
"""Experiment by case."""


def failed(content: Mapping[str, np.ndarray[Any, Any]], folder: Path) -> set[str]:
    np.savez(folder / "case.npz", **content)
    case = Case(folder / "case.npz")
    with our_data(compose("parity", ["method=mesm", "case=x"]), case) as ours:
        return {verdict.key for verdict in ours.check(case) if not verdict.passed}


@pytest.mark.parametrize("name", CASES)
def test_every_array_is_recomputed_and_an_altered_number_in_any_fails(name: str, tmp_path: Path) -> None:
    content = arrays(f"files/{name}.npz")
    assert failed(content, tmp_path) == set()
    altered = {}
    # By these our rows are found: any change leaves no batch of ours that is like the recorded one.
    drives = ("/video_id", "/sentence", "/moment")
    for key in (key for key in content if key.startswith("batch/") and not key.endswith(drives)):
        array = content[key].copy()
        last = tuple(size - 1 for size in array.shape)
        array[last] = (
            "x" if array.dtype.kind == "U" else ~array[last] if array.dtype == bool else array[last] + 10_000
        )
        altered[key] = array
    assert failed(content | altered, tmp_path) == set(altered)
    for key in ("batch/eval/sentence", "batch/eval/video_id"):
        changed = content[key].copy()
        changed[-1] = "x"
        assert key in failed(content | {key: changed}, tmp_path)


@pytest.mark.parametrize("name", CASES)
def test_the_experiment_has_the_limits_of_the_recipe(name: str) -> None:
    options = json.loads(str(arrays(f"files/{name}.npz")["config"]))
    cfg = compose("train", [f"experiment=mesm/{CASES[name]}", "variant=released", "paths.cache=x"])
    words = (
        "features.query.encoder.longest" if name.startswith("mesm_charades") else "features.query.max_tokens"
    )
    found = {
        key: OmegaConf.select(cfg, key) for key in ("data.batch_size", "features.video.max_clips", words)
    }
    most = options["max_words_l"] - 2 * (options["tokenizer_type"] == "CLIP")
    assert list(found.values()) == [options["batch_size"], options["max_video_l"], most]
    assert (cfg.data.rows_per_video or -1) == options["max_gather_size"]


@pytest.mark.parametrize(
    ("name", "old", "new", "fails"),
    [
        # An end exactly between two clips: float64 puts it below, so a frame more counts one clip more.
        ("mesm_tacos_files_a", "[0, 3476]", "[0, 3477]", {"end_idx", "clip_mask", "moment"}),
        ("mesm_tacos_files_a", "the 72 17\n. 4 16", ". 4 16\nthe 72 17", {"words_label"}),
        ("mesm_charades_files_a", "22.3 21.0", "22.3 33.5", {"moment", "start_idx"}),
        ("mesm_charades_files_a", "40.0 44.0", "32.0 44.0", {"num_clips", "sentence"}),
        ("mesm_charades_files_a", '"person": "NN"', '"person": "DT"', {"words_weight"}),
    ],
)
def test_an_altered_file_fails(name: str, old: str, new: str, fails: set[str], tmp_path: Path) -> None:
    content = arrays(f"files/{name}.npz")
    key = next(key for key in content if key.startswith("text/") and old in str(content[key]))
    changed = failed(content | {key: np.array(str(content[key]).replace(old, new))}, tmp_path)
    assert fails <= {key.rpartition("/")[2] for key in changed}
