"""Every family of text towers of open_clip: its configuration, made small, with random weights."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import transformers
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from vmr_zoo.data.text.clip import ClipTextEncoder
from vmr_zoo.errors import VmrError

TEXTS = ["a person runs", "the dog opens the door", "person " * 100]
WORDS = ["<pad>", "</s>", "<unk>", "<s>", "a", "the", "person", "door", "opens", "runs", "dog"]
SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
FAMILIES: dict[str, Any] = {
    "ViT-B-32": None,
    "MobileCLIP-S1": None,  # not causal, so the padding counts
    "PE-Core-T-16-384": None,
    "coca_ViT-B-32": None,  # a class token at the end
    "ViT-B-16-SigLIP": None,  # the last state, of the padding
    "ViT-SO400M-16-SigLIP-i18n-256": None,  # without projection
    "ViT-L-14-CLIPA": None,  # the separator becomes 0
    "ViT-L-14-worldwide": None,  # pools the end token, by its id
    "roberta-ViT-B-32": transformers.RobertaConfig(vocab_size=11, pad_token_id=0, **SMALL),
    "xlm-roberta-base-ViT-B-32": transformers.XLMRobertaConfig(vocab_size=11, pad_token_id=0, **SMALL),
    "mt5-base-ViT-B-32": transformers.MT5Config(
        vocab_size=11, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2
    ),
    "nllb-clip-base": transformers.M2M100Config(
        vocab_size=11, d_model=16, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=16, pad_token_id=0
    ),
}
"""Name of a configuration, and a small one of its transformers model."""


def tokenizer(folder: Path, pad: str) -> None:
    """Writes a tokenizer that ends sentences with </s>."""
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", pad_token=pad, eos_token="</s>", sep_token="</s>"
    ).save_pretrained(folder)


def shrunk(name: str, folder: Path) -> dict[str, Any]:
    """Returns the configuration of a model with a small text tower, and a tokenizer in a folder."""
    config = copy.deepcopy(open_clip.get_model_config(name))
    config["vision_cfg"] = {"image_size": 8, "patch_size": 8, "width": 8, "head_width": 8, "layers": 1}
    text = config["text_cfg"]
    config["embed_dim"] = 16 if text.get("proj_type") == "none" else 8
    if "coca" in name:
        config["vision_cfg"]["output_tokens"] = True
        config["multimodal_cfg"].update(width=8, heads=1, layers=1)
    if "hf_model_name" in text:
        FAMILIES[name].save_pretrained(folder)
        text["hf_model_name"] = str(folder)
    else:
        text.update(width=16, heads=2, layers=1)
    if "hf_tokenizer_name" in text:
        text.update(hf_tokenizer_name=str(folder), vocab_size=11, eos_id=1)
        tokenizer(folder, "</s>" if name == "ViT-B-16-SigLIP" else "<pad>")  # as the published ones
    return config


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_gives_tokens_and_sentences(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, name, shrunk(name, tmp_path))
    torch.manual_seed(0)
    model = open_clip.create_model(name, pretrained_text=False).eval()
    file = tmp_path / "weights.safetensors"
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, file)
    encoder = ClipTextEncoder(tmp_path / "cache", name, str(file))

    ids = open_clip.get_tokenizer(name)(TEXTS)
    with torch.inference_mode():
        theirs = model.encode_text(ids, normalize=False).numpy()
    np.testing.assert_allclose(encoder.pooled(TEXTS), theirs, atol=2e-3, rtol=2e-3)
    assert theirs.std(0).max() > 1e-3  # sentences differ

    tokens, split = encoder.tokens(TEXTS), encoder.tokenise(TEXTS)
    for row, (states, own) in enumerate(zip(tokens, split, strict=True)):
        assert states.shape == (len(own.ids), encoder.token_dim)
        first = ids[row].tolist().index(own.ids[0])
        assert ids[row, first : first + len(own.ids)].tolist() == own.ids.tolist()
        np.testing.assert_allclose(states, hidden(model, ids)[row, first : first + len(own.ids)], atol=4e-3)
    assert [len(own.ids) for own in split[:2]] == [3, 5]
    specials = len(encoder._with_ends(split[0])) - len(split[0].ids)
    assert len(split[2].ids) + specials == ids.shape[1]  # cut where the model ends
    assert encoder.token_text(TEXTS[0]) == ["a", "person", "runs"]


def hidden(model: Any, ids: torch.Tensor) -> np.ndarray:
    """Returns the states of all tokens after the last LayerNorm."""
    with torch.inference_mode():
        tower = getattr(model, "text", model)
        if hasattr(tower, "pooler"):
            found = tower.transformer(input_ids=ids, attention_mask=(ids != tower.config.pad_token_id).long())
            return found.last_hidden_state.numpy()
        found = model.forward_intermediates(text=ids, text_indices=1, normalize_intermediates=True)
        return found["text_intermediates"][0].numpy()


def test_what_a_tower_needs_from_the_hub_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name, needed in (
        ("roberta-ViT-B-32", r"configuration 'roberta-base' \(config\.json\)"),
        ("ViT-B-16-SigLIP2", r"tokenizer 'timm/ViT-B-16-SigLIP2' \(tokenizer\.json\)"),
    ):
        with pytest.raises(VmrError, match=f"(?s){name} needs the {needed}.*HF_HOME"):
            ClipTextEncoder(tmp_path, name, "x").tokenise(TEXTS)
