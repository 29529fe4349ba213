"""`vmr embed` fills the cache that training reads, writes files that training reads, and trusts no id."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra.utils import instantiate

from vmr_zoo.cli.main import main
from vmr_zoo.config.compose import compose
from vmr_zoo.data.annotations.records import Query
from vmr_zoo.data.narrations import MANIFEST_KEYS, Narration, write_narrations
from vmr_zoo.data.text.encoder import TextEncoder
from vmr_zoo.data.text.sentence import SentenceEncoder
from vmr_zoo.engine.embedding import read_queries
from vmr_zoo.errors import VmrError
from vmr_zoo.utils.arrays import l2_normalise

TEXTS = ["A person opens the door.", "person sits down", "a dog runs"]


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A charades_cd of three sentences, narrations of its videos, and a cache of our own."""
    for part, video, text in zip(("train", "val", "test_iid"), "abc", TEXTS, strict=True):
        entry = {"video_duration": 10, "timestamps": [[0, 5]], "sentences": [text]}
        path = tmp_path / f"annotations/charades_cd/charades_{part}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({video: entry}))
    (path.parent / "charades_test_ood.json").write_text(path.read_text().replace('"c"', '"d"'))
    said = [Narration(video, 0.0, 2.0, f"video {video} shows a room") for video in "abcd"]
    write_narrations(tmp_path / "n.jsonl", said, dict.fromkeys(MANIFEST_KEYS))
    for name in ("annotations", "cache", "features"):
        monkeypatch.setenv(f"VMR_{name.upper()}", str(tmp_path / name))
    return tmp_path


def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("embedded although cached")

    monkeypatch.setattr(TextEncoder, "_embed", refuse)


def test_what_was_embedded_is_what_training_reads(
    offline: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    features = ["data=charades_cd", "features=i3d", "features/query=minilm", "features/narration=jsonl"]
    features.append(f"features.narration.file={offline / 'n.jsonl'}")
    assert main(["embed", *features]) == 0
    said = capsys.readouterr().out
    assert "sentences by all-MiniLM-L6-v2: 3 computed in" in said
    assert "narrations by all-MiniLM-L6-v2: 4 computed in" in said

    no_model(monkeypatch)
    cfg = compose("train", features)
    protocol = instantiate(cfg.data.protocol)
    query, narration = instantiate(cfg.features.query), instantiate(cfg.features.narration)
    for source in (query, narration):
        source.prepare(protocol)
    assert query.load(protocol.train.queries[0]).shape == (6, 384)
    assert narration.load("a")[0].shape == (1, 384)
    # Again, and by naming the encoder instead of the features: nothing left to compute.
    assert main(["embed", *features, "text_encoder=minilm"]) == 0
    assert "sentences by all-MiniLM-L6-v2: 0 computed; 3 of 3 were in the cache" in capsys.readouterr().out


def test_words_for_narrations_are_embedded_beside_sentences_in_files(
    offline: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    features = ["features=i3d", "features/query=clip_text", "features/narration=jsonl"]
    features.append(f"features.narration.file={offline / 'n.jsonl'}")
    assert main(["embed", "data=charades_cd", *features]) == 2
    assert "nothing to compute" in capsys.readouterr().err
    assert main(["embed", "data=charades_cd", *features, "features/narration_query=as_narration"]) == 0
    said = capsys.readouterr().out
    assert "sentences: features=i3d reads them from files; skipped." in said
    assert "words for narrations by all-MiniLM-L6-v2: 3 computed" in said


def test_files_are_read_back_as_they_were_written(
    offline: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"qid": 7, "query": TEXTS[0], "vid": "x"}, {"qid": 8, "query": TEXTS[1], "vid": "x"}]
    (offline / "q.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    out = offline / "features" / "clip_text_features"
    command = ["embed", f"queries={offline / 'q.jsonl'}", "text_encoder=minilm", f"out={out}"]
    assert main(command) == 0
    assert main(command) == 0
    assert sorted(path.name for path in out.iterdir()) == ["manifest.json", "qid7.npz", "qid8.npz"]
    with np.load(out / "qid7.npz", allow_pickle=False) as stored:
        assert stored["pooler_output"].shape == (384,)
    cfg = compose("train", ["data=charades_cd", "features=i3d", "features/query=clip_text"])
    cfg.features.query.source.dim = 384
    loaded = instantiate(cfg.features.query).load(Query("7", "x", TEXTS[0], ((0.0, 1.0),), 2.0))
    expected = l2_normalise(SentenceEncoder(offline / "cache").tokens(TEXTS[:1])[0])
    np.testing.assert_allclose(loaded, expected, atol=1e-3)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", full)
        assert main(command) == 3
    assert "qid7.npz: No space left on device." in " ".join(capsys.readouterr().err.split())
    glove = offline / "glove.txt"
    glove.write_text("person 1 2\nsits 3 4\n")
    other = ["text_encoder=glove", f"text_encoder.file={glove}", "text_encoder.dim=2"]
    assert main([*command, *other]) == 2
    assert "another encoder" in capsys.readouterr().err
    # Three sentences, one without a known word: it is listed, the others are written.
    (offline / "q.txt").write_text("\n".join(TEXTS))
    assert main(["embed", f"queries={offline / 'q.txt'}", f"out={offline / 'g'}", *other]) == 1
    assert "2 'a dog runs'" in capsys.readouterr().out
    assert {path.name for path in (offline / "g").glob("*.npz")} == {"qid0.npz", "qid1.npz"}


def test_narrations_by_themselves(offline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["embed", f"narrations={offline / 'n.jsonl'}", "text_encoder=minilm"]
    assert main(command) == 0
    no_model(monkeypatch)
    assert main(command) == 0


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("q.jsonl", '{"qid": "../x", "query": "a"}', "part of a file name"),
        ("q.csv", "qid,query\n1,a dog\n1,a cat\n", "line 3: the id '1' was used before"),
        ("q.csv", "qid,words\n1,a dog\n", "expected a sentence under"),
        ("q.csv", "qid,query\n1,a dog runs, then barks\n", "line 2: expected 2 fields, found more. Quote"),
        ("q.csv", "qid,query\n1\n", "line 2: expected 2 fields, found fewer"),
        ("q.csv", 'qid,query\n1,"a dog\n2,a cat\n', "not valid CSV"),
        ("q.jsonl", "{", "line 1: not valid JSON"),
        ("q.jsonl", '{"qid": "1", "query": "a"}\n\n' + "[" * 100_000, "line 3: not valid JSON"),
        ("q.txt", "\n", "holds no sentence"),
        ("q.tsv", "a", "Unknown type of query file"),
    ],
)
def test_a_file_that_cannot_be_used(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(VmrError, match=message):
        read_queries(tmp_path / name)


def test_ids_and_sentences_of_a_csv(tmp_path: Path) -> None:
    (tmp_path / "q.csv").write_text('query_id,sentence\nv_1,"a dog, running"\nv_2, a cat \n')
    assert read_queries(tmp_path / "q.csv") == [("v_1", "a dog, running"), ("v_2", "a cat")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "data=NAME"),
        (["data=charades_cd", "features=i3d"], "there is nothing to compute"),
        (["queries=README.md"], "need text_encoder=NAME"),
        (["data=charades_cd", "out=x"], "out=FOLDER"),
    ],
)
def test_what_embed_needs(
    offline: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["embed", *arguments]) == 2
    assert message in capsys.readouterr().err.replace("\n", " ")
