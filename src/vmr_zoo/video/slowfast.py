"""SlowFast R50, 8x8: the motion features of the Moment-DETR family.

Feichtenhofer, Fan, Malik and He, "SlowFast Networks for Video Recognition", ICCV 2019, trained on
Kinetics-400. The vector of a clip is what the last layer of the classifier sees: the mean of the slow pathway
(2048), then that of the fast one (256). Layers are named as in PySlowFast, whose weights made the published
features; frames are chosen and prepared as in HERO_Video_Feature_Extractor.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vmr_zoo.errors import VmrError, abbreviate
from vmr_zoo.utils.arrays import Array
from vmr_zoo.utils.switches import check_switches
from vmr_zoo.video.caffe2 import read_caffe2
from vmr_zoo.video.container import VideoError, open_video
from vmr_zoo.video.decode import sample
from vmr_zoo.video.encoder import VideoEncoder, in_clips
from vmr_zoo.video.torch_models import (
    Precision,
    find_device,
    inference,
    read_state,
    same_random_weights,
    weights_hash,
)

RATE = 30
"""Frames per second that are decoded."""

FAST, SLOW = 32, 8
"""Frames per clip of the fast and the slow pathway."""

_STRIDE = 2
"""The network was trained on every second of 64 consecutive frames."""

_MEAN, _STD = 0.45, 0.225
"""Of all three colours, of pixels from 0 to 1."""

_BLOCKS = (3, 4, 6, 3)
_SLOW_KERNELS, _FAST_KERNELS = (1, 1, 3, 3), (3, 3, 3, 3)
"""Kernel sizes in time of the first convolution of a block, for the four stages."""


@check_switches
class SlowFast(VideoEncoder):
    """SlowFast R50, 8x8, without its last layer."""

    dim = 2048 + 256
    patches = None
    patch_dim = None

    def __init__(
        self,
        weights: str | None,
        clip_seconds: float = 2.0,
        size: int = 224,
        random_weights: bool = False,
        device: str | None = None,
        dtype: Precision = "float32",
    ) -> None:
        """Loads the weights.

        Args:
            weights: SLOWFAST_8x8_R50.pkl of PySlowFast's model zoo (read by `caffe2`, never unpickled); or a
                state dict with PySlowFast's names, .safetensors, or written by torch.save (only tensors are
                unpickled).
            clip_seconds: length of a clip, whole seconds.
            size: shorter side of the pictures, of which the central square is encoded; published: 224.
            random_weights: whether to use random instead of trained weights, for tests only.
            device: "cpu", "cuda" or "cuda:N", not part of the manifest; None: a GPU if available.
            dtype: precision of the computation.

        Raises:
            VmrError: for weights that cannot be loaded, or a clip length that is no whole number.
        """
        if clip_seconds < 1 or clip_seconds != int(clip_seconds):
            raise VmrError(f"Expected clip_seconds of SlowFast to be 1, 2, …; found {clip_seconds}.")
        if size < 32:
            raise VmrError(f"Expected size of at least 32 pixels, found {size}.")
        self.device = find_device(device)
        if random_weights:
            with same_random_weights():
                network = SlowFastNetwork()
        else:
            with torch.device("meta"):  # the file fills it
                network = SlowFastNetwork()
            network.load_state_dict(_read_weights(weights, network), assign=True)
        self.model = network.to(self.device).eval()
        self.weights = None if random_weights or weights is None else weights
        self.clip_seconds = float(clip_seconds)
        self.size = size
        self.random_weights = random_weights
        self.dtype = dtype
        self._weights = weights_hash(network)

    def clips(self, path: Path) -> Iterator[Tensor]:
        """Yields (32, size, size, 3) uint8 per clip.

        A clip that the video does not fill goes on with its last frame to the end of the second, then with
        its last second.
        """
        per_clip = int(self.clip_seconds) * RATE
        chosen = frame_indices(_source_rate(path), per_clip)
        for frames in in_clips(self._pictures(path), per_clip):
            while len(frames) % RATE:
                frames.append(frames[-1])
            while len(frames) < per_clip:
                frames.append(frames[-RATE])
            yield torch.from_numpy(np.stack([frames[index] for index in chosen]))

    def _pictures(self, path: Path) -> Iterator[Array]:
        """Yields 30 pictures per second, each (size, size, 3) uint8."""
        last, picture = None, None
        for frame in sample(path, 1 / RATE):
            if frame is not last:  # a video of fewer frames per second repeats them
                last, picture = frame, self._prepare(frame)
            assert picture is not None
            yield picture

    def _prepare(self, frame: Any) -> Array:
        """Scales the shorter side by ffmpeg's bicubic scaler, and cuts out the central square."""
        shorter = min(frame.width, frame.height)
        width, height = (int(side * self.size / shorter) for side in (frame.width, frame.height))
        scaled = frame.reformat(width=width, height=height, format="rgb24", interpolation="BICUBIC")
        left, top = (width - self.size) // 2, (height - self.size) // 2
        picture: Array = scaled.to_ndarray()[top : top + self.size, left : left + self.size]
        return np.ascontiguousarray(picture)

    def encode(self, clips: Sequence[Tensor]) -> tuple[Array, None]:
        """Encodes clips as (N, 2304) float32."""
        pictures = torch.stack(list(clips)).to(self.device).permute(0, 4, 1, 2, 3)
        with inference(self.device, self.dtype):
            fast = (pictures.float() / 255 - _MEAN) / _STD
            features = self.model.features(fast)
        return features.float().cpu().numpy(), None

    def manifest(self) -> dict[str, Any]:
        """Returns everything that determines the features."""
        return {
            "backbone": "slowfast_r50",
            "pretrained": None if self.weights is None else Path(self.weights).name,
            "random_weights": self.random_weights,
            "weights": self._weights,
            "preprocess": {
                "size": self.size,
                "interpolation": "bicubic",
                "mean": _MEAN,
                "std": _STD,
                "rate": RATE,
                "span": "64 frames at the source's rate, cut at the clip's end",
            },
            "clip_seconds": self.clip_seconds,
            "frames": FAST,
            "precision": self.dtype,
        }


