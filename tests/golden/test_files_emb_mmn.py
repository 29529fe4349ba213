"""From data files to batches of EMB and MMN: the cases pass, and fail if anything in them changes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import DictConfig

from golden.find import arrays, golden_case, saved, with_last_altered
from vmr_zoo.config.compose import compose
from vmr_zoo.parity.case import Case
from vmr_zoo.parity.files import our_data

METHODS = ["emb", "mmn"]
DRIVES_OTHERS = ("/sample_id", "train/video_id")
"""Arrays by which rows are chosen: others depend on them."""


def name(method: str) -> str:
    return f"files/{method}_charades_files_a.npz"


def parity(method: str) -> DictConfig:
    return compose("parity", [f"method={method}", "case=x"])


@pytest.mark.parametrize("method", METHODS)
def test_every_array_is_recomputed_and_an_altered_number_fails(method: str, tmp_path: Path) -> None:
    content = arrays(name(method))
    altered = {key: with_last_altered(array) for key, array in content.items() if key.startswith("batch/")}
    driving = [key for key in altered if key.endswith(DRIVES_OTHERS)]
    others = {key: array for key, array in altered.items() if key not in driving}
    with our_data(parity(method), Case(golden_case(name(method)))) as ours:

        def failed(changes: Mapping[str, np.ndarray[Any, Any]]) -> set[str]:
            return {v.key for v in ours.check(saved(content | changes, tmp_path)) if not v.passed}

        assert failed({}) == set()
        assert failed(others) == set(others)
        for key in driving:
            assert key in failed({key: altered[key]})


@pytest.mark.parametrize(
    ("method", "file", "old", "new", "fails"),
    [
        ("emb", "train.txt", "AAAA1 5.0 12.5", "AAAA1 12.5 5.0", {"seconds", "start_index", "end_index"}),
        ("emb", "train.txt", "the person's dog", "the person dog", {"word_ids", "sentence", "char_ids"}),
        ("mmn", "train.json", "[50.5, 60.2]", "[60.2, 60.2]", {"num_sentence", "iou2d", "wordlens"}),
        ("mmn", "vocab.txt", "##selves", "##self", {"queries/EEEE5"}),
    ],
)
def test_altered_text_fails(
    method: str, file: str, old: str, new: str, fails: set[str], tmp_path: Path
) -> None:
    content = arrays(name(method))
    key = next(key for key in content if key.startswith("text/") and key.endswith(file))
    assert str(content[key]).count(old) == 1
    case = saved(content | {key: np.array(str(content[key]).replace(old, new))}, tmp_path)
    with our_data(parity(method), case) as ours:
        failed = {v.key.removeprefix("batch/train/") for v in ours.check(case) if not v.passed}
    assert fails <= failed
