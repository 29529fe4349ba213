from __future__ import annotations

import os
import pickle

import numpy as np
import pytest
import torch

from toy import Sentence
from vmr_zoo.data.annotations.records import Protocol, Query, Split
from vmr_zoo.data.batches.datamodule import VMRDataModule
from vmr_zoo.data.batches.residency import Ragged, RaggedOnDevice, load_videos
from vmr_zoo.data.features.feature_set import FeatureSet
from vmr_zoo.data.features.files import FileFeatures, VideoFiles
from vmr_zoo.data.features.manifest import compare_manifests
from vmr_zoo.data.features.packed import DATA, INDEX, JOURNAL, PackedVideos, pack
from vmr_zoo.data.features.problems import FeatureError
from vmr_zoo.data.features.store import FileStore
from vmr_zoo.errors import VmrError
from vmr_zoo.report.leaderboard import leaderboards
from vmr_zoo.report.runs import finished_runs
from vmr_zoo.runs.directory import MANIFEST, read_json

IDS = ["a", "b", "c"]


@pytest.fixture
def source(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "npy").mkdir()
    for length, name in enumerate(IDS, 2):
        np.save(tmp_path / "npy" / f"{name}.npy", rng.standard_normal((length, 4), np.float32))
    return VideoFiles([FileFeatures("i3d", 4, FileStore(tmp_path / "npy", ".npy"), normalise=True)])


@pytest.mark.parametrize(("dtype", "atol"), [("float32", 0.0), ("float16", 5e-4)])
def test_packed_features_are_the_source_s(source, tmp_path, dtype, atol):
    worst = pack(source, IDS, tmp_path / "out", dtype)
    packed = PackedVideos(tmp_path / "out", source)
    found = max(np.abs(packed.load(name) - source.load(name)).max() for name in IDS)
    assert worst == found
    assert worst <= atol
    assert [packed.load(name).shape for name in IDS] == [(2, 4), (3, 4), (4, 4)]
    assert [packed.length(name) for name in IDS] == [2, 3, 4]
    assert pack(source, IDS, tmp_path / "out", dtype) == worst  # nothing left to do
    assert packed.corrupt() == []
    assert packed.missing(["b", "x", "../a"])[0].ids == ("x", "../a")


@pytest.mark.parametrize("half_line", [False, True])
def test_a_run_that_was_stopped_continues(source, tmp_path, monkeypatch, half_line):
    whole = tmp_path / "whole"
    pack(source, IDS, whole)
    load = source.load

    def dies(name):
        if name == "c":
            raise KeyboardInterrupt
        return load(name)

    monkeypatch.setattr(source, "load", dies)
    with pytest.raises(KeyboardInterrupt):
        pack(source, IDS, tmp_path / "out")
    assert not (tmp_path / "out" / INDEX).exists()
    if half_line:
        journal = tmp_path / "out" / JOURNAL
        journal.write_text(journal.read_text() + '["c", 5')
    read = []
    monkeypatch.setattr(source, "load", lambda name: read.append(name) or load(name))
    pack(source, IDS, tmp_path / "out")
    assert read == ["c"]
    for name in (DATA, INDEX):
        assert (tmp_path / "out" / name).read_bytes() == (whole / name).read_bytes()


def test_sources_of_other_rates_are_refused(source, tmp_path):
    (tmp_path / "slow").mkdir()
    for name in IDS:
        np.save(tmp_path / "slow" / f"{name}.npy", np.ones((9, 4), np.float32))
    slow = FileFeatures("slow", 4, FileStore(tmp_path / "slow", ".npy"), normalise=True)
    with pytest.raises(VmrError, match=r"cannot be packed.*'a' has 2 clips of i3d, 9 clips of slow"):
        pack(VideoFiles([*source.sources, slow]), IDS, tmp_path / "out")


def test_values_of_a_file_that_was_replaced_are_refused(source, tmp_path):
    pack(source, IDS, tmp_path / "out")
    os.utime(tmp_path / "npy" / "a.npy", ns=(0, 0))  # a copy is no other file
    np.save(tmp_path / "npy" / "b.npy", np.load(tmp_path / "npy" / "b.npy")[::-1])
    (tmp_path / "npy" / "c.npy").unlink()  # no longer needed
    with pytest.raises(VmrError, match="holds earlier features of b: their files have changed"):
        pack(source, IDS, tmp_path / "out")


