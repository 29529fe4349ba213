"""Words that features leave out are counted per split, and training refuses to lose many."""

from __future__ import annotations

import numpy as np
import pytest

from vmr_zoo.data.annotations.records import Protocol, Query, Split
from vmr_zoo.data.batches.datamodule import VMRDataModule
from vmr_zoo.data.features.feature_set import FeatureSet
from vmr_zoo.data.features.queries import WordVectorQueries
from vmr_zoo.data.features.word_loss import word_losses
from vmr_zoo.data.worlds.synthetic import RandomVideos
from vmr_zoo.errors import VmrError

SENTENCES = {
    "train": (
        "a dog runs.",
        "a dog sits",
        "a cat runs",
    ),  # 9 tokens with a vector or a letter; "cat" is unknown
    "selection": ("a dog runs",),
    "test": ("zebra zebra runs", "a dog runs a dog runs"),  # 9 tokens: 2 unknown, 2 past the first four
}


def split(name: str) -> Split:
    queries = [
        Query(f"{name}{i}", f"{name}{i}", text, ((0.0, 2.0),), 10.0) for i, text in enumerate(SENTENCES[name])
    ]
    return Split(name, tuple(queries))


@pytest.fixture
def module(tmp_path):
    words = ["a", "dog", "runs", "sits"]
    np.savez(tmp_path / "table.npz", words=words, vectors=np.eye(4, dtype=np.float32))
    query = WordVectorQueries(tmp_path / "table.npz", 4, normalise=False, max_tokens=4)
    video = RandomVideos.__new__(RandomVideos)
    video.dim = 2
    features = FeatureSet("tiny", "real", 2, 4, 1.0, video, query)
    protocol = Protocol(
        "tiny", split("train"), split("selection"), {"test": split("test")}, selection_origin="held out"
    )

    def build(most: float | None) -> VMRDataModule:
        return VMRDataModule("tiny", protocol, features, max_lost_words=most)

    return build


def test_losses_are_counted_per_split(module):
    data = module(None)
    losses = {loss.split: loss.as_json() for loss in word_losses(data.features, data.protocol)}
    counted = ("tokens", "unknown", "cut", "sentences_with_unknown", "sentences_cut", "frequent")
    assert [losses["train"][key] for key in counted] == [9, 1, 0, 1, 0, ["cat"]]
    assert [losses["selection"][key] for key in counted] == [3, 0, 0, 0, 0, []]
    assert [losses["test"][key] for key in counted] == [9, 2, 2, 1, 1, ["zebra"]]
    assert losses["test"]["share"] == pytest.approx(4 / 9)


def test_training_refuses_a_split_that_loses_more_than_the_limit_and_says_which_words(module):
    with pytest.raises(VmrError, match=r"test: of 9 tokens 22\.2% .*zebra.* 22\.2% .*longest") as refusal:
        module(0.2).check_words()
    assert "train" not in str(refusal.value).split("Found:")[1].split("For words")[0]
    assert "data.max_lost_words=0.45" in str(refusal.value)
    module(4 / 9).check_words()
    module(0.45).check_words()
    module(None).check_words()
    with pytest.raises(VmrError, match=r"max_lost_words.* found 5"):
        module(5)
