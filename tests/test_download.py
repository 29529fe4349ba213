"""`vmr doctor download=true` with a local server that misbehaves."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import socket
import threading
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml
from omegaconf import OmegaConf
from rich.console import Console
from urllib3.exceptions import NameResolutionError, ReadTimeoutError

from vmr_zoo.cli.doctor import main
from vmr_zoo.config.compose import config_dir
from vmr_zoo.data.annotations import download as annotations_download
from vmr_zoo.data.annotations.download import AnnotationSource, DownloadResult, download
from vmr_zoo.data.annotations.protocols import PUBLISHED_PROTOCOLS
from vmr_zoo.data.annotations.records import Protocol
from vmr_zoo.errors import VmrError
from vmr_zoo.utils.download import DownloadSettings, _reason
from vmr_zoo.utils.files import WriteError

ROOT = Path(__file__).parents[2] / "shared" / "data"
PARTS = ("train", "val", "test_iid", "test_ood")
TRAIN = "charades_cd/charades_train.json"


def annotations(video: str) -> bytes:
    entry = {"video_duration": 10, "timestamps": [[0, 5]], "sentences": ["a person sits " * 20_000]}
    return json.dumps({video: entry}).encode()


class Handler(BaseHTTPRequestHandler):
    """Answers each request for a file in the next of the ways listed for it, then normally."""

    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        name = self.path.rsplit("/", 1)[-1]
        wanted = self.headers.get("Range")
        self.server.requests.append((name, wanted))
        ways = self.server.ways.get(name, [])
        way = ways.pop(0) if ways else ""
        body, kind = self.server.files[name], "text/plain"
        if way.isdigit():
            return self.answer(int(way), b"no", "text/plain")
        if way == "page":
            body, kind = b"<html><body>Please log in</body></html>", "text/html; charset=utf-8"
        if way == "disguised page":
            body = b"\n<!DOCTYPE html><html>".ljust(len(body))
        if way == "other":
            body = body[::-1]
        if way == "longer":
            body += b"  "
        first = 0
        if wanted and way != "no ranges":
            first = int(wanted.removeprefix("bytes=").removesuffix("-"))
        half = len(body) // 2 if way in ("half", "no length") else len(body)
        self.answer(206 if first else 200, body[first:half], kind, first, len(body), way == "no length")
        return None

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.server.files[self.path.rsplit("/", 1)[-1]])))
        self.end_headers()

    def answer(
        self, code: int, body: bytes, kind: str, first: int = 0, total: int = 0, unsaid: bool = False
    ) -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        if not unsaid:
            self.send_header("Content-Length", str((total or len(body)) - first))
        if code == 206:
            self.send_header("Content-Range", f"bytes {first}-{total - 1}/{total}")
        if code == 503:
            self.send_header("Retry-After", self.server.retry_after)
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        pass


class Server(ThreadingHTTPServer):
    """Attributes: files by name, remaining ways of answering, requests (name, range), Retry-After of 503."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.ways: dict[str, list[str]] = {}
        self.requests: list[tuple[str, str | None]] = []
        self.retry_after = ""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        running.files = {f"charades_{part}.json": annotations(part) for part in PARTS}
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


Doctor = Callable[..., tuple[int, str]]


@pytest.fixture
def small(server: Server) -> dict[str, Any]:
    """The server's files as a source."""
    facts = {
        f"charades_cd/{name}": {"size": len(body), "sha256": hashlib.sha256(body).hexdigest()}
        for name, body in server.files.items()
    }
    return {
        "_target_": "vmr_zoo.data.annotations.download.AnnotationSource",
        "title": "Small Charades-CD",
        "read_by": ["charades_cd"],
        "url": f"http://127.0.0.1:{server.server_port}/folder",
        "archive": None,
        "page": "https://example.org/authors",
        "licence": "CC BY 4.0.",
        "terms": "https://example.org/terms",
        "must_accept": False,
        "citation": "Someone 2020",
        "files": facts,
    }


