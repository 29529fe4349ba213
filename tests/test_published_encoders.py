"""A run that was trained on published files answers about a new video, by encoders of the same networks."""

from __future__ import annotations

import functools
import json

import numpy as np
import pytest
from omegaconf import OmegaConf

from vmr_zoo.cli import main
from vmr_zoo.config.compose import build, compose
from vmr_zoo.data.features.files import FileFeatures, VideoFiles
from vmr_zoo.data.features.store import FileStore
from vmr_zoo.engine import encoders as encoders_module
from vmr_zoo.engine.encoders import EncodedVideoFiles, with_encoders
from vmr_zoo.errors import VmrError
from vmr_zoo.video import slowfast

SHAPES_CLIP = ("model=shapes_clip", "pretrained=null")
"""The tiny CLIP of this package stands for ViT-B/32, and SlowFast has an eighth of its channels."""
SLOWFAST_DIM, CLIP_DIM = 288, 64


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(slowfast, "SlowFastNetwork", functools.partial(slowfast.SlowFastNetwork, width=8))
    monkeypatch.setattr(slowfast.SlowFast, "dim", SLOWFAST_DIM)


def encoders(*more: str) -> list[str]:
    clip = [f"encoders.{name}.{one}" for name in ("clip_vit_b32", "clip_vit_b32_text") for one in SHAPES_CLIP]
    network = ["encoders.slowfast_r50.random_weights=true", "encoders.slowfast_r50.size=32"]
    return [*clip, *network, *more]


@pytest.mark.slow
def test_answers_are_those_of_the_evaluation_on_files(vmr, tiny, tmp_path, capsys):
    """Files in the layout of the Moment-DETR family, made here; then the same videos as new ones."""
    world = [
        f"data.protocol.world.{setting}"
        for setting in (
            "train_videos=2",
            "selection_videos=1",
            "test_videos=1",
            "shortest=16",
            "longest=18",
            "height=48",
            "fps=4",
        )
    ]
    common = ["data=shapes", *world, f"paths.cache={tmp_path}/cache", "data.protocol.processes=1"]
    files = tmp_path / "files"
    size = ["encoder.random_weights=true", "encoder.size=32"]
    clip = [f"encoder.{one}" for one in SHAPES_CLIP]
    made = {"slowfast": ["encoder=slowfast_r50", *size], "clip": ["encoder=clip_vit_b32", *clip]}
    for name, options in made.items():
        out = f"out={files}/{name}_features"
        assert main.main(["extract", *common, *options, out, "storage=float16"]) == 0
    cfg = compose("train", [*common, "method=moment_detr"])
    text = build(
        OmegaConf.merge(compose("predict", encoders()).encoders.clip_vit_b32_text, {"cache": str(tmp_path)})
    )
    (files / "clip_text_features").mkdir()
    for split in build(cfg.data.protocol).splits.values():
        for query in split.queries:
            (tokens,) = text.tokens([query.text])
            np.savez(files / f"clip_text_features/{query.query_id}.npz", last_hidden_state=tokens)
    sizes = ["method.network.dim=16", "method.network.heads=2", "method.network.feedforward_dim=16"]
    dims = [
        f"features.video.sources.0.dim={SLOWFAST_DIM}",
        f"features.video.sources.1.dim={CLIP_DIM}",
        f"features.video_dim={SLOWFAST_DIM + CLIP_DIM}",
        f"features.query.source.dim={CLIP_DIM}",
        f"features.query_dim={CLIP_DIM}",
    ]
    run = tmp_path / "run"
    layout = ["features=slowfast_clip", f"paths.features={files}", *dims]
    options = ["trainer.max_epochs=1", "logger=none", f"run={run}", *sizes]
    assert main.main(["train", *common, "method=moment_detr", *layout, *options]) == 0
    row = next(map(json.loads, (run / "predictions.jsonl").read_text().splitlines()))
    video = next(tmp_path.glob(f"cache/shapes/*/videos/{row['video_id']}.*"))
    capsys.readouterr()
    command = ["predict", f"run={run}", f"video={video}", f"query={row['query']}", "--json", "top_k=3"]
    assert vmr(*command, *encoders()) == 0
    printed = capsys.readouterr()
    found = json.loads(printed.out)["answers"][0]["moments"]
    expected = row["pred_relevant_windows"][:3]
    np.testing.assert_allclose([[m["start"], m["end"]] for m in found], [w[:2] for w in expected], atol=0.05)
    np.testing.assert_allclose([m["score"] for m in found], [w[2] for w in expected], atol=1e-3)
    # SlowFast's weights must be named.
    assert vmr(*command, *encoders("encoders.slowfast_r50.random_weights=false")) == 2
    assert "encoders.slowfast_r50.weights=FILE" in capsys.readouterr().err


