"""The embedding layer of a Llama-family language model as a text encoder (LMR, section IV-B).

LMR embeds queries and clip descriptions with "only the frozen embedding layer of Llama": a table with one
row per token. Only that table is read, row by row, from its safetensors file. The paper does not state which
Llama it uses or whether the start token is included; here it is not.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from vmr_zoo.data.text.encoder import TextEncoder, Tokens
from vmr_zoo.errors import VmrError
from vmr_zoo.utils.arrays import Array
from vmr_zoo.utils.hashing import content_hash

_TABLE = "embed_tokens.weight"
"""How the name of the embedding table ends in every model of the family."""


class LlamaEmbeddings(TextEncoder):
    """Rows of the embedding table, one per token, not contextual; a sentence vector is their mean."""

    def __init__(self, cache: str | Path, model: str | Path) -> None:
        """Finds the model; the table is opened when the first sentence is not in the cache.

        Args:
            cache: the project's cache folder (`paths.cache`).
            model: a transformers folder with safetensors weights and a tokenizer, or a name on the Hugging
                Face hub, from which only the tokenizer and the file with the table are downloaded.

        Raises:
            VmrError: if there is no such model.
        """
        super().__init__(cache, batch_size=64, workers=1)
        self.model = str(Path(model).expanduser()) if Path(model).expanduser().is_dir() else str(model)
        self.name = f"{Path(self.model).name}-embeddings"
        config = json.loads(self._file("config.json").read_text())
        # Multimodal models store the settings of the language model in text_config.
        self.dim = self.token_dim = int(config.get("text_config", config)["hidden_size"])

    def _file(self, name: str) -> Path:
        """Returns a file of the model, from its folder or from the hub."""
        folder = Path(self.model)
        if folder.is_dir():
            if (folder / name).is_file():
                return folder / name
            raise VmrError(
                f"Expected a Llama-family model in the transformers format at {folder}; it has no {name}."
            )
        from huggingface_hub import hf_hub_download

        try:
            return Path(hf_hub_download(self.model, name))
        except Exception as error:  # no network, no such model, licence not accepted, …
            raise VmrError(
                f"Expected a Llama-family model: '{self.model}' is not a local folder, and the hub does not "
                f"provide its {name} ({error!s:.200}). Without network: copy the folder here and specify "
                "its path."
            ) from error

    @cached_property
    def _tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        try:
            return AutoTokenizer.from_pretrained(self.model, use_fast=True, trust_remote_code=False)
        except Exception as error:  # OSError, ValueError, ImportError, …
            raise VmrError(f"{self.model} has no tokenizer that can be read ({error!s:.200}).") from error

    @cached_property
    def _model(self) -> Any:
        """The table, in an open file; rows are read on access."""
        try:
            file = self._file("model.safetensors")
            names = None
        except VmrError as whole:  # sharded, if there is an index
            try:
                index = self._file("model.safetensors.index.json")
            except VmrError:
                raise whole from whole.__cause__
            names = json.loads(index.read_text())["weight_map"]
            file = self._file(next((names[key] for key in names if key.endswith(_TABLE)), "embed_tokens"))
        try:
            weights = safe_open(file, framework="pt")
            return weights.get_slice(next(key for key in weights.keys() if key.endswith(_TABLE)))  # noqa: SIM118
        except (SafetensorError, OSError, StopIteration) as error:
            raise VmrError(f"{file} holds no tensor that ends in '{_TABLE}' ({error}).") from error

    @cached_property
    def revision(self) -> str:
        """The hash of the table and of the tokenizer; hashing 262 MB takes about a second."""
        table = self._model[:].contiguous().view(torch.uint8).numpy()
        return content_hash(table.tobytes(), self._tokenizer.backend_tokenizer.to_str()).hex()

    def tokenise(self, texts: Sequence[str]) -> list[Tokens]:
        """Splits sentences into the model's tokens, without a start or end token.

        Args:
            texts: N sentences.

        Returns:
            N token lists.
        """
        encoded = self._tokenizer(list(texts), add_special_tokens=False, return_offsets_mapping=True)
        split = []
        for text, ids, offsets in zip(texts, encoded["input_ids"], encoded["offset_mapping"], strict=True):
            # Some tokenizers count the space before a word as its first character.
            spans = [(end - len(text[start:end].lstrip()), end) for start, end in offsets]
            split.append(Tokens(np.array(ids, np.int64), np.array(spans, np.int64).reshape(-1, 2), text))
        return split

    def _inputs(self, texts: Sequence[str]) -> list[list[int]]:
        return [tokens.ids.tolist() for tokens in self.tokenise(texts)]

    def _forward(self, ids: list[list[int]]) -> tuple[Array, Array]:
        rows = {
            token: self._model[token : token + 1][0].float().numpy() for token in {*itertools.chain(*ids)}
        }
        vectors = np.stack([[rows[token] for token in sentence] for sentence in ids])
        return vectors, vectors.mean(1)
