from __future__ import annotations

import errno
import json
import os
import re
import shutil
import threading
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from video.films import film
from vmr_zoo.cli.main import main
from vmr_zoo.config.compose import compose
from vmr_zoo.data.features.extracted import ExtractedPatches, ExtractedVideos
from vmr_zoo.data.features.problems import FeatureError
from vmr_zoo.errors import VmrError
from vmr_zoo.runs.directory import relocatable
from vmr_zoo.utils.arrays import l2_normalise
from vmr_zoo.utils.files import append_row
from vmr_zoo.video.ahead import THREAD
from vmr_zoo.video.decode import VideoError
from vmr_zoo.video.encoder import VideoEncoder
from vmr_zoo.video.extraction import extract, read_notes
from vmr_zoo.video.manifest import build_encoder, combined_entry, read_manifest


def render(path, seconds, seed=0):
    """Four noisy frames per second."""
    rng = np.random.default_rng(seed)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=4, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(4 * seconds):
            picture = np.kron(rng.integers(0, 255, (6, 8, 3)), np.ones((8, 8, 1))).astype(np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 4)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for number, seconds in enumerate((3, 5, 2)):
        render(folder / f"v{number}.mp4", seconds, number)
    (folder / "broken.mp4").write_bytes((folder / "v1.mp4").read_bytes()[:500])
    return folder


class Counting(VideoEncoder):
    """Encodes the number n of a clip as (n, length of the name), and records the batches."""

    clip_seconds, dim, patches, patch_dim = 2.0, 2, 3, 1

    def __init__(self, lengths, scale=1.0):
        self.lengths, self.scale, self.batches, self.ahead, self.most_ahead = lengths, scale, [], 0, 0

    def clips(self, path):
        for number in range(self.lengths[path.stem]):
            self.ahead += 1
            self.most_ahead = max(self.most_ahead, self.ahead)
            yield path.stem, number
        if path.stem.startswith("bad"):
            raise VideoError("corrupt", f"{path} breaks off.")

    def encode(self, clips):
        self.ahead -= len(clips)
        self.batches.append([name for name, _ in clips])
        rows = np.array([(number, len(name)) for name, number in clips], np.float32) * self.scale
        return rows, np.stack([rows[:, :1]] * 3, 1)

    def manifest(self):
        return {"backbone": "counting", "clip_seconds": 2.0, "scale": self.scale}


def run(lengths, out, **arguments):
    encoder = Counting(lengths, arguments.pop("scale", 1.0))
    paths = {name: Path(f"{name}.mp4") for name in lengths}
    return encoder, extract(paths, encoder, {"_target_": "vmr_zoo.X"}, out, **arguments)


@pytest.mark.parametrize("threads", [1, 3])
def test_videos_share_batches_and_a_broken_one_spoils_no_other(tmp_path, threads):
    lengths = {"a": 3, "bad": 4, "c": 1, "none": 0, "eeeee": 700}
    encoder, failures = run(lengths, tmp_path, batch_size=4, threads=threads)
    assert [(failure.video_id, failure.kind) for failure in failures] == [
        ("bad", "corrupt"),
        ("none", "empty"),
    ]
    assert {path.stem for path in tmp_path.glob("*.npz")} == {"a", "c", "eeeee"}
    for name in ("a", "c", "eeeee"):
        with np.load(tmp_path / f"{name}.npz") as arrays:
            expected = np.array([(number, len(name)) for number in range(lengths[name])])
            assert np.array_equal(arrays["features"], expected)
            assert np.array_equal(arrays["patches"], np.stack([expected[:, :1]] * 3, 1))
            assert (arrays["features"].dtype, arrays["patches"].dtype) == (np.float32, np.float16)
    # One after the other, or as many videos as there are threads, in turn.
    assert encoder.batches[0] == (["a", "a", "a", "bad"] if threads == 1 else ["a", "bad", "c", "a"])
    assert max(map(len, encoder.batches)) == 4
    assert encoder.most_ahead <= 4 + 4 + 1  # queue, batch, and the one in hand, of a video of 700


def test_what_is_finished_is_not_done_again_and_other_settings_are_refused(tmp_path):
    run({"a": 3}, tmp_path)
    before = (tmp_path / "a.npz").stat().st_mtime_ns
    encoder, failures = run({"a": 3, "b": 2}, tmp_path)
    assert not failures
    assert encoder.batches == [["b", "b"]]
    assert (tmp_path / "a.npz").stat().st_mtime_ns == before
    with pytest.raises(VmrError, match=r"scale: there 1\.0, now 2\.0"):
        run({"c": 1}, tmp_path, scale=2.0)
    with pytest.raises(VmrError, match=r"dtype: there 'float32', now 'float16'"):
        run({"c": 1}, tmp_path, storage="float16")
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(VmrError, match=r"no manifest\.json"):
        run({"c": 1}, tmp_path)


