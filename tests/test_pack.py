from __future__ import annotations

import json

import numpy as np
import pytest

from vmr_zoo.data.features import FileFeatures, FileStore, VideoFiles
from vmr_zoo.data.packed import DATA, INDEX, JOURNAL, PackedVideos, pack
from vmr_zoo.errors import VmrError

IDS = ["a", "b", "c"]


@pytest.fixture
def source(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "npy").mkdir()
    for length, name in enumerate(IDS, 2):
        np.save(tmp_path / "npy" / f"{name}.npy", rng.standard_normal((length, 4), np.float32))
    return VideoFiles([FileFeatures("i3d", 4, FileStore(tmp_path / "npy", ".npy"))])


@pytest.mark.parametrize(("dtype", "atol"), [("float32", 0.0), ("float16", 5e-4)])
def test_packed_features_are_the_source_s(source, tmp_path, dtype, atol):
    worst = pack(source, IDS, tmp_path / "out", dtype)
    packed = PackedVideos(tmp_path / "out", 4)
    found = max(np.abs(packed.load(name) - source.load(name)).max() for name in IDS)
    assert worst == found
    assert worst <= atol
    assert [packed.load(name).shape for name in IDS] == [(2, 4), (3, 4), (4, 4)]
    assert packed.manifest() == json.loads(json.dumps(source.manifest()))
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


def test_corruption_is_found(source, tmp_path):
    pack(source, IDS, tmp_path / "out")
    path = tmp_path / "out" / DATA
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert PackedVideos(tmp_path / "out", 4).corrupt() == ["c"]


def test_another_source_is_refused(source, tmp_path):
    pack(source, IDS, tmp_path / "out")
    other = VideoFiles([FileFeatures("c3d", 4, source.sources[0].store)])
    with pytest.raises(VmrError, match="out=DIR"):
        pack(other, IDS, tmp_path / "out")


def test_a_number_beyond_half_precision_is_refused(source, tmp_path, monkeypatch):
    monkeypatch.setattr(source, "load", lambda name: np.full((1, 4), 1e6, np.float32))
    with pytest.raises(VmrError, match="float32"):
        pack(source, IDS, tmp_path / "out")
