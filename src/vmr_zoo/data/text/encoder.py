"""The base class of text encoders: token and sentence embeddings, computed once and cached on disk."""

from __future__ import annotations

import re
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress

from vmr_zoo.data.text.cache import EmbeddingCache
from vmr_zoo.data.text.lost_words import LostWords, count_lost
from vmr_zoo.errors import VmrError
from vmr_zoo.utils.arrays import Array
from vmr_zoo.utils.files import lock_folder
from vmr_zoo.utils.hashing import content_hash
from vmr_zoo.utils.parallel import torch_threads

_SHARD = 4096
"""Sentences per cache file; an interrupted run loses at most one file's work."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """One tokenised sentence; row i belongs to row i of the encoder's `tokens`.

    Attributes:
        ids: (L,) int64 tokenizer ids.
        offsets: (L, 2) int64, the characters of `text` that each token covers, end exclusive; start = end for
            a special token.
        text: the sentence as the encoder reads it; some encoders clean it first.
    """

    ids: Array
    offsets: Array
    text: str


@dataclass(slots=True)
class EmbeddingWork:
    """The work of an encoder object since its construction.

    Attributes:
        computed: number of sentences that were not in the cache.
        seconds: time to compute and store them, including the loading of the model.
    """

    computed: int = 0
    seconds: float = 0.0


class TextEncoder(ABC):
    """Embeds sentences and their tokens.

    Embeddings are cached by the hash of model and sentence. Sentences are deduplicated, and a batch holds
    sentences of equal length only. There is no padding, so an embedding does not depend on the rest of its
    batch. Each batch runs on one thread, several batches in parallel. All values are rounded to float16.

    Attributes:
        name: name of the model.
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
            workers: batches computed in parallel.
        """
        self.cache_root = Path(cache).expanduser() / "text"
        self.batch_size = batch_size
        self.workers = workers
        self.work = EmbeddingWork()

    @property
    @abstractmethod
    def revision(self) -> str:
        """A hash of everything that determines the embeddings: weights, tokenizer, options."""

    @abstractmethod
    def tokenise(self, texts: Sequence[str]) -> list[Tokens]:
        """Splits sentences into the encoder's tokens; rows correspond to those of `tokens`.

        Args:
            texts: N sentences.

        Returns:
            N token lists, cut to the longest input of the encoder.
        """

    def lost_words(self, texts: Sequence[str], max_tokens: int | None = None) -> LostWords:
        """Counts the tokens that the encoder has no vector for, and those past the longest query.

        Args:
            texts: N sentences.
            max_tokens: only the first tokens are kept; None: all.
        """
        return count_lost(([None] * len(tokens.ids) for tokens in self.tokenise(texts)), max_tokens)

    @property
    def end_ids(self) -> tuple[int, ...]:
        """The ids of the start and the end token, if `tokens` has rows for them."""
        return ()

    def token_text(self, text: str) -> list[str]:
        """Returns the characters that each row of `tokens` stands for; "" for special tokens."""
        tokens = self.tokenise([text])[0]
        return [tokens.text[start:end] for start, end in tokens.offsets.tolist()]

    @abstractmethod
    def _inputs(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the input ids of the model, including special tokens."""

    @property
    @abstractmethod
    def _model(self) -> Any:
        """The model behind `_forward`; first accessed when a sentence is not in the cache."""

    @abstractmethod
    def _forward(self, ids: list[list[int]]) -> tuple[Iterable[Array], Array]:
        """Embeds B sentences of one length.

        Returns:
            The values to cache: B arrays (L, token_dim) of token vectors, and (B, dim) sentence vectors.
        """

    @cached_property
    def _cache(self) -> EmbeddingCache:
        name = re.sub(r"[^\w.-]+", "_", self.name)
        return EmbeddingCache(self.cache_root / f"{name}-{self.revision[:16]}")

    def manifest(self) -> dict[str, Any]:
        """Returns name, revision and size."""
        return {"encoder": self.name, "revision": self.revision[:16], "dim": self.dim}

    def states(self, texts: Sequence[str]) -> list[Array]:
        """Returns N arrays (L, token_dim) float32 as stored, including special tokens.

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
        """Returns (N, dim) float32 sentence vectors, not normalised.

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
            (N, dim) float32 of unit length; inner products are cosine similarities.

        Raises:
            VmrError: if a sentence has no token.
        """
        vectors = self.pooled(texts)
        # Needed even where the encoder normalises: rounding to float16 changes the length.
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def means(self, texts: Sequence[str]) -> Array:
        """Returns (N, token_dim) float32, the mean of each sentence's token vectors, not normalised.

        Raises:
            VmrError: if a sentence has no token.
        """
        return np.stack([tokens.mean(0) for tokens in self.tokens(texts)])

    def embed(self, texts: Iterable[str]) -> list[bytes]:
        """Computes and caches the sentences that are not cached yet.

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
            with lock_folder(self._cache.folder):
                start = time.perf_counter()
                absent = set(self._cache.missing(keys))  # another process may have embedded some meanwhile
                if absent:
                    self._embed({key: text for key, text in zip(keys, texts, strict=True) if key in absent})
                self.work.computed += len(absent)
                self.work.seconds += time.perf_counter() - start
        return keys

    def _embed(self, texts: dict[bytes, str]) -> None:
        """Embeds and caches the sentences."""
        sentences = list(texts.values())
        split = self.tokenise(sentences)
        empty = [text for text, tokens in zip(sentences, split, strict=True) if not len(tokens.ids)]
        if empty:
            raise VmrError(
                f"Expected sentences with at least one word that {self.name} knows, found {empty[0]!r} "
                f"({len(empty)} such)."
            )
        ids = dict(zip(texts, self._inputs(sentences), strict=True))
        _ = self._model  # load it before the threads start
        order = sorted(texts, key=lambda key: len(ids[key]))

        def forward(batch: list[bytes]) -> tuple[list[bytes], Iterable[Array], Array]:
            with torch.inference_mode():
                return batch, *self._forward([ids[key] for key in batch])

        # One thread per batch: these matrices are too small to split.
        with (
            torch_threads(),  # the initializer changes the setting of the whole process
            ThreadPoolExecutor(self.workers, initializer=torch.set_num_threads, initargs=(1,)) as pool,
            Progress(console=Console(stderr=True), transient=True, disable=len(order) < 1000) as progress,
        ):
            task = progress.add_task(f"Embedding sentences ({self.name})", total=len(order))
            for first in range(0, len(order), _SHARD):
                parts = list(self._batches(order[first : first + _SHARD], ids))
                stored: list[tuple[list[bytes], Iterable[Array], Array]] = []
                for done in pool.map(forward, parts):
                    stored.append(done)
                    progress.advance(task, len(done[0]))
                self._cache.add(
                    [key for batch, _, _ in stored for key in batch],
                    [rows for _, tokens, _ in stored for rows in tokens],
                    np.concatenate([sentences for _, _, sentences in stored]),
                )

    def _batches(self, keys: list[bytes], ids: dict[bytes, list[int]]) -> list[list[bytes]]:
        """Cuts keys that are sorted by length into batches of equal length."""
        batches: list[list[bytes]] = []
        for key in keys:
            last = batches[-1] if batches else []
            if last and len(last) < self.batch_size and len(ids[last[0]]) == len(ids[key]):
                last.append(key)
            else:
                batches.append([key])
        return batches
