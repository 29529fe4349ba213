"""Narration by tiny random models: real files, real processors, real generation."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from vmr_zoo.config.compose import compose
from vmr_zoo.data.narrations import read_narrations
from vmr_zoo.errors import VmrError
from vmr_zoo.narrators import VisionLanguageNarrator, segments
from vmr_zoo.video.decode import VideoError, sample

CAPTION = {"prompt": "caption this frame", "template": "USER : <image> {prompt} ASSISTANT :"}
INSTRUCTIONS = ["describe the video", "summarize the video", "video"]
# Frames of very different durations: the frame rate varies.
UNEVEN = {0.0: 20, 0.1: 60, 2.3: 100, 4.2: 140, 4.3: 180, 4.9: 220, 5.9: 40}
EVEN = {number / 5: 30 + 10 * number for number in range(20)}


def narrator(folder: Path, kind: str, **more: Any) -> VisionLanguageNarrator:
    settings: dict[str, Any] = {
        "llava": {"seconds": 1, "frames": None, **CAPTION},
        "llava_next": {"seconds": 1, "frames": None, **CAPTION | {"prompt": INSTRUCTIONS}},
        "blip2": {"seconds": 1, "frames": None, "prompt": None, "template": None},
        "llava_next_video": {
            "seconds": 2,
            "frames": 4,
            "prompt": INSTRUCTIONS,
            "template": "USER : <video> {prompt} ASSISTANT :",
        },
    }[kind]
    plain = {"max_new_tokens": 6, "dtype": "float32", "device": "cpu", "batch_size": 4}
    return VisionLanguageNarrator(str(folder), **(settings | plain | more))


@pytest.mark.parametrize("kind", ["llava", "blip2", "llava_next", "llava_next_video"])
def test_batches_over_videos_say_what_one_by_one_says(
    kind: str, request: pytest.FixtureRequest, film: Callable[..., Path]
) -> None:
    folder = request.getfixturevalue(kind)
    videos = [("a", film("a", UNEVEN)), ("b", film("b", EVEN))]
    batched = {result.video_id: list(result.narrations) for result in narrator(folder, kind).stream(videos)}
    single = narrator(folder, kind, batch_size=1)
    assert batched == {video: single.narrate(video, path) for video, path in videos}
    said = [narration.text for narrations in batched.values() for narration in narrations]
    assert len(set(said)) > 2, "a model that always says the same tests nothing"
    assert not any(mark in text for text in said for mark in ("<", ">"))
    # At most six words: the prompt is not part of the answer.
    assert all(0 < len(text.split()) <= 6 for text in said)


def test_frames_are_those_shown_at_the_narrations_time(film: Callable[..., Path], tmp_path: Path) -> None:
    """On a file of varying frame rate, for frames and for clips with a partial last one."""
    path = film("v", UNEVEN)

    def seen(**settings: Any) -> list[tuple[float, float, list[int]]]:
        segments = narrator(tmp_path, "llava", **settings).segments("v", path)
        return [(one.start, one.end, [shade(frame) for frame in one.frames]) for one in segments]

    def shade(frame: Any) -> int:
        return round(frame[:, :12].mean() / 20) * 20

    # 4.5 s is between the frames of 4.3 and 4.9 s.
    times = [0.5, 1.5, 2.5, 3.5, 4.5, 5.5]
    assert seen() == [(t, t, [grey]) for t, grey in zip(times, [60, 60, 100, 100, 180, 220], strict=True)]
    assert seen(seconds=4, frames=4) == [(0, 4, [60, 60, 100, 100]), (4, 6, [180, 220, 220, 220])]


def test_instructions_depend_on_seed_video_and_clip_alone(
    llava_next_video: Path, film: Callable[..., Path]
) -> None:
    def drawn(seed: int, video: str) -> list[str | None]:
        one = narrator(llava_next_video, "llava_next_video", seed=seed)
        return [one.prompt_for(video, clip) for clip in range(60)]

    assert drawn(0, "v") == drawn(0, "v")
    assert set(drawn(0, "v")) == set(INSTRUCTIONS)
    assert drawn(0, "v") != drawn(1, "v")
    assert drawn(0, "v") != drawn(0, "w")
    # The drawn prompt is the one that the model gets.
    path = film("v", EVEN)
    narrated = narrator(llava_next_video, "llava_next_video", seed=0).narrate("v", path)
    for clip, narration in enumerate(narrated):
        alone = narrator(llava_next_video, "llava_next_video", prompt=drawn(0, "v")[clip]).narrate("v", path)
        assert alone[clip] == narration


def test_words_drawn_with_a_temperature_do_not_depend_on_neighbours(
    llava: Path, film: Callable[..., Path]
) -> None:
    videos = [("a", film("a", UNEVEN)), ("b", film("b", EVEN))]
    drawing = narrator(llava, "llava", temperature=2.0)
    narrated = [list(one.narrations) for one in drawing.stream(videos)]
    assert narrated[1] == drawing.narrate(*videos[1])
    assert narrated[1] != narrator(llava, "llava", temperature=2.0, seed=1).narrate(*videos[1])
    assert narrated[1] != narrator(llava, "llava").narrate(*videos[1])


def test_the_chat_template_of_the_model(llava: Path, film: Callable[..., Path]) -> None:
    path = film("v", UNEVEN)
    own = narrator(llava, "llava", template=None)
    assert own._text("caption this frame") == "USER : <image> caption this frame ASSISTANT :"
    assert own.narrate("v", path) == narrator(llava, "llava").narrate("v", path)


def test_an_empty_answer_is_counted_and_leaves_no_sentence(
    llava: Path, film: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    mute = narrator(llava, "llava", batch_size=2)
    monkeypatch.setattr(mute, "generate", lambda segments: ["" if s.number == 1 else "yes" for s in segments])
    (narrated,) = mute.stream([("v", film("v", UNEVEN))])
    assert narrated.empty == 1
    assert [narration.start for narration in narrated.narrations] == [0.5, 2.5, 3.5, 4.5, 5.5]


def test_the_times_in_the_prompt_are_those_of_the_frames(
    qwen3_vl: Path, film: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Qwen3-VL states the mean time of two frames each; without their times it would assume 24 per second."""
    one = narrator(
        qwen3_vl, "llava_next_video", seconds=3, frames=4, timed=True, template=None, max_pixels=15 * 15
    )
    prompts, sizes = [], []

    def prepare(self: Any, **given: Any) -> Any:
        prepared = process(self, **given)
        prompts.extend(self.tokenizer.decode(row, skip_special_tokens=True) for row in prepared["input_ids"])
        sizes.extend(video.shape for video in given["videos"])
        return prepared

    processor = type(one._loaded[0])
    process = processor.__call__
    monkeypatch.setattr(processor, "__call__", prepare)
    (narrated,) = one.stream([("v", film("v", EVEN))])
    # 3 s and the rest of 1 s, whose second frame is not made up: 0.375, 1.125, 1.875, 2.625; 0.375.
    assert [re.findall(r"<[\d.]+ seconds>", prompt) for prompt in prompts] == [
        ["<0.8 seconds>", "<2.2 seconds>"],
        ["<0.4 seconds>"],
    ]
    assert sizes == [(4, 15, 15, 3), (2, 15, 15, 3)]
    # A random model states no times.
    assert (narrated.narrations, narrated.answers, len(narrated.unread)) == ((), 2, 2)
    assert narrated.unread[1].startswith("3-3.75 s: ")


