"""`vmr fetch` against a local server that speaks the hub's protocol, and misbehaves."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import shutil
import tarfile
import threading
import zipfile
from collections import namedtuple
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
import yaml
from hydra.utils import instantiate
from omegaconf import OmegaConf
from rich.console import Console

from vmr_zoo.config.compose import compose, config_dir
from vmr_zoo.data.features import fetch, unpack
from vmr_zoo.data.features.fetch import Fetched, fetch_features
from vmr_zoo.data.features.published import PublishedFeatures, Repository, choose
from vmr_zoo.errors import VmrError
from vmr_zoo.utils.archives import check_name
from vmr_zoo.utils.download import DownloadSettings
from vmr_zoo.utils.files import WriteError
from vmr_zoo.utils.trees import walk

REPO = "someone/features"
VIDEOS = ("train", "val", "test_iid", "test_ood")
PLACE = {
    "slowfast_features/*.npz": "slowfast_features/{name}",
    "clip_features/*.npz": "clip_features/{name}",
    "clip_text/qid*.npz": "clip_text_features/{name}",
}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        wanted = self.headers.get("Range")
        self.server.requests.append((path, wanted))
        hub = self.server
        root = f"/api/datasets/{REPO}"
        if path.startswith(f"{root}/tree/"):
            return self.answer(json.dumps([hub.entry(name) for name in hub.files]).encode())
        if path.startswith(root):
            asked = path.removeprefix(root).removeprefix("/revision/")
            hub.asked.append(asked)
            return self.answer(
                json.dumps({"id": REPO, "sha": asked or hub.commit, "cardData": {"license": "mit"}}).encode()
            )
        name = path.partition("/resolve/")[2].partition("/")[2]
        body = hub.files[name]
        first = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
        self.answer(body, first, len(body) // 2 if hub.breaks.pop(name, False) else len(body))
        return None

    def answer(self, body: bytes, first: int = 0, last: int | None = None) -> None:
        self.send_response(206 if first else 200)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(len(body) - first))
        self.send_header("Content-Range", f"bytes {first}-{len(body) - 1}/{len(body)}")
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body[first:last])
        self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        pass


class Hub(ThreadingHTTPServer):
    """Attributes: files by path, those to break off at half, commit, revisions requested, requests."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.announced: dict[str, str] = {}
        self.breaks: dict[str, bool] = {}
        self.commit = "a" * 40
        self.asked: list[str] = []
        self.requests: list[tuple[str, str | None]] = []

    def entry(self, name: str) -> dict[str, Any]:
        body = self.files[name]
        sha256 = self.announced.get(name, hashlib.sha256(body).hexdigest())
        plain = {"type": "file", "path": name, "size": len(body), "oid": "b" * 40}
        return (
            plain
            if name == "README.md"
            else plain | {"lfs": {"oid": sha256, "size": len(body), "pointerSize": 130}}
        )

    def fetched(self) -> list[str]:
        return [path.rpartition("/")[2] for path, _ in self.requests if "/resolve/" in path]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with Hub() as running:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{running.server_port}")
        monkeypatch.setenv("HF_TOKEN", "secret")
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        packed = tar(contents())
        third = len(packed) // 3
        running.files = {
            "README.md": b"---\nlicense: mit\n---\n",
            "all.tar.gz.ab": packed[third:],
            "all.tar.gz.aa": packed[:third],
            "other.bin": b"not needed",
        }
        yield running
        running.shutdown()
        thread.join()


