"""SlowFast R50 as published: the network's names and sizes, its weights, its choice of frames."""

from __future__ import annotations

import functools
import os
import pickle
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from vmr_zoo.errors import VmrError
from vmr_zoo.video import slowfast
from vmr_zoo.video.caffe2 import caffe2_name
from vmr_zoo.video.decode import sample
from vmr_zoo.video.encoder import encode_video
from vmr_zoo.video.slowfast import SlowFast, SlowFastNetwork, frame_indices

# Counted in the released model: parameters with its head; tensors of its state dict.
PARAMETERS, TENSORS = 34_566_488, 662
# Written down from PySlowFast's model builder and the names of its Caffe2 checkpoints.
SHAPES = {
    "s1.pathway1_stem.conv.weight": ("t_conv1_w", (8, 3, 5, 7, 7)),
    "s1.pathway0_stem.bn.running_var": ("res_conv1_bn_riv", (64,)),
    "s1_fuse.conv_f2s.weight": ("t_pool1_subsample_w", (16, 8, 7, 1, 1)),
    "s1_fuse.bn.weight": ("t_pool1_subsample_bn_s", (16,)),
    "s2.pathway0_res0.branch1.weight": ("res2_0_branch1_w", (256, 80, 1, 1, 1)),
    "s2.pathway0_res0.branch1_bn.bias": ("res2_0_branch1_bn_b", (256,)),
    "s3.pathway0_res0.branch2.a.weight": ("res3_0_branch2a_w", (128, 320, 1, 1, 1)),
    "s4.pathway0_res0.branch2.a.weight": ("res4_0_branch2a_w", (256, 640, 3, 1, 1)),
    "s4.pathway1_res5.branch2.b.weight": ("t_res4_5_branch2b_w", (32, 32, 1, 3, 3)),
    "s4_fuse.conv_f2s.weight": ("t_res4_5_branch2c_bn_subsample_w", (256, 128, 7, 1, 1)),
    "s4_fuse.bn.running_mean": ("t_res4_5_branch2c_bn_subsample_bn_rm", (256,)),
    "s5.pathway1_res2.branch2.c_bn.weight": ("t_res5_2_branch2c_bn_s", (256,)),
    "head.projection.weight": ("pred_w", (400, 2304)),
}


@pytest.fixture
def tiny(monkeypatch):
    """A network of an eighth of the channels, and its state dict."""
    small = functools.partial(SlowFastNetwork, width=8, classes=3)
    monkeypatch.setattr(slowfast, "SlowFastNetwork", small)
    return small().state_dict()


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """2.6 s at 20 frames per second, 96 x 64 pixels; the number of a frame is its brightness."""
    path = tmp_path_factory.mktemp("video") / "v.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=20, options={"preset": "ultrafast", "qp": "0"})
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for number in range(52):
            frame = av.VideoFrame.from_ndarray(np.full((64, 96, 3), 4 * number, np.uint8), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 20)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def test_names_and_shapes_are_those_of_the_released_model():
    with torch.device("meta"):
        network = SlowFastNetwork()
    state = network.state_dict()
    assert sum(parameter.numel() for parameter in network.parameters()) == PARAMETERS
    assert len(state) == TENSORS
    for key, (name, shape) in SHAPES.items():
        assert (caffe2_name(key), tuple(state[key].shape)) == (name, shape)


def checkpoint(state, **blobs) -> bytes:
    named = {caffe2_name(key): value.numpy() for key, value in state.items() if "num_batches" not in key}
    unused = {"conv1_w_momentum": np.zeros(3, np.float32), "lr": np.float32(0.1)}
    return pickle.dumps({"blobs": {**named, **unused, **blobs}}, protocol=2)


def test_the_released_file_is_read_and_nothing_in_it_is_run(tiny, tmp_path):
    state = tiny
    released, plain, saved = (tmp_path / name for name in ("w.pkl", "w.safetensors", "w.pyth"))
    released.write_bytes(checkpoint(state))
    save_file(state, plain)
    torch.save({"model_state": state, "epoch": 196}, saved)
    for path in (released, plain, saved):
        loaded = SlowFast(str(path)).model.state_dict()
        assert loaded.keys() == state.keys()
        assert all(torch.equal(loaded[key], value) for key, value in state.items())

    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "exploded"),)

    released.write_bytes(checkpoint(state, bomb=Bomb()))
    with pytest.raises(VmrError, match=r"mkdir, which is no part of an array"):
        SlowFast(str(released))
    saved.write_bytes(pickle.dumps(Bomb(), 2))
    with pytest.raises(VmrError, match="holds no state dict"):
        SlowFast(str(saved))
    assert not (tmp_path / "exploded").exists()


