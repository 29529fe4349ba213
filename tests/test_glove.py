"""That the words which comments and help name for EMB and TEA, GloVe 840B as it is, are what they say."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra.utils import instantiate

from vmr_zoo.config.compose import compose, config_dir
from vmr_zoo.data.annotations.records import Query
from vmr_zoo.data.narrations import MANIFEST_KEYS, Narration, write_narrations

TEA = sorted((config_dir() / "experiment" / "tea").glob("*.yaml"))
EXPERIMENTS = [*sorted((config_dir() / "experiment" / "emb").glob("*.yaml")), *TEA]
FILES = [*EXPERIMENTS, config_dir() / "import.yaml"]


def overrides(file: Path) -> list[str]:
    """What a file names: the choices of words, then the keys below them."""
    return re.findall(r"features[/.](?:query|narration)\S*=\S+", file.read_text())


@pytest.fixture
def table(tmp_path: Path) -> tuple[Path, np.ndarray[Any, Any]]:
    """The words "person" and "opens", with vectors of length 5."""
    vectors = np.zeros((2, 300), np.float32)
    vectors[:, 0] = 3, 4
    vectors[:, 1] = 4, 3
    np.savez(tmp_path / "table.npz", words=np.array(["person", "opens"]), vectors=vectors)
    return tmp_path / "table.npz", vectors


def composed(file: Path, table: Path) -> Any:
    named = [override.replace("TABLE.npz", str(table)) for override in overrides(file)]
    if file.stem == "import":
        return compose("import", ["method=emb", "checkpoint=C", "out=DIR", "features=emb", *named])
    cache = f"paths.cache={table.parent / 'cache'}"
    return compose("train", [f"experiment={file.parent.name}/{file.stem}", cache, *named])


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_what_a_file_names_serves_the_authors_vectors(file: Path, table: Any) -> None:
    path, vectors = table
    cfg = composed(file, path)
    words = instantiate(cfg.features.query)
    loaded = words.load(Query("q", "v", "Person opens", ((0.0, 1.0),), 2.0))
    assert (loaded == vectors).all(), "as they are"
    assert words.manifest() == {
        "backbone": "glove_840b_300d",
        "dim": 300,
        "normalise": False,
        "unknown": "zero" if file.stem == "import" else "omitted",
        "max_tokens": 128,
    }
    assert cfg.features.query_dim == 300


@pytest.mark.parametrize(
    "file", [file for file in EXPERIMENTS if file.parent.name == "tea"], ids=lambda f: f.stem
)
def test_a_narration_is_the_mean_of_its_words(file: Path, table: Any, tmp_path: Path) -> None:
    path, vectors = table
    cfg = composed(file, path)
    cfg.features.narration.file = str(tmp_path / "n.jsonl")
    sentence = Narration("v", 0.0, 1.0, "Person opens")
    write_narrations(tmp_path / "n.jsonl", [sentence], dict.fromkeys(MANIFEST_KEYS))
    np.testing.assert_array_equal(instantiate(cfg.features.narration).load("v")[0], [vectors.mean(0)])
    assert cfg.features.narration_dim == 300


@pytest.mark.parametrize(("method", "normalised"), [("qd_detr", True), ("emb", False), ("tea", False)])
def test_the_method_decides_whether_words_are_normalised(method: str, normalised: bool) -> None:
    cfg = compose("train", [f"method={method}", "data=charades_sta", "features=vgg", "paths.features=F"])
    assert instantiate(cfg.features.query).normalise is normalised
    assert cfg.features.video.sources[0].normalise is normalised
