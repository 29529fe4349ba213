"""Encoders that are networks, with tiny or random models, because the weights are downloads."""

from __future__ import annotations

import json
import os
from fractions import Fraction

import av
import numpy as np
import open_clip
import pytest
import torch
import torchvision

from vmr_zoo.errors import VmrError
from vmr_zoo.video.decode import sample
from vmr_zoo.video.motion import Motion
from vmr_zoo.video.open_clip import OpenClip
from vmr_zoo.video.torch_models import read_state

TINY = {
    "embed_dim": 12,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 16, "head_width": 8, "patch_size": 16},
    "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Registers a tiny model and writes weights for it."""
    folder = tmp_path_factory.mktemp("open_clip")
    (folder / "vmr-tiny.json").write_text(json.dumps(TINY))
    open_clip.add_model_config(folder)
    torch.manual_seed(1)
    torch.save(open_clip.create_model("vmr-tiny").state_dict(), folder / "weights.pt")
    return folder / "weights.pt"


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """Ten and a half seconds of changing colours, four frames per second."""
    path = tmp_path_factory.mktemp("video") / "v.mp4"
    rng = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=4, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(42):
            picture = np.kron(rng.integers(0, 255, (3, 4, 3)), np.ones((16, 16, 1))).astype(np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 4)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def test_clip_features_are_what_encode_image_says_of_the_frames(tiny, video):
    encoder = OpenClip("vmr-tiny", str(tiny), clip_seconds=2.0, samples=2, patch_tokens="projected")
    model, _, preprocess = open_clip.create_model_and_transforms("vmr-tiny", pretrained=str(tiny))
    model.eval()
    clips = list(encoder.clips(video))
    features, patches = encoder.encode(clips)
    assert features.shape == (5, encoder.dim) == (5, 12)
    assert patches.shape == (5, encoder.patches, encoder.patch_dim) == (5, 4, 12)
    images = torch.stack([preprocess(frame.to_image()) for frame in sample(video, 1.0)])
    with torch.no_grad():
        expected = model.encode_image(images)[:10]
        assert np.allclose(features, expected.reshape(5, 2, 12).mean(1), atol=1e-6)
        tower = model.visual
        tokens = tower.ln_post(tower.transformer(tower._embeds(images[1:10:2])))
        assert np.allclose(patches, tokens[:, 1:] @ tower.proj, atol=1e-6)  # of the second of two samples
    alone, _ = encoder.encode(clips[3:4])
    assert np.allclose(alone[0], features[3], atol=1e-6)
    plain = OpenClip("vmr-tiny", str(tiny), clip_seconds=2.0, samples=2)
    assert plain.patches is None
    assert np.allclose(plain.encode(clips)[0], features, atol=1e-6)
    wide = OpenClip("vmr-tiny", str(tiny), clip_seconds=2.0, samples=2, patch_tokens="unprojected")
    assert wide.encode(clips)[1].shape == (5, 4, wide.patch_dim) == (5, 4, 16)


def test_the_manifest_of_clip_tells_weights_apart_but_not_where_they_lie(tiny, tmp_path):
    first = OpenClip("vmr-tiny", str(tiny))
    moved = tmp_path / tiny.name
    moved.write_bytes(tiny.read_bytes())
    assert OpenClip("vmr-tiny", str(moved)).manifest() == first.manifest()
    random = OpenClip("vmr-tiny", "openai", random_weights=True)
    again = OpenClip("vmr-tiny", None, random_weights=True)
    assert random.manifest() == again.manifest()
    assert random.manifest()["random_weights"] is True
    assert random.manifest()["weights"] != first.manifest()["weights"]


def test_clip_is_refused_without_weights(tiny, tmp_path, monkeypatch):
    with pytest.raises(VmrError, match="No weights were requested"):
        OpenClip("vmr-tiny", None)
    with pytest.raises(VmrError, match="Did you mean vmr-tiny"):
        OpenClip("vmr-tine", "openai")
    with pytest.raises(VmrError, match=r"cannot load vmr-tiny with pretrained=.*none\.pt"):
        OpenClip("vmr-tiny", str(tmp_path / "none.pt"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(VmrError, match="finds no GPU"):
        OpenClip("vmr-tiny", str(tiny), device="cuda")


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_motion_features_are_what_the_last_layer_sees(video, tmp_path, suffix):
    torch.manual_seed(2)
    network = torchvision.models.video.mc3_18(num_classes=7).eval()
    file = tmp_path / f"weights.{suffix}"
    if suffix == "pth":
        torch.save(network.state_dict(), file)
    else:
        from safetensors.torch import save_file

        save_file(network.state_dict(), file)
    encoder = Motion("mc3_18", str(file), clip_seconds=2.0, frames=2)
    clips = list(encoder.clips(video))
    assert len(clips) == 5  # the half second at the end fills less than half a clip
    features, patches = encoder.encode(clips[:2])
    assert (features.shape, patches) == ((2, encoder.dim), None)
    preset = torchvision.models.video.MC3_18_Weights.DEFAULT.transforms()
    frames = [torch.from_numpy(frame.to_ndarray(format="rgb24")) for frame in sample(video, 1.0)]
    with torch.no_grad():
        inputs = preset(torch.stack(frames[:4]).reshape(2, 2, 48, 64, 3).permute(0, 1, 4, 2, 3))
        assert np.allclose(network.fc(torch.from_numpy(features)), network(inputs), atol=1e-4)


class Harmful:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_published_motion_weights_are_loaded_by_name_and_never_unpickled(tmp_path, monkeypatch):
    """torchvision finds the file where an earlier download would have stored it."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    weights = torchvision.models.video.MC3_18_Weights.KINETICS400_V1
    file = tmp_path / "hub" / "checkpoints" / weights.url.rsplit("/", 1)[-1]
    file.parent.mkdir(parents=True)
    network = torchvision.models.video.mc3_18(num_classes=400).eval()
    torch.save(network.state_dict(), file)
    encoder = Motion("mc3_18", "KINETICS400_V1", frames=2)
    assert torch.equal(encoder.model.state_dict()["stem.0.weight"], network.state_dict()["stem.0.weight"])

    torch.save({**network.state_dict(), "harm": Harmful(tmp_path / "made")}, file)
    with pytest.raises(VmrError, match="Cannot load weights=KINETICS400_V1"):
        Motion("mc3_18", "KINETICS400_V1", frames=2)
    assert not (tmp_path / "made").exists()


def test_weights_saved_on_a_gpu_are_read_to_the_cpu(tmp_path, monkeypatch):
    network = torchvision.models.video.mc3_18(num_classes=400)
    with monkeypatch.context() as saving:
        saving.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
        torch.save(network.state_dict(), tmp_path / "gpu.pth")
    assert read_state(tmp_path / "gpu.pth")["fc.weight"].device.type == "cpu"
    encoder = Motion("mc3_18", str(tmp_path / "gpu.pth"), frames=2, device="cpu")
    assert torch.equal(encoder.model.state_dict()["stem.0.weight"], network.state_dict()["stem.0.weight"])


def test_motion_is_refused_without_its_weights(tmp_path):
    with pytest.raises(VmrError, match="No weights were requested"):
        Motion("mc3_18", None)
    with pytest.raises(VmrError, match="KINETICS400_V1"):
        Motion("mc3_18", "IMAGENET1K_V1")
    torch.save({"fc.weight": torch.zeros(3, 3)}, tmp_path / "other.pth")
    with pytest.raises(VmrError, match=r"Cannot load weights=.*into torchvision's mc3_18"):
        Motion("mc3_18", str(tmp_path / "other.pth"))
