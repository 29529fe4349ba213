"""Broken and odd input: every fault gets one message that says what, where and how to fix it.

Complements the readers' own tests (`tests/data/test_protocols.py`, `test_features.py`, `test_narrations.py`,
`tests/test_score.py`, `tests/test_cli.py`); docs/reliability.md lists all of them.
"""

from __future__ import annotations

import json
import pickle
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import toy
from test_methods_contract import build
from vmr_zoo.data.annotations import readers
from vmr_zoo.data.annotations.records import TRAIN, Protocol, Query, Split
from vmr_zoo.data.annotations.rows import numbered, split_of
from vmr_zoo.data.batches.datamodule import VMRDataModule
from vmr_zoo.data.batches.sampling import RowBatch
from vmr_zoo.data.batches.split_dataset import SplitDataset
from vmr_zoo.data.features.feature_set import FeatureSet
from vmr_zoo.data.features.files import FileFeatures, VideoFiles
from vmr_zoo.data.features.problems import FeatureError
from vmr_zoo.data.features.queries import WordVectorQueries
from vmr_zoo.data.features.store import FileStore, Hdf5Store
from vmr_zoo.data.narrations import MANIFEST_KEYS, manifest_path, read_narrations
from vmr_zoo.engine import scoring, submission
from vmr_zoo.engine.query_file import read_query_file
from vmr_zoo.errors import VmrError
from vmr_zoo.metrics.settings import MetricSettings
from vmr_zoo.parity.checkpoint_import import read_checkpoint

# --- annotations, narrations and sentences

VIDEO = {"duration": 9, "timestamps": [[0, 4]], "sentences": ["a dog runs"]}
TACOS = {"fps": 30, "num_frames": 270, "timestamps": [[0, 120]], "sentences": ["a dog runs"]}
HIGHLIGHT = {
    "qid": 1, "query": "a dog runs", "vid": "v", "duration": 10, "relevant_windows": [[0, 4]],
    "relevant_clip_ids": [0, 1], "saliency_scores": [[1, 2, 3], [4, 4, 4]],
}  # fmt: skip
NARRATION = {"video_id": "v", "start": 0, "end": 4, "text": "a dog runs"}
LONG = " ".join(["dog"] * 10_000)
ODD = "\U0001f600 \u05db\u05dc\u05d1 \u0631\u0643\u0636 dog"
"""An emoji, Hebrew and Arabic."""


def charades(path: Path) -> Any:
    return readers.read_charades_sta(path, {"V1": 9.0}, numbered(), scored=True)


def lengths(path: Path) -> Any:
    return readers.read_charades_lengths(path)


def by_video(path: Path) -> Any:
    return readers.read_by_video(path, numbered(), scored=True)


def tacos(path: Path) -> Any:
    return readers.read_tacos(path, numbered(), scored=True)


def highlights(path: Path) -> Any:
    return readers.read_qvhighlights(path, scored=True)


def narrations(path: Path) -> Any:
    manifest_path(path).write_text(json.dumps(dict.fromkeys(MANIFEST_KEYS)))
    return read_narrations(path)


def queries(path: Path) -> Any:
    return read_query_file(path)


def lines(*rows: Any) -> str:
    return "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)


