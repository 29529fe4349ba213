"""Videos that are not what they declare: read by what is decoded, with a note, or refused with a reason."""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from av.stream import Disposition
from films import (
    DAY,
    changed,
    declare,
    film,
    matrix,
    packets_from,
    part,
    seconds,
    several,
)
from PIL import Image

from vmr_zoo.video.container import check_file
from vmr_zoo.video.decode import VideoError, sample, timeline

ONE = 1 << 16
FRAGMENTS = {"movflags": "frag_keyframe+empty_moov"}
Make = Callable[[Path], Path]


def joined(*pieces: Callable[[Path], Path]) -> Make:
    """Returns a maker of a file that consists of others, one after the other."""

    def make(path: Path) -> Path:
        parts = [piece(path.with_stem(f"part{number}")) for number, piece in enumerate(pieces)]
        path.write_bytes(b"".join(one.read_bytes() for one in parts))
        return path

    return make


# name: how to make it, length in seconds, kinds of notes
READ: dict[str, tuple[Make, float, set[str]]] = {
    "steady.mp4": (film, 4, set()),
    "b_frames.mp4": (lambda p: film(p, options={"bf": "3"}), 4, set()),
    "fragments.mp4": (
        lambda p: film(p, container_options={"movflags": "frag_keyframe+empty_moov"}),
        4,
        set(),
    ),
    "vp9.webm": (lambda p: film(p, codec="libvpx-vp9"), 4, set()),
    "old.wmv": (lambda p: film(p, codec="wmv2"), 4, set()),
    "old.flv": (lambda p: film(p, codec="flv1"), 4, set()),
    "old.mpg": (lambda p: film(p, codec="mpeg2video"), 4, set()),
    "clock_from_an_hour.mkv": (lambda p: film(p, [3600 + t for t in seconds(4)]), 4, set()),
    "raw.h264": (film, 32 / 25, {"no time stamps"}),
    "declares_a_quarter.mp4": (lambda p: changed(film(p), declare(0.25)), 4, {"declared length"}),
    "screen.mp4": (lambda p: film(p, [0, 0.1, 0.2, 1, 1.1, 2, 4]), 4.125, {"variable frame rate"}),
    "slides.mp4": (
        lambda p: film(p, [*seconds(2), 22, 22.1]),
        22.225,
        {"variable frame rate", "still picture"},
    ),
    "last_slide.mkv": (lambda p: film(p, last=3.0), 6.875, set()),
    "cut_a_little.mkv": (lambda p: changed(film(p, seconds(20)), part(0, 0.93)), 19.25, {"declared length"}),
    "sound_goes_on.mkv": (lambda p: film(p, seconds(2), sound=(0, 9)), 2, {"sound goes on"}),
    "late.mkv": (
        lambda p: film(p, [3 + t for t in seconds(4)], sound=(0, 7)),
        4,
        {"late first picture"},
    ),
    "late.mp4": (
        lambda p: film(p, [3 + t for t in seconds(4)], sound=(0, 7)),
        4,
        {"late first picture"},
    ),
    "negative_times.mp4": (lambda p: film(p, [t - 1 for t in seconds(4)]), 3, {"edit list"}),
    "amid_a_scene.ts": (
        lambda p: packets_from(film(p.with_stem("whole")), p, 4),
        3,
        {"no key frame at the start"},
    ),
    "amid_a_scene.mkv": (
        lambda p: packets_from(film(p.with_stem("whole")), p, 4),
        3,
        {"no key frame at the start"},
    ),
    "first_tenth_lost.ts": (lambda p: changed(film(p), part(0.1, 1)), 3, {"no key frame at the start"}),
    "clock_reset.ts": (joined(film, film), 8, {"clock reset"}),
    "two_sizes.ts": (
        joined(film, lambda p: film(p, size=(96, 64))),
        8,
        {"clock reset", "size changes"},
    ),
    "preview_first.mkv": (
        lambda p: several(p, [("mjpeg", (32, 24), [0], 0), ("libx264", (64, 48), seconds(4), 0)]),
        4,
        {"several video streams"},
    ),
    "large_poster.mkv": (
        lambda p: several(
            p, [("mjpeg", (640, 480), [0], Disposition.default), ("libx264", (64, 48), seconds(4), 0)]
        ),
        4,
        {"several video streams"},
    ),
    "cover.mp4": (
        lambda p: several(
            p, [("libx264", (64, 48), seconds(4), 0), ("mjpeg", (640, 480), [0], Disposition.attached_pic)]
        ),
        4,
        set(),
    ),
    "two_angles.mkv": (
        lambda p: several(
            p, [("libx264", (32, 32), seconds(2), Disposition.default), ("libx264", (64, 48), seconds(4), 0)]
        ),
        4,
        {"several video streams"},
    ),
    "two_rates.mkv": (
        lambda p: several(p, [("libx264", (64, 48), seconds(4, 1), 0), ("libx264", (64, 48), seconds(4), 0)]),
        4,
        {"several video streams"},
    ),
    "diagonal.mp4": (
        lambda p: changed(film(p), matrix(46341, 46341, -46341, 46341)),
        4,
        {"odd rotation"},
    ),
    "latin_title.mkv": (
        lambda p: changed(film(p, tag="QQQQ"), lambda data: data.replace(b"QQQQ", b"caf\xe9")),
        4,
        set(),
    ),
}