@pytest.fixture
def doctor(small: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Doctor:
    """Runs the verb on a changed source, or with other keys; returns the exit code and the output."""

    def run(accept_licence: bool = False, **changes: Any) -> tuple[int, str]:
        root = str(tmp_path / "data")
        cfg = {
            "paths": {"annotations": root},
            "data": {
                "name": "charades_cd",
                "protocol": {"_target_": "vmr_zoo.data.annotations.protocols.charades_cd", "root": root},
            },
            "sources": {"small": small | changes},
            "network": {
                "_target_": "vmr_zoo.utils.download.DownloadSettings",
                "timeout": 5,
                "retries": 2,
                "backoff": 0,
            },
            "download": True,
            "accept_licence": accept_licence,
        }
        error = ""
        try:
            code = main(OmegaConf.create(cfg))
        except VmrError as raised:
            code, error = 2, str(raised)
        return code, " ".join([*capsys.readouterr().out.split(), *error.split()])

    return run


def there(root: Path) -> list[str]:
    return sorted(path.name for path in (root / "data" / "charades_cd").iterdir())


def offset(request: tuple[str, str | None]) -> int:
    name, wanted = request
    assert name == "charades_train.json"
    return int((wanted or "bytes=0-").removeprefix("bytes=").removesuffix("-"))


def test_the_command_fetches_what_is_missing_and_nothing_twice(
    vmr: Callable[..., int],
    small: dict[str, Any],
    server: Server,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("VMR_FEATURES", raising=False)
    monkeypatch.chdir(tmp_path)  # where there is no data/features to check
    mirror = small.pop("url")
    (tmp_path / "conf" / "sources").mkdir(parents=True)
    (tmp_path / "conf" / "sources" / "local.yaml").write_text(
        yaml.safe_dump({"small": small | {"url": "http://127.0.0.1:1"}}, sort_keys=False)
    )
    (tmp_path / "data" / TRAIN).parent.mkdir(parents=True)
    (tmp_path / "data" / TRAIN).write_bytes(server.files["charades_train.json"])
    command = (
        f"hydra.searchpath=[file://{tmp_path / 'conf'}]",
        "data=charades_cd",
        "download=true",
        "sources=local",
        "network.retries=0",
        "paths.annotations=data",
    )
    assert vmr("doctor", *command) == 2
    refused = "127.0.0.1:1/charades_val.json: the connection was refused (attempts: 1)."
    assert refused in " ".join(capsys.readouterr().err.split())

    assert vmr("doctor", *command, f"sources.small.url={mirror}", "out=out.json") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "licence: CC BY 4.0. terms: https://example.org/terms cite: Someone 2020" in said
    assert "charades_cd (selection: " in said  # doctor went on as usual
    assert there(tmp_path) == sorted(server.files)
    done = json.loads((tmp_path / "out.json").read_text())["download"]
    assert {what: len(paths) for what, paths in done.items()} == {"kept": 1, "fetched": 3, "different": 0}
    assert [name for name, _ in server.requests] == [f"charades_{part}.json" for part in PARTS[1:]]


def test_another_file_in_the_place_is_left_alone_and_reported(doctor: Doctor, tmp_path: Path) -> None:
    mine = tmp_path / "data" / TRAIN
    mine.parent.mkdir(parents=True)
    mine.write_bytes(annotations("mine"))
    code, said = doctor()
    assert code == 1
    assert mine.read_bytes() == annotations("mine")
    found, expected = (hashlib.sha256(annotations(name)).hexdigest() for name in ("mine", "train"))
    assert f"found SHA-256 {found}" in said
    assert f"expected {expected}" in said
    assert "delete or move it" in said
    assert len(there(tmp_path)) == 4


@pytest.mark.parametrize("way", ["half", "no length"])
def test_a_broken_download_goes_on_where_it_stopped(doctor: Doctor, server: Server, way: str) -> None:
    server.ways["charades_train.json"] = [way]
    assert doctor()[0] == 0
    assert server.requests[0] == ("charades_train.json", None)
    assert 0 < offset(server.requests[1]) <= len(server.files["charades_train.json"]) // 2


def test_a_server_without_ranges_sends_it_all_again(doctor: Doctor, server: Server, tmp_path: Path) -> None:
    server.ways["charades_train.json"] = ["half", "no ranges"]
    assert doctor()[0] == 0
    assert (tmp_path / "data" / TRAIN).read_bytes() == server.files["charades_train.json"]


def test_what_always_breaks_off_is_kept_for_the_next_call(
    doctor: Doctor, server: Server, tmp_path: Path
) -> None:
    server.ways["charades_train.json"] = ["half", "503", "503"]
    code, said = doctor()
    assert code == 2
    [name] = there(tmp_path)
    assert name.endswith(".part")
    kept = (tmp_path / "data" / "charades_cd" / name).stat().st_size
    assert f"(attempts: 3). {kept:,} of {len(server.files['charades_train.json']):,} bytes are kept" in said
    server.requests.clear()
    assert doctor()[0] == 0
    assert offset(server.requests[0]) == kept > 0
    assert there(tmp_path) == sorted(server.files)


def test_a_part_of_another_file_is_thrown_away(doctor: Doctor, server: Server, tmp_path: Path) -> None:
    server.ways["charades_train.json"] = ["half", "503", "503"]
    assert doctor()[0] == 2
    [part] = (tmp_path / "data" / "charades_cd").iterdir()
    part.write_bytes(b"x" * 100)
    assert doctor()[0] == 0
    assert (tmp_path / "data" / TRAIN).read_bytes() == server.files["charades_train.json"]


def test_an_overloaded_server_is_retried(doctor: Doctor, server: Server) -> None:
    server.ways["charades_train.json"] = ["503", "503"]
    assert doctor()[0] == 0
    assert [name for name, _ in server.requests].count("charades_train.json") == 3


def test_a_server_says_how_long_to_wait(
    doctor: Doctor, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr("urllib3.util.retry.time.sleep", waits.append)
    server.ways["charades_train.json"] = ["503"]
    server.retry_after = "7"
    assert doctor()[0] == 0
    assert waits == [7]


@pytest.mark.parametrize(
    ("cause", "reason"),
    [
        (NameResolutionError("h", None, socket.gaierror()), "name could not be resolved"),
        (OSError(errno.ENETUNREACH, "in another language"), "network is unreachable"),
        (ReadTimeoutError(None, "/refused", ""), "did not respond in time"),
        (OSError(errno.ECONNRESET, "refused"), "broke off"),
    ],
)
def test_the_reason_of_a_broken_connection_is_its_type(cause: Exception, reason: str) -> None:
    with pytest.raises(requests.ConnectionError) as caught:
        raise requests.ConnectionError(cause) from cause
    assert reason in _reason(caught.value)


@pytest.mark.parametrize(
    ("way", "message"),
    [
        ("404", "the server answered 404 Not Found, expected the file"),
        ("page", "expected the file, found a web page"),
        ("disguised page", "expected the file, found a web page"),
        ("longer", "wrong length, expected {size:,} bytes, found {longer:,}"),
        ("other", "Expected SHA-256 {sha256}, found {other}"),
    ],
)
def test_what_another_try_would_not_fix(
    doctor: Doctor, server: Server, tmp_path: Path, way: str, message: str
) -> None:
    server.ways["charades_train.json"] = [way]
    body = server.files["charades_train.json"]
    sums = {"sha256": hashlib.sha256(body).hexdigest(), "other": hashlib.sha256(body[::-1]).hexdigest()}
    code, said = doctor()
    assert code == 2
    assert f"http://127.0.0.1:{server.server_port}/folder/charades_train.json: " in said
    assert message.format(size=len(body), longer=len(body) + 2, **sums) in said
    assert f"fetch it by hand (https://example.org/authors) and put it at {tmp_path / 'data' / TRAIN}" in said
    assert "sources.small.url=" in said
    assert there(tmp_path) == []
    assert len(server.requests) == 1


def test_a_licence_is_agreed_to_before_anything_is_requested(doctor: Doctor, server: Server) -> None:
    code, said = doctor(must_accept=True)
    assert code == 2
    assert "Nothing was fetched. Read https://example.org/terms" in said
    assert "add accept_licence=true" in said
    assert server.requests == []
    assert doctor(accept_licence=True, must_accept=True)[0] == 0
    assert doctor(must_accept=True)[0] == 0  # nothing is missing, nothing to agree to


def test_members_of_an_archive_go_to_their_places_alone(
    doctor: Doctor, server: Server, tmp_path: Path
) -> None:
    packed = tmp_path / "packed.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("../../evil.txt", "evil")
        for name, body in server.files.items():
            archive.writestr(f"../../Inner/{name}", body)
    server.files["All.zip"] = body = packed.read_bytes()
    known = {"size": len(body), "sha256": hashlib.sha256(body).hexdigest()}
    url = f"http://127.0.0.1:{server.server_port}/All.zip"
    assert doctor(url=url, archive=known)[0] == 0
    assert there(tmp_path) == [f"charades_{part}.json" for part in sorted(PARTS)]
    assert not list(tmp_path.parent.rglob("evil.txt"))
    assert server.requests == [("All.zip", None)]


def test_a_file_without_a_known_checksum_is_recorded_and_then_compared(
    small: dict[str, Any],
    server: Server,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    facts = {key: value for key, value in small.items() if key != "_target_"} | {"files": {TRAIN: None}}
    source, place = AnnotationSource(**facts), tmp_path / TRAIN

    def fetch() -> DownloadResult:
        network = DownloadSettings(timeout=5, retries=0)
        return download(["charades_cd"], {"small": source}, tmp_path, network, False, Console(width=200))

    assert fetch().fetched == [TRAIN]
    assert "no checksum of charades_train.json is known, so it was not verified" in capsys.readouterr().out
    assert fetch().kept == [TRAIN]
    body = place.read_bytes()
    place.write_bytes(body + b" ")
    assert fetch().different == [TRAIN]
    place.unlink()
    server.files["charades_train.json"] = body[::-1]
    with pytest.raises(VmrError, match="checksum does not match"):
        fetch()
    monkeypatch.setattr(Path, "replace", full)
    server.files["charades_train.json"] = body
    with pytest.raises(WriteError, match=f"Cannot write {tmp_path}: No space left"):
        fetch()


def test_a_download_that_waited_for_another_one_requests_nothing(
    doctor: Doctor, server: Server, overtaken: Callable[[Any, Callable[[], object]], None]
) -> None:
    def other() -> None:
        assert doctor()[0] == 0
        server.requests.clear()

    overtaken(annotations_download, other)
    code, said = doctor()
    assert (code, server.requests) == (0, [])
    assert "All 4 files exist, as published." in said


def test_generated_data_has_nothing_to_fetch(doctor: Doctor, server: Server) -> None:
    code, said = doctor(read_by=["other"])
    assert code == 2  # the annotations are still missing
    assert "no published annotation files to fetch" in said
    assert "No annotation file" in said


def published() -> dict[str, Any]:
    if not ROOT.is_dir():
        pytest.skip("needs the published annotations in ../shared/data")
    return yaml.safe_load((config_dir() / "sources" / "published.yaml").read_text())


def test_published_sizes_and_checksums() -> None:
    for source in published().values():
        for path, known in source["files"].items():
            if known is None:  # nobody has seen the file
                continue
            body = (ROOT / path).read_bytes()
            assert known == {"size": len(body), "sha256": hashlib.sha256(body).hexdigest()}, path


@pytest.mark.parametrize(
    "read",
    [
        pytest.param(read, marks=[] if read.__name__ == "charades_sta" else pytest.mark.slow)
        for read in PUBLISHED_PROTOCOLS
        if not read.__name__.startswith("timelens")
    ],
)
def test_a_protocol_reads_no_more_than_what_is_fetched_for_it(
    read: Callable[[Path], Protocol], tmp_path: Path
) -> None:
    for source in published().values():
        for path in source["files"] if read.__name__ in source["read_by"] else ():
            (tmp_path / path).parent.mkdir(exist_ok=True)
            (tmp_path / path).symlink_to(ROOT / path)
    assert read(tmp_path).train.sentences > 5000
