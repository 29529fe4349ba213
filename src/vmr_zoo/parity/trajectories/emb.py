"""Trajectories of EMB's released code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from vmr_zoo.methods.base import Method
from vmr_zoo.methods.emb import EMB, overlap_threshold
from vmr_zoo.parity.case import Case, Number
from vmr_zoo.parity.trajectories.base import Losses, ReleasedTrajectory, StepInputs
from vmr_zoo.types import Batch
from vmr_zoo.utils.optimizers import TransformersAdamW

_WORDS = "embedding_net.word_emb"
_CHARACTERS = "embedding_net.char_emb.char_emb.weight"
_LOSSES = {"loc": "endpoint", "highlight": "highlight", "rank": "ranking"}
_IGNORED = {
    "input/char_ids": "the authors' network ignores them as well; below the alphabet's size, 0 on padding",
    "input/durations": "the moments are positions among the frames; longer than 0 s",
}


class EMBTrajectory(ReleasedTrajectory[None]):
    """EMB."""

    sizes = frozenset(
        {
            "video_dim",
            "query_dim",
            "network.dim",
            "network.heads",
            "network.dropout",
            "snippets.max_snippets",
        }
    )
    optimizers: ClassVar = {"AdamW of transformers 4.11.2": TransformersAdamW}

    def recipe(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the values of the training loop by our key."""
        return {
            "trainer.gradient_clip_val": options["clip_norm"],
            "data.batch_size": options["batch_size"],
        }

    def epochs(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Returns nothing: everything changes with the fraction of the training done."""
        return {}

    def loss_weights(self, options: Mapping[str, Any]) -> dict[str, float]:
        """Returns the authors' weights; that of the endpoints is 1."""
        return {
            "endpoint": 1.0,
            "highlight": options["highlight_lambda"],
            "ranking": options["rank_lambda"],
        }

    def prepare(self, method: Method, case: Case) -> None:
        """Reads the vectors that words are looked up by; a word without one has zeros."""
        padding, known = case[f"init/{_WORDS}.pad_vec"], case[f"init/{_WORDS}.glove_vec"]
        self._alphabet = len(case[f"init/{_CHARACTERS}"])
        self._table = torch.cat((padding, torch.zeros_like(padding), known))

    def constants(self, method: Method) -> dict[str, Tensor]:
        """Recomputes the table of positions."""
        assert isinstance(method, EMB)
        like = next(method.parameters())
        zeros = torch.zeros(1, method.snippets.max_snippets, method.network.dim, dtype=like.dtype)
        return {"position.pe": method.add_position(zeros)[0]}

    def step(self, method: Method, case: Case) -> StepInputs[None]:
        """Builds the batch; nothing is drawn."""
        video, lengths = case["input/video_features"], case["input/video_lengths"]
        words, characters, duration = case["input/word_ids"], case["input/char_ids"], case["input/durations"]
        mask = torch.arange(video.shape[1]) < lengths.unsqueeze(1)
        first, last = case["target/start_index"], case["target/end_index"]
        spans = torch.stack((first, last + 1), -1).double() / lengths.unsqueeze(1)
        batch: Batch = {
            "video": video,
            "video_mask": mask,
            "query": self._table[words],
            "query_mask": words != 0,
            "spans": spans.unsqueeze(1),
            "span_mask": torch.ones(len(spans), 1, dtype=torch.bool),
            "duration": duration,
            "video_id": [str(row) for row in range(len(duration))],
        }
        impossible = (characters < 0) | (characters >= self._alphabet)
        impossible |= (characters != 0) & (words == 0).unsqueeze(-1)
        violations = {
            "input/char_ids": int(impossible.sum()),
            "input/durations": int((duration <= 0).sum()),
        }
        numbers = {"input/video_features": Number(video * mask.unsqueeze(-1), 0)}
        return StepInputs(batch, None, numbers, violations, _IGNORED)

    def losses(self, method: Method, batch: Batch, draws: None) -> Losses:
        """Computes the losses, and theta of the current epoch."""
        assert isinstance(method, EMB)
        losses = EMB.losses(method, batch)
        threshold = torch.tensor(overlap_threshold(method.progress()), dtype=torch.float64)
        curves = {f"loss/{theirs}": losses[ours] for theirs, ours in _LOSSES.items()}
        return Losses(losses, curves | {"threshold": threshold})
