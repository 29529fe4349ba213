"""Narration by a server: a local one that answers, fails, stalls, lies and sends nonsense."""

from __future__ import annotations

import base64
import io
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from vmr_zoo.config.compose import compose
from vmr_zoo.data.narrations import read_narrations
from vmr_zoo.errors import VmrError
from vmr_zoo.narrators import Narrated, ServerNarrator

KEY = "sk-top-secret"
EVEN = {number / 5: 30 + 10 * number for number in range(20)}
"""Four seconds."""
Reply = tuple[int, dict[str, str], Any]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.reply(200, {}, {"data": self.server.models})

    def do_POST(self) -> None:
        sent = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        with server.lock:
            number = len(server.requests)
            server.requests.append(sent)
            server.keys.add(self.headers["Authorization"])
            server.running += 1
            server.most = max(server.most, server.running)
        try:
            reply = server.behave(number, sent)
        finally:
            with server.lock:
                server.running -= 1
        if reply is None:  # breaks off
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
        else:
            self.reply(*reply)

    def reply(self, status: int, headers: dict[str, str], body: Any) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        pass

    server: Server


class Server(ThreadingHTTPServer):
    """Attributes: what it lists, how it behaves, the requests and keys it got, the most of them at once."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.models = [{"id": "llava", "owned_by": "vllm", "root": "/home/me/llava-1.5", "created": 1}]
        self.behave: Callable[[int, Any], Reply | None] = lambda number, sent: said("A person\n walks.")
        self.requests: list[Any] = []
        self.keys: set[str | None] = set()
        self.lock = threading.Lock()
        self.running = self.most = 0

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


def said(text: Any, model: str = "llava") -> Reply:
    return 200, {}, {"model": model, "choices": [{"message": {"role": "assistant", "content": text}}]}


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Records the times that a request waits before it is repeated; none passes."""
    waited: list[float] = []
    monkeypatch.setattr("urllib3.util.retry.time", SimpleNamespace(sleep=waited.append, time=time.time))
    monkeypatch.setenv("TEST_KEY", KEY)
    return waited


def narrator(server: Server, **more: Any) -> ServerNarrator:
    settings: dict[str, Any] = {"seconds": 1, "frames": None, "prompt": "caption", "max_new_tokens": 6}
    plain = {"base_url": server.url, "key_variable": "TEST_KEY", "concurrency": 2, "retries": 2}
    return ServerNarrator("llava", **(settings | plain | more))


def narrate(one: ServerNarrator, *videos: Path) -> dict[str, Narrated]:
    return {narrated.video_id: narrated for narrated in one.stream((path.stem, path) for path in videos)}


