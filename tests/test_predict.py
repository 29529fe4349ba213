"""`vmr predict`, `vmr draw` and `Retriever` on runs trained on a small rendered world."""

from __future__ import annotations

import json
import os
import shutil
import warnings

import numpy as np
import pytest
from PIL import Image

import hub
from video.films import changed, declare, film, seconds
from vmr_zoo.cli import main
from vmr_zoo.data.annotations.records import Query
from vmr_zoo.engine import query_file
from vmr_zoo.engine.query_details import QueryDetails, query_details
from vmr_zoo.engine.query_file import Partial
from vmr_zoo.engine.retriever import EncodedVideo, Moment, Retriever
from vmr_zoo.engine.video_search import search_videos
from vmr_zoo.errors import VmrError
from vmr_zoo.report.query_picture import draw_query
from vmr_zoo.types import DETAILS
from vmr_zoo.utils.files import append_row
from vmr_zoo.video.decode import timeline

WORLD = [
    f"data.protocol.world.{setting}"
    for setting in (
        "train_videos=4",
        "selection_videos=2",
        "test_videos=2",
        "shortest=16",
        "longest=20",
        "height=48",
        "fps=4",
    )
]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Holds a run of each kind of method, and the cache with the videos."""
    root = tmp_path_factory.mktemp("predict")
    common = ["data=shapes", *WORLD, f"paths.cache={root}/cache", "trainer.max_epochs=1", "logger=none"]
    common.append("data.protocol.processes=1")  # a process takes longer to start than to render six videos
    sizes = ["method.network.dim=16", "method.network.heads=2", "method.network.feedforward_dim=16"]
    # Words for the narrations of another length than those for the video.
    lmr = [*sizes, "features/narration_query=as_narration", "features.narration_query.max_tokens=3"]
    lmr.append("data.max_lost_words=null")
    runs = {"moment_detr": sizes, "tea": ["method.network.dim=16"], "lmr": lmr}
    for method, options in runs.items():
        assert main.main(["train", *common, f"method={method}", f"run={root}/{method}", *options]) == 0
    return root


@pytest.fixture(autouse=True)
def _own_cache(place, monkeypatch):
    monkeypatch.setenv("VMR_CACHE", f"{place}/cache")


def videos(place):
    return next(place.glob("cache/shapes/*/videos"))


def row_of(run, split="iid"):
    rows = map(json.loads, (run / "predictions.jsonl").read_text().splitlines())
    return next(row for row in rows if row["split"] == split)


def test_answers_are_those_of_the_evaluation(vmr, place, capsys):
    row = row_of(place / "moment_detr")
    code = vmr(
        "predict",
        f"run={place}/moment_detr",
        f"video={videos(place)}/{row['video_id']}.mp4",
        f"query={row['query']}",
        "--json",
    )
    assert code == 0
    answered = json.loads(capsys.readouterr().out)
    (answer,) = answered["answers"]
    assert answered["duration"] == row["duration"]
    assert answer["query"] == row["query"]
    found = [[m["start"], m["end"], m["score"]] for m in answer["moments"]]
    np.testing.assert_allclose(found, row["pred_relevant_windows"][:5], atol=1e-4)
    np.testing.assert_allclose(answer["clip_scores"], row["pred_saliency_scores"], atol=1e-4)


def test_answers_of_a_run_from_the_hub_are_those_of_the_run(vmr, place, tmp_path, monkeypatch, capsys):
    row = row_of(place / "moment_detr")
    with hub.serve() as server:
        hub.connect(monkeypatch, server, tmp_path)
        assert vmr("push", f"run={place}/moment_detr", "repo=me/tiny", "private=true") == 0
        capsys.readouterr()
        arguments = [f"video={videos(place)}/{row['video_id']}.mp4", f"query={row['query']}", "--json"]
        assert vmr("predict", "run=hf://me/tiny@main", *arguments) == 0
    (answer,) = json.loads(capsys.readouterr().out)["answers"]
    found = [[m["start"], m["end"], m["score"]] for m in answer["moments"]]
    np.testing.assert_allclose(found, row["pred_relevant_windows"][:5], atol=1e-4)


@pytest.mark.parametrize("method", ["tea", "lmr"])
def test_narrations_are_required_and_must_be_of_the_same_narrator(vmr, place, tmp_path, capsys, method):
    row = row_of(place / method)
    run, video = place / method, videos(place) / f"{row['video_id']}.mp4"
    arguments = [f"run={run}", f"video={video}", f"query={row['query']}"]
    assert vmr("predict", *arguments) == 2
    assert f"{method.upper()} reads narrations; found none" in capsys.readouterr().err

    (file,) = place.glob("cache/shapes/*/narrations/*.jsonl")
    assert vmr("predict", *arguments, f"narrations={file}", "--json") == 0
    (answer,) = json.loads(capsys.readouterr().out)["answers"]
    found = [[m["start"], m["end"], m["score"]] for m in answer["moments"]]
    np.testing.assert_allclose(found, row["pred_relevant_windows"][:5], atol=1e-4)

    twin = tmp_path / video.name
    shutil.copy(video, twin)
    retriever = Retriever.from_run(run)
    retriever.encode(video, file)
    with pytest.raises(VmrError, match=f"found two named '{video.stem}'"):
        retriever.encode(twin, file)
    shutil.copy(video, tmp_path / "never_narrated.mp4")
    paths = [video, tmp_path / "never_narrated.mp4"]
    found = search_videos(Retriever.from_run(run), paths, [row["query"]], file)
    assert list(found.failed) == paths[1:]
    assert found.moments[0]

    other = tmp_path / file.name
    shutil.copy(file, other)
    manifest = json.loads(file.with_suffix(".manifest.json").read_text())
    manifest |= {"model": "someone else", "answers": {"total": 3}}  # the latter may differ
    other.with_suffix(".manifest.json").write_text(json.dumps(manifest))
    assert vmr("predict", *arguments, f"narrations={other}") == 2
    assert "model: 'shapes narrator (simulated)', now 'someone else'." in capsys.readouterr().err


def test_a_long_video_is_searched_in_windows_that_are_ranked_together(place):
    retriever = Retriever.from_run(place / "moment_detr", window_seconds=6, batch_size=3)
    video = retriever.encode(videos(place) / "train_00000.mp4")
    windows = video._windows()
    assert [w.first for w in windows[:-1]] == list(range(0, len(video.clips) - 6, 3))
    assert {len(w) for w in windows} == {6}
    assert windows[-1].last == len(video.clips)
    assert windows[-1].offset + windows[-1].seconds == pytest.approx(video.duration)

    # Each window searched alone finds the same moments, shifted by its offset.
    text = "the red circle blinks"
    alone = []
    for window in windows:
        part = type(video)(retriever, video.path, window.seconds, video.clips[window.first : window.last])
        alone += [
            Moment(m.start + window.offset, m.end + window.offset, m.score) for m in part.search(text, 100)
        ]
    alone.sort(key=lambda moment: -moment.score)
    found = video.search(text, top_k=4)
    assert (found[0].start, found[0].end) == pytest.approx((alone[0].start, alone[0].end), abs=1e-4)
    assert [m.score for m in found] == sorted((m.score for m in found), reverse=True)
    for i, a in enumerate(found):
        assert any(abs(a.start - m.start) + abs(a.end - m.end) < 1e-3 for m in alone)
        for b in found[i + 1 :]:
            shared = max(0, min(a.end, b.end) - max(a.start, b.start))
            assert shared <= 0.5 * (max(a.end, b.end) - min(a.start, b.start)) + 1e-6


def test_sentences_do_not_influence_each_other_and_the_video_is_encoded_once(place, monkeypatch):
    retriever = Retriever.from_run(place / "moment_detr")
    video = retriever.encode(videos(place) / "train_00001.mp4")
    monkeypatch.setattr(type(retriever.features.video), "encode", None)
    together = video.answer(["a star falls", "the big blue square, which grows, is seen"])
    for answer in together:
        for a, b in zip(answer.moments, video.search(answer.query), strict=True):
            assert (a.start, a.end, a.score) == pytest.approx((b.start, b.end, b.score), abs=1e-5)


def test_a_csv_is_answered_row_by_row_and_a_broken_video_skipped(vmr, place, tmp_path, capsys):
    shutil.copy(videos(place) / "train_00000.mp4", tmp_path / "one, two.mp4")
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    lines = [
        "video,query,query_id",
        '"one, two.mp4","a star, falling",first',
        "broken.mp4,a star,second",
        '"one, two.mp4",a circle,../third',
    ]
    (tmp_path / "q.csv").write_text("\n".join(lines))
    out = tmp_path / "answers.jsonl"
    code = vmr("predict", f"run={place}/moment_detr", f"csv={tmp_path}/q.csv", f"out={out}")
    shown = capsys.readouterr()
    assert code == 1
    assert "2 of 3 sentences answered" in shown.out
    assert "broken.mp4" in shown.err
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(row["query_id"], row["query"]) for row in rows] == [
        ("first", "a star, falling"),
        ("../third", "a circle"),
    ]
    assert all(0 <= s <= e <= row["duration"] for row in rows for s, e, _ in row["pred_relevant_windows"])


def test_a_csv_goes_on_where_it_was_stopped(vmr, place, tmp_path, monkeypatch, capsys):
    for name in ("a", "b"):
        shutil.copy(videos(place) / "train_00000.mp4", tmp_path / f"{name}.mp4")
    lines = ["video,query", *(f"{name}.mp4,a star number {i}" for i in range(5) for name in "ab")]
    (tmp_path / "q.csv").write_text("\n".join(lines))
    whole, out = tmp_path / "whole.jsonl", tmp_path / "answers.jsonl"
    command = ["predict", f"run={place}/moment_detr", f"csv={tmp_path}/q.csv"]
    monkeypatch.setattr(query_file, "_CHUNK", 2)
    assert vmr(*command, f"out={whole}") == 0
    given = EncodedVideo.answer
    asked = []

    def answer(video, queries, top_k):
        if len(asked) == 3:
            raise KeyboardInterrupt
        asked.append(queries)
        return given(video, queries, top_k)

    with monkeypatch.context() as patch:
        patch.setattr(EncodedVideo, "answer", answer)
        assert vmr(*command, f"out={out}") == 130
    assert not out.exists()
    partial = tmp_path / "answers.jsonl.partial"
    assert len(partial.read_text().splitlines()) == 1 + 5  # two, two, one
    partial.write_bytes(partial.read_bytes()[:-30])  # killed while it wrote
    assert vmr(*command, f"out={out}", "top_k=2") == 2
    assert "other settings (top_k)" in capsys.readouterr().err
    asked.clear()
    with monkeypatch.context() as patch:
        patch.setattr(EncodedVideo, "answer", lambda *a: asked.append(a[1]) or given(*a))
        assert vmr(*command, f"out={out}") == 0
    assert sum(map(len, asked)) == 6
    assert not partial.exists()
    for a, b in zip(*(path.read_text().splitlines() for path in (whole, out)), strict=True):
        a, b = json.loads(a), json.loads(b)
        assert (a["query_id"], a["query"]) == (b["query_id"], b["query"])
        assert np.allclose(a["pred_relevant_windows"], b["pred_relevant_windows"], atol=1e-4)


@pytest.mark.parametrize("sentence", ["a\u2028star", "a\x85star", "一颗星"])
def test_answers_so_far_are_read_whatever_was_written_last(tmp_path, sentence):
    video, out = tmp_path / "a.mp4", tmp_path / "out.jsonl.partial"
    video.touch()
    settings = {"encoder": {"size": (96, 128)}, "note": sentence}  # a tuple is read again as a list
    row = {"query_id": "1", "video": "a.mp4", "query": sentence}
    Partial(out, settings).add(row, video)
    assert Partial(out, settings).answer(row, video) == row
    whole = out.read_bytes()
    append_row(out, ["一", row])
    out.write_bytes(out.read_bytes()[: len(whole) + 3])  # within a character
    assert Partial(out, settings).answer(row, video) == row


def test_one_unreadable_sentence_leaves_the_answers_to_the_others(vmr, place, tmp_path, monkeypatch, capsys):
    shutil.copy(videos(place) / "train_00000.mp4", tmp_path / "a.mp4")
    (tmp_path / "q.csv").write_text("video,query\na.mp4,a star\na.mp4,odd\na.mp4,a circle\n")
    given = EncodedVideo.answer

    def answer(video, queries, top_k):
        if "odd" in queries:
            raise VmrError("knows no word")
        return given(video, queries, top_k)

    monkeypatch.setattr(EncodedVideo, "answer", answer)
    out = tmp_path / "answers.jsonl"
    assert vmr("predict", f"run={place}/moment_detr", f"csv={tmp_path}/q.csv", f"out={out}") == 1
    shown = capsys.readouterr()
    assert "2 of 3 sentences answered" in shown.out
    assert "query_id 2" in shown.err
    assert [json.loads(line)["query"] for line in out.read_text().splitlines()] == ["a star", "a circle"]


def test_the_clock_is_that_of_the_pictures_and_json_says_what_is_odd(vmr, place, tmp_path, capsys):
    """What the file declares about its length changes no answer."""
    asked = [f"run={place}/moment_detr", "query=a star", "--json"]
    answers = []
    for name, change in {"right [1].mp4": declare(1), "wrong, 12:30.mp4": declare(0.25)}.items():
        changed(film(tmp_path / name, seconds(20)), change)
        assert vmr("predict", *asked, f"video={tmp_path / name}") == 0
        shown = capsys.readouterr()
        assert not shown.err
        answers.append(json.loads(shown.out))
    right, wrong = answers
    assert right["duration"] == wrong["duration"] == 20
    assert right["answers"] == wrong["answers"]
    assert (right["notes"], list(wrong["notes"])) == ({}, ["declared length"])
    os.mkfifo(tmp_path / "pipe.mp4")
    assert vmr("predict", *asked, f"video={tmp_path / 'pipe.mp4'}") == 2
    assert "found a pipe" in capsys.readouterr().err


def test_the_picture_shows_every_sentence(vmr, place, tmp_path, capsys):
    options = [f"run={place}/moment_detr", f"video={videos(place)}/train_00000.mp4"]
    sizes = []
    for name, query in {
        "one.png": "it costs $5, $6 and more",
        "two.png": "[a star,'a circle, blinking']",
    }.items():
        assert vmr("predict", *options, f"query={query}", f"picture={tmp_path}/{name}") == 0
        sizes.append(Image.open(tmp_path / name).size)
    assert sizes[0][0] == sizes[1][0]
    assert sizes[1][1] - sizes[0][1] == pytest.approx(1.5 * 120, abs=2)
    assert "a circle, blinking" in capsys.readouterr().out
    assert vmr("predict", *options, "query=a star", f"picture={tmp_path}/three.mp3") == 2
    assert "Name a .png, .pdf or .svg file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["video=/dev/null"], "Expected a sentence"),
        (["query=a star"], "Expected either video=FILE"),
        (["video=/dev/null", "csv=/dev/null"], "Expected either video=FILE"),
        (["csv=/dev/null"], "Expected out=FILE.jsonl"),
        (
            ["csv=/dev/null", "out=a.jsonl"],
            "Expected a CSV file at /dev/null, found a folder",
        ),
        (["csv=/dev/null", "out=/tmp"], "Expected out=FILE.jsonl, found the folder /tmp"),
        (["video=missing.mp4", "query=a star"], "Found no video for video=missing.mp4"),
        (["video=/dev/zero", "query=a star"], "found a pipe, socket or device"),
        (["video=.", "query=a star", "picture=a.png"], "draws the moments of one video"),
        (["video=.", "query=a star", "zero_shot=shapes_clip"], "leave out zero_shot"),
        (["csv=/dev/null", "cut=clips"], "cuts no clips"),
        (["video=.", "query=a star", f"cut={__file__}"], "found the file"),
    ],
)
def test_mistakes_are_named(vmr, place, capsys, args, message):
    assert vmr("predict", f"run={place}/moment_detr", *args) == 2
    assert message in capsys.readouterr().err


def test_a_run_on_feature_files_is_refused(train_toy):
    _, run = train_toy("trainer.max_epochs=1")
    with pytest.raises(VmrError, match="whose clips come from ready-made files"):
        Retriever.from_run(run)


def test_the_details_of_a_query_are_those_of_its_run(place):
    run = place / "tea"
    row = row_of(run)
    found = query_details(run, row["query_id"])
    assert (found.annotated, found.query.text) == (row["query"], row["query"])
    np.testing.assert_allclose(
        found.row["pred_relevant_windows"], row["pred_relevant_windows"], rtol=1e-4, atol=1e-4
    )
    assert {"start_probability", "end_probability", "highlight"} == found.details.keys()
    np.testing.assert_allclose(found.details["highlight"], row["pred_saliency_scores"], atol=1e-4)
    assert found.clips_end == pytest.approx(row["duration"], abs=1)
    (file,) = place.glob("cache/shapes/*/narrations/*.jsonl")
    said = [
        one for one in map(json.loads, file.read_text().splitlines()) if one["video_id"] == row["video_id"]
    ]
    assert sorted(found.narrations) == sorted((one["start"], one["end"], one["text"]) for one in said)


def test_an_edited_sentence_is_answered_as_by_the_retriever(place):
    run, text = place / "moment_detr", "the big blue square, which grows, is seen"
    row = row_of(run)
    found = query_details(run, row["query_id"], f" {text} ")
    assert (found.annotated, found.query.text) == (row["query"], text)
    moments = Retriever.from_run(run).encode(videos(place) / f"{row['video_id']}.mp4").search(text)
    np.testing.assert_allclose(
        found.row["pred_relevant_windows"][:5], [(m.start, m.end, m.score) for m in moments], atol=1e-3
    )
    assert found.row["pred_relevant_windows"] != row["pred_relevant_windows"]
    assert "grows" in found.words
    with pytest.raises(VmrError, match="found a blank one"):
        query_details(run, row["query_id"], "  ")


def test_unknown_queries_and_those_of_training_are_refused(place):
    with pytest.raises(VmrError, match=r"Did you mean iid-test_0000\d-1"):
        query_details(place / "tea", "iid-test_0000-1")
    with pytest.raises(VmrError, match="belongs to the training split"):
        query_details(place / "tea", "train-train_00000-1")


def test_draw_shows_frames_narrations_and_curves(vmr, place, tmp_path, capsys):
    row = row_of(place / "tea")
    out = tmp_path / "query.svg"
    arguments = [f"run={place}/tea", f"query={row['query_id']}", f"videos={videos(place)}", f"out={out}"]
    assert vmr("draw", *arguments, "sentence=it costs $5, [and] more: ${x}") == 0
    assert "frames; moments: annotated (green)" in capsys.readouterr().out
    assert out.stat().st_size > 10_000
    assert vmr("draw", *arguments[:2], f"videos={videos(place)}/train_00000.mp4", f"out={out}") == 2
    assert f"Expected the video {row['video_id']} in videos=" in capsys.readouterr().err
    other = next(
        path for path in videos(place).glob("*.mp4") if abs(timeline(path).seconds - row["duration"]) > 2
    )
    shutil.copy(other, tmp_path / f"{row['video_id']}.mp4")
    assert vmr("draw", *arguments[:2], f"videos={tmp_path}", f"out={out}") == 2
    assert "It is another video of this name" in capsys.readouterr().err
    assert vmr("draw", arguments[0], "query=none such", f"out={tmp_path}/query.mp3") == 2
    assert "Name a .png, .pdf or .svg file" in capsys.readouterr().err  # before the run is loaded


def test_every_detail_has_a_panel(tmp_path):
    random = np.random.default_rng(0)
    sizes = {"clip": 8, "word": 3, "moment": 6, "cell": 4, "frame": 2, "patch": 6}
    details = {name: random.random([sizes[axis] for axis in axes]) for name, axes in DETAILS.items()}
    query = Query("q", "v", "a <b> $x$ falls", ((1.0, 4.0),), 16.0)
    row = {"pred_relevant_windows": [[0.0, 5.0, 0.5]], "pred_saliency_scores": random.random(8).tolist()}
    said = [(float(second), second + 1.0, f"sentence {second}") for second in range(60)]
    found = QueryDetails("run", query, "annotated", row, details, ["a", "b", "falls"], 16.0, said)
    with warnings.catch_warnings(action="error"):  # of panels without room
        panels = " ".join(draw_query(found, tmp_path / "q.png"))
    assert not [name for name in DETAILS if name not in panels and "text_in" not in name]
    assert "similarity of subspaces" in panels
    assert "narrations (40 of 60)" in panels
    assert Image.open(tmp_path / "q.png").size[0] == 1210
    with pytest.raises(VmrError, match=r"Name a .png, .pdf or .svg file"):
        draw_query(found, tmp_path / "q.mp3")
