"""Motion features of clips from torchvision's video classifiers.

They replace the papers' SlowFast, which torchvision lacks: an action classifier of short clips (Kinetics-400)
without its last layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from vmr_zoo.errors import VmrError, unknown
from vmr_zoo.utils.arrays import Array
from vmr_zoo.utils.switches import check_switches
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

_HEADS = ("fc", "head", "classifier")
"""Names of the last layers of torchvision's video models."""


@check_switches
class Motion(VideoEncoder):
    """A video classifier of torchvision without its last layer."""

    patches = None
    patch_dim = None

    def __init__(
        self,
        model: str,
        weights: str | None,
        clip_seconds: float = 2.0,
        frames: int = 16,
        random_weights: bool = False,
        device: str | None = None,
        dtype: Precision = "float32",
    ) -> None:
        """Loads the model; torchvision downloads the weights if necessary.

        Args:
            model: a name of `torchvision.models.list_models(torchvision.models.video)`.
            weights: torchvision's name for weights of this model, such as KINETICS400_V1, or a file with its
                state dict (.safetensors, or written by torch.save; only tensors are unpickled).
            clip_seconds: length of a clip.
            frames: frames per clip, evenly spaced; some models require a fixed number (mvit: 16).
            random_weights: whether to use random instead of pretrained weights, for tests only.
            device: "cpu", "cuda" or "cuda:N", not part of the manifest; None: a GPU if available.
            dtype: precision of the computation.

        Raises:
            VmrError: for an unknown model, or weights that cannot be loaded.
        """
        names = torchvision.models.list_models(torchvision.models.video)
        if model not in names:
            raise unknown("video model of torchvision", model, names)
        if frames < 1 or clip_seconds <= 0:
            raise VmrError(f"Expected frames >= 1 and clip_seconds > 0, found {frames} and {clip_seconds}.")
        self.device = find_device(device)
        network, self._preset = _load(model, weights, random_weights)
        head = next(name for name in _HEADS if hasattr(network, name))
        last = [m for m in getattr(network, head).modules() if isinstance(m, nn.Linear | nn.Conv3d)][-1]
        self.dim = last.in_features if isinstance(last, nn.Linear) else last.in_channels
        setattr(network, head, nn.Identity())
        self.model = network.to(self.device).eval()
        self.name = model
        self.weights = None if random_weights else weights
        self.clip_seconds = clip_seconds
        self.frames = frames
        self.random_weights = random_weights
        self.dtype = dtype
        self._weights = weights_hash(network)

    def clips(self, path: Path) -> Iterator[Tensor]:
        """Yields (3, frames, H, W) float32 per clip; a partial last clip repeats its last frame."""
        # Frame by frame: a clip of large frames takes much memory.
        images = (
            self._preset(torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1)[None])
            for frame in sample(path, self.clip_seconds / self.frames)
        )
        for clip in in_clips(images, self.frames):
            yield torch.cat([*clip, *clip[-1:] * (self.frames - len(clip))], dim=1)

    def encode(self, clips: Sequence[Tensor]) -> tuple[Array, None]:
        """Encodes clips as (N, dim) float32."""
        with inference(self.device, self.dtype):
            features = self.model(torch.stack(list(clips)).to(self.device))
        return features.float().flatten(1).cpu().numpy(), None

    def manifest(self) -> dict[str, Any]:
        """Returns everything that determines the features."""
        return {
            "backbone": f"torchvision {self.name}",
            "pretrained": None if self.weights is None else Path(self.weights).name,
            "random_weights": self.random_weights,
            "weights": self._weights,
            "preprocess": {
                name: getattr(self._preset, name)
                for name in ("crop_size", "resize_size", "mean", "std")
                if hasattr(self._preset, name)
            },
            "clip_seconds": self.clip_seconds,
            "frames": self.frames,
            "precision": self.dtype,
        }


def _load(model: str, weights: str | None, random_weights: bool) -> tuple[Any, Any]:
    """Returns a classifier with the requested weights, and its preprocessing."""
    published = torchvision.models.get_model_weights(model)
    names = list(published.__members__)
    if random_weights:
        with same_random_weights():
            return torchvision.models.get_model(model), published["DEFAULT"].transforms()
    if weights is None:
        raise VmrError(
            f"No weights were requested. Set encoder.weights to a file or one of {', '.join(names)} of "
            f"{model}. For tests: encoder.random_weights=true."
        )
    path = Path(weights).expanduser()
    if weights not in names and not path.is_file():
        raise VmrError(
            f"encoder.weights={weights} is neither a file nor a name of torchvision's weights of {model}: "
            f"{', '.join(names)}."
        )
    try:
        # By default torchvision unpickles its downloads.
        if weights in names:
            state = published[weights].get_state_dict(check_hash=True, weights_only=True)
        else:
            state = read_state(path)
        classes = [tensor for name, tensor in state.items() if name.split(".")[0] in _HEADS][-1].shape[0]
        network = torchvision.models.get_model(model, num_classes=classes)
        network.load_state_dict(state)
    except Exception as error:  # any error of the download or of reading
        raise VmrError(
            f"Cannot load weights={weights} into torchvision's {model}: {error}\n"
            "Set encoder.weights to a name (needs a connection once) or a file with this model's state dict."
        ) from error
    return network, published[weights if weights in names else "DEFAULT"].transforms()