def frame_indices(source_rate: int, per_clip: int) -> list[int]:
    """Returns which of a clip's frames the fast pathway sees, as the published features have it.

    Evenly spaced over 64 frames at the rate of the source; what goes beyond the clip is its last frame.

    Args:
        source_rate: frames per second of the file, rounded down.
        per_clip: frames of a clip at 30 per second.

    Returns:
        32 indices.
    """
    span = FAST * _STRIDE * source_rate / RATE
    indices: list[int] = torch.linspace(0, span - 1, FAST).clamp(0, per_clip - 1).long().tolist()
    return indices


def _source_rate(path: Path) -> int:
    """Returns the frames per second that a file declares on average, rounded down."""
    with open_video(path) as opened:
        rate = opened.stream.average_rate
    if not rate or rate < 1:
        raise VideoError(
            "no frame rate",
            f"{path} declares no frame rate of at least 1 per second, on which SlowFast's choice of frames "
            "depends. Write it again with one: `ffmpeg -i IN -vf fps=25 OUT.mp4`.",
        )
    return int(rate)


def _read_weights(weights: str | None, network: nn.Module) -> dict[str, Tensor]:
    """Reads a file of weights; keys and shapes are those of the network."""
    if weights is None:
        raise VmrError(
            "No weights were requested. Set encoder.weights to SLOWFAST_8x8_R50.pkl of PySlowFast's model "
            "zoo (docs/extract.md says where it is). For tests: encoder.random_weights=true."
        )
    path = Path(weights).expanduser()
    if not path.is_file():
        raise VmrError(f"Expected SlowFast's weights at encoder.weights={weights}; there is no such file.")
    expected = network.state_dict()
    # Training alone counts batches; Caffe2 does not.
    counters = {key: torch.tensor(0) for key in expected if key.endswith("num_batches_tracked")}
    if path.suffix == ".pkl":
        state = read_caffe2(path, expected) | counters
    else:
        try:
            loaded = read_state(path)
            state = counters | dict(loaded.get("model_state", loaded))
        except Exception as error:  # a broken file raises nearly anything
            raise VmrError(f"{path} holds no state dict ({error}). Copy or download it again.") from error
    if any(str(key).startswith("blocks.") for key in state):
        raise VmrError(
            f"{path} has the names of PyTorchVideo. Those weights come from another training than the ones "
            "behind the published features. Expected SLOWFAST_8x8_R50.pkl of PySlowFast's model zoo."
        )
    wrong = [key for key in {**expected, **state} if _shape(state, key) != _shape(expected, key)]
    if wrong:
        first = wrong[0]
        raise VmrError(
            f"{path} is not SlowFast R50, 8x8, of Kinetics-400: {len(wrong)} of {len(expected)} tensors "
            f"differ ({abbreviate(wrong)}); {first} has shape {_shape(state, first)}, expected "
            f"{_shape(expected, first)}."
        )
    return state


def _shape(state: dict[str, Tensor], key: str) -> tuple[int, ...] | None:
    return tuple(state[key].shape) if key in state else None


# ---------------------------------------------------------------------------------------------- network


