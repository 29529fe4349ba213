"""Narrations come back as they were written, and a bad line is named."""

import codecs
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from vmr_zoo.data import narrations
from vmr_zoo.data.features.problems import FeatureError
from vmr_zoo.data.narrations import Narration, NarrationFile, manifest_path, read_narrations, write_narrations
from vmr_zoo.data.text.sentence import SentenceEncoder
from vmr_zoo.engine.index import IndexedVideo
from vmr_zoo.engine.retriever import Retriever
from vmr_zoo.errors import VmrError
from vmr_zoo.video.decode import Timeline

MANIFEST = {
    "model": "m",
    "revision": "r",
    "prompt": ["what?"],
    "sampling_rate": 1.0,
    "seed": 0,
    "date": "2026-01-01",
}
SAID = [
    Narration("v1", 4.0, 4.0, "A person sits\u2028down."),
    Narration("v2", 0.0, 2.5, "Eine Tür geht auf."),
    Narration("v1", 0.0, 2.0, "A person enters."),
]


def test_round_trip_sorted_by_time(tmp_path: Path) -> None:
    write_narrations(tmp_path / "n.jsonl", SAID, MANIFEST)
    by_video, manifest = read_narrations(tmp_path / "n.jsonl")
    assert by_video == {"v1": [SAID[2], SAID[0]], "v2": [SAID[1]]}
    assert manifest == MANIFEST
    assert sorted(path.name for path in tmp_path.iterdir()) == ["n.jsonl", "n.manifest.json"]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('{"video_id": "v", "start": 1,', "not valid JSON"),
        ('["v", 0, 1, "text"]', "expected an object"),
        ('{"video_id": "v", "start": 0, "text": "t"}', "expected an object"),
        ('{"video_id": "v", "start": 3, "end": 2, "text": "t"}', "start=3, end=2"),
        ('{"video_id": "v", "start": NaN, "end": 2, "text": "t"}', "start=nan"),
        ('{"video_id": "v", "start": true, "end": 2, "text": "t"}', "start=True"),
        ('{"video_id": "v", "start": 0, "end": 2, "text": " "}', "not empty"),
        ('{"video_id": 5, "start": 0, "end": 2, "text": "t"}', "strings"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, line: str, expected: str) -> None:
    write_narrations(tmp_path / "n.jsonl", SAID[:1], MANIFEST)
    with (tmp_path / "n.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(VmrError, match=f"line 2: .*{expected}"):
        read_narrations(tmp_path / "n.jsonl")


def test_manifest_is_required(tmp_path: Path) -> None:
    with pytest.raises(VmrError, match="lacks seed"):
        write_narrations(tmp_path / "n.jsonl", SAID, {k: v for k, v in MANIFEST.items() if k != "seed"})
    write_narrations(tmp_path / "n.jsonl", SAID, MANIFEST)
    manifest_path(tmp_path / "n.jsonl").write_text(json.dumps({"model": "m"}))
    with pytest.raises(VmrError, match="revision, prompt"):
        read_narrations(tmp_path / "n.jsonl")
    manifest_path(tmp_path / "n.jsonl").unlink()
    with pytest.raises(VmrError, match=r"n\.manifest\.json"):
        read_narrations(tmp_path / "n.jsonl")


def test_a_byte_order_mark_is_not_part_of_the_first_line(tmp_path: Path) -> None:
    write_narrations(tmp_path / "n.jsonl", SAID, MANIFEST)
    for path in list(tmp_path.iterdir()):
        path.write_bytes(codecs.BOM_UTF8 + path.read_bytes())
    assert read_narrations(tmp_path / "n.jsonl") == ({"v1": [SAID[2], SAID[0]], "v2": [SAID[1]]}, MANIFEST)


def test_a_retriever_parses_a_file_once_for_all_videos_until_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "n.jsonl"
    parsed = []
    monkeypatch.setattr(narrations, "read_narrations", lambda path: parsed.append(path) or read(path))
    read = read_narrations
    encoder = SimpleNamespace(dim=4, token_dim=4, sentences=lambda texts: np.zeros((len(texts), 4)))
    method = SimpleNamespace(needs={"narration"}, to=lambda device: method, eval=lambda: method)
    video = IndexedVideo(np.zeros((2, 4), np.float32), Timeline(2.0, 2, "", ()))
    features = SimpleNamespace(narration=NarrationFile(file, encoder, normalise=True))
    index = SimpleNamespace(encode=lambda path: video)
    retriever = Retriever(method, features, narrator=MANIFEST, index=index)
    write_narrations(file, SAID, MANIFEST)
    assert [len(retriever.encode(name, file).narration) for name in ("v1.mp4", "v2.mp4")] == [2, 1]
    assert parsed == [file]
    write_narrations(file, SAID[:2], MANIFEST)
    assert len(retriever.encode("v1.mp4", file).narration) == 1


def test_embedded_sentences_with_times(tmp_path: Path) -> None:
    write_narrations(tmp_path / "n.jsonl", SAID, MANIFEST)
    encoder = SentenceEncoder(tmp_path / "cache")
    source = NarrationFile(tmp_path / "n.jsonl", encoder, normalise=True)
    vectors, times = source.load("v1")
    np.testing.assert_array_equal(
        vectors, encoder.sentences(["A person enters.", "A person sits\u2028down."])
    )
    np.testing.assert_array_equal(times, [[0, 2], [4, 4]])
    (problem,) = source.missing(["v1", "v3"])
    assert problem.ids == ("v3",)
    with pytest.raises(FeatureError, match="v3"):
        source.load("v3")
    assert source.manifest()["narrator"] == MANIFEST