@pytest.mark.parametrize("name", READ)
def test_what_is_decoded_counts_and_what_is_odd_is_noted(name: str, tmp_path: Path) -> None:
    make, length, kinds = READ[name]
    path = make(tmp_path / name)
    found = timeline(path)
    assert found.seconds == pytest.approx(length, abs=0.02)
    assert {note.kind for note in found.notes} == kinds
    assert len(list(sample(path, 0.5))) == round(2 * length)
    assert "64x48" in found.stream or "96x64" in found.stream


def gif(size: int) -> Make:
    """Returns a maker of a file of 50 bytes with one picture of size x size pixels."""
    picture = struct.pack("<HHHH", 0, 0, size, size) + b"\x00\x02\x02\x44\x01\x00;"
    header = b"GIF89a" + struct.pack("<HH", size, size) + b"\x80\x00\x00" + bytes(3) + b"\xff" * 3

    def make(path: Path) -> Path:
        path.write_bytes(header + b"\x21\xf9\x04\x00\x0a\x00\x00\x00\x2c" + picture)
        return path

    return make


def text(content: str) -> Make:
    def make(path: Path) -> Path:
        path.write_text(content)
        return path

    return make


def playlist(entry: str) -> Make:
    return text(f"#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\n{entry}\n#EXT-X-ENDLIST\n")


def of_a_neighbour(make: Callable[[Path], Make]) -> Make:
    """Returns a maker of a list that names a video beside it."""
    return lambda path: make(film(path.with_name("neighbour.mp4")))(path)


def drawn(path: Path) -> Path:
    Image.new("RGB", (64, 48)).save(path, format="PNG")
    return path


def made(make: Callable[[Path], Any]) -> Make:
    def call(path: Path) -> Path:
        make(path)
        return path

    return call