NAN = json.dumps(NARRATION).replace("4", "NaN")
BAD: dict[str, tuple[Callable[[Path], Any], str | bytes | dict[str, Any], str]] = {
    "charades: truncated": (charades, "V1 0 4##a dog\nV1 0", "line 2: expected 'video start end##sentence'"),
    "charades: encoding": (charades, b"V1 0 4##a dog\nV1 0 4##caf\xe9\n", "line 2: expected UTF-8 .*iconv"),
    "charades: UTF-16": (charades, "V1 0 4##a dog\n".encode("utf-16"), "line 1: expected UTF-8"),
    "charades: negative": (charades, "V1 -1 4##a dog\n", r"line 1: expected a moment's start .* found -1"),
    "charades: infinite": (charades, "V1 0 inf##a dog\n", r"line 1: expected a moment's end .* found inf"),
    "charades: id": (charades, "../../etc/passwd 0 4##a\n", r"line 1: .*file name .* Change it"),
    "charades: empty": (charades, "\n \n", "holds no sentence"),
    "lengths: truncated": (lengths, 'id,length\nV1,30\nV2,"3', "line 3: not valid CSV"),
    "lengths: header": (lengths, '"id,length\nV1,30', "not valid CSV|expected the column"),
    "lengths: column": (lengths, "id,subject\nV1,x\n", "line 1: expected the column length"),
    "lengths: encoding": (lengths, b"id,length\nV1,30\nV\xff,2\n", "line 3: expected UTF-8"),
    "lengths: text": (lengths, "id,length\nV1,long\n", "line 2: expected a number, found 'long'"),
    "lengths: negative": (lengths, "id,length\nV1,-3\n", "line 2: .* found -3"),
    "lengths: NaN": (lengths, "id,length\nV1,nan\n", "line 2: .* found nan"),
    "lengths: zero": (lengths, "id,length\nV1,0\n", "line 2: expected the video's length above 0"),
    "lengths: twice": (lengths, "id,length\nV1,3\nV1,3\n", "line 3: the video 'V1' is listed twice"),
    "lengths: id": (lengths, 'id,length\n"a\nb",3\n', r"line 3: .*file name"),
    "by video: surrogate": (by_video, {"a": VIDEO | {"sentences": ["\ud83d"]}}, "sentence 0: .*surrogate"),
    "by video: C1 id": (by_video, {"a\u0085b": VIDEO}, "file name"),
    "by video: line separator": (by_video, {"a\u2028b": VIDEO}, "file name"),
    "by video: long id": (by_video, {"\u05d0" * 150: VIDEO}, "at most 200 bytes"),
    "by video: infinite": (by_video, {"a": VIDEO | {"duration": float("inf")}}, "'duration' .* found inf"),
    "by video: true": (by_video, {"a": VIDEO | {"timestamps": [[True, 4]]}}, "start .* found True"),
    "by video: deep": (by_video, "[" * 100_000, "not an annotation file"),
    "tacos: key": (tacos, {"a.avi": VIDEO}, "expected the key 'fps' and 'num_frames'"),
    "tacos: negative": (tacos, {"a.avi": TACOS | {"timestamps": [[-3, 9]]}}, "start .* found -3"),
    "tacos: no rate": (tacos, {"a.avi": TACOS | {"fps": 0}}, "'fps' above 0"),
    "tacos: rate": (tacos, {"a.avi": TACOS | {"fps": 1e-300}}, "'num_frames' / 'fps'"),
    "tacos: id": (tacos, {"../b.avi": TACOS}, "file name"),
    "qvhighlights: truncated": (highlights, lines(HIGHLIGHT) + '{"qid": 2, "qu', "line 2, .*cut short"),
    "qvhighlights: encoding": (highlights, lines(HIGHLIGHT).encode() + b"\xff", "line 2: expected UTF-8"),
    "qvhighlights: key": (highlights, lines({"qid": 1}), "line 1: expected the key 'query' and 'vid'"),
    "qvhighlights: id": (highlights, lines(HIGHLIGHT | {"vid": "a\nb"}), "line 1: .*file name"),
    "qvhighlights: empty": (highlights, lines(HIGHLIGHT | {"query": " "}), "line 1: expected a sentence"),
    "qvhighlights: NaN": (
        highlights,
        lines(HIGHLIGHT | {"relevant_windows": [[0, float("nan")]]}),
        "line 1: expected a moment's end .* found nan",
    ),
    "qvhighlights: rating": (
        highlights,
        lines(HIGHLIGHT | {"saliency_scores": [[1, 2, 3], [1, 2, 10**30]]}),
        "line 1: .*ratings from 0 to 4",
    ),
    "qvhighlights: raters": (
        highlights,
        lines(HIGHLIGHT, HIGHLIGHT | {"qid": 2, "saliency_scores": [[1, 2, 3], [4]]}),
        "line 2: expected 3 ratings of each clip, as earlier in the file, found 1",
    ),
    "narrations: truncated": (narrations, lines(NARRATION) + '{"vid', "line 2: not valid JSON"),
    "narrations: encoding": (narrations, b"\xff\xfe", "cannot be read as UTF-8"),
    "narrations: NaN": (narrations, NAN, "line 1: expected 0 <= start <= end .* end=nan"),
    "narrations: huge": (narrations, lines(NARRATION | {"end": 10**400}), "line 1: expected 0 <= start"),
    "narrations: deep": (narrations, "[" * 100_000, "line 1: not valid JSON"),
    "narrations: surrogate": (narrations, lines(NARRATION | {"text": "\ud83d"}), "line 1: .*surrogate"),
    "queries: column": (queries, "video,sentence\na.mp4,x\n", "lacks the column query; .*video, sentence"),
    "queries: encoding": (queries, b"video,query\na.mp4,caf\xe9\n", "CSV file in UTF-8"),
    "queries: comma": (queries, "video,query\na.mp4,first, a dog runs\n", "line 2: .* 3. Quote a sentence"),
    "queries: too few": (queries, "video,query\na.mp4\n", "line 2: expected 2 fields, found 1"),
    "queries: truncated": (queries, 'video,query\na.mp4,"x', "CSV file"),
    "queries: empty": (queries, "video,query\na.mp4, \n", "line 2: .*empty field"),
    "queries: nothing": (queries, "", "lacks the columns video, query; .*nothing"),
    "queries: qid": (queries, "qid,video,query\n7,a.mp4,x\n", "ids of .* in the column query_id, found qid"),
    "queries: columns": (queries, "video,query,query\na.mp4,x,y\n", "Expected each column .* once"),
    "queries: no id": (queries, "video,query,query_id\na.mp4,x,\n", "line 2: expected a query_id"),
    "queries: no line": (queries, "video,query\n", "holds no sentence"),
    "queries: twice": (
        queries,
        "video,query,query_id\na.mp4,x,7\nb.mp4,y,7\n",
        "line 3: the query_id '7' was already used on line 2",
    ),
}


