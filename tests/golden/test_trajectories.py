"""Thirty training steps of the authors' code pass, and fail if anything in them changes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from golden.find import arrays, golden_case
from vmr_zoo.config.compose import compose
from vmr_zoo.errors import VmrError
from vmr_zoo.parity.case import Case
from vmr_zoo.parity.check import Verdict
from vmr_zoo.parity.trajectory import check_trajectory

METHODS = ("moment_detr", "qd_detr", "bm_detr", "emb", "mesm", "mmn")


def verdicts_of(method: str, path: Path) -> list[Verdict]:
    return check_trajectory(compose("parity", [f"method={method}", "case=x"]), Case(path)).verdicts


def refused(method: str, content: dict[str, np.ndarray[Any, Any]], folder: Path) -> bool:
    """Returns whether a changed case fails, as an error or as a verdict."""
    path = folder / "case.npz"
    np.savez(path, **content)  # type: ignore[arg-type]
    try:
        return any(not v.passed for v in verdicts_of(method, path))
    except VmrError:
        return True


@pytest.mark.parametrize("method", METHODS)
def test_every_step_is_repeated(method: str) -> None:
    path = golden_case(f"trajectories/{method}_a.npz")
    verdicts = verdicts_of(method, path)
    assert [v for v in verdicts if not v.passed] == []
    compared = {v.key for v in verdicts}
    assert {key for key in Case(path).keys if key.startswith(("curve/", "final/"))} <= compared


@pytest.mark.parametrize(
    "key",
    [
        "init/featpool.conv.weight",
        pytest.param("final/featpool.conv.weight", marks=pytest.mark.slow),
        pytest.param("step00/input/feats", marks=pytest.mark.slow),
        pytest.param("step29/target/moments", marks=pytest.mark.slow),
        "curve/loss/iou",
        pytest.param("curve/float64/loss/vid", marks=pytest.mark.slow),
        pytest.param("curve/grad_norm", marks=pytest.mark.slow),
        pytest.param("curve/lr_text", marks=pytest.mark.slow),
    ],
)
def test_an_altered_array_fails(key: str, tmp_path: Path) -> None:
    content = arrays("trajectories/mmn_a.npz")
    altered = content[key].copy()
    altered.flat[altered.size // 2] *= 1.01
    altered.flat[altered.size // 2] += 0.01
    assert refused("mmn", content | {key: altered}, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("option", "value"),
    [("lr", 2e-4), ("clip_grad_norm", 4), ("milestones", [3, 4]), ("only_iou_epoch", 2), ("margin", 0.3)],
)
def test_an_altered_recipe_fails(option: str, value: Any, tmp_path: Path) -> None:
    content = arrays("trajectories/mmn_a.npz")
    options = json.loads(str(content["config"]))
    assert options[option] != value
    config = np.array(json.dumps(options | {option: value}))
    assert refused("mmn", content | {"config": config}, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_no_kind_of_array_is_ignored(method: str, tmp_path: Path) -> None:
    content = arrays(f"trajectories/{method}_a.npz")
    kinds: dict[str, str] = {}
    for key, array in content.items():
        if array.dtype.kind in "fi" and array.size and not key.startswith(("init/", "noise/")):
            kinds["final" if key.startswith("final/") else key.split("/", 1)[1]] = (
                key  # the last of each kind
            )
    for key in kinds.values():
        altered = content[key].copy()
        last = np.flatnonzero(altered.ravel() == altered.ravel())[-1]  # not NaN
        # Where moments are positions among frames, nobody reads how long a video is; it is longer than 0 s.
        altered.ravel()[last] += -1000 if key.endswith("durations") else 1000
        assert refused(method, content | {key: altered}, tmp_path), key


def test_the_experiment_decides_the_recipe(vmr, tmp_path: Path, capsys) -> None:
    path, out = golden_case("trajectories/mmn_a.npz"), tmp_path / "verdicts.json"
    override = "method.training.optimizer.weight_decay=0"
    assert vmr("parity", "method=mmn", f"case={path}", f"out={out}", override) == 1
    failed = {line["key"] for line in json.loads(out.read_text()) if not line["passed"]}
    assert "config/optimizer.weight_decay" in failed
    assert any(key.startswith("curve/float64/") for key in failed)
    # The decay times the learning rate is below the resolution of float32 weights.
    assert not any(key.startswith(("curve/loss/", "final/")) for key in failed)
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


def test_padding_is_checked(tmp_path: Path) -> None:
    content = arrays("trajectories/mmn_a.npz")
    ids = content["step03/input/token_ids"].copy()
    ids[content["step03/input/wordlens"].argmin(), -1] = 7
    path = tmp_path / "case.npz"
    np.savez(path, **content | {"step03/input/token_ids": ids})  # type: ignore[arg-type]
    assert [v.key for v in verdicts_of("mmn", path) if not v.passed] == ["step03/input/token_ids"]


def test_a_case_of_another_method_is_refused(vmr, capsys) -> None:
    assert vmr("parity", "method=vdi", f"case={golden_case('trajectories/mmn_a.npz')}") == 2
    assert vmr("parity", "method=emb", f"case={golden_case('trajectories/mmn_a.npz')}") == 2
    assert "method=mmn" in capsys.readouterr().err
