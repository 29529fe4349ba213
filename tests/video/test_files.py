from __future__ import annotations

import os
from pathlib import Path

import pytest

from vmr_zoo.errors import VmrError
from vmr_zoo.video.files import find_videos, shard


@pytest.fixture
def folder(tmp_path):
    for name in ("b.mp4", "a.MKV", "sub/c.webm", "notes.txt", ".hidden.mp4", "picture.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def test_folders_globs_lists_and_files_are_found_by_id(folder):
    assert list(find_videos(folder)) == ["a", "b", "c"]
    assert find_videos(str(folder / "**/*.webm")) == {"c": folder / "sub/c.webm"}
    listed = folder / "list.txt"
    listed.write_text("b.mp4\n\nsub/c.webm\ngone.mp4\n")
    assert list(find_videos(listed)) == ["b", "c", "gone"]
    # A file that is listed twice occurs once.
    assert list(find_videos([folder / "b.mp4", listed, folder / "picture.png"])) == [
        "b",
        "c",
        "gone",
        "picture",
    ]


def test_two_files_with_one_id_and_nothing_at_all_are_refused(folder):
    with pytest.raises(VmrError, match=r"Found no video for videos=.*nowhere"):
        find_videos([folder, folder / "nowhere"])
    (folder / "sub/b.avi").touch()
    with pytest.raises(VmrError, match="video id 'b'"):
        find_videos(folder)


def test_shards_are_everything_once():
    items = list("abcdefg")
    parts = [shard(items, f"{i}/3") for i in (1, 2, 3)]
    assert sorted(parts[0] + parts[1] + parts[2]) == items
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    for text in ("0/3", "4/3", "1", "1/0", "a/b"):
        with pytest.raises(VmrError, match="shard=i/n"):
            shard(items, text)


def test_names_are_meant_as_typed_and_links_are_followed_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a [1080p]/x [id].mp4", "~nobody.mp4", "[list].mp4", "a [1080p]/~y.mkv"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).touch()
    assert list(find_videos("a [1080p]/*.mp4")) == ["x [id]"]
    assert list(find_videos("a*/x [id].mp4")) == ["x [id]"]  # they match nothing as a glob
    assert list(find_videos("a [1080p]/[~]*.mkv")) == ["~y"]
    assert list(find_videos(["~nobody.mp4", "[list].mp4"])) == ["[list]", "~nobody"]
    Path("a [1080p]/loop").symlink_to(tmp_path / "a [1080p]")
    Path("links").mkdir()
    Path("links/there").symlink_to(tmp_path / "a [1080p]")
    assert list(find_videos("links")) == ["x [id]", "~y"]
    Path("list.txt").write_bytes("\ufeff[list].mp4\r\n".encode())
    assert find_videos("list.txt") == {"[list]": Path("[list].mp4")}
    Path("list.txt").write_bytes(b"caf\xe9.mp4\n")
    os.mkfifo("pipe.txt")
    for name, message in {
        "list.txt": "text file in UTF-8",
        "pipe.txt": "a pipe",
        "~no/x": "Found no",
    }.items():
        with pytest.raises(VmrError, match=message):
            find_videos(name)