def put(path: Path, content: str | bytes | dict[str, Any]) -> Path:
    if isinstance(content, dict):
        content = json.dumps(content)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(("read", "content", "message"), BAD.values(), ids=BAD)
def test_a_fault_is_reported_with_its_location(
    tmp_path: Path, read: Callable[[Path], Any], content: Any, message: str
) -> None:
    with pytest.raises(VmrError, match=f"(?s)(?=.*file.jsonl).*{message}"):
        read(put(tmp_path / "file.jsonl", content))


def test_reversed_moments_are_swapped_in_every_format(tmp_path: Path) -> None:
    for number, (read, content) in enumerate(
        [
            (charades, "V1 4 1##a dog\n"),
            (by_video, {"a": VIDEO | {"timestamps": [[4, 1]]}}),
            (tacos, {"a.avi": TACOS | {"timestamps": [[120, 30]]}}),
            (highlights, lines(HIGHLIGHT | {"relevant_windows": [[4, 1]]})),
        ]
    ):
        (row,) = read(put(tmp_path / str(number), content))
        assert row.fixes == ("swapped",)
        assert row.query.moments == ((1, 4),)


# --- predictions

PREDICTION = {"qid": 1, "vid": "v", "pred_relevant_windows": [[0, 4, 1.0]], "pred_saliency_scores": [1]}
SCORED = Split("test", (Query("1", "v", "x", ((0.0, 1.0),), 1.5, ((0, (1, 2, 3)),)),))


@pytest.mark.parametrize("scores", [[], "", {}])
def test_missing_saliency_is_refused_for_a_video_of_one_clip(scores: object) -> None:
    with pytest.raises(VmrError, match=r"line 1 .query 1.: expected a list of numbers"):
        scoring.score_rows(
            [PREDICTION | {"pred_saliency_scores": scores}], SCORED, MetricSettings(highlights=True)
        )


