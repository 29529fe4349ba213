"""CLIP features of frames from any model of the open_clip library.

The vector of a clip is the mean of `encode_image` over its sampled frames: projected to the joint space with
text, not normalised. Patch tokens are those of the last layer after the final LayerNorm.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import open_clip
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from open_clip.transformer import VisionTransformer
from torch import Tensor

from vmr_zoo.errors import VmrError, nearest, unknown
from vmr_zoo.utils.arrays import Array
from vmr_zoo.video.decode import sample
from vmr_zoo.video.encoder import VideoEncoder, in_clips
from vmr_zoo.video.torch_models import (
    check_precision,
    find_device,
    inference,
    same_random_weights,
    weights_hash,
)

_TOKENS = ("unprojected", "projected")


class OpenClip(VideoEncoder):
    """An image encoder of open_clip, applied to frames."""

    def __init__(
        self,
        model: str,
        pretrained: str | None,
        clip_seconds: float = 2.0,
        samples: int = 1,
        patch_tokens: Literal["unprojected", "projected"] | None = None,
        random_weights: bool = False,
        device: str | None = None,
        dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    ) -> None:
        """Loads the model; open_clip downloads the weights if necessary.

        Args:
            model: a name of `open_clip.list_models()`, or "local-dir:FOLDER" or "hf-hub:NAME", which include
                weights.
            pretrained: a tag of `open_clip.list_pretrained()`, or a file of weights (never unpickled).
            clip_seconds: length of a clip.
            samples: frames per clip, evenly spaced; their features are averaged.
            patch_tokens: also store the patch tokens of the middle frame of each clip: "unprojected" (width
                of the image tower), or "projected" by the matrix that projects the pooled feature.
            random_weights: whether to use random instead of pretrained weights, for tests only.
            device: "cpu", "cuda" or "cuda:N", not part of the manifest; None: a GPU if available.
            dtype: precision of the computation.

        Raises:
            VmrError: for an unknown model, weights that cannot be loaded, or a model without patch tokens.
        """
        if patch_tokens not in (None, *_TOKENS):
            raise unknown("kind of patch tokens", str(patch_tokens), _TOKENS)
        if samples < 1 or clip_seconds <= 0:
            raise VmrError(f"Expected samples >= 1 and clip_seconds > 0, found {samples} and {clip_seconds}.")
        check_precision(dtype)
        self.device = find_device(device)
        self.model = _load(model, pretrained, random_weights).to(self.device).eval()
        visual = self.model.visual
        if patch_tokens and not (isinstance(visual, VisionTransformer) and visual.proj is not None):
            raise VmrError(f"open_clip's {model} has no patch tokens. Set encoder.patch_tokens=null.")
        self.name = model
        self.pretrained = None if random_weights else pretrained
        self.clip_seconds = clip_seconds
        self.samples = samples
        self.patch_tokens = patch_tokens
        self.random_weights = random_weights
        self.dtype = dtype
        self.dim = int(visual.output_dim)
        self.patches = visual.grid_size[0] * visual.grid_size[1] if patch_tokens else None
        self.patch_dim = {None: None, "projected": self.dim, "unprojected": _width(visual)}[patch_tokens]
        self._preprocess = image_transform_v2(PreprocessCfg(**visual.preprocess_cfg), is_train=False)
        self._weights = weights_hash(visual)

    def clips(self, path: Path) -> Iterator[Tensor]:
        """Yields (samples, 3, H, W) float32 per clip; at least half as many samples in the last one."""
        frames = sample(path, self.clip_seconds / self.samples)
        for images in in_clips((self._preprocess(frame.to_image()) for frame in frames), self.samples):
            yield torch.stack(images)

    def encode(self, clips: Sequence[Tensor]) -> tuple[Array, Array | None]:
        """Encodes clips as (N, dim) float32, and patch tokens (N, patches, patch_dim) float32 or None."""
        lengths = [len(clip) for clip in clips]
        images = torch.cat(list(clips)).to(self.device)
        with inference(self.device, self.dtype):
            if self.patch_tokens is None:
                features = self.model.encode_image(images)
                tokens = None
            else:
                found = self.model.forward_intermediates(
                    image=images,
                    image_indices=1,
                    normalize=False,
                    normalize_intermediates=True,
                    image_output_fmt="NLC",
                )
                features = found["image_features"]
                middles = [end - length + length // 2 for end, length in _ends(lengths)]
                tokens = found["image_intermediates"][-1][middles]
                if self.patch_tokens == "projected":
                    tokens = tokens @ self.model.visual.proj
            pooled = torch.stack([part.float().mean(0) for part in features.split(lengths)])
        return pooled.cpu().numpy(), None if tokens is None else tokens.float().cpu().numpy()

    def manifest(self) -> dict[str, Any]:
        """Returns everything that determines the features."""
        return {
            "backbone": f"open_clip {self.name}",
            "pretrained": None if self.pretrained is None else Path(self.pretrained).name,
            "random_weights": self.random_weights,
            "weights": self._weights,
            "preprocess": self.model.visual.preprocess_cfg,
            "clip_seconds": self.clip_seconds,
            "samples": self.samples,
            "patch_tokens": self.patch_tokens,
            "precision": self.dtype,
        }


def _load(model: str, pretrained: str | None, random_weights: bool) -> Any:
    """Builds an open_clip model with the requested weights."""
    with_weights = model.startswith(("local-dir:", "hf-hub:"))
    if not with_weights and model not in open_clip.list_models():
        close = " or ".join(nearest(model, open_clip.list_models()))
        hint = f" Did you mean {close}?" if close else ""
        raise VmrError(f"open_clip has no model '{model}'.{hint} open_clip.list_models() lists all.")
    if random_weights:
        with same_random_weights(), _quiet():
            return open_clip.create_model(model, pretrained=None, load_weights=False)
    if pretrained is None and not with_weights:
        tags = open_clip.list_pretrained_tags_by_model(model)
        raise VmrError(
            f"No weights were requested. Set encoder.pretrained to a file or a tag of {model} "
            f"({', '.join(tags) or 'it has none'}). For tests: encoder.random_weights=true."
        )
    try:
        with _quiet():
            return open_clip.create_model(model, pretrained=pretrained, require_pretrained=True)
    except Exception as error:  # any error of the download or of reading
        raise VmrError(
            f"open_clip cannot load {model} with pretrained={pretrained}: {error}\n"
            "Set encoder.pretrained to a tag (needs a connection once) or a file of weights."
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hides open_clip's info messages; warnings stay."""
    before = logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        yield
    finally:
        logging.disable(before)


def _width(visual: Any) -> int | None:
    """Returns the token size of a vision transformer."""
    return int(visual.conv1.out_channels) if isinstance(visual, VisionTransformer) else None


def _ends(lengths: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yields (end, length) of each part, end exclusive."""
    end = 0
    for length in lengths:
        end += length
        yield end, length