def test_other_weights_are_refused(tiny, tmp_path):
    state = dict(tiny)
    path = tmp_path / "w.safetensors"

    def message(changed, name="w.safetensors", pack=None):
        (save_file(changed, path) if pack is None else (tmp_path / name).write_bytes(pack))
        with pytest.raises(VmrError) as caught:
            SlowFast(str(tmp_path / name))
        return str(caught.value)

    head = {"head.projection.weight": torch.zeros(5, 288), "head.projection.bias": torch.zeros(5)}
    assert "2 of 662 tensors differ" in message(state | head)
    assert "PyTorchVideo" in message({"blocks.0.multipathway_blocks.0.conv.weight": torch.zeros(1)})
    del state["s5.pathway0_res0.branch1.weight"]
    assert "Missing: res5_0_branch1_w" in message(None, "w.pkl", checkpoint(state))
    with pytest.raises(VmrError, match="No weights were requested"):
        SlowFast(None)
    with pytest.raises(VmrError, match="there is no such file"):
        SlowFast(str(tmp_path / "none.pkl"))
    with pytest.raises(VmrError, match=r"1, 2, …; found 1.5"):
        SlowFast(None, clip_seconds=1.5, random_weights=True)


def test_the_fast_pathway_sees_what_the_published_one_saw():
    # 64 frames at the rate of the source, cut at the end of the clip.
    assert frame_indices(30, 60)[:3] + frame_indices(30, 60)[-3:] == [0, 2, 4, 58, 59, 59]
    assert frame_indices(25, 60)[-1] == 52
    assert frame_indices(30, 30).count(29) == 17


def test_clips_are_frames_of_the_video_and_the_last_goes_on(tiny, video):
    def brightness(clip):
        return clip.float().mean((1, 2, 3))

    encoder = SlowFast(None, clip_seconds=2, size=32, random_weights=True)
    shown = [
        int(frame.reformat(format="rgb24").to_ndarray().mean().round()) for frame in sample(video, 1 / 30)
    ]
    assert len(shown) == 78
    clips = list(encoder.clips(video))
    assert [tuple(clip.shape) for clip in clips] == [(32, 32, 32, 3)]  # 0.6 s are less than half a clip
    chosen = [shown[index] for index in frame_indices(20, 60)]
    np.testing.assert_allclose(brightness(clips[0]), chosen, atol=2)
    # Clips of 1 s: the third has 18 frames, then its last one.
    third = list(SlowFast(None, clip_seconds=1, size=32, random_weights=True).clips(video))[2]
    filled = [*shown[60:], *[shown[-1]] * 12]
    np.testing.assert_allclose(brightness(third), [filled[index] for index in frame_indices(20, 30)], atol=2)
    # Of 4 s: after the second with the last frame comes that second once more.
    only = next(SlowFast(None, clip_seconds=4, size=32, random_weights=True).clips(video))
    filled = [*shown, *[shown[-1]] * 12, *shown[60:], *[shown[-1]] * 12]
    np.testing.assert_allclose(brightness(only), [filled[index] for index in frame_indices(20, 120)], atol=2)


def test_a_clip_does_not_depend_on_its_batch_and_half_precision_is_close(tiny):
    encoder = SlowFast(None, size=32, random_weights=True)
    clips = [torch.randint(0, 256, (32, 32, 32, 3), dtype=torch.uint8) for _ in range(2)]
    together, patches = encoder.encode(clips)
    assert (together.shape, together.dtype, patches) == ((2, 288), np.float32, None)
    np.testing.assert_allclose(together[:1], encoder.encode(clips[:1])[0], rtol=1e-4, atol=1e-5)
    # They are what the last layer sees.
    with torch.inference_mode():
        scores = encoder.model((torch.stack(clips).permute(0, 4, 1, 2, 3) / 255 - 0.45) / 0.225)
        expected = encoder.model.head.projection(torch.from_numpy(together))
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-5)
    encoder.dtype = "bfloat16"
    half = encoder.encode(clips[:1])[0]
    assert half.dtype == np.float32
    assert 0.98 < np.corrcoef(half[0], together[0])[0, 1] < 1


def test_the_manifest_says_how_features_were_made(tiny, video):
    encoder = SlowFast(None, size=32, random_weights=True)
    manifest = encoder.manifest()
    assert (manifest["backbone"], manifest["preprocess"]["size"]) == ("slowfast_r50", 32)
    assert encode_video(encoder, video).shape == (1, 288)
