"""`vmr demo`: the page in a browser if one is installed, and what its server refuses."""

from __future__ import annotations

import http.client
import io
import json
import os
import shutil
import signal
import socket
import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image

from video.films import film, seconds
from vmr_zoo.demo.library import Library
from vmr_zoo.demo.searcher import Searcher
from vmr_zoo.demo.server import DemoServer
from vmr_zoo.engine.retriever import Retriever
from vmr_zoo.engine.zero_shot import load_zero_shot
from vmr_zoo.errors import VmrError
from vmr_zoo.video.decode import sample, timeline
from vmr_zoo.video.picture import first_picture, picture_at

CHROMIUM = next((path for name in ("chromium", "chromium-browser") if (path := shutil.which(name))), None)
EVIL = "<img src=x onerror=document.title='broken'>.mp4"
MOST = 2**20


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Videos, one of them with sound before its first picture, a broken file, and a link to elsewhere."""
    root = tmp_path_factory.mktemp("demo")
    videos = root / "videos"
    videos.mkdir()
    film(videos / "a.mp4", seconds(12), options={"g": "24"})
    film(videos / "late.mp4", [2 + second for second in seconds(6)], sound=(0, 8))
    film(videos / "old.avi", seconds(6), codec="mpeg4")
    (videos / "broken.mp4").write_bytes(b"no video")
    film(root / "secret.mp4", seconds(1))
    (videos / "link.mp4").symlink_to(root / "secret.mp4")
    return videos


@pytest.fixture(scope="module")
def retrievers(tmp_path_factory):
    """Two that differ in how they propose moments, with equal encoders."""
    cache = f"paths.cache={tmp_path_factory.mktemp('cache')}"
    return {
        "short <b>moments": load_zero_shot("shapes_clip", cache, "zero_shot.power=0"),
        "long moments": load_zero_shot("shapes_clip", cache),
    }


@contextmanager
def served(folder, retrievers, about="about"):
    with Library(folder, MOST) as library, DemoServer("127.0.0.1", 0) as server:
        searcher = Searcher(retrievers, top_k=3)
        thread = threading.Thread(target=server.serve, args=(library, searcher, about))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def server(folder):
    with served(folder, {}) as server:
        yield server


def ask(server, path, body=None, **headers):
    """Sends a request as it is typed; returns status, headers and body."""
    connection = http.client.HTTPConnection(*server.server_address, timeout=20)
    method = "GET" if body is None else "POST"
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.putrequest(method, path, skip_host="Host" in given)
    if body is not None:
        given.setdefault("Content-Length", str(len(body)))
    for name, value in given.items():
        connection.putheader(name, value)
    connection.endheaders(body)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, answer.headers, content


def test_no_other_file_can_be_read(server, folder):
    names = {video.name: video.id for video in server.library.videos.values()}
    assert names.keys() == {"a.mp4", "late.mp4", "old.avi", "broken.mp4"}
    assert server.library.outside == ["link.mp4"]
    places = ["../../../etc/passwd", "%2e%2e%2f%2e%2e%2fetc%2fpasswd", "/etc/passwd", f"{folder}/a.mp4"]
    places += ["..", "a.mp4", "0/../link.mp4", "link.mp4", "0%00", "-1"]
    for route in ("/", "/video/", "/picture/", "/clip/"):
        for place in places:
            status, headers, body = ask(server, f"{route}{place}?at=0&start=0&end=1")
            assert (status, headers["Content-Type"]) == (404, "application/json"), place
            assert b"root:" not in body
    assert (ask(server, "/server.py")[0], ask(server, "http://[", Host="localhost")[0]) == (404, 400)
    assert ask(server, f"/video/{names['a.mp4']}")[2] == (folder / "a.mp4").read_bytes()
    assert (ask(server, "foo")[0], ask(server, "*")[0]) == (404, 404)
    assert ask(server, f"/picture/{names['a.mp4']}?at=1e300")[0] == 400


def test_other_pages_and_other_names_are_refused(server):
    for host, status in {"evil.example": 403, "127.0.0.1.evil.example:80": 403, "": 403, "[::1": 403}.items():
        assert ask(server, "/state", Host=host)[0] == status, host
    for host in ("localhost", "localhost:9000", "127.0.0.1:1", "[::1]:80"):
        assert ask(server, "/state", Host=host)[0] == 200, host
    assert ask(server, "/search", b"{}", Origin="http://evil.example")[0] == 403
    assert ask(server, "/search", b"{}", Origin="null")[0] == 403
    for site, status in {"cross-site": 403, "same-site": 403, "same-origin": 200, "none": 200}.items():
        assert ask(server, "/video/0", Sec_Fetch_Site=site)[0] == status
    status, headers, page = ask(server, "/", Sec_Fetch_Site="cross-site")  # a link
    assert status == 200
    assert "default-src 'none'; script-src 'self';" in headers["Content-Security-Policy"]
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert b"<script>" not in page
    assert b"://" not in page + ask(server, "/page.css")[2]  # opens without a network


def test_a_player_gets_the_range_that_it_wants(server, folder):
    whole = (folder / "a.mp4").read_bytes()
    size = len(whole)
    for header, part in {
        "bytes=0-": whole,
        "bytes=5-9": whole[5:10],
        f"bytes={size - 3}-{size + 99}": whole[-3:],
        "bytes=-4": whole[-4:],
    }.items():
        status, headers, body = ask(server, "/video/0", Range=header)
        assert (status, body) == (206, part), header
        first = size - len(part) if header != "bytes=5-9" else 5
        assert headers["Content-Range"] == f"bytes {first}-{first + len(part) - 1}/{size}"
    for header in ("bytes=0-1,4-5", "bytes=9-5", "bytes=-", "clips=0-1", f"bytes={'9' * 5000}-"):
        status, headers, body = ask(server, "/video/0", Range=header)
        assert (status, body, headers["Content-Type"]) == (200, whole, "video/mp4"), header
    assert ask(server, "/video/0", Range=f"bytes={size}-")[0] == 416


def test_dropped_files_are_bounded_checked_and_deleted(folder):
    with served(folder, {}) as server:
        kept = server.library.folder
        data = (folder / "a.mp4").read_bytes()
        status, _, body = ask(server, "/upload?name=..%2F..%2F%1b%3Cb%3E.mp4", data)
        assert (status, json.loads(body)["name"]) == (200, "../.. <b>.mp4".replace(".. <", "../ <"))
        assert [path.name for path in kept.iterdir()] == ["dropped-1"]
        assert ask(server, f"/video/{json.loads(body)['id']}")[2] == data
        room = MOST - len(data)
        for sent, length, message in [
            (b"no video", 8, "bad.mp4 cannot be decoded as a video"),
            (b"", room + 1, "Dropped files may have 1.0 MB together"),
            (b"", "-1", "states its length"),
            (b"", "9" * 5000, "states its length"),
            (b"", 0, "bad.mp4 is an empty file"),
        ]:
            status, _, body = ask(server, "/upload?name=bad.mp4", sent, Content_Length=str(length))
            assert status in (411, 422)
            assert message in json.loads(body)["error"]
            assert str(kept) not in json.loads(body)["error"]
        with pytest.raises(VmrError, match="arrived incomplete: 6 of 10 bytes"):
            server.library.upload(io.BytesIO(b"four"), 10, "short.mp4")
        assert [path.name for path in kept.iterdir()] == ["dropped-1"]
        # What was refused takes no room.
        server.library.upload(io.BytesIO(data + bytes(room - len(data))), room, "again.mp4")
        assert ask(server, "/search", b"[" * 60_000)[0] == 400
        assert ask(server, "/search", b"", Content_Length="99999999")[0] == 413
    assert not kept.exists()


def test_equal_encoders_share_a_video_and_one_failure_is_shown_beside_the_other(folder, retrievers):
    events = []
    with Library(folder, MOST) as library:
        searcher = Searcher(retrievers, top_k=3)
        videos = {video.name: video for video in library.videos.values()}
        found = searcher.search(videos["late.mp4"], " a red\ncircle ", events.append)
        again = searcher.search(videos["late.mp4"], "a red circle", events.append)
        assert found == again
        assert [event["seconds"] for event in events] == [0, 6, 0]  # each video is encoded once
        assert events[1]["of"] == pytest.approx(8, abs=0.5)
        assert (found["duration"], found["offset"]) == (6, 2)
        assert "late first picture" in found["notes"][0]
        for result, retriever in zip(found["results"], retrievers.values(), strict=True):
            expected = retriever.encode(videos["late.mp4"].path).answer(["a red circle"], 3)[0]
            assert result["moments"] == [[m.start, m.end, m.score] for m in expected.moments]
            assert result["clip_scores"] == pytest.approx(expected.clip_scores.tolist())

        def gone(event):
            raise BrokenPipeError

        with pytest.raises(BrokenPipeError):  # the browser does not wait for the answer
            searcher.search(videos["a.mp4"], "a star", gone)
        narrated = Searcher({**retrievers, "tea": _Narrated()})
        assert searcher.search(videos["a.mp4"], "a star", events.append)["duration"] == 12
        results = narrated.search(videos["a.mp4"], "a star", events.append)["results"]
        assert results[2] == {"run": "tea", "error": "TEA reads narrations; found none for a.mp4."}
        assert results[0]["moments"]
        for name, query, message in [
            ("broken.mp4", "a star", "^broken.mp4 cannot be decoded"),
            ("a.mp4", " \x00", "Type a sentence"),
            ("a.mp4", "a" * 501, "at most 500 characters"),
        ]:
            with pytest.raises(VmrError, match=message):
                narrated.search(videos[name], query, events.append)


class _Narrated:
    """A method that lacks narrations."""

    needs = frozenset({"narration"})

    def encode(self, path, narrations):
        raise VmrError(f"TEA reads narrations; found none for {path}.")


def test_a_picture_is_the_one_shown_at_that_time(folder, tmp_path):
    raw = film(tmp_path / "raw.h264", seconds(20))  # without time stamps: 24 per second are assumed
    for path in (*(folder / name for name in ("a.mp4", "late.mp4", "old.avi")), raw):
        timeline(path)
        for second in (0.05, 2.6, 5.8):
            shown = np.asarray(Image.open(io.BytesIO(picture_at(path, second, 48))).convert("L"), float)
            expected = next(sample(path, 2 * second)).to_ndarray(format="gray").astype(float)
            assert abs(shown[20:, 20:].mean() - expected[20:, 20:].mean()) < 3, (path, second)
    assert [first_picture(folder / name) for name in ("a.mp4", "late.mp4")] == [0, 2]


def test_ctrl_c_ends_the_page(vmr, folder, tmp_path, monkeypatch, capsys):
    for name in "AB":
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").touch()
    monkeypatch.setattr(Retriever, "from_run", lambda run, **options: _Narrated())
    given, seen = DemoServer.serve, []
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it

    def serve(server, *args):
        def press():
            seen.append(json.loads(ask(server, "/state")[2]))
            seen.append(server.library.folder)
            os.kill(os.getpid(), signal.SIGINT)

        threading.Thread(target=press).start()
        given(server, *args)

    monkeypatch.setattr(DemoServer, "serve", serve)
    runs = [f"{tmp_path}/A", f"{tmp_path}/B"]
    try:
        assert vmr("demo", f"run=[{','.join(runs)}]", f"videos={folder}", "port=0") == 0
    finally:
        signal.signal(signal.SIGINT, before)
    shown = capsys.readouterr()
    assert "left out: link.mp4" in shown.out
    assert "Serving 4 videos at http://127.0.0.1:" in shown.out
    assert seen[0]["runs"] == runs
    assert not seen[1].exists()
    assert vmr("demo", f"run=[{runs[0]},{tmp_path}/C]") == 2
    assert f"No such folder: run={tmp_path}/C" in capsys.readouterr().err
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert vmr("demo", f"port={taken.getsockname()[1]}") == 2
    assert "port=0 takes any free port" in capsys.readouterr().err


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium to drive (Debian package chromium)")
def test_the_page_in_a_browser(folder, retrievers, tmp_path):
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with served(folder, retrievers) as server, playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        view = browser.new_page(viewport={"width": 390, "height": 800})
        errors = []
        view.on("pageerror", lambda error: errors.append(str(error)))
        view.on("console", lambda line: errors.append(line.text) if "Content Security" in line.text else None)
        view.goto(server.address)
        view.evaluate(
            "sought = []; player = document.querySelector('video');"
            "player.addEventListener('seeking', () => sought.push(player.currentTime))"
        )

        def wait_until(condition):  # without eval, which the page forbids
            deadline = time.monotonic() + 30
            while not view.evaluate(condition):
                assert time.monotonic() < deadline, condition
                view.wait_for_timeout(30)

        def search(video, sentence="a red circle"):
            view.locator("#video").select_option(label=video)
            view.locator("#query").fill(sentence)
            view.keyboard.press("Enter")
            view.locator("#found:visible, #error:visible").first.wait_for()

        search("a.mp4")
        assert view.locator("#lists h2").all_inner_texts() == list(retrievers)
        columns = [view.locator("#lists section").nth(number) for number in range(2)]
        moments = server.searcher.search(server.library.videos["0"], "a red circle", print)["results"]
        for column, result in zip(columns, moments, strict=True):
            starts = [button.get_attribute("data-start") for button in column.locator(".moment").all()]
            assert [float(start) for start in starts] == [moment[0] for moment in result["moments"]]
        assert view.locator("svg.curve").count() == 2
        assert view.locator(".strip img").count() == 5
        assert view.evaluate("document.documentElement.scrollWidth") == 390
        wait_until("[...document.images].every(image => image.naturalWidth > 0)")

        # By keyboard: the second moment plays from its start to its end.
        start, end, _ = moments[0]["moments"][1]
        columns[0].locator(".moment").nth(1).focus()
        view.keyboard.press("Enter")
        wait_until(f"player.paused && player.currentTime >= {end}")
        assert view.evaluate("sought[0]") == pytest.approx(start, abs=0.001)
        assert view.evaluate("player.currentTime") == pytest.approx(end, abs=0.6)
        with view.expect_download() as download:
            columns[0].locator(".save").nth(1).click()
        download.value.save_as(tmp_path / "clip.mp4")
        assert timeline(tmp_path / "clip.mp4").seconds == pytest.approx(end - start, abs=0.2)
        assert download.value.suggested_filename.startswith("a 0.0")

        # Sound comes first: a player shows a moment two seconds later.
        search("late.mp4")
        bar = view.locator(".lane button").nth(1)
        view.evaluate("sought = []")
        bar.click()
        wait_until("sought.length > 0")
        later = float(bar.get_attribute("data-start")) + 2
        assert view.evaluate("sought[0]") == pytest.approx(later, abs=0.001)

        # A file that is dropped, with a name that attacks the page.
        files = view.evaluate_handle(
            "async name => { const files = new DataTransfer();"
            "files.items.add(new File([await (await fetch('/video/0')).blob()], name)); return files }",
            EVIL,
        )
        view.dispatch_event("#drop", "drop", {"dataTransfer": files})
        wait_until(f"document.querySelector('#video').selectedOptions[0].textContent === {json.dumps(EVIL)}")
        search(EVIL)
        assert view.locator(".moment").count() == 6
        search("broken.mp4")
        assert view.locator("#error").inner_text().startswith("broken.mp4 cannot be decoded as a video")
        search("a.mp4", " ")
        assert view.locator("#error").inner_text().startswith("Type a sentence")

        # A format that the browser cannot play: its clips do.
        search("old.avi")
        view.locator("#unplayable:visible").wait_for()
        view.locator(".moment").first.click()
        wait_until("player.currentSrc.includes('/clip/') && player.currentTime > 0")
        assert (errors, view.title()) == ([], "vmr_zoo demo")
        browser.close()
