"""EMB's released code (Raymond-sci/EMB, commit a81e57a): names of its weights, its optimiser, its golden cases."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from vmr_zoo.released.weights import WeightNames

# The frame branch's stages are f2f, f2w, v2v, the proposals' p2p, p2w, s2s; words are attended on either side.
_SEQUENCE = {
    "f2f": "branch.exchange.units.self",
    "f2w": "branch.exchange.units.cross",
    "v2v": "branch.exchange.units.final",
    "w2w": "branch.exchange.word_units.self",
    "w2f": "branch.exchange.word_units.cross",
    "vq2q": "branch.exchange.word_units.final",
    "p2p": "proposals.exchange.units.self",
    "p2w": "proposals.exchange.units.cross",
    "s2s": "proposals.exchange.units.final",
    "w2p": "proposals.exchange.word_units.cross",
    "pq2q": "proposals.exchange.word_units.final",
}
_ENCODER = rf"encoder\.({'|'.join(_SEQUENCE)})\.layers\.0\."
_FUSER = {"1": "branch.predictor.fusion", "2": "proposals.fusion"}
_JOINT = {"1": "branch.predictor.joint", "2": "proposals.joint"}
_SIMILARITY = {"w4C": "w1", "w4Q": "w2", "w4mlu": "w3"}
_GUIDE = {"conv_layers.0": "depthwise", "conv_layers.1": "pointwise", "layer_norm": "norm"}


def _guide(match: re.Match[str]) -> str:
    return f"{_SEQUENCE[match[1]].replace('units', 'guides')}.{_GUIDE[match[2]]}.{match[3]}"


def _lstm(match: re.Match[str]) -> str:
    direction = "back" if match[3] else "forth"
    return f"branch.predictor.endpoints.{match[1]}_lstm.{direction}.{match[2]}"


class _Names(WeightNames):
    """EMB writes Linear layers as convolutions of width 1, and lays time x columns out as a 2D convolution."""

    def keep(self, name: str, weight: Tensor) -> Tensor:
        """Brings an authors' weight into the shape of ours."""
        if name.endswith("depthwise.weight"):
            return weight.squeeze(1).transpose(1, 2)
        while weight.dim() > 2 and weight.shape[-1] == 1:
            weight = weight.squeeze(-1)
        return weight


NAMES = _Names(
    rules=[
        (r"embedding_net\.linear\.conv1d\.(.*)", r"query_projection.1.\1"),
        (r"video_affine\.linear\.conv1d\.(.*)", r"video_projection.1.\1"),
        (_ENCODER + r"attention\.(query|key|value)\.conv1d\.(.*)", lambda m: f"{_SEQUENCE[m[1]]}.attention.{m[2]}.{m[3]}"),
        (_ENCODER + r"dense\.(\d)\.conv1d\.(.*)", lambda m: f"{_SEQUENCE[m[1]]}.feed_forward.{m[2]}.{m[3]}"),
        (_ENCODER + r"(norm[12])\.(.*)", lambda m: f"{_SEQUENCE[m[1]]}.{m[2]}.{m[3]}"),
        (_ENCODER + r"guide\.(conv_layers\.[01]|layer_norm)\.(.*)", _guide),
        (r"fuser([12])\.cq_attention\.(w4\w+)", lambda m: f"{_FUSER[m[1]]}.attention.{_SIMILARITY[m[2]]}"),
        (r"fuser([12])\.cq_attention\.cqa_linear\.conv1d\.(.*)", lambda m: f"{_FUSER[m[1]]}.attention.output.{m[2]}"),
        (r"fuser([12])\.cq_concat\.weighted_pool\.(.*)", lambda m: f"{_FUSER[m[1]]}.sentence.{m[2]}"),
        (r"fuser([12])\.cq_concat\.conv1d\.conv1d\.(.*)", lambda m: f"{_JOINT[m[1]]}.{m[2]}"),
        (r"highlight_layer\.conv1d\.conv1d\.(.*)", r"branch.predictor.highlight.\1"),
        (r"predictor\.(start|end)_encoder\.rnn\.(.*?)(_reverse)?", _lstm),
        (r"predictor\.(start|end)_encoder\.dense_output\.conv1d\.(.*)", r"branch.predictor.endpoints.\1_linear.\2"),
        (r"predictor\.(start|end)_block\.(\d)\.conv1d\.(.*)", r"branch.predictor.endpoints.\1_output.\2.\3"),
        (r"ranker\.encoders\.0\.(.*)", r"proposals.neighbours.\1"),
        (r"ranker\.predictor\.(.*)", r"proposals.output.\1"),
    ],
    # Words are features here; the table of word vectors is no part of the network. The characters' network runs in
    # the authors' code, but its output is discarded.
    unused=[r"embedding_net\.(word_emb|char_emb)\..*", r"position\.pe"],
)


class AdamW(torch.optim.Optimizer):
    """AdamW as transformers 4.11 had it: epsilon before bias correction, weight decay after the step."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 5e-4,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
    ) -> None:
        """Keeps the defaults for all groups.

        Args:
            params: parameters or groups.
            lr: learning rate.
            betas: of the running means of gradient and squared gradient.
            eps: added to the root of the squared gradient's mean.
            weight_decay: share of a weight, times the learning rate, that a step takes off.
        """
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Takes one step and returns the closure's loss, if there is a closure."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            weights = [p for p in group["params"] if p.grad is not None]
            if not weights:
                continue
            for weight in weights:
                state = self.state[weight]
                if not state:
                    state["step"] = 0
                    state["mean"], state["square"] = torch.zeros_like(weight), torch.zeros_like(weight)
                state["step"] += 1
            grads = [p.grad for p in weights]
            means = [self.state[p]["mean"] for p in weights]
            squares = [self.state[p]["square"] for p in weights]
            beta1, beta2 = group["betas"]
            torch._foreach_lerp_(means, grads, 1 - beta1)
            torch._foreach_mul_(squares, beta2)
            torch._foreach_addcmul_(squares, grads, grads, 1 - beta2)
            roots = torch._foreach_sqrt(squares)
            torch._foreach_add_(roots, group["eps"])
            sizes = [
                -group["lr"] * (1 - beta2 ** self.state[p]["step"]) ** 0.5 / (1 - beta1 ** self.state[p]["step"])
                for p in weights
            ]
            torch._foreach_addcdiv_(weights, means, roots, sizes)
            if group["weight_decay"]:
                torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
        return loss