def test_the_command_as_documented(
    server: Server, film: Callable[..., Path], vmr: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = film("a", EVEN).parent
    film("b", EVEN)
    out = folder / "said.jsonl"

    # The later a request, the sooner its answer: the order of the answers must not matter.
    def behave(number: int, sent: Any) -> Reply:
        time.sleep(max(0.0, 0.1 - number / 50))
        return said(f"{number} \x1b\ud800")

    server.behave = behave
    command = [
        f"videos={folder}",
        "narrator=server",
        "narrator.model=llava",
        f"narrator.base_url={server.url}",
        "narrator.key_variable=TEST_KEY",
        "narrator.max_pixels=300",
        "narrator.concurrency=3",
        "+narrator.extra.top_p=0.5",
        "+narrator.extra.temperature=null",
        "+narrator.extra.inner={a: [1]}",
        f"out={out}",
    ]
    assert vmr("narrate", *command) == 0
    narrations, manifest = read_narrations(out)
    assert [row.start for row in narrations["a"]] == [0.5, 1.5, 2.5, 3.5]
    assert sorted(int(row.text) for rows in narrations.values() for row in rows) == list(range(8))
    assert 1 < server.most <= 3
    assert server.keys == {f"Bearer {KEY}"}
    assert (manifest["model"], manifest["revision"]) == ("llava", None)
    assert manifest["server"] == {"owned_by": "vllm", "root": "llava-1.5"}
    assert (manifest["image_format"], manifest["image_quality"]) == ("jpeg", 90)
    sent = server.requests[0]
    picture, text = sent.pop("messages")[0]["content"]
    assert text["text"] == manifest["prompt"] == compose("narrate", ["narrator=llava"]).narrator.prompt
    kind, data = picture["image_url"]["url"].split(",")
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        assert (kind, image.format, image.size) == ("data:image/jpeg;base64", "JPEG", (17, 17))
    extra = {"top_p": 0.5, "inner": {"a": [1]}}
    assert sent == {"model": "llava", "max_tokens": 256, "stream": False, **extra}
    # Finished: nothing is sent. Concurrency may change, the pictures may not.
    assert vmr("narrate", *command, "narrator.concurrency=1") == 0
    assert len(server.requests) == 8
    assert narrator(server).manifest() != narrator(server, image_quality=80).manifest()
    written = "".join(path.read_text() for path in out.parent.rglob("*") if path.suffix in (".json", ".part"))
    assert KEY not in written + out.read_text() + capsys.readouterr().err
    assert server.url not in written


def test_a_request_is_repeated_when_that_can_help(
    server: Server, film: Callable[..., Path], waits: list[float]
) -> None:
    replies: list[Reply | None] = [
        (429, {"Retry-After": "7"}, {}),
        (503, {"Retry-After": "soon"}, {}),
        (500, {"Retry-After": "99999999"}, {}),
        None,
    ]
    server.behave = lambda number, sent: replies[number] if number < 4 else said("yes")
    one = narrator(server, retries=4, concurrency=1)
    assert [row.text for row in one.narrate("v", film("v", EVEN))] == ["yes"] * 4
    assert waits[0] == 7
    assert waits[-2] == 600, "a server may not have us wait for years"
    assert len(server.requests) == 8
    server.requests.clear()
    server.behave = lambda number, sent: (429, {}, {}) if number < 8 else said("yes")
    assert "failed 3 times: status 429" in str(narrate(narrator(server), film("v", EVEN))["v"].error)


def test_a_refusal_or_nonsense_costs_one_video(server: Server, film: Callable[..., Path]) -> None:
    paths = [film(name, EVEN) for name in "abc"]
    for reply, message in (
        ((400, {}, {"error": f"too large, {KEY}"}), "refused the request.*status 400.*too large, [*]{3}"),
        ((200, {}, b"<html>"), "Expected JSON"),
        ((200, {}, b"[" * 100_000), "Expected JSON"),
        ((200, {}, {"model": "llava", "choices": []}), "a model and its answer"),
        (said(5), "Expected a text"),
        (said("a" * 60_000), "Expected a text"),
        ((200, {}, b" " * 2_000_000), "more than 1000000 bytes"),
    ):
        server.requests.clear()
        server.behave = partial(lambda bad, number, sent: bad if number == 5 else said(number and KEY), reply)
        narrated = narrate(narrator(server, concurrency=1), *paths)
        assert [one.error is None for one in narrated.values()] == [True, False, True]
        with pytest.raises(VmrError, match=message):
            raise narrated["b"].error or AssertionError
        assert (len(narrated["a"].narrations), narrated["a"].empty) == (3, 1)
        assert {row.text for row in narrated["c"].narrations} == {"***"}
        # The rest of the failed video, but for what was on the way, is not sent.
        assert len(server.requests) < 12


def test_a_server_that_is_down_stops_the_work_after_a_few_videos(
    server: Server, film: Callable[..., Path]
) -> None:
    path = film("v", EVEN)
    server.behave = lambda number, sent: said("yes") if number < 4 else (502, {}, {})
    results = narrator(server, concurrency=1, retries=0).stream((str(n), path) for n in range(99))
    assert [next(results).error is None for _ in range(6)] == [True, False, False, False, False, False]
    with pytest.raises(VmrError, match=r"failed on 5 videos in a row.* 502.*run the same command again"):
        next(results)


def test_a_server_that_stalls_holds_nobody_up(
    server: Server, film: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    release = threading.Event()
    server.behave = lambda number, sent: release.wait(9) and None
    path = film("v", EVEN)
    start = time.monotonic()
    assert "timed out" in str(narrate(narrator(server, timeout=0.2, retries=0), path)["v"].error)
    # Work that is interrupted ends at once, although requests are on the way.
    server.behave = lambda number, sent: said("yes") if sent["number"] == 0 else release.wait(9) and None
    one = narrator(server, timeout=60, seconds=0.2)
    monkeypatch.setattr(one, "request", lambda segment: {"number": segment.number})
    decoded = iter(range(99))
    answers = one.answers(segment for segment in one.segments("v", path) if next(decoded) >= 0)
    assert next(answers)[1] == "yes"
    assert next(decoded) == 4, "no more segments wait than twice as many as are under way"
    answers.close()
    assert time.monotonic() - start < 5
    release.set()


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (
            said("yes", model="gpt-\x1b[31m"),
            r"answers as the model 'gpt- \[31m', expected narrator.model=llava",
        ),
        ((401, {}, {"error": KEY}), r"does not accept the key in TEST_KEY.*[*]{3}"),
        ((404, {}, {}), "Check narrator.base_url"),
        ((307, {"Location": "http://127.0.0.1:1/elsewhere"}, {}), "Check narrator.base_url"),
    ],
)
def test_what_concerns_every_request_stops_at_once(
    reply: Reply, message: str, server: Server, film: Callable[..., Path]
) -> None:
    server.behave = lambda number, sent: reply
    with pytest.raises(VmrError, match=message) as error:
        narrate(narrator(server, concurrency=1), film("v", EVEN), film("w", EVEN))
    assert KEY not in str(error.value)
    assert len(server.requests) <= 2


