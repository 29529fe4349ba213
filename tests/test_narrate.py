"""`vmr narrate`: finished videos are skipped, shards are merged, and failures are listed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra.utils import instantiate

from vmr_zoo.config.compose import compose
from vmr_zoo.data.narrations import Narration, manifest_path, read_narrations
from vmr_zoo.engine.narration import narrate
from vmr_zoo.errors import VmrError
from vmr_zoo.narrators import Narrated, Narrator
from vmr_zoo.video.decode import Note, Timeline, VideoError

VIDEOS = {f"v{number}": Path(f"v{number}.mp4") for number in range(5)}
TINY = [
    "data=shapes",
    "narrator=shapes",
    "data.protocol.processes=1",
    *(
        f"data.protocol.world.{key}={value}"
        for key, value in {
            "train_videos": 2,
            "selection_videos": 1,
            "test_videos": 1,
            "fps": 4,
            "height": 48,
        }.items()
    ),
]


class Scripted(Narrator):
    """Returns scripted narrations and records the requested videos."""

    timeline: Timeline | None = None

    def __init__(self, prompt: str = "what?", broken: Iterable[str] = (), mute: Iterable[str] = ()) -> None:
        self.prompt = prompt
        self.broken = set(broken)
        self.mute = set(mute)
        self.requested: list[str] = []

    def stream(self, videos: Iterable[tuple[str, Path]]) -> Iterator[Narrated]:
        for video, _ in videos:
            self.requested.append(video)
            if video in self.broken:
                yield Narrated(video, error=VideoError("corrupt", f"{video} is broken"))
            elif video in self.mute:
                yield Narrated(video, answers=2, empty=2)
            else:
                yield Narrated(
                    video,
                    (Narration(video, 0.0, 1.0, f"{self.prompt} {video} Ä\u2028"),),
                    answers=3,
                    empty=1,
                    unread=(f"nonsense about {video}",),
                    left_out=2,
                    timeline=self.timeline,
                )

    def manifest(self) -> dict[str, Any]:
        return {"model": "m", "revision": "r", "prompt": self.prompt, "sampling_rate": 1.0, "seed": 0}


def files(out: Path) -> tuple[bytes, bytes]:
    return out.read_bytes(), manifest_path(out).read_bytes()


def test_shards_add_up_to_the_whole_whoever_comes_last(tmp_path: Path) -> None:
    whole, shared = tmp_path / "whole.jsonl", tmp_path / "shared.jsonl"
    assert narrate(Scripted(), VIDEOS, whole).merged
    second, first = Scripted(), Scripted()
    summary = narrate(second, VIDEOS, shared, "2/2")
    assert (summary.unfinished, summary.merged, shared.exists()) == (3, False, False)
    summary = narrate(first, VIDEOS, shared, "1/2")
    assert (summary.unfinished, summary.merged, summary.sentences, summary.empty) == (0, True, 5, 5)
    assert (first.requested, second.requested) == (["v0", "v2", "v4"], ["v1", "v3"])
    assert files(shared) == files(whole)
    narrations, manifest = read_narrations(shared)
    assert list(narrations) == list(VIDEOS)
    assert manifest.items() >= Scripted().manifest().items()
    assert manifest["answers"] == {"total": 15, "empty": 5, "unread": 5, "left_out": 10}
    assert (summary.unread, summary.example) == (5, "v0, nonsense about v0")


def test_a_stopped_run_goes_on_with_what_is_missing(tmp_path: Path) -> None:
    out = tmp_path / "n.jsonl"

    class Stopped(Scripted):
        def stream(self, videos: Iterable[tuple[str, Path]]) -> Iterator[Narrated]:
            for narrated in super().stream(videos):
                if narrated.video_id == "v2":
                    raise KeyboardInterrupt
                yield narrated

    with pytest.raises(KeyboardInterrupt):
        narrate(Stopped(), VIDEOS, out)
    assert not out.exists()
    again = Scripted()
    narrate(again, VIDEOS, out)
    assert again.requested == ["v2", "v3", "v4"]
    before = files(out)
    (tmp_path / "n.jsonl.parts" / "v1.part").unlink()
    again = Scripted()
    narrate(again, VIDEOS, out)
    assert again.requested == ["v1"]
    assert files(out) == before
    assert not list(tmp_path.rglob(".*"))


def test_finished_videos_are_skipped_without_reading_them(tmp_path: Path) -> None:
    """Of 100,000 videos, only the names of their parts are read until the last one is finished."""
    out = tmp_path / "n.jsonl"
    narrate(Scripted(broken=["v2"]), VIDEOS, out, "1/2")
    for part in (parts := tmp_path / "n.jsonl.parts").glob("*.part"):
        part.write_text("not read")
    again = Scripted(broken=["v2"])
    summary = narrate(again, VIDEOS, out, "1/2")
    assert again.requested == ["v2"]
    assert (summary.unfinished, summary.failed) == (2, {"v2": "v2 is broken"})
    assert sorted(path.name for path in parts.iterdir() if path.suffix != ".json") == [
        "v0.part",
        "v2.failed",
        "v4.part",
    ]
    with pytest.raises(VmrError, match=r"v0\.part cannot be read"):
        narrate(Scripted(), VIDEOS, out)


def test_another_narrator_in_the_same_place_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "n.jsonl"
    narrate(Scripted(), VIDEOS, out)
    with pytest.raises(VmrError, match=r'prompt: "what\?" there, "why\?" now'):
        narrate(Scripted(prompt="why?"), VIDEOS, out)
    (tmp_path / "other.jsonl").write_text("somebody's\n")
    with pytest.raises(VmrError, match="exists"):
        narrate(Scripted(), VIDEOS, tmp_path / "other.jsonl")
    with pytest.raises(VmrError, match=r"out=FILE\.jsonl"):
        narrate(Scripted(), VIDEOS, tmp_path / "n.json")


def test_what_is_odd_about_a_video_is_kept_beside_the_narrations(tmp_path: Path) -> None:
    narrator = Scripted(broken=["v1"], mute=["v3"])
    narrator.timeline = Timeline(4.0, 32, "stream 1", (Note("clock reset", "at 2 s"),))
    for _ in range(2):  # read again by the next command
        summary = narrate(narrator, VIDEOS, tmp_path / "n.jsonl")
        assert summary.notes == {video: {"clock reset": "at 2 s"} for video in ("v0", "v2", "v4")}
    rows = map(json.loads, (tmp_path / "n.videos.jsonl").read_text().splitlines())
    assert [(row["video_id"], row["seconds"], row["stream"]) for row in rows] == [
        (video, 4.0, "stream 1") for video in ("v0", "v2", "v4")
    ]


def test_broken_and_silent_videos_are_listed_and_the_broken_ones_tried_again(tmp_path: Path) -> None:
    out = tmp_path / "n.jsonl"
    summary = narrate(Scripted(broken=["v1"], mute=["v3"]), VIDEOS, out)
    assert summary.failed == {"v1": "v1 is broken"}
    assert summary.silent == ["v3"]
    assert (summary.merged, summary.sentences, summary.empty) == (True, 3, 5)
    fixed = Scripted(mute=["v3"])
    assert not narrate(fixed, VIDEOS, out).failed
    assert fixed.requested == ["v1"]
    assert len(read_narrations(out)[0]) == 4
    assert not narrate(Scripted(broken=VIDEOS), VIDEOS, tmp_path / "none.jsonl").merged


def test_shapes_are_narrated_where_training_reads_them(
    vmr: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VMR_CACHE", str(tmp_path))
    settings = [*TINY, "features.narration.narrator.miss=0"]
    assert vmr("narrate", *settings) == 0
    (file,) = tmp_path.rglob("narrations/*.jsonl")
    train = compose("train", [o for o in settings if not o.startswith("narrator")])
    source = instantiate(train.features.narration)
    assert source.file == file
    stamp = file.stat().st_mtime_ns
    assert source.manifest()["narrator"]["miss"] == 0
    assert file.stat().st_mtime_ns == stamp
    # The same sentences through the common interface of narrators, from the rendered files.
    assert vmr("narrate", *settings, f"out={tmp_path / 'n.jsonl'}") == 0
    assert read_narrations(tmp_path / "n.jsonl") == read_narrations(file)


def test_a_data_set_limits_the_videos_and_missing_ones_are_an_error(
    vmr: Callable[..., int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("VMR_CACHE", str(tmp_path))
    folder = tmp_path / "videos"
    folder.mkdir()
    for name in ("train_00000", "test_00000", "holiday"):
        (folder / f"{name}.mp4").touch()
    assert vmr("narrate", *TINY, f"videos={folder}", f"out={tmp_path / 'n.jsonl'}") == 1
    assert "No file for" in (said := capsys.readouterr().err)
    assert "train_00001" in said
    lines = (tmp_path / "n.jsonl").read_text().splitlines()
    assert {json.loads(line)["video_id"] for line in lines} == {"train_00000", "test_00000"}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["videos=.", "narrator=shapes"], "add data=shapes"),
        (["videos=."], "add out="),
        (["out=n.jsonl"], "add videos="),
        (["videos=nowhere", "out=n.jsonl"], "Found no video"),
        (["narrator=lava"], "Did you mean llava"),
        (["narrator=server", "videos=.", "out=n.jsonl"], "narrator.model"),
        (["narrator.second=2"], "Did you mean narrator.seconds"),
    ],
)
def test_mistakes_are_named(
    vmr: Callable[..., int], capsys: pytest.CaptureFixture[str], given: list[str], expected: str
) -> None:
    assert vmr("narrate", *given) == 2
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "prompts", "seconds", "frames"),
    [
        ("llava", 1, 1, None),
        ("blip2", 0, 1, None),
        ("video_llm", 10, 2, 8),
        ("llava16_lmr", 10, 2, None),
        ("qwen3_vl", 1, 60, 60),
        ("server", 1, 1, None),
        ("server narrator/prompt=lmr_frame", 10, 2, None),
    ],
)
def test_configured_narrators_build_without_loading_a_model(
    name: str, prompts: int, seconds: float, frames: int | None
) -> None:
    overrides = [*f"narrator={name}".split(), "narrator.model=some/model", "seed=7"]
    narrator = instantiate(compose("narrate", overrides).narrator)
    assert (narrator.seed, len(narrator.prompts)) == (7, prompts)
    assert (narrator.seconds, narrator.frames, narrator.timed) == (seconds, frames, name == "qwen3_vl")