def npz(**arrays: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


def contents() -> dict[str, bytes]:
    """Features of four videos of 10 s and their sentences, at 1 s per clip."""
    rng = np.random.default_rng(0)
    files = {"features/notes.txt": b"by somebody"}
    for video in VIDEOS:
        for part, size in (("slowfast", 2304), ("clip", 512)):
            files[f"features/{part}_features/{video}.npz"] = npz(
                features=rng.normal(size=(10, size)).astype("f4")
            )
        files[f"features/clip_text/qid{video}_0.npz"] = npz(last_hidden_state=rng.normal(size=(3, 512)))
    return files


def tar(files: dict[str, bytes], mode: str = "w:gz", **kinds: bytes) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as archive:
        for name, body in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.type = len(body), kinds.get("type", tarfile.REGTYPE)
            entry.linkname = "/etc/passwd" if kinds else ""
            archive.addfile(entry, io.BytesIO(body))
    return stream.getvalue()


def source(**changes: Any) -> PublishedFeatures:
    known = {
        "title": "Small features",
        "features": "slowfast_clip_1s",
        "data": {"charades_cd": []},
        "place": PLACE,
        "licence": "MIT. In short.",
        "terms": "https://example.org/terms",
        "citation": "Someone 2020",
        "repositories": [Repository(REPO, {"all.tar.gz*": None})],
    }
    return PublishedFeatures(**known | changes)


def run(folder: Path, one: PublishedFeatures | None = None, accepted: bool = False) -> Fetched | None:
    network = DownloadSettings(timeout=5, retries=0, backoff=0)
    return fetch_features("small", one or source(), folder, network, accepted, Console(quiet=True))


def names(folder: Path) -> set[str]:
    return {
        str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.name != ".lock"
    }


def placed() -> set[str]:
    return {
        name.removeprefix("features/").replace("clip_text/", "clip_text_features/")
        for name in contents()
        if "npz" in name
    }


KEPT = {"fetched.json", "licence/LICENCE.txt", f"licence/{REPO}/README.md"}


def test_the_command_ends_with_features_that_the_reader_reads(
    vmr: Callable[..., int], hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entry = {"_target_": "vmr_zoo.data.features.published.PublishedFeatures", **source().__dict__}
    entry["repositories"] = [
        {
            "_target_": "vmr_zoo.data.features.published.Repository",
            "name": REPO,
            "files": {"all.tar.gz*": None},
        }
    ]
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"small": entry}))
    (tmp_path / "annotations" / "charades_cd").mkdir(parents=True)
    for video in VIDEOS:
        rows = {video: {"video_duration": 10, "timestamps": [[0, 5]], "sentences": ["a person sits"]}}
        (tmp_path / "annotations" / "charades_cd" / f"charades_{video}.json").write_text(json.dumps(rows))
    out = tmp_path / "my features"
    command = (
        f"catalogue={tmp_path / 'mine.yaml'}",
        "features=slowfast_clip_1s",
        "data=charades_cd",
        f"paths.annotations={tmp_path / 'annotations'}",
        f"out={out}",
    )
    assert vmr("fetch", *command) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "licence: MIT. In short. terms: https://example.org/terms cite: Someone 2020" in said
    assert f"Files in {out}: 12. Their licence is in" in said
    assert "left out: features/notes.txt" in said
    assert "Features slowfast_clip_1s (origin: real): no problem found." in said
    assert "Next: vmr train data=charades_cd features=slowfast_clip_1s paths.annotations=" in said
    assert "secret" not in said
    assert names(out) == placed() | KEPT
    assert "licence declared there: mit" in (out / "licence" / "LICENCE.txt").read_text()
    assert f"commit of {REPO}: {hub.commit}" in (out / "licence" / "LICENCE.txt").read_text()

    hub.requests.clear()
    assert vmr("fetch", *command) == 0
    assert f"Files in {out}: 12, as fetched before." in " ".join(capsys.readouterr().out.split())
    assert hub.requests == []


def test_a_second_call_goes_on_where_the_connection_broke(hub: Hub, tmp_path: Path) -> None:
    hub.breaks["all.tar.gz.ab"] = True
    with pytest.raises(VmrError, match=r"broke off .* bytes are kept in .* The same command goes on"):
        run(tmp_path)
    [part] = tmp_path.rglob("*.part")
    kept = part.stat().st_size
    assert 0 < kept <= len(hub.files["all.tar.gz.ab"]) // 2
    hub.requests.clear()
    done = run(tmp_path)
    assert done is not None
    assert done.files == 12
    assert [request for request in hub.requests if "/resolve/" in request[0]] == [
        (f"/datasets/{REPO}/resolve/{hub.commit}/all.tar.gz.ab", f"bytes={kept}-")
    ]
    assert names(tmp_path) == placed() | KEPT


def test_a_call_that_waited_for_another_one_downloads_nothing(
    hub: Hub, tmp_path: Path, overtaken: Callable[[Any, Callable[[], object]], None]
) -> None:
    def other() -> None:
        run(tmp_path)
        hub.requests.clear()

    overtaken(fetch, other)
    done = run(tmp_path)
    assert done is not None
    assert done.kept
    assert hub.requests == []


@pytest.mark.parametrize(
    "broken",
    [
        "[" * 100_000,
        '{"source": "small", "files": null}',
        '{"source": "small", "files": {"a": {"size": 5}}}',
        '{"source": "small", "files": {"a": {"size": "5", "sha256": "0"}}}',
        '{"source": "small", "placed": {"a": ["b"]}}',
    ],
)
def test_a_damaged_record_is_refused_in_words(tmp_path: Path, broken: str) -> None:
    (tmp_path / "fetched.json").write_text(broken)
    with pytest.raises(VmrError, match=r"fetched.json is not a record of .* Delete it"):
        run(tmp_path)