def test_a_half_packed_video_that_was_replaced_is_refused(source, tmp_path):
    (tmp_path / "npy" / "c.npy").write_bytes(b"broken")
    with pytest.raises(FeatureError, match=r"c\.npy"):
        pack(source, IDS, tmp_path / "out")
    np.save(tmp_path / "npy" / "b.npy", np.ones((3, 4), np.float32))
    with pytest.raises(VmrError, match="holds earlier features of b: their files have changed"):
        pack(source, IDS, tmp_path / "out")


def test_corruption_is_found(source, tmp_path):
    pack(source, IDS, tmp_path / "out")
    path = tmp_path / "out" / DATA
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    packed = PackedVideos(tmp_path / "out", source)
    assert packed.corrupt() == ["c"]
    with pytest.raises(FeatureError, match="checksum of 'c'"):
        packed.load("c")


def test_another_source_is_refused(source, tmp_path):
    pack(source, IDS, tmp_path / "out")
    other = VideoFiles([FileFeatures("c3d", 4, source.sources[0].store, normalise=True)])
    with pytest.raises(VmrError, match="out=DIR"):
        pack(other, IDS, tmp_path / "out")
    with pytest.raises(FeatureError, match=r"order: packed \['i3d'\], now \['c3d'\]"):
        PackedVideos(tmp_path / "out", other).load("a")


def test_a_number_beyond_half_precision_is_refused(source, tmp_path, monkeypatch):
    monkeypatch.setattr(source, "load", lambda name: np.full((1, 4), 1e6, np.float32))
    with pytest.raises(VmrError, match="float32"):
        pack(source, IDS, tmp_path / "out")


# ---------------------------------------------------------------------------------------------- in a run


def features(source, **options):
    return FeatureSet("i3d", "real", 4, Sentence.dim, 1.0, source, Sentence(), **options)


def module(features, **options):
    """Two sentences on each of three videos, "a" twice in a batch."""
    splits = [
        Split(
            name,
            tuple(
                Query(f"{name}{i}{j}", video, f"at {i}", ((0.0, 1.0),), float(i))
                for i, video in enumerate(IDS, 2)
                for j in range(2)
            ),
        )
        for name in ("train", "selection", "test")
    ]
    protocol = Protocol("three", *splits[:2], {"test": splits[2]}, "published")
    return VMRDataModule("three", protocol, features, batch_size=4, eval_batch_size=4, **options)


def batches(data):
    data.setup()
    return [*data.train_dataloader(), *data.val_dataloader(), *data.test_dataloader()[0]]


def assert_same(found, expected):
    assert len(found) == len(expected) > 3
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        for key, value in other.items():
            assert torch.equal(one[key], value) if torch.is_tensor(value) else one[key] == value


@pytest.mark.parametrize("residency", ["disk", "memory"])
def test_batches_of_a_float32_pack_are_those_of_its_source(source, tmp_path, residency):
    expected = batches(module(features(source)))
    pack(source, IDS, tmp_path / "out", "float32")
    for path in (tmp_path / "npy").iterdir():
        path.unlink()  # no longer needed
    packed = features(source, packed=tmp_path / "out")
    assert_same(batches(module(packed, residency=residency)), expected)
    assert packed.name == "i3d"
    compare_manifests(features(source).manifest(), packed.manifest())


def test_half_precision_is_other_features_unless_it_changed_nothing(source, tmp_path):
    pack(source, IDS, tmp_path / "rounded")
    rounded = features(source, packed=tmp_path / "rounded")
    assert rounded.name == "i3d in float16"  # so in another table
    with pytest.raises(VmrError, match=r"video.packed: trained on None, now 'float16'"):
        compare_manifests(features(source).manifest(), rounded.manifest())

    exact = VideoFiles([FileFeatures("i3d", 4, source.sources[0].store, normalise=False)])
    for path in (tmp_path / "npy").iterdir():
        np.save(path, np.load(path).astype(np.float16))
    pack(exact, IDS, tmp_path / "exact")
    packed = features(exact, packed=tmp_path / "exact")
    assert packed.name == "i3d"
    compare_manifests(features(exact).manifest(), packed.manifest())
    assert_same(batches(module(packed)), batches(module(features(exact))))


def test_a_damaged_pack_stops_a_run_before_it_starts(source, tmp_path):
    pack(source, IDS, tmp_path / "out")
    content = bytearray((tmp_path / "out" / DATA).read_bytes())
    content[-1] ^= 1
    (tmp_path / "out" / DATA).write_bytes(content)
    with pytest.raises(VmrError, match="checksum of 'c'"):
        module(features(source, packed=tmp_path / "out")).prepare_data()