def test_a_video_that_was_replaced_is_extracted_again(videos, tmp_path, capsys):
    library, out = tmp_path / "library", tmp_path / "out"
    shutil.copytree(videos, library, ignore=shutil.ignore_patterns("broken.mp4"))
    arguments = ["extract", f"videos={library}", "encoder=grid", f"out={out}", "processes=1"]
    assert main(arguments) == 0
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("*.npz")}
    os.utime(library / "v0.mp4", ns=(0, 0))  # a copy is no other video
    shutil.copy(videos / "v0.mp4", library / "v1.mp4")
    shutil.copy(videos / "broken.mp4", library / "v2.mp4")
    capsys.readouterr()
    assert main(arguments) == 1
    assert "extracted 1 of 3 videos, 1 existed" in " ".join(capsys.readouterr().out.split())
    assert (out / "v0.npz").stat().st_mtime_ns == before["v0.npz"]
    with np.load(out / "v0.npz") as first, np.load(out / "v1.npz") as second:
        assert np.array_equal(first["features"], second["features"])
    assert not (out / "v2.npz").exists()


def test_notes_are_read_after_a_line_that_was_cut_within_a_character(tmp_path):
    notes = {"title": "a\u2028b"}
    (tmp_path / "videos.jsonl").write_bytes('{"video_id": "一'.encode()[:-1])
    append_row(tmp_path / "videos.jsonl", {"video_id": "v", "notes": notes})
    assert read_notes(tmp_path, ["v"]) == {"v": notes}