@pytest.mark.parametrize("seconds", [1e9, 1e12, 1e308, float("inf")])
def test_times_beyond_any_video_take_no_memory(seconds: float, tmp_path: Path) -> None:
    """In predictions, in moments and in the length of a video with clips of 2 s."""
    path = tmp_path / "file.jsonl"
    moment = HIGHLIGHT | {"duration": seconds, "relevant_windows": [[0, seconds]]}
    far = PREDICTION | {"pred_relevant_windows": [[0, seconds, 1.0]], "pred_saliency_scores": [1] * 5}
    tracemalloc.start()
    if seconds <= 1e9:
        (row,) = highlights(put(path, lines(moment)))
        truth = Split("test", (row.query,))
        assert scoring.score_rows([far], truth, MetricSettings())["mIoU"] == 100
        with pytest.raises(VmrError, match=r"expected 500000000 numbers .* found 5"):
            scoring.score_rows([far], truth, MetricSettings(highlights=True))
    else:
        with pytest.raises(VmrError, match=r"line 1: expected 'duration' as a number from 0 to 1e\+09"):
            highlights(put(path, lines(moment)))
        with pytest.raises(VmrError, match=r"line 1 \(query 1\): expected (seconds within|finite windows)"):
            scoring.score_rows([far], SCORED, MetricSettings())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10e6


def test_a_split_without_queries_is_refused(tmp_path: Path) -> None:
    with pytest.raises(VmrError, match=r"Split 'c2_w10' has no queries \(val.jsonl\)"):
        scoring.score_rows([], Split("c2_w10", (), source="val.jsonl"), MetricSettings())
    whole = toy.protocol()
    for empty in (TRAIN, "selection", "ood"):
        splits = {name: Split(name, ()) if name == empty else split for name, split in whole.splits.items()}
        train, selection, *tests = splits.values()
        bare = Protocol("toy", train, selection, {split.name: split for split in tests}, "published")
        data = VMRDataModule("toy", bare, toy.features("toy", toy.DIM, toy.DIM, 1.0))
        with pytest.raises(VmrError, match=f"Split '{empty}' of toy has no queries .* Fetch"):
            data.prepare_data()


def test_a_need_that_the_data_cannot_serve_stops_before_training(train_toy, capsys) -> None:
    code, directory = train_toy(method="tea")
    assert code == 2
    shown = capsys.readouterr().err
    assert "TEA reads narrations, but these features have none" in shown
    assert "Use features with narrations" in shown
    assert not (directory / "predictions.jsonl").exists()


@pytest.mark.parametrize(
    ("typed", "right"), [("method.text=clip", "method/text=clip"), ("data.features=i3d", "features=i3d")]
)
def test_a_group_given_like_a_value_is_refused_with_the_right_form(typed, right, train_toy, capsys) -> None:
    assert train_toy(typed, method="vdi")[0] == 2
    assert f"To choose a file of the group, write {right}." in " ".join(capsys.readouterr().err.split())


def test_a_value_where_an_object_is_built_is_refused(train_toy, capsys) -> None:
    assert train_toy("method.network=3", method="moment_detr")[0] == 2
    assert "Expected method.network to be a mapping with a _target_; found 3." in capsys.readouterr().err


def test_a_list_of_test_files_needs_names(vmr, capsys) -> None:
    files = ("train=a.jsonl", "test=[b.jsonl]")
    assert vmr("train", "data=jsonl", *files, "features=synthetic", "method=predict_all") == 2
    assert "Expected test=FILE or test={NAME:FILE,…}, found ['b.jsonl']" in capsys.readouterr().err


@pytest.mark.parametrize("seed", ["abc", "1.5", "-1", "[1]"])
def test_an_invalid_seed_is_refused(seed: str, train_toy, capsys) -> None:
    code, _ = train_toy(f"seed={seed}")
    shown = capsys.readouterr().err
    assert code == 2
    assert shown.count("vmr: ") == 1
    assert "seed" in shown
    assert seed.strip("[]") in shown


