from __future__ import annotations

import math
from fractions import Fraction
from types import SimpleNamespace

import av
import numpy as np
import pytest

from vmr_zoo.video.clock import Clock
from vmr_zoo.video.decode import VideoError, sample, timeline


def render(path, times, length, codec="libx264", start=0.0, sound=False):
    """Writes frames at the given times, the last until `length`; their brightness counts them up to 24."""
    base = Fraction(1, 1000)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=30, time_base=base)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.time_base = base
        if codec == "libx264":
            stream.options = {"bf": "0", "preset": "ultrafast"}
        tone = container.add_stream("aac", rate=8000) if sound else None
        packets = []
        for number, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(
                np.full((48, 64, 3), 10 + 10 * (number % 24), np.uint8), format="rgb24"
            )
            frame.pts, frame.time_base = round((start + time) * 1000), base
            packets += stream.encode(frame)
        packets += stream.encode()
        for packet, until in zip(packets, [*times[1:], length], strict=True):
            packet.duration = round((start + until) * 1000) - packet.pts
            container.mux(packet)
        if tone is not None:
            silence(container, tone, length + 1)
    return path


def silence(container, stream, seconds):
    for number in range(math.ceil(seconds * 8)):
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1000), np.float32), format="fltp", layout="mono")
        frame.rate, frame.pts = 8000, 1000 * number
        container.mux(stream.encode(frame))
    container.mux(stream.encode())


def shown(path, seconds):
    """The numbers of the frames that are sampled."""
    return [round((frame.to_ndarray(format="rgb24").mean() - 10) / 10) for frame in sample(path, seconds)]


@pytest.mark.parametrize(
    ("suffix", "codec"), [("mp4", "libx264"), ("webm", "libvpx-vp9"), ("mkv", "libx264")]
)
def test_the_kth_sample_is_what_is_shown_in_the_middle_of_its_stretch(tmp_path, suffix, codec):
    steady = render(tmp_path / f"steady.{suffix}", np.arange(16) / 4, 4.0, codec)
    assert shown(steady, 1.0) == [2, 6, 10, 14]  # at 0.5, 1.5, …: the frame that begins there
    assert shown(steady, 0.25) == list(range(16))
    assert shown(steady, 0.125)[:4] == [0, 0, 1, 1]
    assert timeline(steady).seconds == pytest.approx(4.0, abs=0.03)
    # Frames at odd times: 0 for half a second, 1 and 2 at once, then 3 for two and a half seconds.
    odd = render(tmp_path / f"odd.{suffix}", [0, 0.6, 0.7, 1.5], 4.0, codec)
    assert shown(odd, 1.0)[:3] == [0, 3, 3]
    assert shown(odd, 0.5)[:4] == [0, 2, 2, 3]


def test_times_count_from_the_first_frame_and_sound_does_not_lengthen_a_video(tmp_path):
    late = render(tmp_path / "late.mkv", np.arange(12) / 4, 3.0, start=3600.0, sound=True)
    assert shown(late, 1.0) == [2, 6, 10]
    assert timeline(late).seconds == pytest.approx(3.0, abs=0.3)


def test_stamps_that_lack_repeat_or_restart():
    """As decoders give them for damaged files, 1 s per frame."""

    def read(*frames):
        clock = Clock("v", SimpleNamespace(average_rate=None))
        made = {
            name: SimpleNamespace(
                pts=pts,
                dts=None,
                duration=1,
                time_base=Fraction(1),
                rotation=0,
                width=8,
                height=8,
                is_corrupt=False,
            )
            for name, pts in frames
        }
        starts = {name: times[0] for name, frame in made.items() if (times := clock.times(frame))}
        return starts, set(clock.notes)

    assert read(("a", 7), ("b", None), ("c", 9)) == ({"a": 0, "b": 1, "c": 2}, {"no time stamps"})
    assert read(("a", None), ("b", None)) == ({"a": 0, "b": 1}, {"no time stamps"})
    # A repeated stamp is left out.
    assert read(("a", 0), ("b", 1), ("x", 1), ("c", 2)) == ({"a": 0, "b": 1, "c": 2}, set())
    restarted = read(("a", 10), ("b", 11), ("c", 0), ("d", 1))
    assert restarted == ({"a": 0, "b": 1, "c": 2, "d": 3}, {"clock reset"})
    with pytest.raises(VideoError, match="leaps by 700 s"):
        read(("a", 0), ("b", 1), ("c", 701))


def test_files_that_are_no_videos_are_told_apart(tmp_path):
    (tmp_path / "zero.mp4").touch()
    (tmp_path / "text.mp4").write_text("This is a text.\n" * 100)
    (tmp_path / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(9999))
    whole = render(tmp_path / "whole.mp4", np.arange(300) / 30, 10.0).read_bytes()
    (tmp_path / "half.mp4").write_bytes(whole[: len(whole) // 2])
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        silence(container, container.add_stream("aac", rate=8000), 2)
    kinds = {
        "missing.mp4": "missing",
        "zero.mp4": "empty",
        "text.mp4": "corrupt",
        "noise.mp4": "corrupt",
        "half.mp4": "corrupt",
        "sound.mp4": "no video stream",
    }
    for name, kind in kinds.items():
        for read in (lambda path: list(sample(path, 1.0)), timeline):
            with pytest.raises(VideoError, match=name) as error:
                read(tmp_path / name)
            assert error.value.kind == kind, name
    with pytest.raises(VideoError, match="expected at least 15 s") as error:
        list(sample(tmp_path / "whole.mp4", 30.0))
    assert error.value.kind == "empty"


def test_a_file_cut_off_after_its_index_is_corrupt(tmp_path):
    """The index is at the front (faststart): opening works, and the frames end too early."""
    noise = np.random.default_rng(0)
    path = tmp_path / "v.mp4"
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=10, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(100):
            frame = av.VideoFrame.from_ndarray(noise.integers(0, 255, (48, 64, 3), np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    assert len(list(sample(path, 1.0))) == 10
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(VideoError) as error:
        list(sample(path, 1.0))
    assert error.value.kind == "corrupt"
