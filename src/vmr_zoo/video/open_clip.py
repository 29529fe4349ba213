"""CLIP features of frames from any model of the open_clip library.

The vector of a clip is the mean of `encode_image` over its sampled frames: projected to the joint space with
text, not normalised. Patch tokens are defined in `vmr_zoo.video.image_towers`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import open_clip
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from torch import Tensor

from vmr_zoo.errors import VmrError, did_you_mean, nearest, unknown
from vmr_zoo.utils.arrays import Array
from vmr_zoo.utils.packaged import PACKAGED, open_clip_folder, open_clip_name, quiet
from vmr_zoo.utils.switches import check_switches
from vmr_zoo.video.decode import sample
from vmr_zoo.video.encoder import VideoEncoder, in_clips
from vmr_zoo.video.image_towers import ImageTower
from vmr_zoo.video.torch_models import (
    Precision,
    find_device,
    inference,
    same_random_weights,
    weights_hash,
)

_TOKENS = ("unprojected", "projected")
_PREPROCESS = ("mean", "std", "interpolation", "resize_mode")


@check_switches
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
        dtype: Precision = "float32",
        preprocess: str | None = None,
    ) -> None:
        """Loads the model; open_clip downloads the weights if necessary.

        Args:
            model: a name of `open_clip.list_models()`, or a model that includes weights: "shapes_clip" (part
                of this package), "local-dir:FOLDER" or "hf-hub:NAME".
            pretrained: a tag of `open_clip.list_pretrained()`, or a file of weights (never unpickled).
            clip_seconds: length of a clip.
            samples: frames per clip, evenly spaced; their features are averaged.
            patch_tokens: also store the patch tokens of the middle frame of each clip: "unprojected" (width
                of the image tower), or "projected" as the pooled feature is.
            random_weights: whether to use random instead of pretrained weights, for tests only.
            device: "cpu", "cuda" or "cuda:N", not part of the manifest; None: a GPU if available.
            dtype: precision of the computation.
            preprocess: for a file of weights, the tag of published weights whose preprocessing they expect;
                None: that of all published weights of the model, and open_clip's default if there are none.

        Raises:
            VmrError: for an unknown model, weights that cannot be loaded, a model without such patch tokens,
                or a file of weights whose preprocessing is unknown.
        """
        if patch_tokens not in (None, *_TOKENS):
            raise unknown("kind of patch tokens", str(patch_tokens), _TOKENS)
        if samples < 1 or clip_seconds <= 0:
            raise VmrError(f"Expected samples >= 1 and clip_seconds > 0, found {samples} and {clip_seconds}.")
        self.device = find_device(device)
        visual = _load(model, pretrained, preprocess, random_weights).visual.to(self.device).eval()
        self._tower = ImageTower(model, visual)
        if patch_tokens:
            self._tower.check(patch_tokens)
        folder = open_clip_folder(model)
        self.name = model if folder is None else folder.name  # another machine has another path
        self.model_name = model
        self.pretrained = None if random_weights else pretrained
        self.clip_seconds = clip_seconds
        self.samples = samples
        self.patch_tokens = patch_tokens
        self.random_weights = random_weights
        self.dtype = dtype
        self.preprocess = preprocess
        self.dim = self._tower.dim
        self.patches = self._tower.patches if patch_tokens else None
        self.patch_dim = {None: None, "projected": self.dim, "unprojected": self._tower.width}[patch_tokens]
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
                features, tokens = self._tower.features(images), None
            else:
                middles = [end - length + length // 2 for end, length in _ends(lengths)]
                features, tokens = self._tower.with_patches(images, middles, self.patch_tokens)
            pooled = torch.stack([part.float().mean(0) for part in features.split(lengths)])
        return pooled.cpu().numpy(), None if tokens is None else tokens.float().cpu().numpy()

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
            "preprocess": self.preprocess,
        }

    def manifest(self) -> dict[str, Any]:
        """Returns everything that determines the features."""
        return {
            "backbone": f"open_clip {self.name}",
            "pretrained": None if self.pretrained is None else Path(self.pretrained).name,
            "random_weights": self.random_weights,
            "weights": self._weights,
            "preprocess": self._tower.visual.preprocess_cfg,
            "clip_seconds": self.clip_seconds,
            "samples": self.samples,
            "patch_tokens": self.patch_tokens,
            "precision": self.dtype,
        }


def _load(model: str, pretrained: str | None, preprocess: str | None, random_weights: bool) -> Any:
    """Builds an open_clip model with the requested weights."""
    asked, model = model, open_clip_name(model)
    with_weights = model.startswith(("local-dir:", "hf-hub:"))
    if not with_weights and model not in open_clip.list_models():
        hint = did_you_mean(nearest(model, (*PACKAGED, *open_clip.list_models())))
        raise VmrError(f"open_clip has no model '{model}'.{hint} open_clip.list_models() lists all.")
    if pretrained is None and not with_weights and not random_weights:
        tags = open_clip.list_pretrained_tags_by_model(model)
        raise VmrError(
            f"No weights were requested. Set encoder.pretrained to a file or a tag of {model} "
            f"({', '.join(tags) or 'it has none'}). For tests: encoder.random_weights=true."
        )
    expected = None if with_weights else _preprocessing(model, pretrained, preprocess, random_weights)
    if random_weights:
        return _random(model, expected)
    try:
        with quiet():
            return open_clip.create_model(
                model, pretrained=pretrained, require_pretrained=True, force_preprocess_cfg=expected
            )
    except Exception as error:  # any error of the download or of reading
        raise VmrError(
            f"open_clip cannot load {asked} with pretrained={pretrained}: {error}\n"
            "Set encoder.pretrained to a tag (needs a connection once) or a file of weights."
        ) from error


def _random(model: str, preprocess: dict[str, Any] | None) -> Any:
    """Builds a model with random weights; its text tower, perhaps a download, is replaced by a small one."""
    small = {"width": 8, "heads": 1, "layers": 1, "context_length": 8, "vocab_size": 8}
    decoder = "multimodal_cfg" in (open_clip.get_model_config(model) or {})
    with same_random_weights(), quiet():
        return open_clip.create_model(
            model,
            pretrained=None,
            load_weights=False,
            force_preprocess_cfg=preprocess,
            text_cfg=small,
            **({"multimodal_cfg": small} if decoder else {}),
        )


def _preprocessing(
    model: str, pretrained: str | None, tag: str | None, random_weights: bool
) -> dict[str, Any] | None:
    """Returns the preprocessing that the weights in a file expect; open_clip would assume OpenAI's.

    Args:
        model: a name of `open_clip.list_models()`.
        pretrained: a tag or a file.
        tag: the published weights to take it from; None: it is the same for all of the model.
        random_weights: whether any preprocessing will do.

    Returns:
        Mean, standard deviation and resizing; None: open_clip knows, or there are no published weights.

    Raises:
        VmrError: if published weights of the model differ, or there are none of this tag.
    """
    if pretrained is not None and not random_weights and open_clip.get_pretrained_cfg(model, pretrained):
        return None
    tags = open_clip.list_pretrained_tags_by_model(model)
    if tag is not None and tag not in tags:
        raise unknown(f"published weights of {model} (encoder.preprocess)", tag, tags)
    found: dict[str, dict[str, Any]] = {}
    for name in tags if tag is None else [tag]:
        published = open_clip.get_pretrained_cfg(model, name)
        found[name] = {key: published[key] for key in _PREPROCESS if published.get(key) is not None}
    kinds = {str(entry): name for name, entry in found.items()}
    if len(kinds) > 1:
        if random_weights:
            return None
        listed = "\n".join(f"- encoder.preprocess={name}: {kind}" for kind, name in kinds.items())
        raise VmrError(
            f"Published weights of {model} expect images that are prepared differently. Say which of them "
            f"the file {pretrained} resembles:\n{listed}"
        )
    return next(iter(found.values()), None)


def _ends(lengths: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yields (end, length) of each part, end exclusive."""
    end = 0
    for length in lengths:
        end += length
        yield end, length