def test_a_worker_process_is_not_sent_the_pack(source, tmp_path):
    pack(source, IDS, tmp_path / "out")
    packed = PackedVideos(tmp_path / "out", source)
    packed.load("a")
    copy = pickle.loads(pickle.dumps(packed))
    assert "_rows" not in copy.__dict__
    assert np.array_equal(copy.load("c"), packed.load("c"))


def test_packing_and_doctor_by_the_command(vmr, tmp_path, capsys):
    sizes = ["data=synthetic", "features.video_dim=8", "data.protocol.train_videos=3"]
    sizes.append("data.protocol.test_videos=2")
    out = tmp_path / "out"
    assert vmr("pack", *sizes, f"out={out}") == 0
    assert "marked as float16" in capsys.readouterr().out
    assert vmr("doctor", *sizes, f"features.packed={out}") == 0
    assert vmr("doctor", *sizes, f"features.packed={out}", "features.video_dim=9") == 1
    assert "packed from other features" in " ".join(capsys.readouterr().out.split())
    assert vmr("pack", *sizes, f"features.packed={out}", f"out={tmp_path / 'again'}") == 2
    assert vmr("pack", "data=shapes", f"out={tmp_path / 'again'}") == 2
    assert "are rendered" in capsys.readouterr().err


def test_runs_on_a_pack_and_on_its_source_share_name_manifest_and_row(vmr, tmp_path):
    sizes = ["data=synthetic", "features.video_dim=8", "data.protocol.train_videos=3"]
    sizes.append("data.protocol.test_videos=2")
    assert vmr("pack", *sizes, f"out={tmp_path}/out", "dtype=float32") == 0
    train = ["train", *sizes, "method=predict_all", "logger=csv", "trainer.max_epochs=1"]
    train += [f"paths.runs={tmp_path}/runs", "trainer.accelerator=cpu"]
    assert vmr(*train, "seed=0") == 0
    assert vmr(*train, "seed=1", f"features.packed={tmp_path}/out") == 0
    (row,) = leaderboards(finished_runs(tmp_path / "runs"), ["mIoU"])[0].rows
    assert len(row.runs) == 2
    manifests = [read_json(run.directory / MANIFEST) for run in row.runs]
    assert manifests[0] == manifests[1]


# ---------------------------------------------------------------------------------------------- residency


@pytest.mark.parametrize("storage", ["float32", "float16"])
@pytest.mark.parametrize("residency", ["disk", "auto"])
def test_batches_do_not_depend_on_where_features_lie(source, residency, storage):
    expected = batches(module(features(source), residency="memory", storage=storage))
    assert_same(batches(module(features(source), residency=residency, storage=storage)), expected)


def test_auto_holds_what_fits_and_reads_the_rest_for_every_batch(source, monkeypatch):
    whole = 4 * 9 * 4  # bytes: three videos of together nine clips of four numbers
    for free, held in ((2 * whole, True), (2 * whole - 2, False)):
        monkeypatch.setattr("vmr_zoo.data.batches.residency.free_memory", lambda free=free: free)
        found = load_videos(source, IDS, torch.float32, "auto", "train")
        assert isinstance(found, Ragged) is held
        assert found.lengths.tolist() == [2, 3, 4]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_batches_are_gathered_on_a_device(source, device):
    held = load_videos(source, IDS, torch.float32, "memory", "train")
    gathered = RaggedOnDevice(held, torch.device(device))
    for rows, longest in (([2, 0, 0], None), ([0, 1], 5)):
        values, mask = gathered.pad(rows, longest)
        assert values.device.type == device
        expected, expected_mask = held.pad(rows, longest)
        assert torch.equal(values.cpu(), expected)
        assert torch.equal(mask, expected_mask)


@pytest.mark.gpu
def test_a_batch_of_the_training_split_is_on_the_gpu(source):
    expected = batches(module(features(source), residency="memory"))
    found = batches(module(features(source), residency="device"))
    assert [batch["video"].device.type for batch in found] == ["cuda"] * 2 + ["cpu"] * 4
    assert_same([{**batch, "video": batch["video"].cpu()} for batch in found], expected)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_device_is_refused_where_there_is_none(source):
    with pytest.raises(VmrError, match="residency=auto"):
        module(features(source), residency="device").setup("fit")


def test_impossible_residencies_are_refused(source):
    with pytest.raises(VmrError, match="num_workers=0"):
        module(features(source), residency="device", num_workers=1)
    with pytest.raises(VmrError, match="residency"):
        module(features(source), residency="disc")