def test_settings_are_checked_before_anything_is_sent(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for settings, message in (
        ({"key_variable": KEY}, "name of an environment variable"),
        ({"key_variable": "NO_SUCH_KEY"}, "NO_SUCH_KEY"),
        ({"base_url": f"http://me:{KEY}@localhost/v1"}, "without a user name"),
        ({"base_url": "localhost:8000"}, "found 'localhost:8000'"),
        ({"base_url": "http://127.0.0.1:1/v1"}, "Is the server running"),
        ({"image_format": "jpg"}, "Did you mean jpeg"),
        ({"extra": {"model": "x"}}, "cannot set model"),
        ({"timed": True}, "narrator/prompt=timed"),
    ):
        with pytest.raises(VmrError, match=message) as error:
            narrator(server, **settings).manifest()
        assert KEY not in str(error.value)
    server.models = [{"id": "llava:13b"}, {"id": "other"}]
    with pytest.raises(VmrError, match=r"Did you mean llava:13b"):
        narrator(server).manifest()
    monkeypatch.setenv("TEST_KEY", f"{KEY}\n{KEY}")
    with pytest.raises(VmrError, match="printable") as error:
        narrator(server).manifest()
    assert KEY not in str(error.value)
    assert not server.requests


def test_timed_captions_by_the_command(
    server: Server, film: Callable[..., Path], vmr: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = film("v", EVEN).parent
    out = folder / "said.jsonl"
    moments = [
        {"start": 0, "end": 1.5, "description": "sits"},
        {"start": 8, "end": 9, "description": "flies"},
    ]
    replies = ["Nothing \x1b happens.", f"<think>0 - 1 s: hm</think>```json\n{json.dumps(moments)}\n```"]
    server.behave = lambda number, sent: said(replies[number])
    command = [f"videos={folder}", "narrator=server", "narrator/prompt=timed", "narrator.model=llava"]
    settings = ["narrator.seconds=2.5", "narrator.frames=5", "narrator.concurrency=1"]
    assert vmr("narrate", *command, *settings, f"narrator.base_url={server.url}", f"out={out}") == 0
    narrations, manifest = read_narrations(out)
    assert [(row.start, row.end, row.text) for row in narrations["v"]] == [(2.5, 4.0, "sits")]
    assert manifest["answers"] == {"total": 2, "empty": 0, "unread": 1, "left_out": 1}
    printed = capsys.readouterr().err
    assert "1 of 2 answers (50.0%) had no times" in printed
    assert "v, 0-2.5 s: Nothing happens." in printed
    assert "1 moments had no text, or times outside" in printed
    # The times in the prompt are those of the frames, and a partial segment has no made-up frames.
    contents = [request["messages"][0]["content"] for request in server.requests]
    labels = [[part["text"] for part in content[:-1] if part["type"] == "text"] for content in contents]
    assert labels == [[f"<{(k + 0.5) / 2:.1f} seconds>" for k in range(count)] for count in (5, 3)]
    assert [part["type"] for part in contents[1]] == ["text", "image_url"] * 3 + ["text"]
