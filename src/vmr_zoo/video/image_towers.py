"""Image towers of open_clip: the vector of an image, and those of its patches.

The states of the patches come from the last layer, before the tower pools them. "Unprojected" are the states
after the last LayerNorm that is applied before pooling. "Projected" is the vector of an image whose patches
all have this state. Where the tower pools by its class token or by a mean, that is the state, normalised and
projected as the pooled one is.

| tower | unprojected | projected |
|---|---|---|
| open_clip's ViT | after `ln_post` | yes |
| the same with an attention pooler (CoCa) | after the pooler's LayerNorm of its keys | no |
| ModifiedResNet | cells of the last map | no: its pooling depends on the position |
| timm: ViT, EVA, SigLIP, PE-Core, ConvNeXt, FastViT, … | `forward_features`, without prefix tokens | yes |
"""

from __future__ import annotations

from typing import Any

import torch
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from torch import Tensor

from vmr_zoo.errors import VmrError


class ImageTower:
    """The image tower of any open_clip model.

    Attributes:
        visual: open_clip's module.
        dim: size of the vector of an image, in the space that images share with texts.
        patches: patches per image.
        width: size of an unprojected patch token.
    """

    def __init__(self, model: str, visual: Any) -> None:
        """Runs the tower once, on a black image.

        Args:
            model: its name, for messages.
            visual: `visual` of an open_clip model.

        Raises:
            VmrError: if it is a module of the user's own.
        """
        if not isinstance(visual, VisionTransformer | ModifiedResNet | TimmModel):
            raise VmrError(
                f"The image tower of {model} is a {type(visual).__name__}; expected one of open_clip: "
                "VisionTransformer, ModifiedResNet or TimmModel."
            )
        self.model = model
        self.visual = visual
        size = visual.image_size if isinstance(visual.image_size, tuple | list) else [visual.image_size] * 2
        image = torch.zeros(1, 3, *size, device=next(visual.parameters()).device)
        with torch.inference_mode():
            features, states = self._states(image)
        self.dim: int = features.shape[1]
        self.patches: int = states.shape[1:-1].numel()
        self.width: int = states.shape[-1]

    def check(self, kind: str) -> None:
        """Refuses a kind of patch tokens that the tower does not have.

        Args:
            kind: "unprojected" or "projected".

        Raises:
            VmrError: if it has none of this kind.
        """
        if kind == "projected" and self._pools_by_position():
            raise VmrError(
                f"open_clip's {self.model} has no projected patch tokens: its image tower pools the patches "
                "by attention and cannot pool one alone. Set encoder.patch_tokens=unprojected or null."
            )

    def features(self, images: Tensor) -> Tensor:
        """Returns the vectors (N, dim) of images (N, 3, H, W), not normalised."""
        found = self.visual(images)
        return found[0] if isinstance(found, tuple) else found  # CoCa: and tokens for its decoder

    def with_patches(self, images: Tensor, rows: list[int], kind: str) -> tuple[Tensor, Tensor]:
        """Returns the vectors (N, dim) of all images, and the patch tokens (R, patches, …) of R rows.

        Args:
            images: (N, 3, H, W).
            rows: of the images whose patch tokens are wanted.
            kind: "unprojected" (…, width) or "projected" (…, dim).
        """
        features, states = self._states(images)
        tokens = (self._project if kind == "projected" else self._normalise)(states[rows])
        return features, tokens.flatten(1, -2)

    def _states(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the vectors of images, and the states that are pooled to them.

        Returns:
            (N, dim); (N, patches, width), or of a convolutional network (N, rows, columns, width).
        """
        visual = self.visual
        if isinstance(visual, VisionTransformer | ModifiedResNet):
            found = visual.forward_intermediates(images, indices=1)
            return found["image_features"], found["image_intermediates"][-1].permute(0, 2, 3, 1)
        trunk = visual.trunk
        states = trunk.forward_features(images)
        features = visual.head(trunk.forward_head(states))
        if states.ndim == 3:
            return features, states[:, _prefix(trunk) :]
        return features, states if _channels_last(trunk) else states.permute(0, 2, 3, 1)

    def _normalise(self, states: Tensor) -> Tensor:
        """Applies the last LayerNorm before pooling; timm's `forward_features` did."""
        if not isinstance(self.visual, VisionTransformer):
            return states
        pool = self.visual.attn_pool
        normalised: Tensor = (self.visual.ln_post if pool is None else pool.ln_k)(states)
        return normalised

    def _project(self, states: Tensor) -> Tensor:
        """Returns, for each state (R, …, width), the vector of an image with this state everywhere."""
        visual = self.visual
        if isinstance(visual, VisionTransformer):
            vectors: Tensor = self._normalise(states) @ visual.proj
            return vectors
        alone = states.flatten(0, -2)
        if states.ndim == 3:
            alone = alone[:, None].expand(-1, _prefix(visual.trunk) + 1, -1)
        else:
            alone = alone[:, None, None] if _channels_last(visual.trunk) else alone[:, :, None, None]
        vectors = visual.head(visual.trunk.forward_head(alone))
        return vectors.unflatten(0, states.shape[:-1])

    def _pools_by_position(self) -> bool:
        """Whether a patch cannot be pooled alone."""
        visual = self.visual
        if isinstance(visual, TimmModel):
            return hasattr(visual.head, "pool")  # open_clip's own attention over a map
        return isinstance(visual, ModifiedResNet) or visual.attn_pool is not None


def _prefix(trunk: Any) -> int:
    """Number of tokens before those of the patches."""
    return int(getattr(trunk, "num_prefix_tokens", 0))


def _channels_last(trunk: Any) -> bool:
    """Whether a convolutional network from timm has maps (N, rows, columns, width)."""
    return getattr(trunk, "output_fmt", "NCHW") == "NHWC"
