from __future__ import annotations

import errno
import os
import pickle
import subprocess
import sys
import threading
import time

import pytest

import toy
from vmr_zoo.cli.explain import exit_code, explain
from vmr_zoo.errors import VmrError
from vmr_zoo.utils import files
from vmr_zoo.utils.files import (
    _is_running,
    _processes,
    _remove_leftovers,
    append_row,
    atomic_path,
    atomic_write,
    lock_folder,
    read_appended,
)

PARALLEL = """
import os, sys, time
from pathlib import Path
from vmr_zoo.utils.parallel import in_parallel

def work(folder):
    Path(folder, str(os.getpid())).touch()
    time.sleep(60)

list(in_parallel(work, [sys.argv[1]] * 2, "sleeping", 2))
"""
KILLED = """
import os, signal, sys
from vmr_zoo.utils.files import atomic_path
with atomic_path(sys.argv[1]) as path:
    path.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_left_is_removed_by_the_next_one(tmp_path):
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "v.npz")], check=False)
    (left,) = tmp_path.iterdir()
    assert left.suffix == ".npz"
    _remove_leftovers.cache_clear()
    with atomic_path(tmp_path / "other.txt") as mine:  # one that is being written stays
        assert not left.exists()
        mine.write_text("")
        _remove_leftovers.cache_clear()
        atomic_write(tmp_path / "third.txt", "")
        assert mine.exists()
        # Of another machine: kept for a day.
        theirs = tmp_path / ".tmp-00000000-1-00000000.txt"
        theirs.touch()
        _remove_leftovers.cache_clear()
        atomic_write(tmp_path / "third.txt", "")
        assert theirs.exists()
        os.utime(theirs, (0, 0))
        _remove_leftovers.cache_clear()
        atomic_write(tmp_path / "third.txt", "")
    assert {path.name for path in tmp_path.iterdir()} == {"other.txt", "third.txt"}


def test_a_container_of_the_same_name_has_other_processes(monkeypatch):
    here = _processes()
    monkeypatch.setattr(os, "readlink", lambda _: "pid:[1]")
    assert _processes() != here


def test_workers_end_with_a_killed_parent(tmp_path):
    parent = subprocess.Popen([sys.executable, "-c", PARALLEL, str(tmp_path)])
    _wait(lambda: len(list(tmp_path.iterdir())) == 2)
    workers = [int(path.name) for path in tmp_path.iterdir()]
    parent.kill()
    parent.wait()
    _wait(lambda: not any(_is_running(pid) for pid in workers))


def _wait(condition):
    end = time.monotonic() + 50
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("number", "advice"),
    [(errno.ENOSPC, "Free some space"), (errno.EROFS, "may write to"), (errno.ENAMETOOLONG, "another place")],
)
def test_a_file_that_cannot_be_written_is_one_message_also_of_another_process(tmp_path, number, advice):
    with (
        pytest.raises(VmrError, match=rf"Cannot write .*a\.txt: .*{advice}") as caught,
        atomic_path(tmp_path / "a.txt"),
    ):
        raise OSError(number, os.strerror(number))
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    assert caught.value.errno == number
    assert not list(tmp_path.iterdir())
    with pytest.raises(ConnectionRefusedError), atomic_path(tmp_path / "a.txt"):  # of a download
        raise ConnectionRefusedError(errno.ECONNREFUSED, "refused")


def test_a_source_that_cannot_be_read_is_not_called_the_target(tmp_path):
    source = tmp_path / "in" / "a.npz"
    with pytest.raises(PermissionError) as caught, atomic_path(tmp_path / "out" / "b.txt"):
        raise OSError(errno.EACCES, "denied", str(source))
    assert not isinstance(caught.value, VmrError)
    with pytest.raises(VmrError, match="files that it is made from"), atomic_path(tmp_path / "b.txt"):
        raise OSError(errno.EIO, "no name: reading or writing")


def test_a_source_that_may_not_be_read_is_one_message():
    refused = PermissionError(errno.EACCES, "Permission denied", "/data/a.npy")
    assert explain(refused, "train", []) == (
        "Cannot read /data/a.npy: permission denied. Allow it, or name another file."
    )


@pytest.mark.parametrize("exists", [True, False])
def test_a_folder_that_may_not_be_written_is_called_so(tmp_path, exists):
    path = tmp_path / "a.csv"
    if exists:
        path.touch()
    refused = PermissionError(errno.EACCES, "Permission denied", str(path))
    assert explain(refused, "train", []) == (
        f"Cannot write {path}: Permission denied. Choose a place that you may write to."
    )
    assert exit_code(refused) == 3


def test_a_file_where_runs_should_go_is_one_message(vmr, tmp_path, capsys):
    (tmp_path / "file").touch()
    for place in ("file", "file/below"):
        assert vmr(
            "train", toy.SEARCH, "data=toy", f"paths.runs={tmp_path / place}", "method=predict_all"
        ) in (2, 3)
        assert str(tmp_path / "file") in capsys.readouterr().err


def test_names_of_the_greatest_length_and_folders_that_are_files(tmp_path):
    atomic_write(tmp_path / ("x" * 251 + ".npz"), "")
    with pytest.raises(VmrError, match="File name too long"):
        atomic_write(tmp_path / ("x" * 252 + ".npz"), "")
    (tmp_path / "file").touch()
    for write in (atomic_write, append_row):
        with pytest.raises(VmrError, match="Cannot write"):
            write(tmp_path / "file" / "a.txt", "")


def test_who_waits_for_a_folder_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(files, "_SOON", 0.01)
    with lock_folder(tmp_path):
        waiting = threading.Thread(target=lambda: lock_folder(tmp_path).__enter__())
        waiting.start()
        _wait(lambda: "Waiting for another" in capsys.readouterr().err)
    waiting.join()


def test_a_folder_that_cannot_be_locked_is_one_message(tmp_path, monkeypatch):
    def refused(*_, **__):
        raise PermissionError(errno.EACCES, "denied", str(tmp_path / ".lock"))

    (tmp_path / "file").touch()
    with pytest.raises(VmrError, match="Cannot write"), lock_folder(tmp_path / "file" / "a"):
        pass
    monkeypatch.setattr(files.FileLock, "acquire", refused)
    with pytest.raises(VmrError, match="that you may write to"), lock_folder(tmp_path):
        pass


def test_a_row_after_an_incomplete_one_is_read(tmp_path):
    path, rows = tmp_path / "rows.jsonl", [["a", "一 \u2028 \x85"], {"b": 1}]
    assert read_appended(path) == []
    append_row(path, rows[0])
    append_row(path, ["一"])
    path.write_bytes(path.read_bytes()[:-5])  # killed within a character
    append_row(path, rows[1])
    assert read_appended(path) == rows