class SlowFastNetwork(nn.Module):
    """The classifier; its state dict has the keys and shapes of PySlowFast's SLOWFAST_8x8_R50."""

    def __init__(self, width: int = 64, classes: int = 400) -> None:
        """Builds the layers.

        Args:
            width: channels of the slow pathway at the start, a multiple of 8; released: 64.
            classes: released: 400.
        """
        super().__init__()
        self.s1 = _Stems(width)
        self.s1_fuse = _Fusion(width // 8)
        for stage, blocks in enumerate(_BLOCKS, 2):
            inner = width * 2 ** (stage - 2)
            before = width if stage == 2 else 2 * inner
            self.add_module(f"s{stage}", _Stage(stage, blocks, before, inner))
            if stage < 5:
                self.add_module(f"s{stage}_fuse", _Fusion(inner * 4 // 8))
        self.head = nn.Module()
        self.head.projection = nn.Linear(36 * width, classes)

    def features(self, fast: Tensor) -> Tensor:
        """Encodes clips.

        Args:
            fast: (N, 3, 32, H, W), normalised.

        Returns:
            (N, 36 * width), the slow pathway first.
        """
        rows = torch.linspace(0, fast.shape[2] - 1, SLOW).long().to(fast.device)
        slow, fast = self.s1(fast[:, :, rows], fast)
        for stage in range(2, 6):
            slow = getattr(self, f"s{stage - 1}_fuse")(slow, fast)
            slow, fast = getattr(self, f"s{stage}")(slow, fast)
        return torch.cat([slow.mean((2, 3, 4)), fast.mean((2, 3, 4))], 1)

    def forward(self, fast: Tensor) -> Tensor:
        """Returns (N, classes) scores before the softmax."""
        scores: Tensor = self.head.get_submodule("projection")(self.features(fast))
        return scores


class _Stem(nn.Module):
    def __init__(self, width: int, time: int) -> None:
        super().__init__()
        self.conv = _convolution(3, width, (time, 7, 7), stride=2)
        self.bn = nn.BatchNorm3d(width)

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool3d(F.relu(self.bn(self.conv(x))), (1, 3, 3), (1, 2, 2), (0, 1, 1))


class _Stems(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.pathway0_stem = _Stem(width, 1)
        self.pathway1_stem = _Stem(width // 8, 5)

    def forward(self, slow: Tensor, fast: Tensor) -> tuple[Tensor, Tensor]:
        return self.pathway0_stem(slow), self.pathway1_stem(fast)


class _Fusion(nn.Module):
    """Appends channels of the fast pathway, every fourth frame, to those of the slow one."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv_f2s = nn.Conv3d(width, 2 * width, (7, 1, 1), (FAST // SLOW, 1, 1), (3, 0, 0), bias=False)
        self.bn = nn.BatchNorm3d(2 * width)

    def forward(self, slow: Tensor, fast: Tensor) -> Tensor:
        return torch.cat([slow, F.relu(self.bn(self.conv_f2s(fast)))], 1)


class _Stage(nn.Module):
    """The residual blocks of both pathways; the fast one has an eighth of the channels."""

    def __init__(self, stage: int, blocks: int, before: int, width: int) -> None:
        super().__init__()
        self.blocks = blocks
        stride = 1 if stage == 2 else 2
        kernels = (_SLOW_KERNELS[stage - 2], _FAST_KERNELS[stage - 2])
        entering = (before + before // 4, before // 8)  # the fusion appends a quarter
        for pathway, (kernel, enter) in enumerate(zip(kernels, entering, strict=True)):
            inner = width // 8**pathway
            for number in range(blocks):
                first = number == 0
                block = _Block(enter if first else 4 * inner, inner, kernel, stride if first else 1)
                self.add_module(f"pathway{pathway}_res{number}", block)

    def forward(self, slow: Tensor, fast: Tensor) -> tuple[Tensor, Tensor]:
        for number in range(self.blocks):
            slow = getattr(self, f"pathway0_res{number}")(slow)
            fast = getattr(self, f"pathway1_res{number}")(fast)
        return slow, fast


class _Block(nn.Module):
    def __init__(self, enter: int, inner: int, time: int, stride: int) -> None:
        super().__init__()
        self.branch1: nn.Module | None = None
        if enter != 4 * inner or stride > 1:
            self.branch1 = _convolution(enter, 4 * inner, (1, 1, 1), stride)
            self.branch1_bn = nn.BatchNorm3d(4 * inner)
        self.branch2 = _Bottleneck(enter, inner, time, stride)

    def forward(self, x: Tensor) -> Tensor:
        short = x if self.branch1 is None else self.branch1_bn(self.branch1(x))
        return F.relu(short + self.branch2(x))


class _Bottleneck(nn.Module):
    def __init__(self, enter: int, inner: int, time: int, stride: int) -> None:
        super().__init__()
        self.a = _convolution(enter, inner, (time, 1, 1))
        self.a_bn = nn.BatchNorm3d(inner)
        self.b = _convolution(inner, inner, (1, 3, 3), stride)
        self.b_bn = nn.BatchNorm3d(inner)
        self.c = _convolution(inner, 4 * inner, (1, 1, 1))
        self.c_bn = nn.BatchNorm3d(4 * inner)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a_bn(self.a(x)))
        x = F.relu(self.b_bn(self.b(x)))
        normalised: Tensor = self.c_bn(self.c(x))
        return normalised


def _convolution(enter: int, leave: int, kernel: tuple[int, int, int], stride: int = 1) -> nn.Conv3d:
    """A convolution without bias that keeps the number of frames; `stride` is that of space."""
    time, height, width = kernel
    padding = (time // 2, height // 2, width // 2)
    return nn.Conv3d(enter, leave, kernel, (1, stride, stride), padding, bias=False)