def test_an_interruption_keeps_what_is_finished(tmp_path, monkeypatch):
    encode = Counting.encode

    def interrupted(self, clips):
        if len(self.batches) == 2:
            raise KeyboardInterrupt
        return encode(self, clips)

    lengths = {"a": 2, "b": 2, "c": 2}
    with monkeypatch.context() as patch:
        patch.setattr(Counting, "encode", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(lengths, tmp_path, batch_size=2)
    assert THREAD not in {thread.name for thread in threading.enumerate()}
    assert "a.npz" in {path.name for path in tmp_path.iterdir()}
    encoder, _ = run(lengths, tmp_path, batch_size=2)
    assert all("a" not in batch for batch in encoder.batches)
    assert len(list(tmp_path.iterdir())) == 4


def test_features_that_do_not_fit_the_storage_are_reported(tmp_path):
    _, failures = run({"a": 2}, tmp_path, scale=1e5, storage="float16")
    assert [(failure.video_id, failure.kind) for failure in failures] == [("a", "not finite")]
    assert not list(tmp_path.glob("*.npz"))


def test_the_command_extracts_reports_resumes_and_shards(videos, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["extract", f"videos={videos}", "encoder=grid", f"out={out}", "processes=1"]
    assert main([*arguments, "shard=2/2"]) == 0  # v0 and v2: broken is the first of four
    assert {path.stem for path in out.glob("*.npz")} == {"v0", "v2"}
    assert main(arguments) == 1
    printed = capsys.readouterr().out
    assert "1 videos without features" in printed
    assert "broken" in printed
    assert {path.stem for path in out.glob("*.npz")} == {"v0", "v1", "v2"}
    with np.load(out / "v1.npz") as arrays:
        assert arrays["features"].shape == (5, 360)
        assert arrays["patches"].shape == (5, 48, 40)
    assert instantiate(read_manifest(out)["encoder"]).dim == 360
    assert main([*arguments, "encoder.hues=8"]) == 2
    assert "hues: there 16, now 8" in capsys.readouterr().err
    assert main([*arguments, "threads=2"]) == 2
    assert "set threads=null" in capsys.readouterr().err


def test_what_is_odd_is_printed_and_kept_beside_the_features(tmp_path, capsys):
    folder = tmp_path / "odd [1080p]"
    folder.mkdir()
    render(folder / "b.mp4", 3)
    film(folder / "a [id].mp4", [0, 0.1, 0.2, 1, 1.1, 2, 4])
    film(folder / "c.mkv", [0, 86400])
    out = tmp_path / "out"
    arguments = ["extract", f"videos={folder}/*.m*", "encoder=grid", f"out={out}", "processes=1"]
    assert main(arguments) == 1
    captured = capsys.readouterr()
    printed = " ".join(captured.out.split())
    assert "extracted 2 of 3 videos" in printed
    assert "Note: a [id]: variable frame rate: pictures are shown for 0.1 s to 2 s." in captured.err
    assert "c leaping clock The clock of" in printed
    assert f"features.video.folders=[{out}]" in printed
    rows = [json.loads(line) for line in (out / "videos.jsonl").read_text().splitlines()]
    assert {row["video_id"]: (row["clips"], row["seconds"]) for row in rows} == {
        "a [id]": (4, 4.125),
        "b": (3, 3.0),
    }
    with (out / "videos.jsonl").open("a") as file:
        file.write('{"video_id": "b", "no')  # a process that was killed
    assert main(arguments) == 1
    assert "a [id]: variable frame rate" in capsys.readouterr().err


def test_a_full_disk_is_one_message_and_not_the_code_of_a_broken_video(videos, tmp_path, monkeypatch, capsys):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    out = tmp_path / "out"
    arguments = ["extract", f"videos={videos}", "encoder=grid", f"out={out}", "processes=1"]
    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", full)
        assert main(arguments) == 3
    assert f"Cannot write {out}/v0.npz: No space left on device." in " ".join(capsys.readouterr().err.split())
    assert {path.name for path in out.iterdir()} == {"manifest.json", "videos.jsonl"}
    assert main(arguments) == 1


def test_a_data_set_names_the_videos_and_those_without_a_file(videos, tmp_path, monkeypatch, capsys):
    """A protocol of two videos replaces that of Charades-STA."""
    from vmr_zoo.data.annotations.records import Protocol, Query, Split

    queries = tuple(Query(f"q{v}", v, "a text", ((0.0, 1.0),), 3.0) for v in ("v1", "gone"))
    split = Split("train", queries)
    protocol = Protocol("p", split, split, {"test": split}, "published")
    monkeypatch.setattr("vmr_zoo.data.annotations.protocols.charades_sta", lambda **_: protocol)
    out = tmp_path / "out"
    assert main(["extract", "data=charades_sta", f"videos={videos}", "encoder=grid", f"out={out}"]) == 1
    assert [path.stem for path in out.glob("*.npz")] == ["v1"]
    assert "gone" in capsys.readouterr().out


# ---------------------------------------------------------------- features=extracted


def folder(path, dim, lengths, seconds=2.0, patches=None, target="vmr_zoo.video.open_clip.OpenClip"):
    """A folder as `vmr extract` writes it, with random features."""
    path.mkdir(parents=True)
    rng = np.random.default_rng(dim)
    for name, clips in lengths.items():
        arrays = {"features": rng.normal(size=(clips, dim)).astype(np.float16)}
        if patches:
            arrays["patches"] = rng.normal(size=(clips, *patches)).astype(np.float16)
        np.savez(path / f"{name}.npz", **arrays)
    manifest = {
        "backbone": path.name,
        "clip_seconds": seconds,
        "dtype": "float16",
        "dim": dim,
        "patches": patches and patches[0],
        "patch_dim": patches and patches[1],
        "encoder": {"_target_": target, "model": path.name},
    }
    (path / "manifest.json").write_text(json.dumps(manifest))
    return path


def test_extracted_folders_become_a_feature_set_that_says_how_it_was_made(tmp_path):
    motion = folder(tmp_path / "motion", 5, {"a": 4, "b": 9})
    clip = folder(tmp_path / "clip", 3, {"a": 5, "b": 7}, patches=(4, 6))
    cfg = compose(
        "train",
        [
            "data=charades_sta",
            "method=predict_all",
            "features=extracted",
            f"paths.features={tmp_path}",
            "features.video.folders=['${paths.features}/motion','${paths.features}/clip']",
        ],
    )
    stored = OmegaConf.create(relocatable(cfg))
    OmegaConf.resolve(stored)
    assert stored.features.clip_seconds == 2.0
    assert [node.model for node in stored.features.video.encoders] == ["motion", "clip"]
    for node in (cfg.features, stored.features):
        features = instantiate(node)
        video, patches = features.video.load("a"), features.patches.load("b")
        assert (video.shape, patches.shape) == ((4, 8), (7, 4, 6))
        with np.load(motion / "a.npz") as first, np.load(clip / "a.npz") as second:
            expected = [l2_normalise(part["features"].astype(np.float32)) for part in (first, second)]
        assert np.allclose(video, np.concatenate([expected[0], expected[1][:4]], 1), atol=1e-6)
        assert [found["backbone"] for found in features.manifest()["video"]["encoders"]] == ["motion", "clip"]
        assert re.fullmatch(r"extracted_motion_clip-[0-9a-f]{8}", features.name)
        assert replace(features).name == features.name


def test_folders_of_other_encoders_have_other_names_and_so_other_tables(tmp_path):
    def name(path, **more):
        manifest = json.loads((path / "manifest.json").read_text())
        (path / "manifest.json").write_text(json.dumps(manifest | more))
        return ExtractedVideos([path], [manifest["encoder"]], normalise=True).content

    one, copy = (folder(tmp_path / part / "clip", 3, {"a": 5}) for part in ("one", "copy"))
    assert name(one) == name(copy, encoder={"_target_": "vmr_zoo.elsewhere", "weights": "/other/path"})
    assert name(one) != name(copy, weights_sha256="another network's")


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "object"},
        {"dim": "8"},
        {"dim": 0},
        {"patches": [4]},
        {"patch_dim": 0.5},
        {"clip_seconds": None},
    ],
)
def test_a_manifest_with_values_of_another_kind_is_refused(change, tmp_path):
    path = folder(tmp_path / "motion", 8, {"a": 4})
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(manifest | change))
    ((key, value),) = change.items()
    expected = f"manifest.json has values that `vmr extract` never writes: {key}={value!r}."
    with pytest.raises(VmrError, match=re.escape(expected)):
        read_manifest(path)


