"""`vmr doctor` reports published sizes and what would fail in training; only the latter exits with 1."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import DictConfig, OmegaConf

from vmr_zoo.cli import doctor
from vmr_zoo.errors import VmrError
from vmr_zoo.utils.files import WriteError

ROOT = Path(__file__).parents[2] / "shared" / "data"


def configuration(tmp_path: Path, protocol: str, annotations: Path, **more: object) -> DictConfig:
    target = {"_target_": f"vmr_zoo.data.annotations.protocols.{protocol}", "root": "${paths.annotations}"}
    paths = {"annotations": str(annotations), "features": str(tmp_path / "features")}
    return OmegaConf.create(
        {"paths": paths, "data": {"protocol": target}, "out": str(tmp_path / "out.json")} | more
    )


def small_data(root: Path) -> None:
    """Writes a charades_cd of four videos, 10 s each, and a charades_cg that trains on its ood video."""

    def videos(key: str, *names: str) -> str:
        entry = {key: 10, "timestamps": [[0, 5]], "sentences": ["a person sits"]}
        return json.dumps(dict.fromkeys(names, entry))

    for folder in ("charades_cd", "charades_cg"):
        (root / folder).mkdir(parents=True)
    for part, name in {"train": "a", "val": "b", "test_iid": "c", "test_ood": "d"}.items():
        (root / f"charades_cd/charades_{part}.json").write_text(videos("video_duration", name))
    (root / "charades_cg/train.json").write_text(videos("duration", "d", "e"))
    for part in ("novel_composition", "novel_word", "test_trivial"):
        (root / f"charades_cg/{part}.json").write_text(videos("duration", part))


def features(root: Path, video_dim: int = 4) -> dict[str, Any]:
    def files(kind: str, dim: int) -> dict[str, Any]:
        package = "vmr_zoo.data.features"
        store = {"_target_": f"{package}.store.FileStore", "folder": str(root / kind), "suffix": ".npy"}
        return {
            "_target_": f"{package}.files.FileFeatures",
            "backbone": kind,
            "dim": dim,
            "normalise": True,
            "store": store,
        }

    return {
        "_target_": "vmr_zoo.data.features.feature_set.FeatureSet",
        "name": "tiny",
        "origin": "real",
        "video_dim": video_dim,
        "query_dim": 3,
        "clip_seconds": 1.0,
        "video": {
            "_target_": "vmr_zoo.data.features.files.VideoFiles",
            "sources": [files("video", video_dim)],
        },
        "query": {"_target_": "vmr_zoo.data.features.files.QueryFiles", "source": files("query", 3)},
        "narration_query_dim": 2,
        "narration_query": {
            "_target_": "vmr_zoo.data.features.files.QueryFiles",
            "source": files("words", 2),
        },
    }


def write_features(root: Path) -> None:
    for kind, suffix, shape in (("video", "", (10, 4)), ("query", "_0", (3, 3)), ("words", "_0", (5, 2))):
        (root / kind).mkdir(parents=True)
        for name in "abcd":
            np.save(root / kind / f"{name}{suffix}.npy", np.ones(shape, np.float32))


@pytest.fixture
def small(tmp_path: Path) -> Path:
    small_data(tmp_path / "data")
    write_features(tmp_path / "features")
    return tmp_path


def run(root: Path, missing_videos: str = "refused", **more: object) -> tuple[int, dict[str, Any]]:
    cfg = configuration(root, "charades_cd", root / "data", **more)
    cfg.data.missing_videos = missing_videos
    code = doctor.main(cfg)
    return code, json.loads((root / "out.json").read_text())


def test_sound_features_pass_and_leaks_are_named(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, report = run(small, features=features(small / "features"))
    assert code == 0
    assert report["ok"]
    assert report["features"]["problems"] == []
    assert report["splits"]["ood"]["videos"] == report["splits"]["ood"]["sentences"] == 1
    assert report["splits"]["ood"]["moment"]["mean_centre"] == 0.25
    assert report["warnings"] == [
        "A checkpoint of charades_cg is refused under charades_cd: trained on test videos (ood 1 of 1)."
    ]
    assert report["protocols_not_compared"] == {
        "charades_sta": "its files do not exist",
        "timelens_charades": "its files do not exist",
    }
    assert "Features tiny (origin: real): no problem found." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "array", "kind", "code"),
    [
        ("video/d", None, "missing", 1),
        ("query/c_0", None, "missing", 1),
        ("words/c_0", None, "missing", 1),
        ("words/c_0", np.full((5, 2), np.inf, np.float32), "not finite", 1),
        ("video/a", np.ones((10, 5), np.float32), "dimension", 1),
        ("video/a", np.full((10, 4), np.nan, np.float32), "not finite", 1),
        ("video/a", np.ones((40, 4), np.float32), "length", 0),
    ],
)
def test_what_is_wrong_with_features(
    small: Path,
    name: str,
    array: np.ndarray[Any, Any] | None,
    kind: str,
    code: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = small / "features" / f"{name}.npy"
    path.unlink()
    if array is not None:
        np.save(path, array)
    found, report = run(small, features=features(small / "features"))
    assert found == code
    [problem] = report["features"]["problems"]
    assert (problem["kind"], problem["count"], problem["ids"]) == (kind, 1, [path.stem])
    assert problem["fatal"] is bool(code)
    assert path.stem in capsys.readouterr().out


def test_videos_that_training_leaves_out_are_no_problem(small: Path) -> None:
    (small / "features/video/a.npy").unlink()
    path = small / "data/charades_cd/charades_train.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"e": json.loads(path.read_text())["a"]}))
    for kind, suffix in (("video", ""), ("query", "_0"), ("words", "_0")):
        shutil.copy(small / f"features/{kind}/b{suffix}.npy", small / f"features/{kind}/e{suffix}.npy")
    options = {"missing_videos": "dropped"}
    code, report = run(small, features=features(small / "features"), **options)
    assert (code, report["features"]["problems"]) == (0, [])
    (small / "features/video/d.npy").unlink()
    code, report = run(small, features=features(small / "features"), **options)
    assert code == 1
    assert "No video of the ood split" in report["features"]["problems"][0]["detail"]


def test_without_a_feature_directory_that_is_said_and_is_no_failure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    small_data(tmp_path / "data")
    monkeypatch.delenv("VMR_FEATURES", raising=False)
    code, report = run(tmp_path, features=features(tmp_path / "features"))
    assert (code, report["features"]["checked"]) == (0, False)
    assert "Features were not checked: there is no feature directory" in capsys.readouterr().out
    monkeypatch.setenv("VMR_FEATURES", str(tmp_path / "features"))
    code, report = run(tmp_path, features=features(tmp_path / "features"))
    assert (code, report["ok"]) == (1, False)


def test_broken_annotations_and_an_unwritable_report(small: Path) -> None:
    with pytest.raises(WriteError, match=f"Cannot write {small / 'data'}: "):
        run(small, out=str(small / "data"))
    (small / "data/charades_cd/charades_val.json").write_text("{")
    with pytest.raises(VmrError, match=r"charades_val.json, line 1"):
        run(small)


@pytest.mark.skipif(not ROOT.is_dir(), reason="../shared/data (published annotations) is not there")
def test_published_sizes_and_shared_videos(tmp_path: Path) -> None:
    assert doctor.main(configuration(tmp_path, "charades_sta", ROOT)) == 0
    report = json.loads((tmp_path / "out.json").read_text())
    train = report["splits"]["train"]
    assert (train["videos"], train["sentences"], train["counts"]) == (5338, 12408, {"clipped": 1802})
    assert train["trained_on"] == {"videos": 4804, "sentences": 11170}
    shared = {
        (row["split"], row["protocol"], row["other_split"]): row["videos"] for row in report["shared_videos"]
    }
    assert shared["test", "charades_cg", "train"] == 729
    assert shared["test", "charades_cd", "train"] == 907
