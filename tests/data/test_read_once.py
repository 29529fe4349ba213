"""Each feature file is read once: the check before training keeps what the splits load afterwards."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

from vmr_zoo.data.annotations.records import Protocol, Query, Split
from vmr_zoo.data.batches.datamodule import VMRDataModule
from vmr_zoo.data.features.feature_set import FeatureSet
from vmr_zoo.data.features.files import FileFeatures, QueryFiles, VideoFiles
from vmr_zoo.data.features.store import FileStore
from vmr_zoo.errors import VmrError

CLIPS = 6
SPLITS = {"train": ("a", "b", "c"), "selection": ("d",), "test": ("e", "f", "a")}  # "a" occurs in two splits


class CountingStore(FileStore):
    """Counts how often each file is opened."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, ".npy")
        self.reads: Counter[str] = Counter()

    def read_named(self, name: str) -> np.ndarray:
        self.reads[name] += 1
        return super().read_named(name)


class Stores(NamedTuple):
    """The files of clips, of queries, and of the words for narrations."""

    video: CountingStore
    query: CountingStore
    words: CountingStore


def split(name: str, *videos: str) -> Split:
    queries = [Query(f"{name}_{v}", v, f"sentence {v}", ((1.0, 3.0),), float(CLIPS)) for v in videos]
    return Split(name, tuple(queries))


PROTOCOL = Protocol(
    "toy",
    *(split(name, *SPLITS[name]) for name in ("train", "selection")),
    {"test": split("test", *SPLITS["test"])},
    "published",
)
VIDEOS = sorted({video for videos in SPLITS.values() for video in videos})
QUERIES = sorted(query.query_id for query in PROTOCOL.queries)


@pytest.fixture
def stores(tmp_path: Path) -> Stores:
    rng = np.random.default_rng(0)
    for folder, names, rows in (("video", VIDEOS, CLIPS), ("query", QUERIES, 4), ("words", QUERIES, 5)):
        (tmp_path / folder).mkdir()
        for name in names:
            np.save(tmp_path / folder / f"{name}.npy", rng.normal(size=(rows, 3)).astype(np.float32))
    return Stores(*(CountingStore(tmp_path / kind) for kind in Stores._fields))


def module(stores: Stores, **options: object) -> VMRDataModule:
    video, query, words = stores
    features = FeatureSet(
        "toy",
        "real",
        3,
        3,
        1.0,
        VideoFiles([FileFeatures("x", 3, video, normalise=True)]),
        QueryFiles(FileFeatures("y", 3, query, normalise=True)),
        narration_query=QueryFiles(FileFeatures("z", 3, words, normalise=True)),
        narration_query_dim=3,
    )
    return VMRDataModule("toy", PROTOCOL, features, needs={"narration_query"}, batch_size=2, **options)


def batches(data: VMRDataModule) -> list[dict]:
    data.prepare_data()
    data.setup("fit")
    found = [*data.train_dataloader(), *data.val_dataloader()]
    data.setup("test")
    return [*found, *data.test_dataloader()[0]]


@pytest.mark.parametrize("storage", ["float32", "float16"])
@pytest.mark.parametrize("residency", ["memory", "auto"])
def test_training_and_testing_read_each_file_once(stores, residency, storage):
    batches(module(stores, residency=residency, storage=storage))
    assert stores.video.reads == Counter(VIDEOS)
    assert stores.query.reads == stores.words.reads == Counter(QUERIES)


def test_on_disk_the_check_and_every_batch_read(stores):
    batches(module(stores, residency="disk"))
    assert stores.video.reads == Counter(VIDEOS) + Counter(
        video for videos in SPLITS.values() for video in videos
    )
    assert stores.query.reads == stores.words.reads == Counter(QUERIES)


def test_evaluation_keeps_only_the_split_that_it_loads(stores):
    data = module(stores)
    data.prepare_data(["test"])
    next(iter(data.eval_dataloader("test")))
    assert stores.video.reads == Counter(VIDEOS)
    data.setup("validate")
    assert stores.video.reads == Counter(VIDEOS) + Counter(SPLITS["selection"])


def test_batches_do_not_depend_on_what_was_kept(stores, monkeypatch):
    """Too little memory keeps nothing: each split then reads its own files."""
    expected = batches(module(stores))
    video = stores.video.reads.total()
    monkeypatch.setattr("vmr_zoo.data.batches.datamodule.memory_budget", lambda residency: 1.0)
    found = batches(module(stores))
    assert stores.video.reads.total() == video + len(VIDEOS) + sum(map(len, SPLITS.values()))
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        for key, value in one.items():
            assert torch.equal(value, other[key]) if isinstance(value, torch.Tensor) else value == other[key]


def test_replaced_features_are_not_served_from_memory(stores, tmp_path):
    data = module(stores)
    data.prepare_data()
    other = tmp_path / "other"
    other.mkdir()
    for video in VIDEOS:
        np.save(other / f"{video}.npy", np.full((CLIPS, 3), 2.0, np.float32))
    replaced = VideoFiles([FileFeatures("x", 3, FileStore(other, ".npy"), normalise=False)])
    data.features = replace(data.features, video=replaced)
    assert (next(iter(data.eval_dataloader("test")))["video"] == 2).all()


def test_all_broken_files_of_all_splits_are_listed_before_training(stores):
    for video in ("b", "e"):
        np.save(stores.video.folder / f"{video}.npy", np.ones((CLIPS, 4), np.float32))
    np.save(stores[1].folder / "selection_d.npy", np.ones((4, 2), np.float32))
    with pytest.raises(VmrError) as raised:
        module(stores).setup("fit")
    assert "video: dimension for 2 ids: b, e." in str(raised.value)
    assert "query: dimension for 1 id: selection_d." in str(raised.value)
