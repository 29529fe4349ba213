"""CLIP features of frames from any model of the open_clip library.

The vector of a clip is the mean of `encode_image` over its sampled frames: projected to the joint space with
text, not normalised. Patch tokens are those of the last layer after the final LayerNorm; of a convolutional
network from timm, the cells of the last map, whose mean is the vector of the frame.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import open_clip
import torch
from open_clip.timm_model import TimmModel
from open_clip.transform import PreprocessCfg, image_transform_v2
from open_clip.transformer import VisionTransformer
from torch import Tensor

from vmr_zoo.errors import VmrError, nearest, unknown
from vmr_zoo.utils.arrays import Array
from vmr_zoo.utils.packaged import PACKAGED, open_clip_folder, open_clip_name
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
            model: a name of `open_clip.list_models()`, or a model that includes weights: "shapes_clip" (part
                of this package), "local-dir:FOLDER" or "hf-hub:NAME".
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
        grid, width = _patch_shape(visual) if patch_tokens else (None, None)
        if patch_tokens and grid is None:
            raise VmrError(f"open_clip's {model} has no patch tokens. Set encoder.patch_tokens=null.")
        folder = open_clip_folder(model)
        self.name = model if folder is None else folder.name  # another machine has another path
        self.model_name = model
        self.pretrained = None if random_weights else pretrained
        self.clip_seconds = clip_seconds
        self.samples = samples
        self.patch_tokens = patch_tokens
        self.random_weights = random_weights
        self.dtype = dtype
        self.dim = _dim(visual)
        self.patches = None if grid is None else grid[0] * grid[1]
        self.patch_dim = {None: None, "projected": self.dim, "unprojected": width}[patch_tokens]
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
                middles = [end - length + length // 2 for end, length in _ends(lengths)]
                features, tokens = self._with_patches(images, middles)
            pooled = torch.stack([part.float().mean(0) for part in features.split(lengths)])
        return pooled.cpu().numpy(), None if tokens is None else tokens.float().cpu().numpy()

    def _with_patches(self, images: Tensor, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Returns features (N, dim) of all images, and patch tokens (R, patches, patch_dim) of R rows."""
        visual = self.model.visual
        projected = self.patch_tokens == "projected"
        if isinstance(visual, TimmModel):
            cells = visual.trunk.forward_features(images)
            tokens = cells[rows].flatten(2).transpose(1, 2)
            features = visual.head(visual.trunk.forward_head(cells))
            return features, visual.head(tokens) if projected else tokens
        found = self.model.forward_intermediates(
            image=images,
            image_indices=1,
            normalize=False,
            normalize_intermediates=True,
            image_output_fmt="NLC",
        )
        tokens = found["image_intermediates"][-1][rows]
        return found["image_features"], tokens @ visual.proj if projected else tokens

    def node(self) -> dict[str, Any]:
        """Returns the configuration node that rebuilds the encoder, without its device."""
        return {
            "_target_": f"{type(self).__module__}.{type(self).__qualname__}",
            "model": self.model_name,
            "pretrained": self.pretrained,
            "clip_seconds": self.clip_seconds,
            "samples": self.samples,
            "patch_tokens": self.patch_tokens,
            "random_weights": self.random_weights,
            "dtype": self.dtype,
        }

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
    asked, model = model, open_clip_name(model)
    with_weights = model.startswith(("local-dir:", "hf-hub:"))
    if not with_weights and model not in open_clip.list_models():
        close = " or ".join(nearest(model, (*PACKAGED, *open_clip.list_models())))
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
            f"open_clip cannot load {asked} with pretrained={pretrained}: {error}\n"
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


def _dim(visual: Any) -> int:
    """Returns the size of a feature; networks from timm state none."""
    if not isinstance(visual, TimmModel):
        return int(visual.output_dim)
    with torch.inference_mode():
        return int(visual(_black(visual)).shape[1])


def _black(visual: TimmModel) -> Tensor:
    """Returns one image (1, 3, H, W) in the size that the network expects."""
    return torch.zeros(1, 3, *visual.image_size, device=next(visual.parameters()).device)


def _patch_shape(visual: Any) -> tuple[tuple[int, int] | None, int | None]:
    """Returns rows and columns of the patches of an image tower, and their width; None without patches."""
    if isinstance(visual, VisionTransformer) and visual.proj is not None:
        return visual.grid_size, int(visual.conv1.out_channels)
    # The mean of the cells is the vector of the image if nothing but a linear layer follows the mean.
    if isinstance(visual, TimmModel) and isinstance(getattr(visual.head, "proj", None), torch.nn.Linear):
        with torch.inference_mode():
            cells = visual.trunk.forward_features(_black(visual))
        if cells.ndim == 4 and cells.shape[1] == visual.trunk.num_features:
            return (cells.shape[2], cells.shape[3]), cells.shape[1]
    return None, None


def _ends(lengths: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yields (end, length) of each part, end exclusive."""
    end = 0
    for length in lengths:
        end += length
        yield end, length