# --- features

GOOD = np.ones((4, 3), np.float32)
COMPLEX = GOOD.astype(np.complex64)


class Trap:
    """Creates a file when unpickled: harmless, but detectable."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def store(folder: Path, suffix: str, array: Any) -> FileFeatures:
    """Writes one array as v in a format, and returns its reader."""
    if suffix == ".npy":
        np.save(folder / "v.npy", array)
    elif suffix == ".npz":
        np.savez(folder / "v.npz", features=array)
    elif suffix == ".pt":
        torch.save({"features": torch.from_numpy(array)}, folder / "v.pt")
    else:
        with h5py.File(folder / "v.h5", "w") as file:
            file["v/features"] = array
    if suffix == ".h5":
        return FileFeatures("x", 3, Hdf5Store(folder / "v.h5", key="features"), normalise=False)
    key = None if suffix == ".npy" else "features"
    return FileFeatures("x", 3, FileStore(folder, suffix, key=key), normalise=False)


ARRAYS: dict[str, tuple[Any, str | None]] = {
    "one clip": (np.ones((1, 3)), None),
    "10,000 clips": (np.ones((10_000, 3), np.float16), None),
    "float64": (np.ones((4, 3), np.float64), None),
    "wrong dimension": (np.ones((4, 5)), r"has shape \(4, 5\); expected \(T, 3\)"),
    "one axis": (np.ones(3), r"expected \(T, 3\)"),
    "no axis": (np.float32(3), r"expected \(T, 3\)|real numbers"),
    "zero clips": (np.ones((0, 3)), r"has shape \(0, 3\)"),
    "NaN": (np.where(np.eye(4, 3), np.nan, GOOD), "holds 3 NaN or infinite"),
    "infinite": (np.where(np.eye(4, 3), np.inf, GOOD), "holds 3 NaN or infinite"),
    "beyond float32": (np.full((4, 3), 1e300), "holds 12 NaN or infinite"),
    "complex": (COMPLEX, "expected real numbers"),
    "bool": (GOOD > 0, "expected real numbers"),
}


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
@pytest.mark.parametrize("suffix", [".npy", ".npz", ".pt", ".h5"])
@pytest.mark.parametrize("name", ARRAYS)
def test_an_array_is_read_or_refused_with_its_path(name: str, suffix: str, tmp_path: Path) -> None:
    array, message = ARRAYS[name]
    source = store(tmp_path, suffix, np.asarray(array))
    if message is None:
        read = source.read("v")
        assert read.dtype == np.float32
        np.testing.assert_array_equal(read, array)
    else:
        with pytest.raises(FeatureError, match=message) as raised:
            source.read("v")
        assert str(tmp_path / "v.") in str(raised.value)


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".pt", ".h5"])
def test_a_truncated_file_is_refused_at_any_length(suffix: str, tmp_path: Path) -> None:
    store(tmp_path, suffix, GOOD)
    path = tmp_path / f"v{suffix}"
    whole = path.read_bytes()
    for length in range(0, len(whole), max(1, len(whole) // 40)):
        path.write_bytes(whole[:length])
        key = None if suffix == ".npy" else "features"
        opened = Hdf5Store(path, key=key) if suffix == ".h5" else FileStore(tmp_path, suffix, key=key)
        try:
            read = FileFeatures("x", 3, opened, normalise=False).read("v")
        except VmrError as error:
            if str(path) not in str(error):
                pytest.fail(f"does not name the file: {error}")
        else:  # the truncation removed padding only
            np.testing.assert_array_equal(read, GOOD)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_no_format_ever_unpickles(tmp_path: Path) -> None:
    sprung = tmp_path / "sprung"
    trap = np.array([Trap(sprung)], object)
    np.save(tmp_path / "a.npy", trap, allow_pickle=True)
    np.savez(tmp_path / "a.npz", features=trap)
    torch.save({"features": Trap(sprung)}, tmp_path / "a.pt")
    for bare in ("b.pt", "b.npy"):
        (tmp_path / bare).write_bytes(pickle.dumps(Trap(sprung)))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["a/features"] = np.frombuffer(pickle.dumps(Trap(sprung)), np.uint8)
        file["b/features"] = "text"
        file["c/features"] = h5py.Empty("f4")
    for opened, name in [
        (FileStore(tmp_path, ".npy"), "a"),
        (FileStore(tmp_path, ".npy"), "b"),
        (FileStore(tmp_path, ".npz", key="features"), "a"),
        (FileStore(tmp_path, ".pt", key="features"), "a"),
        (FileStore(tmp_path, ".pt", key="features"), "b"),
        *((Hdf5Store(tmp_path / "a.h5", key="features"), name) for name in "abc"),
    ]:
        with pytest.raises(FeatureError, match=f"{tmp_path}.*{name}"):
            FileFeatures("x", 3, opened, normalise=True).read(name)
    assert not sprung.exists()


@pytest.mark.parametrize("numbers", ["1 2 three", "1 2 nan", "1 2 inf"])
def test_an_invalid_word_vector_is_refused(numbers: str, tmp_path: Path) -> None:
    (tmp_path / "glove.txt").write_text(f"a 1 2 3\ndog {numbers}\n")
    table = WordVectorQueries(tmp_path / "glove.txt", 3, normalise=True)
    with pytest.raises(FeatureError, match=r"glove.txt .*for a word of 'dog'"):
        table.load(Query("q", "v", "dog", ((0, 1),), 1.0))


# --- checkpoints

NOT_A_CHECKPOINT = {
    "empty": b"",
    "text": b"not a checkpoint",
    "zip": b"PK\x03\x04" + b"\0" * 40,
    "json": b'{"model": 1}',
    "old pickle": pickle.dumps({"model": 3}, 0),
}


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("name", NOT_A_CHECKPOINT)
def test_a_file_that_is_not_a_checkpoint_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(VmrError, match=r"model\.ckpt"):
        read_checkpoint(put(tmp_path / "model.ckpt", NOT_A_CHECKPOINT[name]))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_checkpoint_whose_pickle_would_run_code_is_refused_and_runs_none(tmp_path: Path) -> None:
    sprung = tmp_path / "sprung"
    torch.save({"model": {"w": torch.ones(2)}, "opt": Trap(sprung)}, tmp_path / "zip.ckpt")
    torch.save({"model": Trap(sprung)}, tmp_path / "old.ckpt", _use_new_zipfile_serialization=False)
    (tmp_path / "bare.ckpt").write_bytes(pickle.dumps(Trap(sprung)))
    for name in ("zip", "old", "bare"):
        with pytest.raises(VmrError, match=f"(?s){name}.ckpt.*(not loaded|cannot|no checkpoint)"):
            read_checkpoint(tmp_path / f"{name}.ckpt")
    assert not sprung.exists()


def test_weights_of_another_run_are_refused(train_toy, vmr, tmp_path, capsys) -> None:
    code, run = train_toy("trainer.max_epochs=1")
    assert code == 0

    def refused(change: Callable[[Path], Any], *expected: str) -> None:
        copy = tmp_path / "copy"
        shutil.copytree(run, copy)
        change(copy)
        capsys.readouterr()
        assert vmr("eval", f"run={copy}", "split=iid") == 2
        shown = capsys.readouterr().err
        assert shown.count("vmr: ") == 1
        assert all(part in shown for part in expected), shown
        shutil.rmtree(copy)

    weights = "model.safetensors"
    refused(lambda folder: (folder / weights).write_bytes(b"\x10" * 40), weights, "not a safetensors file")
    refused(lambda folder: (folder / weights).write_bytes(pickle.dumps(Trap(tmp_path / "sprung"))), weights)
    refused(lambda folder: save_file({"other": torch.ones(3)}, folder / weights), weights, "does not fit")
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["video"]["order"] = ["b", "toy"]
    refused(
        lambda folder: (folder / "manifest.json").write_text(json.dumps(manifest)),
        "video.order",
        "Choose the features it was trained on",
    )
    refused(lambda folder: (folder / "config.yaml").write_text("a: [1"), "config.yaml")
    refused(lambda folder: (folder / "metrics.json").write_bytes(b"\xff"), "metrics.json")
    assert not (tmp_path / "sprung").exists()


# --- odd but valid input


class Words(WordVectorQueries):
    """Has a vector for every word of any alphabet."""

    def __init__(self) -> None:
        self.dim = 10

    def load(self, query: Query) -> Any:
        rng = np.random.default_rng(len(query.text))
        return rng.standard_normal((len(query.text.split()), self.dim)).astype(np.float32)


def test_odd_sentences_and_lengths_pass_from_the_file_to_a_prediction(tmp_path: Path) -> None:
    """Emoji, right-to-left text, 10,000 words, one clip and 10,000 clips."""
    clips = {"one": 1, "many": 10_000, "\u05d5\u05d9\u05d3\u05d0\u05d5 \U0001f600": 20}
    texts = {"one": "a dog", "many": LONG, "\u05d5\u05d9\u05d3\u05d0\u05d5 \U0001f600": ODD}
    value = {
        name: {"duration": count * 1.0, "timestamps": [[0, count / 2]], "sentences": [texts[name]]}
        for name, count in clips.items()
    }
    rows = by_video(put(tmp_path / "train.json", value))
    split = split_of("test", rows, "train.json")
    assert [query.text for query in split.queries] == list(texts.values())
    assert split.counts == {}
    rng = np.random.default_rng(0)
    for name, count in clips.items():
        np.save(tmp_path / f"{name}.npy", rng.standard_normal((count, 12)).astype(np.float16))
    video = VideoFiles(
        [FileFeatures("x", 12, FileStore(tmp_path, ".npy"), normalise=True)],
        max_clips=75,
        overlong="mean_pool",
    )
    served = FeatureSet("odd", "real", 12, 10, None, video, Words())
    data = SplitDataset(split, served, frozenset())
    batch = data[RowBatch(None, np.arange(3))]
    assert batch["video_mask"].sum(1).tolist() == [1, 75, 20]
    assert batch["query_mask"].sum(1).tolist() == [2, 10_000, 4]
    method = build("emb").eval()
    with torch.inference_mode():
        prediction = method.predict(batch)
    assert prediction["spans"].isfinite().all()
    assert ((prediction["spans"] >= 0) & (prediction["spans"] <= 1)).all()
    seconds = method.metrics.windows(prediction, batch)
    answers = [
        {"query_id": query.query_id, "pred_relevant_windows": [[*map(float, window[0]), 1.0]]}
        for query, window in zip(split.queries, seconds, strict=True)
    ]
    path = tmp_path / "predictions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in answers), encoding="utf-8")
    scored = scoring.score_queries(submission.read_prediction_rows(path), split, MetricSettings())
    assert set(scored.metrics) >= {"R1@0.5", "mIoU"}


@pytest.mark.parametrize("read", [charades, tacos, highlights, narrations, queries])
def test_every_text_format_keeps_odd_sentences_intact(read: Callable[[Path], Any], tmp_path: Path) -> None:
    for text in (ODD, LONG):
        content: Any = {
            "charades": f"V1 0 4##{text}\n",
            "tacos": {"a.avi": TACOS | {"sentences": [text]}},
            "highlights": lines(HIGHLIGHT | {"query": text}),
            "narrations": lines(NARRATION | {"text": text}),
            "queries": f"video,query\na.mp4,{text}\n",
        }[read.__name__]
        found = read(put(tmp_path / "file.jsonl", content))
        if read is narrations:
            assert found[0]["v"][0].text == text
        elif read is queries:
            assert [row["query"] for row in found] == [text]
        else:
            assert found[0].query.text == text
