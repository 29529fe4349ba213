from __future__ import annotations

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
