"""A data set of a few videos in memory and a method with dropout, to test the framework alone.

`hydra.searchpath=[file://tests/toy/conf]` makes `data=toy`, `features=toy` and `method=toy` choices.
"""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn
from transformers import DistilBertConfig, DistilBertModel

from vmr_zoo.blocks.text_encoder import TransformerQueryEncoder
from vmr_zoo.data.annotations.records import Protocol, Query, Split
from vmr_zoo.data.features.feature_set import FeatureSet
from vmr_zoo.data.features.source import QuerySource, VideoSource
from vmr_zoo.errors import VmrError
from vmr_zoo.methods.base import Method, Training

CONF = Path(__file__).parent / "conf"
SEARCH = f"hydra.searchpath=[file://{CONF}]"
CLIPS, DIM = 12, 8


def protocol(selection: str = "heldout", name: str = "toy", videos: int = 12, first: int = 200) -> Protocol:
    """Each video has moments of two or three clips; the sentence holds the start. iid starts at `first`."""

    def split(split_name: str, start_at: int, count: int) -> Split:
        rows = []
        for video in range(start_at, start_at + count):
            for sentence in range(2):
                start = float((5 * video + 3 * sentence) % (CLIPS - 3))
                moment = (start, start + 2 + video % 2)
                rows.append(
                    Query(f"q{video}_{sentence}", f"v{video}", f"at {start:g}", (moment,), float(CLIPS))
                )
        return Split(split_name, tuple(rows))

    tests = {"iid": split("iid", first, 3), "ood": split("ood", 300, 2)}
    selected, origin = split("selection", 100, 3), "published"
    if selection in tests:
        selected, origin = Split("selection", tests[selection].queries), f"test split '{selection}'"
    return Protocol(name, split("train", 0, videos), selected, tests, origin)


class Video(VideoSource):
    dim = DIM

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale

    def manifest(self) -> dict[str, object]:
        return {"order": ["toy"], "scale": self.scale}

    def load(self, video_id: str) -> np.ndarray:
        rng = np.random.default_rng(int(video_id[1:]))
        clips = rng.normal(size=(CLIPS, DIM)).astype(np.float32) * 0.1
        clips[:, 0] = np.arange(CLIPS) / CLIPS
        return clips * np.float32(self.scale)


class Patches(VideoSource):
    """Noise, as many clips as `Video` has."""

    def __init__(self, dim: int, count: int) -> None:
        self.dim, self.count = dim, count

    def manifest(self) -> dict[str, object]:
        return {"order": ["toy patches"]}

    def load(self, video_id: str) -> np.ndarray:
        rng = np.random.default_rng(int(video_id[1:]))
        return rng.normal(size=(CLIPS, self.count, self.dim)).astype(np.float32)


class Sentence(QuerySource):
    dim = DIM
    has_token_ids = True
    has_noun_masks = True
    sentence_dim = DIM

    def manifest(self) -> dict[str, object]:
        return {"encoder": "toy"}

    def sentence(self, query: Query) -> np.ndarray:
        return np.ones(DIM, np.float32) * (1 + float(query.text.split()[-1]))

    def load(self, query: Query) -> np.ndarray:
        tokens = np.zeros((2, DIM), dtype=np.float32)
        tokens[:, 0] = float(query.text.split()[-1]) / CLIPS
        return tokens

    def token_ids(self, query: Query) -> np.ndarray:
        return np.array([CLIPS, int(query.text.split()[-1])], dtype=np.int64)

    def noun_mask(self, query: Query) -> np.ndarray:
        return np.array([False, True])


class WordCounts:
    """A sentence encoder without a model: counts of words, of unit length."""

    def manifest(self) -> dict[str, object]:
        return {"encoder": "word counts"}

    def sentences(self, texts: list[str]) -> np.ndarray:
        vectors = np.zeros((len(texts), 1000), np.float32)
        for row, text in enumerate(texts):
            for word in text.lower().strip(".").split():
                vectors[row, zlib.crc32(word.encode()) % 1000] += 1
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def text_encoder(
    folder: None = None, trained_layers: int | None = None, layers: int | None = None
) -> TransformerQueryEncoder:
    """A tiny DistilBERT."""
    config = DistilBertConfig(
        vocab_size=120, dim=DIM, n_heads=2, hidden_dim=12, n_layers=layers or 2, max_position_embeddings=20
    )
    model = DistilBertModel(config)
    return TransformerQueryEncoder(
        model=model, start=101, end=102, pooling="mean", trained_layers=trained_layers
    )


def features(
    name: str,
    video_dim: int,
    query_dim: int,
    scale: float,
    patch_dim: int | None = None,
    patch_count: int | None = None,
    joint_space: str | None = None,
) -> FeatureSet:
    """`+features.patch_dim=D +features.patch_count=P` add patches; `+features.joint_space=NAME`."""
    return FeatureSet(
        name,
        "simulated",
        video_dim,
        query_dim,
        1.0,
        Video(scale),
        Sentence(),
        patches=None if patch_dim is None or patch_count is None else Patches(patch_dim, patch_count),
        patch_dim=patch_dim,
        patch_count=patch_count,
        joint_space=joint_space,
    )


class ToyMethod(Method):
    """Predicts start and end from the mean token; dropout makes it depend on the generator state."""

    def __init__(self, *, training: Training, dropout: float, break_at: int) -> None:
        super().__init__(training)
        self.net = nn.Sequential(nn.Linear(DIM, 16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, 2))
        self.break_at = break_at

    def _spans(self, batch):  # type: ignore[no-untyped-def]
        start, width = self.net(batch["query"].mean(1)).sigmoid().unbind(-1)
        return torch.stack((start, (start + width).clamp(max=1)), -1)

    def losses(self, batch):  # type: ignore[no-untyped-def]
        error = self._spans(batch) - batch["spans"][:, 0]
        broken = self.training and self.trainer.global_step == self.break_at
        return {"span": error.abs().mean(), "odd": error.pow(2).mean() * (float("nan") if broken else 1.0)}

    def predict(self, batch, *, details=False):  # type: ignore[no-untyped-def]
        spans = self._spans(batch)[:, None].repeat(1, 5, 1)
        spans[:, 1:] = 0
        scores = torch.tensor([0.7, 0, 0, 0, 0]).repeat(len(spans), 1)
        return {"spans": spans, "scores": scores}


class At(Callback):
    """At one step, sends a signal to this process, or crashes for signal 0."""

    def __init__(self, step: int, signal: int) -> None:
        self.step, self.signal = step, signal

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:  # type: ignore[no-untyped-def]
        if trainer.global_step == self.step and not self.signal:
            raise VmrError("crashed")
        if trainer.global_step == self.step:
            os.kill(os.getpid(), self.signal)