@pytest.mark.parametrize("change", [{"dim": 9}, {"dtype": "float32"}, {"patches": 5}, {"patch_dim": 7}])
def test_a_file_that_differs_from_its_manifest_is_refused(change, tmp_path):
    path = folder(tmp_path / "clip", 8, {"a": 4}, patches=(4, 6))
    manifest = json.loads((path / "manifest.json").read_text()) | change
    (path / "manifest.json").write_text(json.dumps(manifest))
    is_patch = "patch" in next(iter(change))
    source = ExtractedPatches([path]) if is_patch else ExtractedVideos([path], [manifest["encoder"]], True)
    with pytest.raises(FeatureError, match=r"a\.npz has float16 .*manifest\.json says float.*Copy both from"):
        source.load("a")


@pytest.mark.parametrize(
    "node",
    [
        {"_target_": "vmr_zoo.utils.files.os.mkdir", "_args_": ["made"]},
        {
            "_target_": "vmr_zoo.data.worlds.shapes.GridEncoder",
            "hues": {"_target_": "os.mkdir", "path": "made"},
        },
        {"_target_": "vmr_zoo.data.worlds.shapes.GridEncoder", "colours": 3},
    ],
)
def test_a_manifest_builds_encoders_and_runs_nothing_else(node, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(VmrError):
        build_encoder(node)
    assert not (tmp_path / "made").exists()


def test_a_file_is_encoded_as_the_folder_was_and_another_encoder_is_refused(videos, tmp_path):
    out = tmp_path / "out"
    options = ["encoder=grid", f"out={out}", "storage=float16", "processes=1"]
    assert main(["extract", f"videos={videos}", *options]) == 1  # one fails
    source = ExtractedVideos([out], [read_manifest(out)["encoder"]], normalise=True)
    assert np.array_equal(source.encode(videos / "v1.mp4"), source.load("v1"))
    with pytest.raises(VmrError, match="samples: 4, now 2"):
        ExtractedVideos([out], [read_manifest(out)["encoder"] | {"samples": 2}], normalise=True).encode(
            videos / "v1.mp4"
        )


def test_vdi_compares_projected_frames_with_text_in_one_space(tmp_path):
    """The recipe of docs/methods/vdi.md, with a tiny CLIP."""
    config = CLIPTextConfig(
        hidden_size=16, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, projection_dim=12
    )
    CLIPTextModelWithProjection(config).save_pretrained(tmp_path / "clip-vit-base-patch32")
    frames = folder(tmp_path / "frames", 12, {"a": 5}, seconds=1.0, patches=(4, 12))
    experiment = [
        "experiment=vdi/charades_sta",
        f"paths.features={tmp_path}",
        "method.spatial_dynamic.heads=2",
    ]
    experiment.append("method.visual_context.heads=2")
    cfg = compose("train", [*experiment, "features=extracted", f"features.video.folders=[{frames}]"])
    method = instantiate(cfg.method)
    assert cfg.features.clip_seconds == 1.0
    assert (cfg.features.query_dim, cfg.features.video_dim, cfg.features.patch_dim) == (0, 12, 12)
    assert isinstance(method.visual_context.frames, nn.Identity)
    assert isinstance(instantiate(compose("train", experiment).method).visual_context.frames, nn.Linear)


def test_folders_that_do_not_go_together_are_refused(tmp_path):
    one = folder(tmp_path / "one", 3, {"a": 4}, seconds=1.0)
    two = folder(tmp_path / "two", 3, {"a": 4}, seconds=2.0)
    with pytest.raises(VmrError, match="different lengths"):
        combined_entry("clip_seconds", [one, two])
    alien = folder(tmp_path / "alien", 3, {"a": 4}, target="os.system")
    with pytest.raises(VmrError, match=r"os\.system; only encoders of this package"):
        ExtractedVideos([alien], [{"_target_": "vmr_zoo.X"}], normalise=True)
    with pytest.raises(VmrError, match=r"os\.system; only encoders of this package"):
        ExtractedVideos([one], [{"_target_": "os.system"}], normalise=True)
    shutil.rmtree(two)
    with pytest.raises(VmrError, match="there is none"):
        combined_entry("dim", [one, two])
