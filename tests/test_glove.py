"""That the overrides which comments and help name for EMB's words, GloVe 840B as it is, are what they say."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from hydra.utils import instantiate

from vmr_zoo.config.compose import compose, config_dir
from vmr_zoo.data.annotations.records import Query

FILES = [*sorted((config_dir() / "experiment" / "emb").glob("*.yaml")), config_dir() / "import.yaml"]


def overrides(file: Path) -> list[str]:
    """What a file names: the one choice of words, then the keys below it."""
    return re.findall(r"features[/.]query\S*=\S+", file.read_text())


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_what_a_file_names_serves_the_authors_vectors(file: Path, tmp_path: Path) -> None:
    table = tmp_path / "table.npz"
    vectors = np.zeros((2, 300), np.float32)
    vectors[:, 0] = 3, 4
    np.savez(table, words=np.array(["person", "opens"]), vectors=vectors)
    named = [override.replace("TABLE.npz", str(table)) for override in overrides(file)]
    if file.stem == "import":
        cfg = compose("import", ["method=emb", "checkpoint=C", "out=DIR", "features=emb", *named])
    else:
        cfg = compose("train", [f"experiment=emb/{file.stem}", *named])
    words = instantiate(cfg.features.query)
    loaded = words.load(Query("q", "v", "Person opens", ((0.0, 1.0),), 2.0))
    assert (loaded == vectors).all(), "as they are"
    assert words.manifest() == {"backbone": "glove_840b_300d", "dim": 300, "normalise": False}
    assert cfg.features.query_dim == 300


def test_by_itself_the_choice_is_glove_6b_normalised() -> None:
    cfg = compose("train", ["experiment=emb/charades_sta", "features/query=glove"])
    assert instantiate(cfg.features.query).manifest() == {
        "backbone": "glove_6b_300d",
        "dim": 300,
        "normalise": True,
    }