@functools.cache
def nodes():
    return compose("predict", encoders()).encoders


def features(name: str, tmp_path, *overrides: str):
    dims = [f"features.query.source.dim={CLIP_DIM}", f"features.query_dim={CLIP_DIM}"]
    options = ["data=charades_cd", f"features={name}", f"paths.features={tmp_path}", *dims, *overrides]
    return build(compose("train", options).features)


def test_order_clip_length_and_normalisation_are_those_of_the_run(tiny, tmp_path):
    dims = [
        f"features.video.sources.0.dim={CLIP_DIM}",
        f"features.video.sources.1.dim={SLOWFAST_DIM}",
        f"features.video_dim={SLOWFAST_DIM + CLIP_DIM}",
    ]
    stored = features("clip_slowfast_1s", tmp_path, *dims)
    found = with_encoders(stored, tmp_path, nodes())
    assert isinstance(found.video, EncodedVideoFiles)
    assert [type(one).__name__ for one in found.video.encoders] == ["OpenClip", "SlowFast"]
    assert [one.clip_seconds for one in found.video.encoders] == [1.0, 1.0]
    assert found.video.manifest() == stored.video.manifest()
    assert found.video.encoding()["encoders"][1]["preprocess"]["size"] == 32  # an index keeps them apart
    assert (found.query.encoder.special_tokens, found.query.normalise) == (True, True)
    assert found.query.max_tokens == stored.query.max_tokens
    # A run of 0.2 calls its networks clip and slowfast.
    for source, former in zip(stored.video.sources, ("clip", "slowfast"), strict=True):
        source.backbone = former
    assert with_encoders(stored, tmp_path, nodes()).video.encodes


def test_vectors_are_rounded_normalised_and_joined_as_the_files(monkeypatch):
    made = {"slowfast": np.array([[3, 4], [0.1, 0], [1, 1]]), "clip": np.array([[0, 2.0], [5, 0]])}
    monkeypatch.setattr(encoders_module, "encode_video", lambda name, path: made[name].astype(np.float32))
    sources = [FileFeatures(name, 2, FileStore("x", ".npz", key="f"), name == "slowfast") for name in made]
    found = EncodedVideoFiles(VideoFiles(sources), list(made)).encode("v.mp4")
    np.testing.assert_allclose(found, [[0.6, 0.8, 0, 2], [1, 0, 5, 0]], atol=2e-4)
    assert found[1, 0] == np.float32(np.float16(0.1)) / (np.float32(np.float16(0.1)) + np.float32(1e-5))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("i3d", r"clips come from ready-made files \(i3d_bm_detr\): here only slowfast_r50, clip_vit_b32"),
        ("univtg", r"\(clip_univtg\)"),
        ("clip_slowfast", "clip_vit_b32 have 512 numbers; the encoder clip_vit_b32 yields 64"),
    ],
)
def test_other_files_are_refused(tiny, tmp_path, name, message):
    with pytest.raises(VmrError, match=message):
        with_encoders(features(name, tmp_path), tmp_path, nodes())
