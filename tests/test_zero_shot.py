"""`vmr predict` without a run, over folders, and the index of videos, with the tiny CLIP that is shipped."""

from __future__ import annotations

import json
import shutil

import av
import numpy as np
import pytest
from PIL import Image, ImageDraw

from vmr_zoo.data.annotations.records import Query
from vmr_zoo.engine import zero_shot
from vmr_zoo.engine.zero_shot import NewVideos, load_zero_shot
from vmr_zoo.errors import VmrError
from vmr_zoo.video.decode import timeline


def scene(path, *things, length=10, rate=4):
    """Writes a video in which each thing, (colour, outline, start, end), is visible for some seconds."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=rate)
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        for number in range(length * rate):
            picture = Image.new("RGB", (128, 96), (235, 235, 235))
            for colour, outline, start, end in things:
                if start <= number / rate < end:
                    getattr(ImageDraw.Draw(picture), outline)((40, 25, 85, 70), fill=colour)
            out.mux(stream.encode(av.VideoFrame.from_image(picture)))
        out.mux(stream.encode())
    return path


@pytest.fixture
def folder(tmp_path):
    """Three videos, two of one name, and a file that is none."""
    place = tmp_path / "videos"
    (place / "more").mkdir(parents=True)
    scene(place / "a.mp4", ("red", "ellipse", 2, 6))
    scene(place / "more" / "a.mp4", ("blue", "rectangle", 4, 8))
    scene(place / "b.mp4", ("green", "ellipse", 1, 4), ("blue", "rectangle", 6, 10))
    (place / "broken.mp4").write_bytes(b"no video")
    return place


@pytest.fixture
def encoded(monkeypatch):
    """Lists the files that are encoded."""
    names: list[str] = []
    given = NewVideos.encode
    monkeypatch.setattr(NewVideos, "encode", lambda self, path: names.append(path.name) or given(self, path))
    return names


@pytest.fixture
def search(vmr, tmp_path, folder, capsys):
    """Searches the folder and returns the exit code and the JSON."""

    def run(*more, query="[a red circle,a blue square]"):
        arguments = ["zero_shot=shapes_clip", f"video={folder}", f"query={query}", "--json"]
        capsys.readouterr()
        code = vmr("predict", *arguments, f"paths.cache={tmp_path}/cache", *more)
        shown = capsys.readouterr()
        return code, json.loads(shown.out) if shown.out else shown.err

    return run


def test_a_video_is_searched_without_a_run(folder, tmp_path):
    retriever = load_zero_shot("shapes_clip", f"paths.cache={tmp_path}/cache")
    red, blue = (retriever.encode(folder / name) for name in ("a.mp4", "more/a.mp4"))
    for video, text, expected in ((red, "a red circle", (2, 6)), (blue, "a blue square", (4, 8))):
        answer = video.answer([text])[0]
        best = answer.moments[0]
        assert (best.start, best.end) == pytest.approx(expected)
        # The score is the mean cosine similarity of the moment, computed here once more.
        sentence = retriever.features.query.sentence(Query("", "", text, (), 1.0))
        inside = video.clips[expected[0] : expected[1]]
        cosines = inside @ sentence / np.linalg.norm(inside, axis=1) / np.linalg.norm(sentence)
        assert best.score == pytest.approx(cosines.mean(), abs=1e-4)
        scores = [moment.score for moment in answer.moments]
        assert scores == sorted(scores, reverse=True)
    # It compares videos: the one with the thing has the higher score.
    assert red.search("a red circle")[0].score > blue.search("a red circle")[0].score + 0.1


def test_moments_of_a_folder_are_ranked_together_and_cut(search, folder, tmp_path):
    code, found = search(f"cut={tmp_path}/clips", "top_k=2")
    assert code == 1  # of the broken file
    assert list(found["failed"]) == [f"{folder}/broken.mp4"]
    assert (found["run"], found["zero_shot"], found["videos"]) == (None, "shapes_clip", 4)
    red, blue = (answer["moments"] for answer in found["answers"])
    first = {key: red[0][key] for key in ("video", "start", "end")}
    assert first == {"video": f"{folder}/a.mp4", "start": pytest.approx(2), "end": pytest.approx(6)}
    assert {moment["video"] for moment in blue} == {f"{folder}/more/a.mp4", f"{folder}/b.mp4"}
    for moments in (red, blue):
        assert moments[0]["score"] >= moments[1]["score"]
    clips = sorted((tmp_path / "clips").iterdir())
    assert sorted(moment["clip"] for moment in (*red, *blue)) == list(map(str, clips))
    assert clips[0].name == "01-a-red-circle-01-a-2.00-6.00s.mp4"
    assert timeline(clips[0]).seconds == pytest.approx(4, abs=0.001)


def test_each_content_is_encoded_once(search, folder, encoded):
    _, first = search()
    assert sorted(encoded) == ["a.mp4", "a.mp4", "b.mp4", "broken.mp4"]
    encoded.clear()
    (folder / "a.mp4").rename(folder / "renamed.mp4")
    shutil.copy(folder / "b.mp4", folder / "more")
    scene(folder / "b.mp4", ("red", "ellipse", 0, 10))
    _, second = search()
    assert sorted(encoded) == ["b.mp4", "broken.mp4"]
    before, now = (answers["answers"][0]["moments"][0] for answers in (first, second))
    assert (before["video"], now["video"]) == (f"{folder}/a.mp4", f"{folder}/b.mp4")  # a full circle now


def test_an_interrupted_index_goes_on(search, encoded, tmp_path, monkeypatch):
    given = zero_shot.encode_video

    def interrupted(encoder, path):
        if path.name == "b.mp4":
            raise KeyboardInterrupt
        return given(encoder, path)

    with monkeypatch.context() as patch:
        patch.setattr(zero_shot, "encode_video", interrupted)
        patch.setattr("vmr_zoo.engine.index.MOST_AT_ONCE", 1)
        assert search()[0] == 130
    entries = list((tmp_path / "cache" / "index").glob("*/*.npz"))
    assert len(entries) == 1  # a.mp4 comes before b.mp4
    encoded.clear()
    code, found = search()
    assert code == 1
    assert sorted(encoded) == ["a.mp4", "b.mp4", "broken.mp4"]
    # A damaged entry is made again, and answers as before.
    entries[0].write_bytes(entries[0].read_bytes()[:100])
    assert search()[1] == found


def test_what_no_run_needs_and_what_it_lacks(search, folder, tmp_path):
    assert "add run=DIR" in search(f"narrations={folder}/a.mp4")[1]
    code, message = search(f"zero_shot.model=local-dir:{tmp_path}/none")
    assert code == 2
    assert "zero_shot.pretrained" in message
    assert "local-dir" in message
    with pytest.raises(VmrError, match="longer than 0"):
        load_zero_shot("shapes_clip", "zero_shot.window=0")
