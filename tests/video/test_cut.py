"""Clips: the right pictures and sound for the right time, and no file after a failure."""

from __future__ import annotations

import av
import numpy as np
import pytest

from video.films import changed, film, matrix, picture, seconds
from vmr_zoo.cli.predict_clips import clip_paths, write_clips
from vmr_zoo.engine.retriever import Moment
from vmr_zoo.engine.video_search import FoundMoment
from vmr_zoo.errors import VmrError
from vmr_zoo.video import cut as module
from vmr_zoo.video.container import open_video
from vmr_zoo.video.cut import cut
from vmr_zoo.video.decode import VideoError, decoded, timeline


def shown(path):
    """Returns start and grey of each picture; the grey counts them."""
    with open_video(path) as opened:
        return [
            (start, float(frame.to_ndarray(format="gray")[-1, -1]))
            for start, _, frame in decoded(path, opened)
        ]


def grey(number):
    return float(picture(number).to_ndarray(format="gray")[-1, -1])


def is_cut_right(path, times, start, end, out):
    """Compares a clip with the pictures that are shown between two times."""
    assert cut(path, start, end, out)
    first = max(number for number, time in enumerate(times) if time <= start)
    expected = [number for number in range(first, len(times)) if times[number] < end]
    found = shown(out)
    assert [time for time, _ in found] == pytest.approx(
        [max(0, times[n] - start) for n in expected], abs=1e-3
    )
    assert [value for _, value in found] == pytest.approx([grey(number) for number in expected], abs=5)
    assert timeline(out).seconds == pytest.approx(end - start, abs=1e-3)


def test_a_clip_starts_and_ends_at_the_exact_time(tmp_path):
    steady = film(tmp_path / "steady.mp4", seconds(6))
    for start, end in ((0, 1), (2.06, 4.31), (5.5, 6)):
        is_cut_right(steady, seconds(6), start, end, tmp_path / "clip.mp4")
    varying = [0, 0.1, 0.2, 1.5, 1.6, 3, 3.03, 3.06, 5]
    for name in ("varying.mkv", "varying.mp4"):
        is_cut_right(film(tmp_path / name, varying), varying, 1.0, 3.05, tmp_path / "clip.mp4")


def test_where_nothing_can_be_sought_the_file_is_read_from_its_start(tmp_path, monkeypatch):
    steady = film(tmp_path / "steady.mp4", seconds(6))
    monkeypatch.setattr(module, "_sought", lambda *_: iter(()))
    is_cut_right(steady, seconds(6), 2.06, 4.31, tmp_path / "clip.mp4")


def with_tone(path, start, end):
    """Writes six seconds of video whose sound is a tone between two times, else silence."""
    silent = film(path.with_name("silent.mp4"), seconds(6))
    with av.open(str(silent)) as source, av.open(str(path), "w") as out:
        copied = out.add_stream_from_template(source.streams.video[0])
        tone = out.add_stream("aac", rate=8000, layout="mono")
        for number in range(6):
            times = number + np.arange(8000, dtype=np.float32) / 8000
            wave = np.sin(2 * np.pi * 440 * times) * ((times >= start) & (times < end))
            frame = av.AudioFrame.from_ndarray(wave[None].astype(np.float32), format="fltp", layout="mono")
            frame.rate, frame.pts = 8000, 8000 * number
            out.mux(tone.encode(frame))
        out.mux(tone.encode())
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = copied
                out.mux(packet)
    return path


def test_sound_goes_with_the_pictures(tmp_path):
    clip = tmp_path / "clip.mp4"
    assert cut(with_tone(tmp_path / "loud.mp4", 2, 3), 1.5, 4, clip)
    with av.open(str(clip)) as opened:
        heard = [
            float(frame.pts * frame.time_base) + place / 8000
            for frame in opened.decode(audio=0)
            for place in np.flatnonzero(np.abs(frame.to_ndarray()[0]) > 0.2)
        ]
    assert (min(heard), max(heard)) == pytest.approx((0.5, 1.5), abs=0.02)


def test_turned_and_odd_pictures(tmp_path):
    turned = changed(film(tmp_path / "turned.mp4"), matrix(0, 1 << 16, -(1 << 16), 0))
    cut(turned, 1, 2, tmp_path / "clip.mp4")
    odd = film(tmp_path / "odd.mkv", codec="ffv1", size=(65, 49))
    cut(odd, 1, 2, tmp_path / "even.mp4")
    sizes = []
    for name in ("clip.mp4", "even.mp4"):
        with av.open(str(tmp_path / name)) as clip:
            sizes.append((clip.streams.video[0].width, clip.streams.video[0].height))
    assert sizes == [(48, 64), (64, 48)]


def test_a_clip_that_cannot_be_is_refused_and_leaves_no_file(tmp_path):
    out = tmp_path / "clips" / "clip.mp4"
    steady = film(tmp_path / "steady.mp4")
    with av.open(str(tmp_path / "sound.mp4"), "w") as target:
        target.add_stream("aac", rate=8000)
        film(tmp_path / "loud.mp4", sound=(0, 4))
        with av.open(str(tmp_path / "loud.mp4")) as source:
            for packet in source.demux(audio=0):
                if packet.dts is not None:
                    packet.stream = target.streams.audio[0]
                    target.mux(packet)
    for path, start, end, kind, message in (
        (steady, 9, 10, VideoError, "ends before"),
        (steady, 2, 2, VmrError, "0 <= start < end"),
        (tmp_path / "sound.mp4", 0, 1, VideoError, "no video stream"),
    ):
        with pytest.raises(kind, match=message):
            cut(path, start, end, out)
    assert not out.parent.exists() or not list(out.parent.iterdir())


def test_a_moment_without_a_picture_has_no_clip_and_costs_no_other_answer(tmp_path):
    video = film(tmp_path / "steady.mp4", seconds(6))
    times = [(2.0, 2.0), (6.0, 6.5), (-0.1, 1.0)]  # no length, after the end, rounded below 0
    found = [[FoundMoment(video, Moment(start, end, 0.5)) for start, end in times]]
    written, notes = write_clips(clip_paths(tmp_path / "clips", ["a star"], found), found)
    assert [path is not None for path in written[0]] == [False, False, True]
    assert [note.partition(".mp4 ")[2][:15] for note in notes] == ["was not written"] * 2
    assert list((tmp_path / "clips").iterdir()) == [written[0][2]]
