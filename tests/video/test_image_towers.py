"""Every family of image towers of open_clip: its configuration, made small, with random weights."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import numpy as np
import open_clip
import pytest
import timm
import torch
from PIL import Image

from vmr_zoo.errors import VmrError
from vmr_zoo.video.image_towers import ImageTower
from vmr_zoo.video.open_clip import OpenClip

CREATE = timm.create_model
VIT = {"img_size": 64, "embed_dim": 16, "depth": 2, "num_heads": 2}
CONVOLUTIONS = {"depths": (1, 1, 1, 1), "dims": (8, 8, 8, 16)}
FAMILIES: dict[str, dict[str, Any]] = {
    "ViT-B-32": {},
    "RN50": {},
    "ViT-L-14-CLIPA": {},  # mean of the patches, LayerNorm after it
    "coca_ViT-B-32": {},  # attention pooler
    "coca_base": {},  # returns tokens too
    "roberta-ViT-B-32": {},  # its text tower would be a download
    "vit_medium_patch16_gap_256": VIT,
    "ViT-B-16-SigLIP": VIT,
    "ViT-B-16-SigLIP2": VIT,
    "MobileCLIP-B": {"img_size": 64, "depth": 1},
    "MobileCLIP-S1": {"layers": (1, 1, 1, 1), "embed_dims": (8, 8, 8, 32)},
    "EVA02-B-16": VIT,
    "PE-Core-T-16-384": {**VIT, "attn_pool_num_heads": 2},
    "convnext_base": CONVOLUTIONS,
    "convnext_large_d": CONVOLUTIONS,  # projected by two layers
    "swin_base_patch4_window7_224": {
        "img_size": 64,
        "embed_dim": 8,
        "depths": (1, 1, 1, 1),
        "num_heads": (1, 1, 1, 1),
        "window_size": 2,
    },
}
"""Name of a configuration, and arguments of its timm network that make it small."""


def shrunk(name: str) -> dict[str, Any]:
    """Returns the configuration of a model for images of 64 pixels, with fewer and narrower layers."""
    config = copy.deepcopy(open_clip.get_model_config(name))
    vision = config["vision_cfg"]
    vision["image_size"] = 64
    config["embed_dim"] = 16
    if "timm_model_name" not in vision:
        small = {"layers": [1, 1, 1, 1], "width": 8} if name == "RN50" else {"layers": 2, "width": 16}
        vision.update(small, head_width=8, attn_pooler_heads=4)
    return config


def built(monkeypatch: Any, name: str, **options: Any) -> OpenClip:
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, name, shrunk(name))
    monkeypatch.setattr(timm, "create_model", partial(CREATE, **FAMILIES[name]))
    return OpenClip(name, None, samples=2, random_weights=True, device="cpu", **options)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_gives_vectors_and_patches(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = built(monkeypatch, name, patch_tokens="unprojected")
    images = encoder._preprocess(Image.effect_mandelbrot((300, 200), (-2, -1.5, 1, 1.5), 9).convert("RGB"))
    clips = [torch.stack([images, images.flip(1)]), torch.stack([images.flip(2)])]
    features, patches = encoder.encode(clips)
    visual = encoder._tower.visual
    with torch.inference_mode():
        expected = visual(torch.cat(clips))
    expected = expected[0] if isinstance(expected, tuple) else expected
    assert features.shape == (2, encoder.dim)
    np.testing.assert_allclose(features[0], expected[:2].mean(0), atol=1e-5)
    np.testing.assert_allclose(features[1], expected[2], atol=1e-5)
    assert patches.shape == (2, encoder.patches, encoder.patch_dim)
    assert not np.allclose(patches[0], patches[1])

    if name.startswith(("RN", "coca_ViT")):
        with pytest.raises(VmrError, match=f"{name} has no projected patch tokens.*unprojected"):
            encoder._tower.check("projected")
        return
    encoder._tower.check("projected")
    with torch.inference_mode():
        _, projected = encoder._tower.with_patches(clips[1], [0], "projected")
        # The patches of an image whose states are all alike are the vector of that image.
        states = encoder._tower._states(clips[1])[1]
        alike = states.flatten(1, -2)[:, :1].expand(-1, encoder.patches, -1).reshape(states.shape)
        pooled = pool(visual, alike)
    assert projected.shape == (1, encoder.patches, encoder.dim)
    np.testing.assert_allclose(projected[:, 0], pooled, atol=1e-5)


def pool(visual: Any, states: torch.Tensor) -> torch.Tensor:
    """Pools states as the tower itself does; the class token is like the patches."""
    if not hasattr(visual, "trunk"):
        states = states.flatten(1, -2)
        return visual._pool(torch.cat([states[:, :1], states], 1))[0] @ visual.proj
    if states.ndim == 4:
        states = states if hasattr(visual.trunk, "output_fmt") else states.permute(0, 3, 1, 2)
        return visual.head(visual.trunk.forward_head(states))
    prefix = states[:, : getattr(visual.trunk, "num_prefix_tokens", 0)]
    return visual.head(visual.trunk.forward_head(torch.cat([prefix, states], 1)))


def test_weights_in_a_file_get_the_preprocessing_of_the_published_ones(tmp_path, monkeypatch) -> None:
    """open_clip itself takes OpenAI's for every file."""
    siglip = built(monkeypatch, "ViT-B-16-SigLIP").manifest()["preprocess"]
    assert (siglip["mean"], siglip["resize_mode"]) == ((0.5, 0.5, 0.5), "squash")
    assert built(monkeypatch, "MobileCLIP-S1").manifest()["preprocess"]["std"] == (1.0, 1.0, 1.0)
    assert built(monkeypatch, "ViT-B-32").manifest()["preprocess"]["resize_mode"] == "shortest"

    config = shrunk("ViT-H-14")
    config["text_cfg"].update(width=8, heads=1, layers=1)
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "ViT-H-14", config)
    file = tmp_path / "weights.pt"
    torch.save(open_clip.create_model("ViT-H-14").state_dict(), file)
    with pytest.raises(VmrError, match=r"(?s)prepared differently.*encoder\.preprocess=dfn5b"):
        OpenClip("ViT-H-14", str(file))
    chosen = OpenClip("ViT-H-14", str(file), preprocess="dfn5b").manifest()["preprocess"]
    assert chosen["resize_mode"] == "squash"
    with pytest.raises(VmrError, match="Did you mean dfn5b"):
        OpenClip("ViT-H-14", str(file), preprocess="dfn5")


@pytest.mark.slow
def test_every_configuration_builds() -> None:
    """On torch's meta device, which computes shapes only."""
    text = {"width": 8, "heads": 1, "layers": 1, "context_length": 8, "vocab_size": 8}
    without = []
    for name in open_clip.list_models():
        config = open_clip.get_model_config(name)
        more = {"multimodal_cfg": text} if "multimodal_cfg" in config else {}
        with torch.device("meta"):
            model = open_clip.create_model(name, device="meta", load_weights=False, text_cfg=text, **more)
        tower = ImageTower(name, model.visual.eval())
        assert tower.dim == config["embed_dim"], name
        images = torch.zeros(2, 3, *np.broadcast_to(model.visual.image_size, 2), device="meta")
        for kind, width in (("unprojected", tower.width), ("projected", tower.dim)):
            try:
                tower.check(kind)
            except VmrError:
                without.append((name, kind))
                continue
            with torch.inference_mode():
                features, patches = tower.with_patches(images, [1], kind)
            assert features.shape == (2, tower.dim), name
            assert patches.shape == (1, tower.patches, width), name
    assert {kind for _, kind in without} == {"projected"}
    assert {name.split("-")[0].rstrip("0123456789x") for name, _ in without} == {"RN", "coca_ViT"}
