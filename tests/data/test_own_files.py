"""Annotation files of one's own: form, ids and units."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vmr_zoo.data import readers
from vmr_zoo.data.annotations import PUBLISHED, Query
from vmr_zoo.data.annotations.protocols import jsonl
from vmr_zoo.data.annotations.records import HELD_OUT, Protocol, Split
from vmr_zoo.errors import VmrError

DURATION = 30


def rows(part: str, first: int, count: int = 12, **extra: Any) -> list[dict[str, Any]]:
    """Sentences about videos of 30 s, two per video, moments all over them."""
    return [
        {
            "qid": first + i,
            "query": f"somebody waves, {part}{i}",
            "vid": f"{part}{i // 2}",
            "duration": DURATION,
            "relevant_windows": [[2 * (i % 10), 2 * (i % 10) + 11]],
            **extra,
        }
        for i in range(count)
    ]


def write(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def own(
    folder: Path, change: Any = lambda row: row, firsts: tuple[int, ...] = (0, 100, 200)
) -> dict[str, Path]:
    """Writes train.jsonl, val.jsonl and test.jsonl with every row changed."""
    names = zip(("train", "val", "test"), firsts, strict=True)
    return {
        part: write(folder / f"{part}.jsonl", [change(row) for row in rows(part, first, 60)])
        for part, first in names
    }


def read(files: dict[str, Path], **options: Any) -> Protocol:
    return jsonl("mine", files["train"], files["test"], files["val"], **options)


def test_files_of_ones_own_are_a_protocol_that_names_their_content(tmp_path: Path) -> None:
    files = own(tmp_path)
    protocol = read(files)
    assert protocol.name.startswith("mine-")
    assert (protocol.selection_origin, protocol.doubts) == (PUBLISHED, ())
    assert {name: split.sentences for name, split in protocol.splits.items()} == {
        "train": 60, "selection": 60, "test": 60,
    }  # fmt: skip
    several = jsonl("mine", files["train"], {"easy": files["val"], "hard": files["test"]})
    assert (list(several.tests), several.selection_origin) == (["easy", "hard"], HELD_OUT)
    write(files["test"], rows("t", 200, 59))
    assert read(files).name != protocol.name, "other annotations never share a table"


def test_test_videos_that_are_trained_on_are_a_doubt_of_every_run(tmp_path: Path) -> None:
    files = own(tmp_path)
    write(
        files["test"], [row | {"qid": row["qid"] + 300} for row in rows("train", 0, 4) + rows("test", 50, 6)]
    )
    (doubt,) = read(files).doubts
    assert doubt.startswith("Test split 'test': 2 of its 5 videos are training data, too.")
    held = jsonl("mine", files["train"], files["train"], selection="test")
    assert "30 of its 30 videos" in held.doubts[0]
    files["test"].unlink()
    with pytest.raises(VmrError, match=r"No annotation file .*test.jsonl. Name an existing one"):
        read(files)


def test_sentences_without_qid_are_numbered_within_their_video(tmp_path: Path) -> None:
    files = own(tmp_path, lambda row: {k: v for k, v in row.items() if k != "qid"})
    assert [query.query_id for query in read(files).train.queries[:3]] == ["train0_0", "train0_1", "train1_0"]
    files["test"].write_bytes(files["train"].read_bytes())
    assert [query.query_id for query in read(files).tests["test"].queries[:2]] == ["train0_2", "train0_3"]


def test_an_id_that_means_two_sentences_is_refused_in_every_protocol(tmp_path: Path) -> None:
    files = own(tmp_path, firsts=(0, 0, 0))
    with pytest.raises(
        VmrError, match=r"60 query ids \(qid\) of split 'selection' already mean .* 'train': 0, 1"
    ):
        read(files)
    protocol = read(files, ids="by_split")
    assert [split.queries[0].query_id for split in protocol.splits.values()] == [
        "train_0", "selection_0", "test_0",
    ]  # fmt: skip
    one, other = Query("1", "v", "a", ((0, 1),), 9), Query("1", "v", "b", ((0, 1),), 9)
    with pytest.raises(VmrError, match="already mean other sentences"):
        Protocol("hand-made", Split("train", (one,)), Split("selection", (other,)), {}, PUBLISHED)
    Protocol(
        "nested", Split("train", ()), Split("selection", (one,)), {"test": Split("test", (one,))}, "test"
    )


@pytest.mark.parametrize(
    ("unit", "factor", "message"),
    [
        ("frames", 30, "start after the end of their video"),
        ("milliseconds", 1000, "start after the end of their video"),
        ("per cent", 100 / DURATION, "start after the end of their video"),
        ("fractions", 1 / DURATION, "look like fractions of the duration"),
    ],
)
def test_moments_in_another_unit_are_refused(tmp_path: Path, unit: str, factor: float, message: str) -> None:
    def change(row: dict[str, Any]) -> dict[str, Any]:
        return row | {
            "relevant_windows": [[factor * x for x in window] for window in row["relevant_windows"]]
        }

    with pytest.raises(VmrError, match=f"Split 'train'.*{message}"):
        read(own(tmp_path, change))


def test_moments_in_clips_are_doubted_and_a_few_slips_are_not(tmp_path: Path) -> None:
    def halve(row: dict[str, Any]) -> dict[str, Any]:
        return row | {"relevant_windows": [[x / 2 for x in row["relevant_windows"][0]]]}

    (doubt, *others) = read(own(tmp_path, halve)).doubts
    assert "none of 60 moments ends in the last 52% of its video" in doubt
    assert len(others) == 2

    def slip(row: dict[str, Any]) -> dict[str, Any]:
        return row | ({"relevant_windows": [[40, 50]]} if row["qid"] % 10 == 0 else {})

    assert read(own(tmp_path, slip)).doubts == ()


def test_a_video_with_two_durations_is_doubted(tmp_path: Path) -> None:
    def lengthen(row: dict[str, Any]) -> dict[str, Any]:
        return row | {"duration": row["duration"] + 100 * (row["qid"] % 2), "vid": "v"}

    assert any(
        "Videos with several durations: 1, such as 'v'" in one for one in read(own(tmp_path, lengthen)).doubts
    )


RATED = {"relevant_clip_ids": [0, 1], "saliency_scores": [[1, 2, 3], [4, 4, 4]]}


def test_ratings_are_optional_for_a_whole_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "val.jsonl"
    unrated = readers.qvhighlights(write(path, rows("v", 0)), True)
    assert all(isinstance(row.query, Query) and not row.query.saliency for row in unrated)
    rated = readers.qvhighlights(write(path, rows("v", 0, **RATED)), True)
    assert all(isinstance(row.query, Query) and len(row.query.saliency) == 2 for row in rated)
    for first, second, message in (
        (RATED, {}, "line 2: expected 3 ratings of each clip, as earlier in the file, found 0"),
        ({}, RATED, "line 2: expected 0 ratings of each clip, as earlier in the file, found 3"),
        ({"saliency_scores": []}, {}, "line 1: expected the key 'relevant_clip_ids'"),
    ):
        lines = [row | extra for row, extra in zip(rows("v", 0, 2), (first, second), strict=True)]
        with pytest.raises(VmrError, match=message):
            readers.qvhighlights(write(path, lines), True)


def test_own_files_are_trained_on_and_a_doubt_reaches_the_leaderboard(
    vmr: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def halve(row: dict[str, Any]) -> dict[str, Any]:
        return row | {"relevant_windows": [[x / 2 for x in row["relevant_windows"][0]]]}

    files = own(tmp_path, halve)
    named = [f"train={files['train']}", f"selection={files['val']}", f"test={files['test']}"]
    options = ["features=synthetic", "method=predict_all", "logger=csv", "trainer.accelerator=cpu"]
    assert vmr("train", "data=jsonl", *named, *options) == 0
    (run,) = (tmp_path / "runs").glob(f"jsonl_{tmp_path.name}-synthetic/predict_all-paper/seed0")
    header = json.loads((run / "metrics.json").read_text())["header"]
    assert header["protocol"].startswith(f"jsonl_{tmp_path.name}-")
    assert "Are the times in seconds" in header["warnings"][0]
    shown = capsys.readouterr()
    assert "WARNING: Split 'selection': none of 60 moments" in " ".join(shown.out.split())
    assert "Next: vmr report" in shown.err
    assert "vmr predict" not in shown.err, "nothing encodes a video as these features"
    out = tmp_path / "board.md"
    assert vmr("report", f"runs={tmp_path}/runs", "format=markdown", f"out={out}") == 0
    assert "WARNING: Split 'selection': none of 60 moments" in out.read_text()
    predictions = run / "predictions.jsonl"
    assert vmr("score", f"predictions={predictions}", "data=jsonl", *named, "split=test") == 0
    new = write(tmp_path / "new.jsonl", rows("n", 300))
    assert vmr("eval", f"run={run}", "data=jsonl", f"test={new}") == 0
    assert (run / f"eval/test-on-jsonl_{tmp_path.name}-{digest_of(new)}-001/metrics.json").is_file()
    assert vmr("eval", f"run={run}", "data=jsonl", f"test={{known:{files['train']},new:{new}}}") == 2
    assert "holds 30 of the 30 videos of its known split" in " ".join(capsys.readouterr().err.split())
    assert vmr("train", "data=jsonl", f"test={new}", f"run={tmp_path}/other", *options) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "has no training data; it only tests. Add train=FILE" in said
    for verb, *also in (("train", *options), ("eval", f"run={run}")):
        assert vmr(verb, "data=jsonl", *also) == 2
        assert f"vmr {verb} needs a value for 'test': add test=…" in capsys.readouterr().err


def digest_of(path: Path) -> str:
    """The digest in the name of a protocol that one test file makes."""
    return jsonl("any", None, path).name.removeprefix("any-")


def test_the_next_command_names_the_same_files(
    vmr: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = own(tmp_path, lambda row: row | {"relevant_windows": [[20, 2 * DURATION]]})
    named = [f"train={files['train']}", f"selection={files['val']}", f"test={files['test']}"]
    where = f"hydra.searchpath=[file://{tmp_path}]"
    assert vmr("doctor", where, "data=jsonl", *named, "features=synthetic") == 0
    shown = capsys.readouterr()
    assert (
        f"Next: vmr train '{where}' data=jsonl {' '.join(named)} features=synthetic method=NAME" in shown.out
    )
    assert "moments fixed" not in shown.err, "the report has a table of them"


@pytest.mark.parametrize("name", ["train", "selection", "val", "all", "header", "a/b", "../out", "", "."])
def test_a_test_split_has_a_plain_name_of_its_own(name):
    one, other, third = (Split(part, ()) for part in ("train", "selection", "test"))
    with pytest.raises(VmrError, match="for each test split"):
        Protocol("own", one, other, {name: third}, PUBLISHED)