def test_the_next_frames_are_decoded_while_the_model_answers(
    llava: Path, film: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded, seen = [], []

    def count(path: Path, seconds: float) -> Iterator[Any]:
        for frame in sample(path, seconds):
            decoded.append(frame)
            yield frame

    def generate(segments: list[Any]) -> list[str]:
        deadline = time.monotonic() + 5
        while len(decoded) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        seen.append(len(decoded))
        return ["yes"]

    monkeypatch.setattr(segments, "sample", count)
    one = narrator(llava, "llava", batch_size=1, seconds=0.1)
    monkeypatch.setattr(one, "generate", generate)
    next(iter(one.stream([("v", film("v", EVEN))])))
    assert seen[0] >= 3, "frames are decoded ahead"
    assert seen[0] <= 5, "but not all: memory is bounded"


def test_a_video_that_breaks_off_costs_only_itself(
    llava: Path, film: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = {"a": film("a", EVEN), "b": film("b", EVEN), "c": film("c", UNEVEN)}

    def breaking(path: Path, seconds: float) -> Iterator[Any]:
        for number, frame in enumerate(sample(path, seconds)):
            if path == paths["b"] and number == 3:
                raise VideoError("corrupt", "b breaks off")
            yield frame

    monkeypatch.setattr(segments, "sample", breaking)
    one = narrator(llava, "llava", batch_size=4)
    narrated = {narrated.video_id: narrated for narrated in one.stream(paths.items())}
    assert list(narrated) == ["a", "b", "c"]
    assert "breaks off" in str(narrated["b"].error)
    assert not narrated["b"].narrations
    assert list(narrated["a"].narrations) == one.narrate("a", paths["a"])
    assert list(narrated["c"].narrations) == one.narrate("c", paths["c"])
    with pytest.raises(VideoError, match="breaks off"):
        one.narrate("b", paths["b"])


def test_the_manifest_names_the_weights(llava: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(llava, tmp_path / "copy"))
    manifest = narrator(llava, "llava").manifest()
    assert narrator(copy, "llava").manifest() == manifest | {"model": "copy"}
    assert manifest["prompt"] == "caption this frame"
    assert narrator(llava, "llava", prompt=INSTRUCTIONS).manifest()["prompt"] == INSTRUCTIONS
    with (copy / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\1")
    assert narrator(copy, "llava").manifest()["revision"] != manifest["revision"]


def test_a_model_of_the_hub_is_known_by_its_commit(
    llava: Path, film: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reads the hub's cache as on a machine without a network."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    cached = tmp_path / "hub" / "models--some--model"
    shutil.copytree(llava, cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    one = narrator(Path("some/model"), "llava")
    assert (one.manifest()["model"], one.manifest()["revision"]) == ("some/model", commit)
    path = film("v", UNEVEN)
    assert one.narrate("v", path) == narrator(llava, "llava").narrate("v", path)
    with pytest.raises(VmrError, match="some/other is neither a folder nor"):
        narrator(Path("some/other"), "llava").manifest()


def test_mistakes_are_named(llava: Path, film: Callable[..., Path], tmp_path: Path) -> None:
    path = film("v", UNEVEN)
    with pytest.raises(VmrError, match=r"template to contain \{prompt\}"):
        narrator(llava, "llava", template="USER : <image> ASSISTANT :")
    with pytest.raises(VmrError, match="Did you mean float16"):
        narrator(llava, "llava", dtype="half16")
    with pytest.raises(VmrError, match="takes images, not videos"):
        narrator(llava, "llava_next_video").narrate("v", path)
    with pytest.raises(VmrError, match="no revisions"):
        narrator(llava, "llava", revision="main").manifest()
    # Weights that require unpickling are not loaded.
    copy = Path(shutil.copytree(llava, tmp_path / "copy"))
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(VmrError, match="weights as safetensors"):
        narrator(copy, "llava").narrate("v", path)


def test_a_folder_of_an_older_version_works_once_it_has_what_the_message_says(
    llava: Path, film: Callable[..., Path], tmp_path: Path
) -> None:
    path = film("v", UNEVEN)
    old = Path(shutil.copytree(llava, tmp_path / "old"))
    images = json.loads((old / "processor_config.json").read_text())["image_processor"]
    (old / "preprocessor_config.json").write_text(json.dumps(images))
    (old / "processor_config.json").unlink()
    with pytest.raises(VmrError, match="lacks patch_size, vision_feature_select_strategy") as error:
        narrator(old, "llava").narrate("v", path)
    settings = re.search(r"\{.*\}", str(error.value))
    assert settings
    (old / "processor_config.json").write_text(settings[0])
    assert narrator(old, "llava").narrate("v", path) == narrator(llava, "llava").narrate("v", path)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"tokenizer.json": "{}", "tokenizer_config.json": "{}"}, "loading it failed|with a tokenizer"),
        ({"config.json": '{"model_type": "bert"}'}, "loading it failed"),
        ({"model.safetensors": "no weights"}, "loading it failed"),
        ({"processor_config.json": "[1"}, "loading it failed"),
        ({"chat_template.jinja": "{{ nothing.at.all }}"}, "cannot apply its chat template"),
        ({"chat_template.jinja": "USER : no picture"}, "cannot prepare the prompt"),
    ],
)
def test_files_that_do_not_go_together_are_one_message(
    broken: dict[str, str], message: str, llava: Path, film: Callable[..., Path], tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(llava, tmp_path / "copy"))
    for name, text in broken.items():
        assert (copy / name).exists()
        (copy / name).write_text(text)
    with pytest.raises(VmrError, match=message):
        narrator(copy, "llava", template=None).narrate("v", film("v", UNEVEN))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("llava", "llava"),
        ("blip2", "blip2"),
        ("llava16_lmr", "llava_next"),
        ("video_llm", "llava_next_video"),
    ],
)
def test_the_command_as_documented(
    name: str,
    kind: str,
    request: pytest.FixtureRequest,
    film: Callable[..., Path],
    vmr: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = film("a", UNEVEN).parent
    film("b", EVEN)
    out = folder / "said.jsonl"
    command = [
        f"videos={folder}",
        f"narrator={name}",
        f"narrator.model={request.getfixturevalue(kind)}",
        f"out={out}",
        "narrator.dtype=float32",
        "narrator.max_new_tokens=4",
    ]
    assert vmr("narrate", *command) == 0
    narrations, manifest = read_narrations(out)
    spans = {(narration.start, narration.end) for narration in narrations["a"]}
    middles = {(second + 0.5, second + 0.5) for second in range(6)}
    expected = {"video_llm": {(0, 2), (2, 4), (4, 6)}, "llava16_lmr": {(1, 1), (3, 3), (5, 5)}}
    assert set() < spans <= expected.get(name, middles)
    assert manifest["prompt"] == compose("narrate", [f"narrator={name}"]).narrator.prompt
    (folder / "c.mp4").write_bytes(b"no video")
    assert vmr("narrate", *command) == 1
    assert "c: " in capsys.readouterr().err
    assert vmr("narrate", *command, "seed=1") == 2
    assert "seed: 0 there, 1 now" in capsys.readouterr().err