# name: how to make it, kind of the error
REFUSED: dict[str, tuple[Make, str]] = {
    "a_day_later.mkv": (lambda p: film(p, [*seconds(2), DAY]), "leaping clock"),
    "eleven_minutes_later.mp4": (lambda p: film(p, [*seconds(2), 662]), "leaping clock"),
    "lasts_a_day.mkv": (lambda p: film(p, last=DAY), "leaping clock"),
    "lasts_a_day.mp4": (lambda p: film(p, last=DAY), "leaping clock"),
    "cut.mkv": (lambda p: changed(film(p), part(0, 0.66)), "corrupt"),
    "cut_with_sound.mkv": (lambda p: changed(film(p, sound=(0, 4)), part(0, 0.66)), "corrupt"),
    "cut.webm": (lambda p: changed(film(p, codec="libvpx-vp9"), part(0, 0.5)), "corrupt"),
    "cut.flv": (lambda p: changed(film(p, codec="flv1"), part(0, 0.5)), "corrupt"),
    "cut_fragments.mp4": (lambda p: changed(film(p, container_options=FRAGMENTS), part(0, 0.6)), "corrupt"),
    "unknown_codec.mp4": (lambda p: changed(film(p), lambda d: d.replace(b"avc1", b"zzz1")), "corrupt"),
    "cover_only.mp4": (
        lambda p: several(p, [("mjpeg", (640, 480), [0], Disposition.attached_pic)]),
        "no video stream",
    ),
    "sixteen_thousand_squared.gif": (gif(16000), "corrupt"),
    "sixty_thousand_squared.gif": (gif(60000), "corrupt"),
    "one_short_picture.gif": (lambda p: film(p, [0], codec="gif"), "empty"),
    "picture.mp4": (drawn, "corrupt"),
    "playlist.mp4": (of_a_neighbour(lambda other: playlist(str(other))), "corrupt"),
    "address.mp4": (playlist("http://127.0.0.1:9/a.ts"), "corrupt"),
    "list.mp4": (of_a_neighbour(lambda other: text(f"ffconcat version 1.0\nfile {other.name}\n")), "corrupt"),
    "captions.mp4": (text("1\n00:00:00,000 --> 00:00:02,000\nHello\n"), "no video stream"),
    "folder.mp4": (made(Path.mkdir), "no file"),
    "pipe.mp4": (made(os.mkfifo), "no file"),
    "empty.mp4": (made(Path.touch), "empty"),
    "loop.mp4": (made(lambda p: p.symlink_to(p)), "missing"),
    "broken_link.mp4": (made(lambda p: p.symlink_to("nothing")), "missing"),
    "missing.mp4": (lambda p: p, "missing"),
    "x" * 300: (lambda p: p, "missing"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_video_is_refused_at_once_with_a_reason(name: str, tmp_path: Path) -> None:
    make, kind = REFUSED[name]
    path = make(tmp_path / name)
    with pytest.raises(VideoError, match=re.escape(name)) as error:
        list(sample(path, 1.0))
    assert error.value.kind == kind


@pytest.mark.parametrize(
    "name",
    [
        "Day trip [dQw4w9WgXcQ].mp4",
        "12:30 at the lake.mp4",
        "-rf.mp4",
        "100%d.mp4",
        "%03d.mp4",
        "a=b, c.mp4",
        'it\'s "quoted".mp4',
        "spaces  and\ttabs.mp4",
        "two\nlines.mp4",
        "Überfahrt 東京 🎬.mp4",
        "file:concat:a|b.mp4",
        "${oc.env:HOME} null.mp4",
        os.fsdecode(b"latin-1 caf\xe9.mp4"),
        "no_suffix",
    ],
)
def test_any_file_name_is_read(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    film(Path("plain.mp4"), seconds(1)).rename(name)
    for path in (Path(name), tmp_path / name):
        assert timeline(path).seconds == pytest.approx(1)
    os.unlink(name)
    with pytest.raises(VideoError) as error:
        check_file(Path(name))
    str(error.value).encode()  # can be printed


@pytest.mark.parametrize(
    ("turn", "expected"),
    [
        ((0, ONE, -ONE, 0), lambda a: np.rot90(a, -1)),
        ((-ONE, 0, 0, -ONE), lambda a: np.rot90(a, 2)),
        ((0, -ONE, ONE, 0), lambda a: np.rot90(a, 1)),
        ((-ONE, 0, 0, ONE), lambda a: a[:, ::-1]),
        ((ONE, 0, 0, -ONE), lambda a: a[::-1]),
        ((0, ONE, ONE, 0), lambda a: a.swapaxes(0, 1)),
        ((ONE, 0, 0, ONE), lambda a: a),
    ],
)
def test_pictures_are_turned_as_the_display_matrix_says(
    turn: tuple[int, int, int, int], expected: Callable[[Any], Any], tmp_path: Path
) -> None:
    stored, turned = (
        next(iter(sample(path, 1.0))).to_ndarray(format="rgb24")
        for path in (film(tmp_path / "a.mp4"), changed(film(tmp_path / "b.mp4"), matrix(*turn)))
    )
    assert np.array_equal(turned, expected(stored))


def test_a_file_that_changes_is_decoded_again(tmp_path: Path) -> None:
    path = film(tmp_path / "v.mp4")
    assert timeline(path).seconds == 4
    film(path, seconds(2))
    assert timeline(path).seconds == 2