def test_a_second_call_goes_on_where_unpacking_stopped(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, count = unpack._write, iter(range(99))

    def stop(*args: Any) -> None:
        if next(count) == 5:
            raise KeyboardInterrupt
        write(*args)

    monkeypatch.setattr(unpack, "_write", stop)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    assert len(names(tmp_path) & placed()) == 5
    hub.requests.clear()
    assert run(tmp_path) is not None
    assert hub.fetched() == []
    assert names(tmp_path) == placed() | KEPT


def test_other_bytes_than_announced_are_not_unpacked(hub: Hub, tmp_path: Path) -> None:
    hub.announced["all.tar.gz.ab"] = "0" * 64
    with pytest.raises(VmrError, match=f"checksum does not match.*Expected SHA-256 {'0' * 64}"):
        run(tmp_path)
    assert not names(tmp_path) & placed()
    assert not list(tmp_path.rglob("*.ab*"))


def test_what_the_catalogue_states_is_compared_before_anything_is_downloaded(
    hub: Hub, tmp_path: Path
) -> None:
    stated = {"all.tar.gz.aa": {"size": 5, "sha256": "0" * 64}, "all.tar.gz.ab": None}
    with pytest.raises(VmrError, match=f"expected 5 bytes with {'0' * 64}. Nothing was fetched"):
        run(tmp_path, source(repositories=[Repository(REPO, stated)]))
    assert hub.fetched() == []


def test_a_full_disk_is_seen_before_anything_is_downloaded(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    free = sum(len(hub.files[name]) for name in hub.files) + 1000  # for the download, not for its content
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - free, free))
    with pytest.raises(
        VmrError, match=r"MB free; the download and its content need about .* Nothing was fetched"
    ):
        run(tmp_path)
    assert hub.fetched() == []


def test_a_full_disk_stays_one_while_downloading(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(fetch, "fetch", full)
    with pytest.raises(WriteError):
        run(tmp_path)


def test_content_that_changed_after_its_first_use_is_refused(hub: Hub, tmp_path: Path) -> None:
    run(tmp_path)
    (tmp_path / "clip_features" / "val.npz").unlink()
    first, hub.commit = hub.commit, "c" * 40
    hub.asked.clear()
    packed = tar(contents() | {"features/clip_features/val.npz": b"other"})
    hub.files |= {"all.tar.gz.aa": packed[:1000], "all.tar.gz.ab": packed[1000:]}
    hub.requests.clear()
    with pytest.raises(VmrError, match=r"all.tar.gz.aa has changed since its first use: recorded"):
        run(tmp_path)
    assert hub.asked == [first]  # not what the branch holds now
    assert hub.fetched() == []


def test_a_licence_is_accepted_before_anything_is_requested(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(VmrError, match=r"Nothing was fetched. Read https://example.org/terms"):
        run(tmp_path, source(must_accept=True))
    assert hub.requests == []
    assert run(tmp_path, source(must_accept=True), accepted=True) is not None


def test_an_entry_that_fits_nothing_says_what_there_is(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(
        VmrError, match=r"expects \(all.zip\). Found: all.tar.gz.ab, all.tar.gz.aa, other.bin"
    ):
        run(tmp_path, source(repositories=[Repository(REPO, {"all.zip": None})]))
    with pytest.raises(
        VmrError, match=r"expects \(\*.pt\). Found: features/notes.txt, features/slowfast_features/"
    ):
        run(tmp_path / "place", source(place={"*.pt": "{name}"}))


def test_files_of_a_browser_are_unpacked_and_kept(tmp_path: Path) -> None:
    one = source(
        repositories=[],
        browser={"everything": "https://drive.google.com/x"},
        place=PLACE | {"*.hdf5": "c3d.hdf5"},
    )
    assert run(tmp_path, one) is None
    downloads = tmp_path / "downloads"
    downloads.mkdir()
    with zipfile.ZipFile(downloads / "x.zip", "w") as archive:
        for name, body in contents().items():
            archive.writestr(name, body)
    (downloads / "c3d_v0.hdf5_ab").write_bytes(b"second")
    (downloads / "c3d_v0.hdf5_aa").write_bytes(b"first ")
    (downloads / "y.zip.crdownload").write_bytes(b"unfinished")
    assert run(tmp_path, one) == Fetched(13, left_out=["features/notes.txt"])
    assert (tmp_path / "c3d.hdf5").read_bytes() == b"first second"
    assert {path.name for path in downloads.iterdir()} == {
        "x.zip",
        "c3d_v0.hdf5_ab",
        "c3d_v0.hdf5_aa",
        "y.zip.crdownload",
    }


GOOD = "clip_features/a.npz"


@pytest.mark.parametrize(
    ("name", "body", "message"),
    [
        (
            "x.tar",
            tar({GOOD: b"1", "../../clip_features/evil.npz": b"2"}, "w"),
            r"\.\./\.\./clip_features/evil.npz.*no path below",
        ),
        ("x.tar", tar({"/tmp/clip_features/evil.npz": b"2"}, "w"), "no path below its own folder"),
        ("x.tar", tar({GOOD: b""}, "w", type=tarfile.SYMTYPE), "a link, a device or a sparse file"),
        ("x.tar", tar({GOOD: b""}, "w", type=tarfile.FIFOTYPE), "a link, a device or a sparse file"),
        (
            "x.tar.gz",
            tar({f"a/{GOOD}": b"1", f"b/{GOOD}": b"2"}),
            "another file that also goes to clip_features/a.npz",
        ),
        ("x.tar.gz", tar({GOOD: bytes(10**6)}), "declares more than 20 times its own size"),
        ("x.tar.gz", tar(contents())[:-5000], "cut off, damaged or no archive"),
        ("x.zip", b"no archive", "cut off, damaged or no archive"),
    ],
)
def test_what_no_honest_archive_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, body: bytes, message: str
) -> None:
    monkeypatch.setattr(unpack, "_SLACK", 0)
    archive, out = tmp_path / "in" / name, tmp_path / "in" / "out" / "features"
    out.mkdir(parents=True)
    archive.write_bytes(body)
    with pytest.raises(VmrError, match=message):
        unpack.place_content(name, [archive], source(), out, [], lambda size: None, may_move=False)
    assert not list(tmp_path.rglob("evil.npz"))
    assert not [path for path in out.rglob("*") if path.is_symlink() or path.name.startswith(".tmp")]


def test_a_file_that_is_there_is_compared_and_never_changed(hub: Hub, tmp_path: Path) -> None:
    mine = tmp_path / "clip_features" / "val.npz"
    mine.parent.mkdir()
    mine.write_bytes(b"mine")
    with pytest.raises(VmrError, match=r"val.npz differs from the published file and was not changed"):
        run(tmp_path)
    assert mine.read_bytes() == b"mine"


def catalogue() -> dict[str, Any]:
    folder = config_dir() / "published"
    return {
        name: entry
        for file in ("hub", "browser")
        for name, entry in yaml.safe_load((folder / f"{file}.yaml").read_text()).items()
    }


def test_the_catalogue_names_what_exists_and_claims_nothing() -> None:
    for name, entry in catalogue().items():
        assert (config_dir() / "features" / f"{entry['features']}.yaml").is_file(), name
        for data in entry["data"]:
            assert (config_dir() / "data" / f"{data}.yaml").is_file(), (name, data)
        for target in entry["place"].values():
            check_name(target, name)
        assert not entry.get("verified", False), f"{name}: who has fetched it? Say so in docs/features.md."
        assert bool(entry.get("repositories")) != bool(entry.get("browser")), name
        for repository in entry.get("repositories", ()):
            assert len(repository.get("revision", "0" * 40)) == 40
        for facts in entry.get("links", {}).values():
            assert len(facts["sha256"]) == 64


def test_an_entry_is_chosen_by_features_and_data() -> None:
    sources = {
        "far": source(browser={"x": "https://box.com"}),
        "near": source(),
        "other": source(features="i3d"),
    }
    assert choose(sources, "slowfast_clip_1s", "charades_cd", None) == ["near", "far"]
    assert choose(sources, None, None, "far") == ["far"]
    with pytest.raises(VmrError, match=r"Unknown published features 'i3dd'. Did you mean i3d"):
        choose(sources, "i3dd", None, None)
    with pytest.raises(VmrError, match="Unknown data set of these features 'tacos'"):
        choose(sources, "i3d", "tacos", None)


@pytest.mark.slow
def test_every_entry_puts_files_where_its_features_read_them() -> None:
    for name, entry in instantiate(catalogue(), _convert_="all").items():
        data = next(iter(entry.data))
        chosen = [f"data={data}", f"features={entry.features}", *entry.overrides(data)]
        features = compose("doctor", [*chosen, "paths.features=F"]).features
        parts = {part: OmegaConf.to_container(features[part], resolve=True) for part in ("video", "query")}
        values = [value for _, value in walk(parts)]
        index = parts["query"].get("index", [])
        read = {str(value).removeprefix("F/") for value in (*values, *index) if str(value).startswith("F/")}
        read |= {"{name}" for value in values if value == "F"}  # files directly in the folder
        folders = {target.removesuffix("/{name}") for target in entry.place.values()} - {"index"}
        known = {f"index/{file}" for file in entry.links}
        if "*.jsonl" in entry.place:  # the publisher's own index
            known |= {path for path in read if path.startswith("index/")}
        assert read
        assert read <= folders | known, name
